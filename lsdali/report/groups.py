"""Runs that differ by their seed alone, as groups; what differs between groups."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lsdali.report.runs import RunRecord


@dataclass(frozen=True)
class RunGroup:
    """Runs of one recipe but for the seed."""

    runs: tuple[RunRecord, ...]
    settings: Mapping[str, Any]  # dotted keys of the recipe that decide a result, less the seed

    @property
    def name(self) -> str:
        first, more = self.runs[0].name, len(self.runs) - 1
        return f"{first} (+ {more})" if more else first

    @property
    def seeds(self) -> str:
        return ", ".join(str(run.recipe.get("seed", "?")) for run in self.runs)


def grouped(runs: Sequence[RunRecord]) -> list[RunGroup]:
    """Return the groups, in the order of their first runs.

    A run whose recipe is not known is alone; one not begun is none.
    """
    from lsdali.recipe import decisive

    found: dict[str, list[RunRecord]] = {}
    settings: dict[str, Mapping[str, Any]] = {}
    for run in runs:
        if not run.begun and run.summary is None:
            continue
        values = {key: value for key, value in decisive(run.recipe).items() if key != "seed"}
        key = repr(sorted(values.items(), key=lambda item: item[0])) if values else str(run.folder)
        found.setdefault(key, []).append(run)
        settings[key] = values
    return [RunGroup(tuple(members), settings[key]) for key, members in found.items()]


def different_keys(groups: Sequence[RunGroup]) -> list[str]:
    """Return the keys of the recipes that have not the same value in every group whose recipe is known."""
    known = [group.settings for group in groups if group.settings]
    keys = dict.fromkeys(key for settings in known for key in settings)
    return [key for key in keys if any(one.get(key, "-") != known[0].get(key, "-") for one in known)]


def mean_std(values: Iterable[float]) -> tuple[float, float | None]:
    """Return mean and sample standard deviation (n - 1); None for the latter if there is one value."""
    values = list(values)
    mean = math.fsum(values) / len(values)
    if len(values) < 2:
        return mean, None
    return mean, math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))
