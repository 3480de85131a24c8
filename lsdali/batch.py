"""Batch: what a loader yields and a method reads."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Batch:
    """One rank's share of a step."""

    images: Tensor  # [B, 3, H, W] normalised, on this rank's device
    labels: Tensor  # [B] int64 class, on this rank's device
    index: Tensor  # [B] int64 place in the data set, on the host
    valid: Tensor  # [B] bool, on this rank's device; False where evaluation padded the last batch

    def __len__(self) -> int:
        return len(self.index)

    def part(self, start: int, stop: int) -> "Batch":
        """Samples start to stop - 1, as views."""
        s = slice(start, stop)
        return Batch(self.images[s], self.labels[s], self.index[s], self.valid[s])
