"""The figures of finished runs, and which run of several is the best."""

import json
import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch

from lsdali.errors import UserError
from lsdali.metric_names import METRICS
from lsdali.metrics import measure
from lsdali.recipe import differences, read_tree
from lsdali.sweep.cells import Cell, Lookup, placeholders
from lsdali.sweep.schema import Stage, Sweep, Table, rises

RECORDS = ("last", "best", "ema.last", "ema.best")


def finished(cell: Cell) -> bool:
    """Return whether the run and its evaluations are complete on the disk."""
    files = [cell.folder / "summary.json", *(cell.folder / f"{name}.json" for name in cell.evaluations)]
    return all(file.is_file() for file in files)


def other_recipe(cell: Cell, lookup: Lookup) -> list[str]:
    """Return how the recipe that the run folder was begun with differs from the cell's.

    Nothing if it holds no run.
    """
    begun = cell.folder / "recipe.yaml"
    if not begun.is_file():
        return []
    return differences(read_tree(begun), cell.recipe(lookup).model_dump(mode="json"))


def figure(cell: Cell, of: str) -> float:
    """Return a figure of a finished run, such as best.nll or test.scaled.top1."""
    name, _, rest = of.partition(".")
    if name in cell.evaluations:
        metric = rest.removeprefix("scaled.")
        found = load_json(cell.folder / f"{name}.json")
        if metric == "temperature":
            return float(found["fits"][0]["temperature"])
        return number([row for row in found["rows"] if row["scaled"] == (metric != rest)][-1]["metrics"][metric], of)
    node = load_json(cell.folder / "summary.json")
    for part in of.split("."):
        node = node[part]
    return number(node, of)


def number(value: Any, of: str) -> float:
    """Return a figure as JSON has it; null, which stands for one that is not finite, as the worst there can be."""
    if value is None:
        return -math.inf if rises(of) else math.inf
    return float(value)


def load_json(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def winner(cells: Sequence[Cell]) -> Cell:
    """Return the best of finished runs by what their stage selects by; of equals the first."""
    select = cells[0].plan.select
    if select is None or len(cells) == 1:
        return cells[0]
    values = [figure(cell, select.by) for cell in cells]
    return cells[values.index(max(values) if rises(select.by) else min(values))]


def lookup_of(cell: Cell) -> Lookup:
    """Return what the placeholders of other stages mean for a cell whose needs are finished."""

    def lookup(stage: str, of: str | None) -> Any:
        chosen = winner(cell.needs[stage])
        return figure(chosen, of) if of else str(chosen.folder)

    return lookup


@cache
def metrics() -> tuple[str, ...]:
    """Return the names of what evaluation measures."""
    return tuple(measure(torch.zeros(1, 4)))


def check_figures(sweep: Sweep, cells: Sequence[Cell]) -> None:
    """Raise UserError if a table or a choice names a stage, an axis or a figure that there is not."""
    for name, stage in sweep.stages.items():
        if stage.select is not None:
            known_figure(stage.select.by, stage, f"stage {name}")
            known_axes(stage.select.over, [stage], f"select.over of the stage {name}")
    for cell in cells:
        for need, of in placeholders(cell.overrides):
            if of:
                known_figure(of, sweep.stages[need], cell.name)
    for caption, table in sweep.tables.items():
        check_table(sweep, cells, table, f"table {caption}")


def check_table(sweep: Sweep, cells: Sequence[Cell], table: Table, where: str) -> None:
    if stray := [name for name in table.stages if name not in sweep.stages]:
        raise UserError(f"{where}: there is no stage {stray[0]}; here are {', '.join(sweep.stages)}")
    stages = [sweep.stages[name] for name in table.stages]
    known_axes((*table.rows, *table.columns), stages, where)
    for stage in stages:
        for shown in table.figures.values():
            known_figure(shown.of, stage, where)
    own = [cell.labels for cell in cells if cell.stage in table.stages]
    for part in table.published:
        known_axes(part.by, stages, f"{where}, published.by")
        for labels, _ in part.entries():
            if not any(labels.items() <= cell.items() for cell in own):
                raise UserError(f"{where}: the published numbers of {' / '.join(labels.values())} have no cell")


def known_axes(axes: Sequence[str], stages: Sequence[Stage], where: str) -> None:
    for axis in axes:
        for stage in stages:
            if axis not in stage.axes:
                raise UserError(f"{where}: a stage has no axis {axis}; it has {', '.join(stage.axes)}")


def known_figure(of: str, stage: Stage, where: str) -> None:
    """Raise UserError for a figure that runs of the stage do not have."""
    known = {f"{record}.{metric}" for record in RECORDS for metric in metrics()}
    records = list(RECORDS)
    for name, part in stage.evaluate.items():
        binned = [f"{metric} {bins}" for bins in part.bins for metric in ("ece", "mce", "ace")]
        both = [name, *([f"{name}.scaled"] if part.temperature is not None else [])]
        known |= {f"{record}.{metric}" for record in both for metric in (*METRICS, *binned)}
        known |= {f"{name}.temperature"} if part.temperature is not None else set()
        records += both
    if of not in known:
        further = ", ".join(metric for metric in METRICS if metric not in metrics())
        raise UserError(
            f"{where}: there is no figure {of}; give one of {', '.join(records)}, a point, and one of "
            f"{', '.join(metrics())}; evaluations also have {further}"
        )
