"""From a sweep file to its cells: one run each, with its recipe, its folder, and the runs that it needs."""

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from lsdali.errors import UserError
from lsdali.recipe import Recipe, check_recipe, check_tree, read_tree, set_key, split_override, use_parts
from lsdali.sweep.schema import Evaluate, Stage, Sweep, When

PLACEHOLDER = re.compile(r"\{([A-Za-z][\w-]*)(?::([\w.]+))?\}")
SEED = "{seed}"  # a value that is the seed of the cell
Lookup = Callable[[str, str | None], Any]


@dataclass(frozen=True, eq=False)
class Cell:
    """One run of a sweep."""

    stage: str
    labels: Mapping[str, str]  # by axis
    seed: int
    base: Path  # the recipe that it starts from
    overrides: Mapping[str, Any]  # by dotted key, in order; texts may hold placeholders for other stages
    folder: Path  # of the run
    stages: Mapping[str, Stage]
    needs: dict[str, tuple["Cell", ...]] = field(default_factory=dict)  # by stage, the runs to choose from

    @property
    def name(self) -> str:
        return f"{self.stage}/{self.folder.name}"

    @property
    def plan(self) -> Stage:
        """Its stage."""
        return self.stages[self.stage]

    @property
    def evaluations(self) -> Mapping[str, Evaluate]:
        return self.plan.evaluate

    def filled(self, lookup: Lookup) -> dict[str, Any]:
        """Return the overrides with the placeholders of other stages filled.

        lookup(stage, figure or None) is what they hold.
        """
        return {key: fill(value, lookup) for key, value in self.overrides.items()}

    def recipe(self, lookup: Lookup | None = None) -> Recipe:
        """Return the recipe of the run.

        Without a lookup, with the first of the runs to choose from, and 1.0 for figures.

        Raises UserError with every key that is wrong.
        """
        tree = deepcopy(base_tree(self.base))
        for key, value in self.filled(lookup or self.first).items():
            set_key(tree, key, value)
        return check_recipe(tree, f"{self.name} ({self.base})")

    def first(self, stage: str, figure: str | None) -> Any:
        return 1.0 if figure else str(self.needs[stage][0].folder)

    def arguments(self, lookup: Lookup | None = None) -> list[str]:
        """Return what to give to lsdali.train."""
        values = self.filled(lookup or self.first)
        return [str(self.base), *(f"{key}={label_text(value)}" for key, value in values.items())]


@cache
def base_tree(path: Path) -> dict[str, Any]:
    tree = read_tree(path)
    use_parts(tree, path)
    return tree


def label_text(value: Any) -> str:
    """Return a value as YAML in one line."""
    text = yaml.safe_dump(value, default_flow_style=True, width=float("inf"), sort_keys=False)
    return text.removesuffix("\n").removesuffix("\n...")


def load_sweep(path: Path) -> Sweep:
    """Return the sweep in a YAML file. Raises UserError with every key that is wrong."""
    return check_tree(Sweep, read_tree(path, "sweep", "stages and tables"), path)


def expand(sweep: Sweep, path: Path, overrides: Sequence[str] = (), seeds: Sequence[int] = ()) -> list[Cell]:
    """Return all cells, those of a stage after those that they may need.

    `overrides` (key=value) come after those of the file, and `seeds` take the place of its own. Raises UserError if
    labels, stages or recipes do not fit together.
    """
    folder = Path(sweep.folder or Path("runs") / path.stem)
    further = dict(map(split_override, overrides))
    cells: list[Cell] = []
    for name, stage in sweep.stages.items():
        fresh = []
        for labels in combinations(name, stage):
            for seed in seeds or stage.seeds or sweep.seeds:
                fresh.append(one_cell(sweep.stages, name, labels, seed, folder, path, further))
        folders = Counter(cell.folder for cell in fresh)
        if twice := [folder for folder, count in folders.items() if count > 1]:
            raise UserError(f"{path}: two cells of the stage {name} would share the folder {twice[0]}: change a label")
        for cell in fresh:
            cell.needs.update({need: candidates(cell, need, cells) for need, _ in sorted(placeholders(cell.overrides))})
        cells += fresh
    return cells


def combinations(name: str, stage: Stage) -> Iterator[dict[str, str]]:
    """Yield the labels of each cell that is not left out."""
    for when in [*(rule.when for rule in stage.rules), *stage.skip]:
        known_labels(name, stage, when)
    for labels in product(*(axis.labelled for axis in stage.axes.values())):
        cell = dict(zip(stage.axes, labels, strict=True))
        if not any(fits(cell, when) for when in stage.skip):
            yield cell


def known_labels(name: str, stage: Stage, when: When) -> None:
    for axis, labels in when.items():
        if axis not in stage.axes:
            raise UserError(f"stage {name} has no axis {axis}; here are {', '.join(stage.axes)}")
        if stray := [label for label in labels if label not in stage.axes[axis].labelled]:
            raise UserError(f"axis {axis} has no {stray[0]}; here are {', '.join(stage.axes[axis].labelled)}")


def fits(labels: Mapping[str, str], when: When) -> bool:
    return all(labels[axis] in wanted for axis, wanted in when.items())


def one_cell(
    stages: Mapping[str, Stage],
    name: str,
    labels: Mapping[str, str],
    seed: int,
    folder: Path,
    path: Path,
    further: Mapping[str, Any],
) -> Cell:
    stage = stages[name]
    run_dir = folder / name / folder_name(labels, seed)
    parts = [stage.set, *(stage.axes[axis].labelled[label] for axis, label in labels.items())]
    parts += [rule.set for rule in stage.rules if fits(labels, rule.when)]
    merged: dict[str, Any] = {}
    for part in [{"recipe": stage.recipe}, *parts, further, {"seed": seed, "run_dir": str(run_dir)}]:
        for key, value in part.items():
            merged.pop(key, None)  # so that the last one of a key is also applied last
            merged[key] = seed if value == SEED else value
    recipe = merged.pop("recipe")
    if not isinstance(recipe, str):
        raise UserError(f"{path}: {name}/{run_dir.name} has no recipe: give one to the stage or to its points")
    base = Path(os.path.relpath(path.parent / recipe))
    return Cell(name, labels, seed, base, merged, run_dir, stages)


def folder_name(labels: Mapping[str, str], seed: int) -> str:
    """Return what varies, in words that a file system takes; a number gets the name of its axis."""
    named = [label if label[0].isalpha() else f"{axis}={label}" for axis, label in labels.items()]
    return "_".join([*(re.sub(r"[^\w.+=-]+", "-", text).strip("-") for text in named), f"seed{seed}"])


# ---- runs that need others


def placeholders(value: Any) -> set[tuple[str, str]]:
    """Return (stage, figure or nothing) of each placeholder in a value."""
    if isinstance(value, Mapping):
        return {found for part in value.values() for found in placeholders(part)}
    return set(PLACEHOLDER.findall(value)) if isinstance(value, str) else set()


def fill(value: Any, lookup: Lookup) -> Any:
    """Return the value with its placeholders filled; a text that is only a figure's placeholder becomes a number."""
    if isinstance(value, Mapping):
        return {key: fill(part, lookup) for key, part in value.items()}
    if not isinstance(value, str):
        return value
    if (whole := PLACEHOLDER.fullmatch(value)) and whole[2]:
        return lookup(whole[1], whole[2])
    return PLACEHOLDER.sub(lambda found: str(lookup(found[1], found[2])), value)


def candidates(cell: Cell, need: str, earlier: Sequence[Cell]) -> tuple[Cell, ...]:
    """Return the runs of another stage that a cell can mean.

    They have its labels and seed; if that stage selects, labels are free.
    """
    pool = [other for other in earlier if other.stage == need]
    if not pool:
        known = ", ".join(dict.fromkeys(other.stage for other in earlier)) or "none"
        raise UserError(f"{cell.name} needs the stage {need}, which does not come before it; earlier stages: {known}")
    stage = pool[0].plan
    for axis in stage.axes:
        labels = {other.labels[axis] for other in pool}
        if cell.labels.get(axis) in labels:
            pool = [other for other in pool if other.labels[axis] == cell.labels[axis]]
        elif len(labels) > 1 and axis not in (stage.select.over if stage.select else ()):
            raise UserError(
                f"{cell.name} needs one run of the stage {need}, which varies along {axis}: "
                f"give the stage {cell.stage} that axis with the same labels, or let {need} select over it"
            )
    seeds = {other.seed for other in pool}
    if cell.seed in seeds or len(seeds) > 1:
        pool = [other for other in pool if other.seed == cell.seed]
    if not pool:
        raise UserError(f"{cell.name} needs a run of the stage {need} that is left out there, or of another seed")
    return tuple(pool)
