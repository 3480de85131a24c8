"""Settings that every training loader takes, beside the index and the recipe's data."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from lsdali.clock import PerEpoch


@dataclass(frozen=True, slots=True)
class LoaderOptions:
    """The settings that every training loader takes."""

    batch: PerEpoch  # of all ranks together
    seed: int
    device: torch.device
    half: bool = False  # images in 16 bit
    sampler: str = "shuffled"  # a name in SAMPLERS
    log: Callable[[str], None] = print  # gets one line for each bad file
