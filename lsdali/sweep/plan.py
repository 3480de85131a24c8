"""The plan of a sweep: its cells with their recipes, and the numbers of steps, images and hours."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache

from rich.table import Table

from lsdali.data.index.index import open_index
from lsdali.data.sampling.sampler import Plan
from lsdali.data.sets.catalog import DataSet
from lsdali.data.sets.listing import Split
from lsdali.data.sets.sample_index import Index
from lsdali.errors import UserError
from lsdali.models.checks import count_classes
from lsdali.recipe import Recipe, to_yaml
from lsdali.sweep.cells import Cell
from lsdali.sweep.figures import finished
from lsdali.sweep.pace import Pace, measure_pace

DECIDES = {"model", "method", "batch", "micro_batch", "precision", "optimizer"}
"""Parts of a recipe that decide what a step costs, beside the sizes of its images and the number of classes."""


def state(cell: Cell) -> str:
    """Return what the disk says of a cell."""
    if finished(cell):
        return "finished"
    return "cut" if any((cell.folder / "checkpoints").glob("step-*.pt")) else "to do"


def listing(cells: Sequence[Cell]) -> Iterator[str]:
    """Yield each cell as a YAML document: its resolved recipe under a comment with its name, state and base."""
    for cell in cells:
        yield f"--- # {cell.name}: {state(cell)}; from {cell.base}\n{to_yaml(cell.recipe())}"


@dataclass(frozen=True)
class RunSize:
    """The length of a run."""

    steps: int
    images: int
    evaluated: int  # validation images, over all epochs that evaluate


def size(recipe: Recipe) -> RunSize:
    """Return optimizer steps, training images and validation images of a run on one process.

    Raises UserError if the data is not there.
    """
    repeats = recipe.data.train.repeats
    plan = Plan(split_index(recipe.data, "train").labels, recipe.batches, 1, recipe.seed, recipe.sampler, repeats)
    lengths = plan.steps_per_epoch
    images = lengths.weighted(recipe.batches, recipe.epochs)
    times = -(-recipe.epochs // recipe.evaluate.every_epochs)
    return RunSize(lengths.before(recipe.epochs), images, times * len(split_index(recipe.data, "val")))


@cache
def split_index(data: DataSet, split: Split) -> Index:
    return open_index(data, split)


@dataclass
class Stopwatch:
    """Hours of runs: by a given rate of training images a second, or by measured steps of each kind of recipe."""

    rate: float | None
    _known: dict[str, Pace] = field(default_factory=dict)

    def hours(self, recipe: Recipe, found: RunSize) -> float:
        """Return what a run takes. Raises UserError if no step of it can be measured."""
        if self.rate is not None:
            return found.images / self.rate / 3600
        index = split_index(recipe.data, "train")
        classes = count_classes(recipe.model.classes, index.classes, index.root)
        sides = recipe.data.train.size, recipe.data.eval.size
        parts = recipe.model_dump(mode="json", include=DECIDES)
        parts["method"].pop("teacher", None)  # it counts as a network of the student's kind
        kind = f"{parts} {sides} {classes}"
        if kind not in self._known:
            self._known[kind] = measure_pace(recipe, classes)
        pace = self._known[kind]
        return (found.images * pace.train + found.evaluated * pace.evaluate) / 3600


def dry_run(cells: Sequence[Cell], watch: Stopwatch | None, jobs: int) -> tuple[Table, list[str]]:
    """Return epochs, steps and images of each cell, and its hours if there is a watch; then why some are unknown.

    The last row adds up what is not finished.
    """
    out = Table("cell", "state", "epochs", "steps", "images", *(["hours"] if watch else []))
    steps, images, hours, unknown = 0, 0, 0.0, dict[str, None]()
    for cell in cells:
        recipe, where = cell.recipe(), state(cell)
        try:
            found = size(recipe)
            spent = watch.hours(recipe, found) if watch else 0.0
        except UserError as error:
            unknown[str(error)] = None
            out.add_row(cell.name, where, str(recipe.epochs), "?", "?")
            continue
        out.add_row(cell.name, where, str(recipe.epochs), *numbers(found.steps, found.images, spent, watch))
        if where != "finished":
            steps, images, hours = steps + found.steps, images + found.images, hours + spent
    out.add_section()
    out.add_row(f"left, {jobs} at a time", "", "", *numbers(steps, images, hours / jobs, watch))
    return out, list(unknown)


def numbers(steps: int, images: int, hours: float, watch: Stopwatch | None) -> list[str]:
    return [f"{steps:,}", f"{images:,}", *([f"{hours:.3g}"] if watch else [])]
