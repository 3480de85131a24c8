"""From finished cells to a table: means and standard deviations, published numbers, and what is clearly the best."""

import math
import statistics
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from lsdali.sweep.cells import Cell
from lsdali.sweep.figures import figure, winner
from lsdali.sweep.schema import Figure, Table

Key = tuple[str, ...]  # labels, in the order of the table's rows and columns


@dataclass(frozen=True)
class Entry:
    """One figure of one cell of a table."""

    labels: Mapping[str, str]
    name: str  # of the figure
    digits: int
    values: tuple[float, ...]  # one a finished seed
    seeds: int  # that there shall be
    published: str = ""
    best: bool = False

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values)

    @property
    def std(self) -> float:
        """The sample standard deviation; nan for one value, or if one is not finite."""
        known = len(self.values) > 1 and all(map(math.isfinite, self.values))
        return statistics.stdev(self.values) if known else math.nan

    def text(self, plus_minus: str = "±") -> str:
        """Return mean, standard deviation and number of seeds."""
        if not self.values:
            return ""
        spread = f" {plus_minus} {self.std:.{self.digits}f}" if len(self.values) > 1 else ""
        count = str(self.seeds) if len(self.values) == self.seeds else f"{len(self.values)} of {self.seeds}"
        return f"{self.mean:.{self.digits}f}{spread} ({count})"


@dataclass(frozen=True)
class Grid:
    """A table in the form in which it is written."""

    caption: str
    rows: Sequence[Key]
    columns: Sequence[Key]
    axes: tuple[Sequence[str], Sequence[str]]  # of rows and of columns
    figures: Mapping[str, bool]  # by name, whether there are published numbers of it
    entries: Mapping[tuple[Key, Key, str], Entry]
    notes: Sequence[str]


def grid(caption: str, table: Table, cells: Sequence[Cell], done: Collection[Cell]) -> Grid:
    """Return the table of the cells that are done; the others' cells are empty."""
    own = [cell for cell in cells if cell.stage in table.stages]
    groups: dict[tuple[Key, Key], list[Cell]] = {}
    for cell in own:
        groups.setdefault((key(cell, table.rows), key(cell, table.columns)), []).append(cell)
    entries = {
        (*cell_key, name): entry(group, table, name, shown, done)
        for cell_key, group in groups.items()
        for name, shown in table.figures.items()
    }
    return Grid(
        caption,
        list(dict.fromkeys(row for row, _ in groups)),
        list(dict.fromkeys(column for _, column in groups)),
        (table.rows, table.columns),
        {name: any(e.published for e in entries.values() if e.name == name) for name in table.figures},
        marked(entries, table),
        notes(table),
    )


def key(cell: Cell, axes: Sequence[str]) -> Key:
    return tuple(cell.labels[axis] for axis in axes)


def entry(group: Sequence[Cell], table: Table, name: str, shown: Figure, done: Collection[Cell]) -> Entry:
    """Return one figure over the seeds of one cell; if a stage selects, of the chosen run of each seed."""
    by_seed: dict[int, list[Cell]] = {}
    for cell in group:
        by_seed.setdefault(cell.seed, []).append(cell)
    chosen = [winner(runs) for runs in by_seed.values() if all(run in done for run in runs)]
    values = [shown.scale * figure(cell, shown.of) for cell in chosen]
    labels = {axis: group[0].labels[axis] for axis in (*table.rows, *table.columns)}
    return Entry(
        labels,
        name,
        shown.digits,
        tuple(100 - value if shown.error else value for value in values),
        len(by_seed),
        published(group[0].labels, table, name),
    )


def published(labels: Mapping[str, str], table: Table, name: str) -> str:
    """Return the published number of a cell, with the figure's decimals; nothing if there is none."""
    for part in table.published:
        names = part.figures or tuple(table.figures)
        for own, values in part.entries():
            if name in names and own.items() <= labels.items():
                found = values[names.index(name)]
                return f"{found:.{table.figures[name].digits}f}" if isinstance(found, float) else str(found or "")
    return ""


def marked(entries: Mapping[tuple[Key, Key, str], Entry], table: Table) -> dict[tuple[Key, Key, str], Entry]:
    """Return the entries, with those marked that are the best along `best_of`."""
    out = dict(entries)
    for cell_key, one in entries.items():
        kept = {axis: label for axis, label in one.labels.items() if axis not in table.best_of}
        rivals = [
            e for e in entries.values() if e is not one and e.name == one.name and kept.items() <= e.labels.items()
        ]
        sign = 1 if table.figures[one.name].rises else -1
        if table.best_of and rivals and all(ahead(one, rival, sign) for rival in rivals):
            out[cell_key] = replace(one, best=True)
    return out


def ahead(one: Entry, other: Entry, sign: int) -> bool:
    """Return whether the means lie further apart than the standard deviations together.

    False for fewer than two seeds.
    """
    if min(len(one.values), len(other.values)) < 2:
        return False
    return sign * (one.mean - other.mean) > one.std + other.std


def notes(table: Table) -> list[str]:
    best = ["Bold: the best, further from every other's mean than both standard deviations together."]
    sources = [f"Published: {part.source}" for part in table.published]
    return ["Mean ± standard deviation (number of seeds).", *(best if table.best_of else []), *sources]
