"""What a stream of training batches is made from, beside the index and the recipe's data."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from lsdali.clock import PerEpoch


@dataclass(frozen=True, slots=True)
class Stream:
    """The settings that every training loader takes."""

    batch: PerEpoch  # of all ranks together
    seed: int
    device: torch.device
    half: bool = False  # images in 16 bit
    sampler: str = "shuffled"  # a name in SAMPLERS
    say: Callable[[str], None] = print  # gets one line for each bad file
