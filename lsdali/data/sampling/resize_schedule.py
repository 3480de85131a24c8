"""Image size as a function of the epoch."""

from typing import Annotated

from pydantic import Field, model_validator

from lsdali.config import Config


class Ramp(Config):
    """Image size that rises with the epoch (progressive resizing; Howard, 2018; the linear ramp of FFCV, 2022)."""

    first: Annotated[int, Field(ge=1, le=4096)]
    """Side in pixels at the beginning."""
    start: int = Field(0, ge=0, le=1_000_000)
    """After how many epochs comes the last one with the first size."""
    end: int = Field(ge=1, le=1_000_000)
    """After how many epochs images have the full size; sizes in between lie on a line."""
    multiple: int = Field(32, ge=1, le=4096)
    """Sizes in between are rounded to a multiple of this."""

    @model_validator(mode="after")
    def _forward(self) -> "Ramp":
        if self.end <= self.start:
            raise ValueError(f"end {self.end} must come after start {self.start}")
        return self

    def size_at(self, epoch: int, last: int) -> int:
        """Return pixels a side in one epoch, where `last` is the full size."""
        if epoch <= self.start:
            return self.first
        if epoch >= self.end:
            return last
        exact = self.first + (last - self.first) * (epoch - self.start) / (self.end - self.start)
        return min(max(int(exact / self.multiple + 0.5) * self.multiple, self.first), last)
