"""Trainers for tests: the method part of every recipe, on a few small images."""

from pathlib import Path
from typing import Any

import torch
import yaml

from lsdali.build import build
from lsdali.events import Events
from lsdali.recipe import Recipe
from lsdali.state.checkpoint import Checkpoints
from lsdali.trainer import Trainer
from tests.harness import ROOT, tiny


def method_configs(teacher: Path) -> list[Any]:
    """Every method part of every recipe in the repository, once each, with teachers replaced by one of this test."""
    found: dict[str, Any] = {}
    for path in sorted(ROOT.glob("recipes/*.yaml")):
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


def with_teacher(config: Any, base: Path) -> Any:
    return yaml.safe_load(yaml.safe_dump(config).replace("TEACHER", str(base / "teacher/checkpoints/best.pt")))


def named(config: Any) -> str:
    return "-".join(str(v) for v in config.values() if not isinstance(v, dict))
