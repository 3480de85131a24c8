"""Trainers on a few small images: what the contract test of methods trains."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from lsdali.batch import Batch
from lsdali.build import build
from lsdali.events import Events
from lsdali.recipe import check_recipe
from lsdali.state.checkpoint import Checkpoints
from lsdali.trainer import Trainer


def make_images(root: Path, classes: int = 5, train: int = 8, val: int = 5, size: int = 16) -> Path:
    """Write root/{train,val}/<class>/<n>.png, textured noise around a colour of the class; once."""
    if root.exists():
        return root
    rng = np.random.default_rng(0)
    for split, count in (("train", train), ("val", val)):
        for label in range(classes):
            folder = root / split / f"class{label}"
            folder.mkdir(parents=True)
            for n in range(count):
                pixels = rng.integers(0, 120, (size, size, 3)) + 25 * label
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{n}.png")
    return root


def tiny(method: Any, root: Path, run_dir: Path, **others: Any) -> dict[str, Any]:
    """Return the tree of a recipe that trains in a second; `method` is its method, `others` replace its keys."""
    tree: dict[str, Any] = {
        "epochs": 2,
        "batch": 8,
        "data": {
            "name": "folder",
            "root": str(root),
            "train": {"crop": "random_resized", "size": 16},
            "eval": {"resize": 16, "size": 16},
            "threads": 1,
        },
        "model": {"name": "preact_resnet10", "width": 16},
        "method": method,
        "optimizer": {"name": "nesterov", "lr": 0.05, "weight_decay": 0.001},
        "schedule": {"name": "cosine"},
        "log": {"every_steps": 2},
        "run_dir": str(run_dir),
    }
    return {**tree, **others}


def trainer_for(config: Any, folder: Path, device: str = "cpu", *, uses: Sequence[str] = (), **others: Any) -> Trainer:
    """Return a trainer into `folder` by the method `config`, on the images that lie beside or above it."""
    images = next(above / "images" for above in folder.parents if (above / "images").is_dir())
    recipe = check_recipe(tiny(config, images, folder, uses=list(uses), **others), "the recipe of the test")
    checkpoints = Checkpoints(folder / "checkpoints", recipe.save.keep, print)
    return build(recipe, folder, torch.device(device, 0), checkpoints, Events([]))


class Doubled:
    """The batches of a loader, with images in float64."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def epoch(self, step: int) -> Iterator[Batch]:
        return (replace(batch, images=batch.images.double()) for batch in self.inner.epoch(step))

    def __iter__(self) -> Iterator[Batch]:
        return (replace(batch, images=batch.images.double()) for batch in self.inner)


@contextmanager
def float64() -> Iterator[None]:
    """Yield new tensors are in float64."""
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


def trainer_in_float64(config: Any, folder: Path, **others: Any) -> Trainer:
    """Return a trainer for comparisons of whole trainings: what is left of a difference is one of mathematics.

    In float32 a vote or a ReLU that rounding turns the other way parts two runs that are the same to the letter.
    """
    with float64():
        trainer = trainer_for(config, folder, **others)
    trainer.train, trainer.val = Doubled(trainer.train), Doubled(trainer.val)
    return trainer


def equal(a: Any, b: Any) -> bool:
    """Return whether two nested states are the same to the last bit."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(equal, a, b))
    return bool(a == b)
