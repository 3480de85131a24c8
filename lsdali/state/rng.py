"""Random generators as a part of a checkpoint."""

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from lsdali import dist


def seed_all(seed: int) -> None:
    """Seed every generator of this process; ranks draw different numbers."""
    mixed = int(np.random.SeedSequence([seed, dist.rank()]).generate_state(1, np.uint64)[0] >> np.uint64(1))
    random.seed(mixed)
    np.random.seed(mixed % 2**32)
    torch.manual_seed(mixed)


class Generators:
    """Python's, NumPy's and torch's generators of every rank as one part of a checkpoint.

    On another number of ranks the saved states do not apply: each rank then keeps the seeds that it began with.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def state_dict(self) -> dict[str, Any]:
        version, words, gauss = random.getstate()
        _, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
        mine = {
            "python": [version, list(words), gauss],
            "numpy": [keys.tolist(), int(position), int(has_gauss), float(cached)],  # type: ignore[union-attr]
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None,
        }
        return {"ranks": dist.gather_objects(mine)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if len(state["ranks"]) != dist.world():
            return
        mine = state["ranks"][dist.rank()]
        version, words, gauss = mine["python"]
        random.setstate((version, tuple(words), gauss))
        keys, position, has_gauss, cached = mine["numpy"]
        np.random.set_state(("MT19937", np.array(keys, np.uint32), position, has_gauss, cached))
        torch.set_rng_state(mine["torch"])
        if self.device.type == "cuda" and mine["cuda"] is not None:
            torch.cuda.set_rng_state(mine["cuda"], self.device)
