"""Filters of resizing."""

from typing import Literal

from lsdali.config import Config


class Resizing(Config):
    """The filter of a crop that resizes."""

    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    """The filter of the resizing: bilinear (a triangle), or bicubic (Keys 1981 with a = -0.5, as Pillow has it)."""
    antialias: bool = True
    """Whether the filter widens if an image shrinks, as Pillow does it; false: it reads only the nearest 2 x 2 or 4
    x 4 pixels."""
