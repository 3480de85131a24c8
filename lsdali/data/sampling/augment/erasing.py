"""Random erasing."""

from typing import ClassVar, Literal

import numpy as np
from pydantic import model_validator

from lsdali.data.sampling.augment.base import Augmentation, Bounded, Choices, Fraction, Interval
from lsdali.data.sampling.crops import Floats

ERASE_TRIES = 10


class RandomErasing(Augmentation):
    """A rectangle of one colour over the normalised image (Zhong et al., 2020; geometry as in torchvision)."""

    name: Literal["random_erasing"] = "random_erasing"
    probability: Fraction = 0.25
    """Share of the images that get a rectangle."""
    scale: Interval = (0.02, 1 / 3)
    """Smallest and largest area, as a share of the image."""
    ratio: Interval = (0.3, 3.3)
    """Smallest and largest height / width."""
    value: Bounded = 0.0
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
        """Return top left corner (y, x) and shape (h, w) in pixels, [n, 2] float32 each; shape 0 erases nothing.

        The first of ten tries that is smaller than the image; if none is, nothing is erased.
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


AUGMENTATIONS = {"random_erasing": RandomErasing}
