"""Augmentations that a recipe can list, and their choices as functions of random numbers.

`data.train.augment` is a list, applied in its order to the cropped uint8 image of size x size pixels; random
erasing comes last, after normalisation. What is drawn depends on (seed, epoch, sample, position in the list)
alone: the same on any number of ranks and after any seek. pipeline/dali_ops has the DALI side of each.
"""

from bisect import bisect_right
from collections.abc import Sequence
from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from lsdali import parts
from lsdali.config import Config
from lsdali.data.sampling.augment.base import Augmentation, Choices, Fraction
from lsdali.data.sampling.resize_schedule import Ramp
from lsdali.data.sampling.sampler import Ints, uniforms

_STREAM = 10  # of the first augmentation in the list; crops.py uses the numbers below
MAX_STREAM = 90  # streams up to 100 are free

AUGMENTATION_FILES = (
    "photometric",
    "policies",
    "erasing",
)
"""Files beside this one, each with a dict AUGMENTATIONS; data/pipeline/dali_ops has a file of the same name."""

AUGMENTATIONS: dict[str, type[Augmentation]] = parts.from_files(
    "lsdali.data.sampling.augment", AUGMENTATION_FILES, "AUGMENTATIONS"
)
parts.opened("AUGMENTATIONS", AUGMENTATIONS, "augmentation", parts.tagged(Augmentation, lambda kind: kind), "EFFECTS")

if TYPE_CHECKING:
    Augment = Augmentation
else:
    Augment = Annotated[reduce(or_, AUGMENTATIONS.values()), Field(discriminator="name")]


class TrainImages(Config):
    """Base of all training crops."""

    size: Annotated[int, Field(ge=1, le=4096)]
    """Side of the square that the network sees, in pixels."""
    flip: Fraction = 0.5
    """Probability of a horizontal flip."""
    augment: Annotated[tuple[Augment, ...], Field(strict=False, max_length=MAX_STREAM)] = ()
    """Augmentations after crop and flip, applied in this order."""
    repeats: int = Field(1, ge=1, le=1000)
    """Repeated augmentation (Hoffer et al., 2020): how often a batch holds each of its samples, differently augmented.

    An epoch then sees 1 / repeats of the samples.
    """
    ramp: Ramp | None = None
    """Progressive resizing: smaller images in the first epochs; null: `size` in every epoch."""

    def size_at(self, epoch: int) -> int:
        """Return pixels a side in one epoch."""
        return self.size if self.ramp is None else self.ramp.size_at(epoch, self.size)

    def sizes(self, epochs: int) -> list[int]:
        """Return each size that a run of so many epochs has, once, rising."""
        out, epoch = [], 0
        while epoch < epochs:
            out.append(self.size_at(epoch))
            epoch = bisect_right(range(epochs), out[-1], lo=epoch, key=self.size_at)
        return out

    @model_validator(mode="after")
    def _rising(self) -> "TrainImages":
        if self.ramp is not None and self.ramp.first > self.size:
            raise ValueError(f"ramp.first {self.ramp.first} must not be above size {self.size}, which the ramp ends at")
        return self

    @model_validator(mode="after")
    def _later_copies(self) -> "TrainImages":
        if self.repeats == 1 and any(getattr(a, "copies", "all") == "later" for a in self.augment):
            raise ValueError("copies: later leaves out the only copy of every image: give repeats of at least 2")
        return self

    @model_validator(mode="after")
    def _erasing_last(self) -> "TrainImages":
        stages = [a.after for a in self.augment]
        if stages != sorted(stages):
            late = next(a.name for a in self.augment if a.after == "normalisation")
            raise ValueError(f"{late} works on the normalised image: put it at the end of augment")
        return self


def draw_choices(
    augment: Sequence[Augmentation], seed: int, epoch: int, key: Ints, side: int, first: NDArray[np.bool_] | None = None
) -> Choices:
    """Map [n] keys (samples, and which copy of each) -> the arrays of every augmentation, one after the other.

    `first` [n] is true if a copy is the first of its sample; None: all are.
    """
    out: list[NDArray[Any]] = []
    first = np.ones(len(key), bool) if first is None else first
    for k, a in enumerate(augment):
        out += a.spared(a.choices(uniforms(seed, epoch, key, a.columns, _STREAM + k), side), first)
    return tuple(np.ascontiguousarray(rows) for rows in out)  # DALI reads no strides
