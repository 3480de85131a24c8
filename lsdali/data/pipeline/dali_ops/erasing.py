"""DALI's operations of random erasing."""

from collections.abc import Sequence
from typing import Any

from nvidia.dali import fn

from lsdali.data.sampling.augment import erasing


def _random_erasing(x: Any, config: erasing.RandomErasing, inputs: Sequence[Any], side: int) -> Any:
    anchor, shape = inputs
    return fn.erase(x, anchor=anchor, shape=shape, axis_names="HW", fill_value=config.value)


EFFECTS = {"random_erasing": _random_erasing}
