"""The figures of a run as two CSV files: train.csv and evaluations.csv."""

import csv
from pathlib import Path
from typing import Any, Literal

from lsdali.events import Begun, Evaluated, Event, Trained
from lsdali.loggers.base import LoggerConfig


class CsvConfig(LoggerConfig):
    """Two tables in the run folder: train.csv and evaluations.csv, one row per report and per evaluation."""

    name: Literal["csv"]

    def open(self, folder: Path) -> "CsvTables":
        return CsvTables(folder)


class CsvTables:
    """One row per event; unlike events.jsonl, without rows of steps that a resumed run did again."""

    def __init__(self, folder: Path) -> None:
        self.place = folder
        self.train, self.evaluations = folder / "train.csv", folder / "evaluations.csv"

    def write(self, event: Event) -> None:
        if isinstance(event, Begun):
            for path in (self.train, self.evaluations):
                drop_later(path, event.step)
        elif isinstance(event, Trained):
            speed = {"images_per_second": event.images_per_second, "data_wait": event.data_wait}
            append(self.train, {**place_columns(event), "loss": event.loss, "lr": event.lr, **speed, **event.terms})
        elif isinstance(event, Evaluated):
            append(self.evaluations, {**place_columns(event), "weights": event.weights, **event.metrics})

    def close(self) -> None:
        """Keep nothing open."""


def place_columns(event: Trained | Evaluated) -> dict[str, Any]:
    return {"step": event.step, "epoch": event.epoch}


def append(path: Path, row: dict[str, Any]) -> None:
    """Add a row, under its columns if the file is new."""
    new = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        if new:
            writer.writerow(row)
        writer.writerow(row.values())


def drop_later(path: Path, step: int) -> None:
    """Drop the rows of later steps, and one that was cut off: they come again."""
    if not path.exists():
        return
    with path.open(newline="", encoding="utf-8") as file:
        header, *rows = [*csv.reader(file)] or [[]]
    kept = [row for row in rows if len(row) == len(header) and int(row[0]) <= step]
    part = path.with_suffix(".part")
    with part.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *kept] if kept else [])
    part.replace(path)
    if not kept:
        path.unlink()
