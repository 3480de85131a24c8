"""Batch: what a loader yields and a method reads."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

Normal = tuple[tuple[float, float, float], tuple[float, float, float]]
"""Mean and standard deviation of red, green and blue (values in 0..1) by which images are normalised."""


@dataclass(frozen=True, slots=True)
class Mixture:
    """The partners of a batch's images: image b is `lam` times itself plus 1 - lam times its partner."""

    labels: Tensor  # [B] int64 class of the partners
    lam: float


@dataclass(frozen=True, slots=True)
class Batch:
    """One rank's share of a step."""

    images: Tensor  # [B, 3, H, W] normalised, on this rank's device
    labels: Tensor  # [B] int64 class, on this rank's device
    index: Tensor  # [B] int64 number in the data set, on the host
    valid: Tensor  # [B] bool, on this rank's device; False where evaluation padded the last batch
    stand_in: Tensor | None = None  # [B] bool, on the host, True where it replaces a bad file; None: nowhere
    mixture: Mixture | None = None  # None where the images are whole

    def __len__(self) -> int:
        return len(self.index)

    @property
    def genuine(self) -> Tensor | None:
        """[B] bool on the host: whether a sample is its own, not a stand-in's; None if all are."""
        return None if self.stand_in is None else ~self.stand_in

    def part(self, start: int, stop: int) -> "Batch":
        """Return samples start to stop - 1, as views."""
        s = slice(start, stop)
        stand_in = None if self.stand_in is None else self.stand_in[s]
        mixture = None if self.mixture is None else Mixture(self.mixture.labels[s], self.mixture.lam)
        return Batch(self.images[s], self.labels[s], self.index[s], self.valid[s], stand_in, mixture)

    def per_label(self, term: Callable[[Tensor], Tensor]) -> Tensor:
        """Return `term(labels)`; for mixed images both labels' terms, weighted as the images are.

        For a loss that is linear in the label's target this is the loss against the mixed target (Zhang et al. 2018).
        """
        if self.mixture is None:
            return term(self.labels)
        return self.mixture.lam * term(self.labels) + (1 - self.mixture.lam) * term(self.mixture.labels)


class TrainData(Protocol):
    """One rank's training batches."""

    def epoch(self, step: int) -> Iterator[Batch]:
        """Yield batches from a global step to its epoch's end."""
        ...
