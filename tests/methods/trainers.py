"""Trainers for tests: the method part of every recipe, on a few small images."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml

from lsdali.batch import Batch
from lsdali.build import build
from lsdali.events import Events
from lsdali.recipe import Recipe
from lsdali.state.checkpoint import Checkpoints
from lsdali.trainer import Trainer
from tests.harness import ROOT, tiny


def method_configs(teacher: Path) -> list[Any]:
    """Every method part of every recipe in the repository, once each, with teachers replaced by one of this test."""
    found: dict[str, Any] = {}
    for path in sorted(ROOT.glob("recipes/**/*.yaml")):
        config = yaml.safe_load(path.read_text())["method"]
        if "teacher" in config:
            config["teacher"] = {"source": "checkpoint", "path": str(teacher)}
        if "epochs" in config.get("noise", {}):
            config["noise"]["epochs"] = 1  # these runs have two
        found[yaml.safe_dump(config)] = config
    return list(found.values())


def trainer_for(config: Any, folder: Path, device: str = "cpu", **others: Any) -> Trainer:
    """A trainer into `folder`, on the images that lie beside or above it."""
    images = next(above / "images" for above in folder.parents if (above / "images").is_dir())
    recipe = Recipe.model_validate(tiny(config, images, folder, **others))
    checkpoints = Checkpoints(folder / "checkpoints", recipe.save.keep, print)
    return build(recipe, folder, torch.device(device, 0), checkpoints, Events([]))


CONFIGS = method_configs(Path("TEACHER"))


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
    """New tensors are in float64."""
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


def trainer_in_float64(config: Any, folder: Path, **others: Any) -> Trainer:
    """For comparisons of whole trainings: what is left of a difference is one of mathematics.

    In float32 a vote or a ReLU that rounding turns the other way parts two runs that are the same to the letter.
    """
    with float64():
        trainer = trainer_for(config, folder, **others)
    trainer.train, trainer.val = Doubled(trainer.train), Doubled(trainer.val)
    return trainer


def with_teacher(config: Any, base: Path) -> Any:
    return yaml.safe_load(yaml.safe_dump(config).replace("TEACHER", str(base / "teacher/checkpoints/best.pt")))


def named(config: Any) -> str:
    """Return the method's name and the values of its keys, without its teacher's."""
    values = (named(v) if isinstance(v, dict) else str(v) for k, v in config.items() if k != "teacher")
    return "-".join(values)
