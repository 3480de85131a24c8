"""Groups of runs that differ only in their seed, and the differences between groups."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lsdali.report.runs import RunRecord


@dataclass(frozen=True)
class RunGroup:
    """Runs whose recipes differ only in the seed."""

    runs: tuple[RunRecord, ...]
    settings: Mapping[str, Any]  # dotted keys of the recipe that decide a result, less the seed

    @property
    def name(self) -> str:
        first, more = self.runs[0].name, len(self.runs) - 1
        return f"{first} (+ {more})" if more else first

    @property
    def seeds(self) -> str:
        return ", ".join(str(run.recipe.get("seed", "?")) for run in self.runs)


FOLLOW = ("method.teacher.", "model.weights.", "data.draw")
"""Keys that a sweep fills in for each seed: what they hold comes from an earlier run, or is the seed."""


def grouped(runs: Sequence[RunRecord]) -> list[RunGroup]:
    """Return the groups, in the order of their first runs.

    Runs of one cell of a sweep may also have other teachers, pretrained weights and made-up data, seed by seed. A run
    whose recipe is not known is alone; one not begun is none.
    """
    from lsdali.recipe import decisive

    found: dict[str, list[RunRecord]] = {}
    settings: dict[str, list[Mapping[str, Any]]] = {}
    for run in runs:
        if not run.begun and run.summary is None:
            continue
        values = {key: value for key, value in decisive(run.recipe).items() if key != "seed"}
        key = identity(run, values) if values else str(run.folder)
        found.setdefault(key, []).append(run)
        settings.setdefault(key, []).append(values)
    return [RunGroup(tuple(members), shared_settings(settings[key])) for key, members in found.items()]


def identity(run: RunRecord, values: Mapping[str, Any]) -> str:
    """Return what runs of one group have in common, less the seed."""
    cell, ends, seed = run.folder.name.rpartition("_seed")
    fixed = {key: value for key, value in values.items() if not key.startswith(FOLLOW)}
    if len(fixed) < len(values) and ends and seed == str(run.recipe.get("seed")):
        return f"{run.folder.parent / cell} {sorted(fixed.items())!r}"
    return repr(sorted(values.items()))


def shared_settings(members: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """Return the settings of runs of one group; of those that are not the same for all, that they follow the seed."""
    same = {key: all(other.get(key) == value for other in members) for key, value in members[0].items()}
    return {key: value if same[key] else "by seed" for key, value in members[0].items()}


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
