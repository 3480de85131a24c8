"""The DALI side of each augmentation: from a batch of images and its choices to changed images.

A file here has the operations of the file of that name in data/sampling/augment. Nothing is random, and every function
works on CPU and GPU images. AutoGraph rewrites what runs under `if` on a batch, so these files have no lambdas.
"""

from collections.abc import Callable, Sequence
from typing import Any

from lsdali import parts
from lsdali.data.sampling.augment import AUGMENTATION_FILES
from lsdali.data.sampling.augment.base import Augmentation

Effect = Callable[[Any, Any, Sequence[Any], int], Any]
EFFECTS: dict[str, Effect] = parts.from_files("lsdali.data.pipeline.dali_ops", AUGMENTATION_FILES, "EFFECTS")
parts.opened("EFFECTS", EFFECTS, "DALI side of an augmentation", parts.callable_entry)


def add_ops(x: Any, augment: Sequence[Augmentation], inputs: Sequence[Any], side: int) -> Any:
    """Return the augmentations one after the other; `inputs` are the arrays of draw_choices, side in pixels."""
    first = 0
    for a in augment:
        x = EFFECTS[a.name](x, a, inputs[first : first + a.outputs], side)
        first = first + a.outputs
    return x
