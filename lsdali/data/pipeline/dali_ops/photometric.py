"""DALI's operations of colours, and rotation."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from nvidia.dali import fn, types

from lsdali.data.sampling.augment import photometric

LUMA = np.array([[[0.299, 0.587, 0.114]]], np.float32)


def _color_jitter(x: Any, config: photometric.ColorJitter, inputs: Sequence[Any], side: int) -> Any:
    brightness, contrast, saturation, hue = inputs
    if config.brightness > 0:
        x = fn.brightness(x, brightness=brightness)
    if config.contrast > 0:
        mean = fn.reductions.mean(x, axis_names="HW", keep_dims=True)
        gray = fn.reductions.sum(mean * types.Constant(LUMA, device=x.device), axis_names="C", keep_dims=True)
        x = fn.cast_like(gray * (1 - contrast) + x * contrast, x)
    if config.saturation > 0 or config.hue > 0:
        x = fn.hsv(x, saturation=saturation, hue=hue)
    return x


def _lighting(x: Any, config: photometric.Lighting, inputs: Sequence[Any], side: int) -> Any:
    return fn.cast_like(x + _beside(inputs[0], x), x)


def _grayscale(x: Any, config: photometric.Grayscale, inputs: Sequence[Any], side: int) -> Any:
    if inputs[0] < 0.5:
        x = fn.hsv(x, saturation=0.0)
    return x


def _rotation(x: Any, config: photometric.Rotation, inputs: Sequence[Any], side: int) -> Any:
    if inputs[0] != 0.0:
        x = fn.rotate(x, angle=inputs[0], keep_size=True, fill_value=config.fill)
    return x


def _beside(node: Any, x: Any) -> Any:
    """The node on the device of the images."""
    return node.gpu() if x.device == "gpu" else node


EFFECTS = {
    "color_jitter": _color_jitter,
    "lighting": _lighting,
    "grayscale": _grayscale,
    "rotation": _rotation,
}
