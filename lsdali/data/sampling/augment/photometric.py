"""Augmentations of colours, and a rotation."""

from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from lsdali.data.sampling.augment.base import Augmentation, Choices, Fraction, Level
from lsdali.data.sampling.crops import Floats

# Of ImageNet's pixels in 0..1 (Krizhevsky, Sutskever and Hinton, 2012); rows are red, green, blue.
PCA_VALUES = np.array([0.2175, 0.0188, 0.0045])
PCA_VECTORS = np.array([[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]])


class ColorJitter(Augmentation):
    """Random brightness, contrast, saturation and hue, in this order (Howard, 2013; ranges as in torchvision).

    torchvision draws the order anew for each image and turns hue in HSV space; here hue turns in YIQ space.
    """

    name: Literal["color_jitter"] = "color_jitter"
    brightness: float = Field(0.4, ge=0, le=1e9)
    """The factor is drawn from max(0, 1 - brightness) to 1 + brightness."""
    contrast: float = Field(0.4, ge=0, le=1e9)
    """The same, for the distance to the image's mean gray."""
    saturation: float = Field(0.4, ge=0, le=1e9)
    """The same, for the distance to the pixel's own gray."""
    hue: float = Field(0.1, ge=0, le=0.5)
    """The shift of the hue is drawn from -hue to hue; 1 is the full circle."""
    probability: Fraction = 1.0
    """Share of the images that are changed."""
    outputs: ClassVar[int] = 4

    @property
    def columns(self) -> int:
        return 5

    def choices(self, u: Floats, side: int) -> Choices:
        """Return factors of brightness, contrast and saturation, and degrees of hue: [n] float32 each."""
        on = u[:, 0] < self.probability
        out = []
        for k, spread in enumerate((self.brightness, self.contrast, self.saturation)):
            low = max(0.0, 1 - spread)
            out.append(np.where(on, low + u[:, 1 + k] * (1 + spread - low), 1.0).astype(np.float32))
        return *out, np.where(on, 360 * self.hue * (2 * u[:, 4] - 1), 0.0).astype(np.float32)


class Lighting(Augmentation):
    """AlexNet's colour shift along the principal components of ImageNet's pixels (Krizhevsky et al., 2012)."""

    name: Literal["lighting"] = "lighting"
    std: float = Field(0.1, ge=0, le=1e9)
    """Standard deviation of the normal factor that each component gets."""

    @property
    def columns(self) -> int:
        return 6

    def choices(self, u: Floats, side: int) -> Choices:
        """Return the shift of red, green and blue in levels: [n, 1, 1, 3] float32."""
        # Box and Muller: two uniform numbers make a normal one.
        normal = np.sqrt(-2 * np.log1p(-u[:, :3])) * np.cos(2 * np.pi * u[:, 3:])
        shift = 255 * (self.std * normal * PCA_VALUES) @ PCA_VECTORS.T
        return (shift.astype(np.float32)[:, None, None, :],)


class Grayscale(Augmentation):
    """Some images lose their colour (as in SimCLR; Chen et al., 2020)."""

    name: Literal["grayscale"] = "grayscale"
    probability: Fraction = 0.2
    """Share of the images that are changed."""

    @property
    def columns(self) -> int:
        return 1

    def choices(self, u: Floats, side: int) -> Choices:
        """Return saturation, 0 or 1: [n] float32."""
        return ((u[:, 0] >= self.probability).astype(np.float32),)


class Rotation(Augmentation):
    """Rotation about the image's centre, bilinear; corners are filled."""

    name: Literal["rotation"] = "rotation"
    degrees: float = Field(15.0, ge=0, le=180)
    """The angle is drawn from -degrees to degrees."""
    probability: Fraction = 1.0
    """Share of the images that are rotated."""
    fill: Level = 0
    """Gray level of the corners."""

    @property
    def columns(self) -> int:
        return 2

    def choices(self, u: Floats, side: int) -> Choices:
        """Return degrees, counter-clockwise: [n] float32."""
        angle = self.degrees * (2 * u[:, 1] - 1)
        return (np.where(u[:, 0] < self.probability, angle, 0.0).astype(np.float32),)


AUGMENTATIONS = {"color_jitter": ColorJitter, "lighting": Lighting, "grayscale": Grayscale, "rotation": Rotation}
