"""Augmentations that a recipe can list, and their choices as functions of random numbers.

`data.train.augment` is a list, applied in its order to the cropped uint8 image of size x size pixels; random
erasing comes last, after normalisation. What is drawn depends on (seed, epoch, sample, place in the list)
alone: the same on any number of ranks and after any seek. effects.py has the DALI side of each.
"""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from lsdali.config import Config
from lsdali.data.sampling.crops import Floats
from lsdali.data.sampling.resize_schedule import Ramp
from lsdali.data.sampling.sampler import Ints, uniforms

Choices = tuple[NDArray[Any], ...]  # [n, ...] each, as the graph reads them

Fraction = Annotated[float, Field(ge=0, le=1)]
Interval = Annotated[tuple[float, float], Field(strict=False)]
Level = Annotated[int, Field(ge=0, le=255)]
Bin = Annotated[int, Field(ge=0, le=30)]

BINS = 31  # magnitudes of RandAugment and TrivialAugment: 0 to 30
SUITE = 14  # their operations
SUB_POLICIES, STAGES = 25, 2  # AutoAugment's
ERASE_TRIES = 10  # of random erasing
_STREAM = 10  # of the first augmentation in the list; crops.py uses the numbers below
MAX_STREAM = 90  # streams up to 100 are free

# Of ImageNet's pixels in 0..1 (Krizhevsky, Sutskever and Hinton, 2012); rows are red, green, blue.
PCA_VALUES = np.array([0.2175, 0.0188, 0.0045])
PCA_VECTORS = np.array([[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]])


class Augmentation(Config):
    """What every augmentation has."""

    name: str
    outputs: ClassVar[int] = 1  # arrays in choices()
    after: ClassVar[Literal["crop", "normalisation"]] = "crop"

    @property
    @abstractmethod
    def columns(self) -> int:
        """Random numbers that a sample takes."""

    @abstractmethod
    def choices(self, u: Floats, side: int) -> Choices:
        """[n, columns] in [0, 1), pixels a side -> what effects.py needs, [n, ...] each."""


class ColorJitter(Augmentation):
    """Random brightness, contrast, saturation and hue, in this order (Howard, 2013; ranges as in torchvision).

    torchvision draws the order anew for each image and turns hue in HSV space; here hue turns in YIQ space.
    """

    name: Literal["color_jitter"] = "color_jitter"
    brightness: float = Field(0.4, ge=0)
    """The factor is drawn from max(0, 1 - brightness) to 1 + brightness."""
    contrast: float = Field(0.4, ge=0)
    """The same, for the distance to the image's mean gray."""
    saturation: float = Field(0.4, ge=0)
    """The same, for the distance to the pixel's own gray."""
    hue: float = Field(0.1, ge=0, le=0.5)
    """The turn is drawn from -hue to hue; 1 is the whole circle."""
    probability: Fraction = 1.0
    """How many of the images are changed."""
    outputs: ClassVar[int] = 4

    @property
    def columns(self) -> int:
        return 5

    def choices(self, u: Floats, side: int) -> Choices:
        """Factors of brightness, contrast and saturation, and degrees of hue: [n] float32 each."""
        on = u[:, 0] < self.probability
        out = []
        for k, spread in enumerate((self.brightness, self.contrast, self.saturation)):
            low = max(0.0, 1 - spread)
            out.append(np.where(on, low + u[:, 1 + k] * (1 + spread - low), 1.0).astype(np.float32))
        return *out, np.where(on, 360 * self.hue * (2 * u[:, 4] - 1), 0.0).astype(np.float32)


class Lighting(Augmentation):
    """AlexNet's colour shift along the principal components of ImageNet's pixels (Krizhevsky et al., 2012)."""

    name: Literal["lighting"] = "lighting"
    std: float = Field(0.1, ge=0)
    """Standard deviation of the normal factor that each component gets."""

    @property
    def columns(self) -> int:
        return 6

    def choices(self, u: Floats, side: int) -> Choices:
        """The shift of red, green and blue in levels: [n, 1, 1, 3] float32."""
        # Box and Muller: two uniform numbers make a normal one.
        normal = np.sqrt(-2 * np.log1p(-u[:, :3])) * np.cos(2 * np.pi * u[:, 3:])
        shift = 255 * (self.std * normal * PCA_VALUES) @ PCA_VECTORS.T
        return (shift.astype(np.float32)[:, None, None, :],)


class Grayscale(Augmentation):
    """Some images lose their colour (as in SimCLR; Chen et al., 2020)."""

    name: Literal["grayscale"] = "grayscale"
    probability: Fraction = 0.2
    """How many of the images are changed."""

    @property
    def columns(self) -> int:
        return 1

    def choices(self, u: Floats, side: int) -> Choices:
        """Saturation, 0 or 1: [n] float32."""
        return ((u[:, 0] >= self.probability).astype(np.float32),)


class Rotation(Augmentation):
    """A turn about the image's centre, bilinear; corners are filled."""

    name: Literal["rotation"] = "rotation"
    degrees: float = Field(15.0, ge=0, le=180)
    """The angle is drawn from -degrees to degrees."""
    probability: Fraction = 1.0
    """How many of the images are turned."""
    fill: Level = 0
    """Gray level of the corners."""

    @property
    def columns(self) -> int:
        return 2

    def choices(self, u: Floats, side: int) -> Choices:
        """Degrees, counter-clockwise: [n] float32."""
        angle = self.degrees * (2 * u[:, 1] - 1)
        return (np.where(u[:, 0] < self.probability, angle, 0.0).astype(np.float32),)


class RandAugment(Augmentation):
    """n operations at magnitude m, drawn from fourteen (Cubuk et al., 2020), the strength rising with m."""

    name: Literal["rand_augment"] = "rand_augment"
    n: int = Field(2, ge=1, le=10)
    """Operations that each image gets."""
    m: Bin = 9
    """Their magnitude, 0 to 30."""
    fill: Level = 128
    """Gray level of the pixels that shears, shifts and turns lay bare."""
    outputs: ClassVar[int] = 2

    @property
    def columns(self) -> int:
        return 2 * self.n

    def choices(self, u: Floats, side: int) -> Choices:
        """Operation, 0 to 13, and sign, 0 or 1: [n, self.n] int32 each."""
        return (u[:, : self.n] * SUITE).astype(np.int32), (u[:, self.n :] * 2).astype(np.int32)


class TrivialAugment(Augmentation):
    """One operation of fourteen at a random magnitude from a wide range (Mueller and Hutter, 2021)."""

    name: Literal["trivial_augment_wide"] = "trivial_augment_wide"
    fill: Level = 128
    """Gray level of the pixels that shears, shifts and turns lay bare."""
    outputs: ClassVar[int] = 3

    @property
    def columns(self) -> int:
        return 3

    def choices(self, u: Floats, side: int) -> Choices:
        """Operation, 0 to 13, magnitude, 0 to 30, and sign, 0 or 1: [n] int32 each."""
        draws = (u * (SUITE, BINS, 2)).astype(np.int32)
        return draws[:, 0], draws[:, 1], draws[:, 2]


class AutoAugment(Augmentation):
    """One of 25 learned pairs of operations, each with its own probability (Cubuk et al., 2019)."""

    name: Literal["auto_augment"] = "auto_augment"
    policy: Literal["imagenet", "cifar10"] = "imagenet"
    """The data set that the pairs were learned on."""
    fill: Level = 128
    """Gray level of the pixels that shears, shifts and turns lay bare."""
    outputs: ClassVar[int] = 3

    @property
    def columns(self) -> int:
        return 1 + 2 * STAGES

    def choices(self, u: Floats, side: int) -> Choices:
        """Pair [n] int32; number in [0, 1) to hold against the probability [n, 2] float32; sign [n, 2] int32."""
        pair = (u[:, 0] * SUB_POLICIES).astype(np.int32)
        chance = np.floor(u[:, 1 : 1 + STAGES] * 2**24) / 2**24  # float32 must not round it up to 1
        return pair, chance.astype(np.float32), (u[:, 1 + STAGES :] * 2).astype(np.int32)


class RandomErasing(Augmentation):
    """A rectangle of one colour over the normalised image (Zhong et al., 2020; geometry as in torchvision)."""

    name: Literal["random_erasing"] = "random_erasing"
    probability: Fraction = 0.25
    """How many of the images get a rectangle."""
    scale: Interval = (0.02, 1 / 3)
    """Smallest and largest area, as a share of the image."""
    ratio: Interval = (0.3, 3.3)
    """Smallest and largest height / width."""
    value: float = 0.0
    """The colour, in standard deviations from the data's mean colour; 0 is that colour."""
    outputs: ClassVar[int] = 2
    after: ClassVar[Literal["crop", "normalisation"]] = "normalisation"

    @model_validator(mode="after")
    def _ordered(self) -> "RandomErasing":
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(f"scale {self.scale} must be two rising shares of the area, above 0 and up to 1")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise ValueError(f"ratio {self.ratio} must be two rising numbers above 0")
        return self

    @property
    def columns(self) -> int:
        return 3 + 2 * ERASE_TRIES

    def choices(self, u: Floats, side: int) -> Choices:
        """Top left corner (y, x) and shape (h, w) in pixels, [n, 2] float32 each; shape 0 erases nothing.

        The first of ten tries that is smaller than the image; where none is, nothing is erased.
        """
        area = side * side * (self.scale[0] + u[:, 3 : 3 + ERASE_TRIES] * (self.scale[1] - self.scale[0]))
        low, high = np.log(self.ratio)
        aspect = np.exp(low + u[:, 3 + ERASE_TRIES :] * (high - low))
        h, w = np.rint(np.sqrt(area * aspect)), np.rint(np.sqrt(area / aspect))
        fits = (h < side) & (w < side)
        first = (np.arange(len(u)), fits.argmax(1))
        shape = np.stack([h[first], w[first]], 1)
        shape[(u[:, 0] >= self.probability) | ~fits.any(1)] = 0
        anchor = np.floor(u[:, 1:3] * (side - shape + 1))
        return anchor.astype(np.float32), shape.astype(np.float32)


Augment = Annotated[
    ColorJitter | Lighting | Grayscale | Rotation | RandAugment | TrivialAugment | AutoAugment | RandomErasing,
    Field(discriminator="name"),
]


class TrainImages(Config):
    """What every kind of training crop has."""

    size: Annotated[int, Field(ge=1)]
    """Side of the square that the network sees, in pixels."""
    flip: Fraction = 0.5
    """Probability of a horizontal flip."""
    augment: Annotated[tuple[Augment, ...], Field(strict=False, max_length=MAX_STREAM)] = ()
    """Augmentations after crop and flip, applied in this order."""
    repeats: int = Field(1, ge=1)
    """Repeated augmentation (Hoffer et al., 2020): how often a batch holds each of its samples, differently augmented.

    An epoch then sees 1 / repeats of the samples.
    """
    ramp: Ramp | None = None
    """Progressive resizing: smaller images in the first epochs; null: `size` in every epoch."""

    def size_at(self, epoch: int) -> int:
        """Pixels a side in one epoch."""
        return self.size if self.ramp is None else self.ramp.size_at(epoch, self.size)

    @model_validator(mode="after")
    def _rising(self) -> "TrainImages":
        if self.ramp is not None and self.ramp.first > self.size:
            raise ValueError(f"ramp.first {self.ramp.first} must not be above size {self.size}, which the ramp ends at")
        return self

    @model_validator(mode="after")
    def _erasing_last(self) -> "TrainImages":
        places = [a.after for a in self.augment]
        if places != sorted(places):
            late = next(a.name for a in self.augment if a.after == "normalisation")
            raise ValueError(f"{late} works on the normalised image: put it at the end of augment")
        return self


def draw_choices(augment: Sequence[Augmentation], seed: int, epoch: int, key: Ints, side: int) -> Choices:
    """[n] keys (samples, and which copy of each) -> the arrays of every augmentation, one after the other."""
    out: list[NDArray[Any]] = []
    for k, a in enumerate(augment):
        out += a.choices(uniforms(seed, epoch, key, a.columns, _STREAM + k), side)
    return tuple(np.ascontiguousarray(rows) for rows in out)  # DALI reads no strides
