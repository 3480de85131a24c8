"""What a sweep would do: its cells with their recipes, and how many steps and images they take."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

from rich.table import Table

from lsdali.data.index.index import open_index
from lsdali.data.sampling.sampler import Ints, Plan
from lsdali.errors import UserError
from lsdali.recipe import Recipe, to_yaml
from lsdali.sweep.cells import Cell
from lsdali.sweep.figures import finished


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


def size(recipe: Recipe) -> RunSize:
    """Return optimizer steps and training images of a run on one process.

    Raises UserError if the training data is not there.
    """
    repeats = recipe.data.train.repeats
    plan = Plan(labels_of(recipe), recipe.batches, 1, recipe.seed, recipe.sampler, repeats)
    lengths = plan.steps_per_epoch
    images = lengths.weighted(recipe.batches, recipe.epochs)
    return RunSize(lengths.before(recipe.epochs), images)


def labels_of(recipe: Recipe) -> Ints:
    return _labels(recipe.data.model_dump_json(), recipe)


@cache
def _labels(data: str, recipe: Recipe) -> Ints:
    return open_index(recipe.data, "train").labels


def dry_run(cells: Sequence[Cell], rate: float | None, jobs: int) -> tuple[Table, list[str]]:
    """Return epochs, steps and images of each cell, and hours at `rate` images a second; then why some are not known.

    The last row adds up what is not finished.
    """
    out = Table("cell", "state", "epochs", "steps", "images", *(["hours"] if rate else []))
    total, unknown = RunSize(0, 0), dict[str, None]()
    for cell in cells:
        recipe, where = cell.recipe(), state(cell)
        try:
            found = size(recipe)
        except UserError as error:
            unknown[str(error)] = None
            out.add_row(cell.name, where, str(recipe.epochs), "?", "?")
            continue
        out.add_row(cell.name, where, str(recipe.epochs), *numbers(found, rate))
        if where != "finished":
            total = RunSize(total.steps + found.steps, total.images + found.images)
    out.add_section()
    together = [f"{total.images / rate / jobs / 3600:.2f}"] if rate else []
    out.add_row(f"left, {jobs} at a time", "", "", *numbers(total, None), *together)
    return out, list(unknown)


def numbers(found: RunSize, rate: float | None) -> list[str]:
    hours = [f"{found.images / rate / 3600:.2f}"] if rate else []
    return [f"{found.steps:,}", f"{found.images:,}", *hours]
