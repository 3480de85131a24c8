"""Read run folders. Damage is reported, and unfinished runs are included."""

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lsdali.disk import read_plain
from lsdali.errors import UserError
from lsdali.metric_names import METRICS
from lsdali.state.run_folder import EVENTS, figures, is_number, read_summary

MODEL = ("model", "student")  # the weights themselves; the second is their name of version 0.1
RUN_FILES = (EVENTS, "summary.json")  # what makes a folder one of a run


@dataclass
class RunRecord:
    """One run folder. Events of steps that a resumed run did again are left out."""

    folder: Path
    name: str = ""
    begun: dict[str, Any] = field(default_factory=dict)  # the last start's event; empty if there is none
    trained: list[dict[str, Any]] = field(default_factory=list)
    evaluated: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] | None = None  # None for an unfinished run
    faults: list[str] = field(default_factory=list)  # sentences about what could not be read

    @property
    def recipe(self) -> dict[str, Any]:
        recipe: dict[str, Any] = self.begun.get("recipe", {})
        return recipe

    @property
    def selected_by(self) -> str:
        """The metric that decides which checkpoint is the best."""
        metric: str = self.recipe.get("select", {}).get("metric", "top1")
        return metric

    @property
    def state(self) -> str:
        """Epochs done of those planned, and whether the run is over."""
        planned = self.begun.get("epochs", "?")
        if self.summary is not None:
            stopped = self.summary.get("stopped")
            return f"{stopped}/{planned}, stopped early" if stopped else f"{planned}/{planned}, finished"
        done = max((line["epoch"] for line in self.evaluated), default=0)
        return f"{done}/{planned}, " + ("unfinished" if done != planned else "no summary")

    def entries(self) -> dict[str, dict[str, float]]:
        """Return metrics and epoch by what they are of.

        They are `last`, `best`, and `ema last`, `ema best` if there is an average.

        Those of summary.json; for an unfinished run, those of its evaluations so far.
        """
        if self.summary is not None:
            parts = {"": self.summary, **({"ema ": self.summary["ema"]} if "ema" in self.summary else {})}
            return {prefix + which: part[which] for prefix, part in parts.items() for which in ("last", "best")}
        out: dict[str, dict[str, float]] = {}
        for line in self.evaluated:
            prefix = "" if line["weights"] in MODEL else f"{line['weights']} "
            entry = {**line["metrics"], "epoch": line["epoch"]}
            best = out.get(f"{prefix}best")
            name = self.selected_by
            if best is None or METRICS[name].better(entry[name], best[name]):
                best = entry
            out |= {f"{prefix}last": entry, f"{prefix}best": best}
        return out


def find_runs(paths: Sequence[Path]) -> list[RunRecord]:
    """Return every run in and below the folders, in the order of their names, each once.

    Raises UserError if a folder does not exist, or none holds a run.
    """
    folders: dict[Path, Path] = {}
    for path in paths:
        if not path.is_dir():
            raise UserError(f"there is no folder {path}: name run folders, or a folder of them such as runs")
        for folder in sorted(run_folders(path)):
            folders.setdefault(folder.resolve(), folder)
    if not folders:
        raise UserError(f"{' '.join(map(str, paths))}: no run here (a run folder holds {' or '.join(RUN_FILES)})")
    runs = [read_run(folder) for folder in folders.values()]
    for run, name in zip(runs, short_names([run.folder for run in runs])):
        run.name = name
    return runs


def run_folders(path: Path) -> Iterator[Path]:
    """Yield the run folders in and below a folder; what lies inside a run is not searched."""
    for folder, below, files in os.walk(path):
        if any(mark_best in files for mark_best in RUN_FILES):
            below.clear()
            yield Path(folder)


def short_names(folders: Sequence[Path]) -> list[str]:
    """Return the paths without the part that all have in common."""
    if len(folders) == 1:
        return [folders[0].absolute().name]
    common = os.path.commonpath([folder.absolute() for folder in folders])
    return [os.path.relpath(folder.absolute(), common) for folder in folders]


def read_run(folder: Path) -> RunRecord:
    run = RunRecord(folder)
    for line in read_lines(run):
        try:
            add_event(run, line)
        except (KeyError, TypeError, ValueError, AttributeError):
            run.faults.append(f"{folder / RUN_FILES[0]}: an event of the kind {line.get('event')!r} is not as expected")
    run.summary = summary_of(run)
    if not run.begun and run.summary is None:
        run.faults.append(f"{folder}: nothing was trained here")
    return run


def add_event(run: RunRecord, line: Mapping[str, Any]) -> None:
    """Add one event; a start drops what comes after its step, which is done again."""
    if line["event"] == "begun":
        step = count(line["step"])
        run.begun = {key: line[key] for key in line}
        for part in ("recipe", "versions", "data"):
            if not isinstance(run.begun.get(part, {}), Mapping):
                run.begun[part] = {}
        run.trained = [old for old in run.trained if old["step"] <= step]
        run.evaluated = [old for old in run.evaluated if old["step"] <= step]
    elif line["event"] == "trained":
        values = {key: number_or_nan(line[key]) for key in ("loss", "images_per_second", "data_wait")}
        run.trained.append({key: count(line[key]) for key in ("step", "epoch")} | values)
    elif line["event"] == "evaluated":
        metrics = {k: v for k, v in figures({**line["metrics"], "epoch": line["epoch"]}).items() if k != "epoch"}
        at = {key: count(line[key]) for key in ("step", "epoch")}
        run.evaluated.append({**at, "weights": str(line["weights"]), "metrics": metrics})


def count(value: Any) -> int:
    """Return a whole number. Raises TypeError for anything else."""
    if not isinstance(value, int):
        raise TypeError("a count is no whole number")
    return value


def number_or_nan(value: Any) -> Any:
    """Return a number as it is, NaN for null. Raises TypeError for anything else."""
    if value is not None and not is_number(value):
        raise TypeError("a figure is no number")
    return math.nan if value is None else value


def read_lines(run: RunRecord) -> Iterator[dict[str, Any]]:
    """Yield the events of a run; lines that are no JSON are counted and named."""
    path, broken = run.folder / EVENTS, []
    try:
        content = read_plain(path)
    except OSError as error:
        run.faults.append(f"{path} cannot be read: {error.strerror}")
        return
    for number_or_nan, text in enumerate(content.splitlines(), 1):
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            broken.append(number_or_nan)
            continue
        if isinstance(line, dict) and "event" in line:
            yield line
        else:
            broken.append(number_or_nan)
    if broken:
        which = ", ".join(map(str, broken[:5])) + (" ..." if len(broken) > 5 else "")
        run.faults.append(f"{path}: {'line' if len(broken) == 1 else 'lines'} {which} cannot be read and left out")


def summary_of(run: RunRecord) -> dict[str, Any] | None:
    """Return summary.json; None, and a sentence, if it is damaged."""
    path = run.folder / "summary.json"
    if not path.exists() and not path.is_symlink():
        return None
    summary = read_summary(path)
    if summary is None:
        run.faults.append(f"{path} is damaged; the figures are those of events.jsonl")
    return summary
