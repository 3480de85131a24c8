"""Augmentations that draw from a suite of operations: RandAugment, TrivialAugment, AutoAugment."""

from typing import Annotated, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from lsdali.data.sampling.augment.base import Augmentation, Choices, Level
from lsdali.data.sampling.crops import Floats

Bin = Annotated[int, Field(ge=0, le=30)]

BINS = 31  # magnitudes of RandAugment and TrivialAugment: 0 to 30
SUITE = 14  # their operations
IDENTITY = 13  # the last of RandAugment's
SUB_POLICIES, STAGES = 25, 2  # AutoAugment's


class RandAugment(Augmentation):
    """n operations at magnitude m, drawn from fourteen (Cubuk et al., 2020), the strength rising with m."""

    name: Literal["rand_augment"] = "rand_augment"
    n: int = Field(2, ge=1, le=10)
    """Operations that each image gets."""
    m: Bin = 9
    """Their magnitude, 0 to 30."""
    fill: Level = 128
    """Gray level of the pixels that shears, shifts and rotations expose."""
    copies: Literal["all", "later"] = "all"
    """Which copies of an image get it, if a batch has several (`repeats`): all, or all except the first."""
    outputs: ClassVar[int] = 2

    @property
    def columns(self) -> int:
        return 2 * self.n

    def spared(self, chosen: Choices, first: NDArray[np.bool_]) -> Choices:
        """Return the choices of [n] images, of which `first` copies stay as they are if the config says so."""
        if self.copies == "later":
            chosen[0][first] = IDENTITY
        return chosen

    def choices(self, u: Floats, side: int) -> Choices:
        """Return operation, 0 to 13, and sign, 0 or 1: [n, self.n] int32 each."""
        return (u[:, : self.n] * SUITE).astype(np.int32), (u[:, self.n :] * 2).astype(np.int32)


class TrivialAugment(Augmentation):
    """One operation of fourteen at a random magnitude from a wide range (Mueller and Hutter, 2021)."""

    name: Literal["trivial_augment_wide"] = "trivial_augment_wide"
    fill: Level = 128
    """Gray level of the pixels that shears, shifts and rotations expose."""
    outputs: ClassVar[int] = 3

    @property
    def columns(self) -> int:
        return 3

    def choices(self, u: Floats, side: int) -> Choices:
        """Return operation, 0 to 13, magnitude, 0 to 30, and sign, 0 or 1: [n] int32 each."""
        draws = (u * (SUITE, BINS, 2)).astype(np.int32)
        return draws[:, 0], draws[:, 1], draws[:, 2]


class AutoAugment(Augmentation):
    """One of 25 learned pairs of operations, each with its own probability (Cubuk et al., 2019)."""

    name: Literal["auto_augment"] = "auto_augment"
    policy: Literal["imagenet", "cifar10"] = "imagenet"
    """The data set that the pairs were learned on."""
    fill: Level = 128
    """Gray level of the pixels that shears, shifts and rotations expose."""
    outputs: ClassVar[int] = 3

    @property
    def columns(self) -> int:
        return 1 + 2 * STAGES

    def choices(self, u: Floats, side: int) -> Choices:
        """Return pair [n] int32; number in [0, 1) to hold against the probability [n, 2] float32; sign [n, 2] int32."""
        pair = (u[:, 0] * SUB_POLICIES).astype(np.int32)
        chance = np.floor(u[:, 1 : 1 + STAGES] * 2**24) / 2**24  # float32 must not round it up to 1
        return pair, chance.astype(np.float32), (u[:, 1 + STAGES :] * 2).astype(np.int32)


AUGMENTATIONS = {"rand_augment": RandAugment, "trivial_augment_wide": TrivialAugment, "auto_augment": AutoAugment}
