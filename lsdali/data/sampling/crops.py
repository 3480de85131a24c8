"""torchvision's crops as functions of random numbers and image sizes: which part of an image is decoded.

Sizes are (width, height), as the index has them; windows are (y, x) and (h, w), as DALI wants them.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lsdali.data.sampling.sampler import Ints, uniforms

Floats = NDArray[np.float64]
Sizes = NDArray[np.integer[Any]]
Window = NDArray[np.int32]  # DALI's decoder takes no other integer

CROP_TRIES = 10
CROP_COLUMNS = 2 * CROP_TRIES + 2  # an area and a ratio for each try, then y and x
_WINDOW, _FLIP = 1, 2  # streams of random numbers


def crop_uniforms(seed: int, epoch: int, index: Ints) -> Floats:
    """Map [n] -> [n, CROP_COLUMNS] in [0, 1), for the functions below."""
    return uniforms(seed, epoch, index, CROP_COLUMNS, _WINDOW)


def flips(seed: int, epoch: int, index: Ints, probability: float) -> NDArray[np.int32]:
    """Map [n] -> [n] 1 if the image is mirrored, else 0."""
    return (uniforms(seed, epoch, index, 1, _FLIP)[:, 0] < probability).astype(np.int32)


def random_resized_crop(
    u: Floats, size: Sizes, scale: tuple[float, float], ratio: tuple[float, float]
) -> tuple[Window, Window]:
    """Map [n, CROP_COLUMNS], [n, 2] -> start (y, x) [n, 2] and shape (h, w) [n, 2].

    As torchvision's RandomResizedCrop: the first of ten tries that fits, else a central window.
    """
    width, height = size[:, :1].astype(np.int64), size[:, 1:].astype(np.int64)
    area = width * height * (scale[0] + u[:, :CROP_TRIES] * (scale[1] - scale[0]))
    low, high = np.log(ratio)
    aspect = np.exp(low + u[:, CROP_TRIES : 2 * CROP_TRIES] * (high - low))
    w, h = np.rint(np.sqrt(area * aspect)), np.rint(np.sqrt(area / aspect))
    fits = (w > 0) & (w <= width) & (h > 0) & (h <= height)
    first = (np.arange(len(u)), fits.argmax(1))
    shape = np.stack([h[first], w[first]], 1).astype(np.int32)
    image = size[:, ::-1].astype(np.int32)
    start = np.floor(u[:, 2 * CROP_TRIES :] * (image - shape + 1)).astype(np.int32)
    failed = ~fits.any(1)
    shape[failed] = _central_shape(image[failed], ratio)
    start[failed] = (image[failed] - shape[failed]) // 2
    return start, shape


def _central_shape(image: Window, ratio: tuple[float, float]) -> Window:
    """[n, 2] (h, w) -> the largest window whose ratio is allowed."""
    h, w = image[:, 0], image[:, 1]
    narrow, wide = w / h < ratio[0], w / h > ratio[1]
    return np.stack([np.where(narrow, np.rint(w / ratio[0]), h), np.where(wide, np.rint(h * ratio[1]), w)], 1).astype(
        np.int32
    )


def mirrored(low: Floats, high: Floats, mirror: NDArray[np.int32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Map low and high [n, 2] (y, x) of a window, [n] -> the same, swapped in x where mirrored."""
    flip = np.stack([np.zeros_like(mirror), mirror], 1) == 1
    return np.where(flip, high, low).astype(np.float32), np.where(flip, low, high).astype(np.float32)


def pad_crop(u: Floats, size: Sizes, side: int, pad: int) -> Window:
    """Map [n, CROP_COLUMNS], [n, 2] -> start (y, x) [n, 2] of a side x side window; beyond the image it is black.

    Needs images of at least side - 2 pad pixels either way.
    """
    room = size[:, ::-1] + 2 * pad - side + 1
    return np.floor(u[:, 2 * CROP_TRIES :] * room).astype(np.int32) - pad


@dataclass(frozen=True, slots=True)
class ResizedWindow:
    """Decode [start, start + shape) of the image; resize the part [low, high) of that."""

    start: Window  # [n, 2] y, x
    shape: Window  # [n, 2] h, w
    low: Floats  # [n, 2] y, x, relative to start
    high: Floats  # [n, 2]


Filter = Literal["bilinear", "bicubic"]
FILTER_REACH = {"bilinear": 1, "bicubic": 2}
"""How many output pixels, or input pixels if an image grows, a filter reads beyond the window."""


def center_crop(
    size: Sizes, resize: int, side: int, sides: Literal["shorter", "both"] = "shorter", by: Filter = "bilinear"
) -> ResizedWindow:
    """Map [n, 2] -> torchvision's Resize and CenterCrop(side) as one window of the original image.

    Resize(resize) for the shorter side, Resize((resize, resize)) for both.
    """
    image = size[:, ::-1].astype(np.int64)
    resized = np.full_like(image, resize)
    if sides == "shorter":
        short, long = image.min(1, keepdims=True), image.max(1, keepdims=True)
        resized = np.where(image == short, resize, (resize * long / short).astype(np.int64))
    anchor = np.rint((resized - side) / 2)  # rint rounds halves to even, as Python's round does
    return _resized_window(image, resized, anchor, side, FILTER_REACH[by])


def squared_crop(u: Floats, size: Sizes, resize: int, side: int, by: Filter = "bilinear") -> ResizedWindow:
    """Map [n, CROP_COLUMNS], [n, 2] -> torchvision's Resize((resize, resize)) and RandomCrop(side), as center_crop."""
    image = size[:, ::-1].astype(np.int64)
    anchor = np.floor(u[:, 2 * CROP_TRIES :] * (resize - side + 1))
    return _resized_window(image, np.full_like(image, resize), anchor, side, FILTER_REACH[by])


def _resized_window(image: Ints, resized: Ints, anchor: Floats, side: int, reach: int) -> ResizedWindow:
    """[n, 2] (h, w) before and after, [n, 2] (y, x) after."""
    step = image / resized
    low, high = anchor * step, (anchor + side) * step
    margin = reach * np.maximum(step, 1) + 1
    start = np.maximum(np.floor(low - margin), 0).astype(np.int32)
    stop = np.minimum(np.ceil(high + margin), image).astype(np.int32)
    return ResizedWindow(start, stop - start, low - start, high - start)
