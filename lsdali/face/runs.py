"""Train from a Python program."""

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch

from lsdali import dist
from lsdali.errors import STOPPED, Stopped
from lsdali.face.given import part_of_recipe
from lsdali.face.trained import TrainedNetwork, load
from lsdali.faults.attend import attended
from lsdali.faults.pulse import Pulse
from lsdali.recipe import Recipe, check_recipe, default_name, read_tree, set_key, use_parts

RunFunction = Callable[[Recipe, torch.device, Pulse | None], None]


@dataclass(frozen=True)
class Result:
    """A finished run."""

    folder: Path
    """The run folder; the README lists what is in it."""
    recipe: Recipe
    """With every default."""
    summary: Mapping[str, Any]
    """What summary.json holds: `last` and `best` metrics, digest of the weights, speed."""

    @cached_property
    def trained(self) -> TrainedNetwork:
        """The best checkpoint's network, with class names and preprocessing."""
        return load(self.folder)

    @property
    def network(self) -> torch.nn.Module:
        """The best checkpoint's network, on the CPU, in evaluation mode."""
        return self.trained.network


def overridden(recipe: str | Path | Mapping[str, Any] | Recipe, overrides: Mapping[str, Any]) -> Recipe:
    """Return the recipe with its overrides by dotted keys. Raises UserError with every key that is wrong."""
    path = Path(recipe) if isinstance(recipe, (str, Path)) else None
    if path is not None:
        tree: dict[str, Any] = read_tree(path)
    else:
        tree = recipe.model_dump(mode="json") if isinstance(recipe, Recipe) else dict(recipe)  # type: ignore[arg-type]
    given = tree.get("data")
    if isinstance(given, tuple) or (isinstance(given, Mapping) and "datasets" in given):
        tree["data"] = part_of_recipe("data", given)
    where = path or "the recipe"
    use_parts(tree, where)
    for key, value in overrides.items():
        objects = key in ("model", "method", "data")
        set_key(tree, key, part_of_recipe(key, value) if objects else value)
    if tree.get("run_dir") is None and path is not None:
        tree["run_dir"] = str(Path("runs") / default_name(path))
    return check_recipe(tree, where)


def train(run: RunFunction, recipe: str | Path | Mapping[str, Any] | Recipe, overrides: Mapping[str, Any]) -> Result:
    """Carry out a run in this process, or in the group that torchrun made; see lsdali.train."""
    checked = overridden(recipe, overrides)
    seconds = 60 * checked.faults.stall_minutes
    if dist.launched():
        status = attended(partial(run, checked), seconds)
        if status:
            sys.exit(status)
    else:
        alone_or_ranks(partial(run, checked))
    folder = Path(checked.run_dir or "runs")
    return Result(folder, checked, json.loads((folder / "summary.json").read_text(encoding="utf-8")))


def alone_or_ranks(work: Callable[[torch.device, Pulse | None], None]) -> None:
    """Do the work in this process, whose exceptions and interrupts are the caller's."""
    with dist.session() as device:
        try:
            work(device, None)
        except Stopped:
            sys.exit(STOPPED)
