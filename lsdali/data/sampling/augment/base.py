"""The base of augmentations: a config, and its random choices as a function of uniform numbers."""

from abc import abstractmethod
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from lsdali.config import Config
from lsdali.data.sampling.crops import Floats

Choices = tuple[NDArray[Any], ...]  # [n, ...] each, as the graph reads them

Fraction = Annotated[float, Field(ge=0, le=1)]
Bounded = Annotated[float, Field(ge=-1e6, le=1e6)]
Interval = Annotated[tuple[Bounded, Bounded], Field(strict=False)]
Level = Annotated[int, Field(ge=0, le=255)]


class Augmentation(Config):
    """Base of all augmentations."""

    name: str
    outputs: ClassVar[int] = 1  # arrays in choices()
    after: ClassVar[Literal["crop", "normalisation"]] = "crop"

    @property
    @abstractmethod
    def columns(self) -> int:
        """Random numbers that a sample takes."""

    def spared(self, chosen: Choices, first: NDArray[np.bool_]) -> Choices:
        """Return the choices of [n] images, of which those with `first` True are the first of their copies."""
        return chosen

    @abstractmethod
    def choices(self, u: Floats, side: int) -> Choices:
        """Map [n, columns] in [0, 1), pixels a side -> what the DALI side needs, [n, ...] each."""
