"""The run folder: held by one run, written without following links, and missed as soon as it is gone."""

import errno
import fcntl
import json
import math
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lsdali.disk import read_plain, refuse_other, refuse_shared, write_whole
from lsdali.errors import UserError

LOCK, EVENTS = ".lock", "events.jsonl"
# what a run writes, beside two folders
FILES = (LOCK, EVENTS, "recipe.yaml", "summary.json", "stopped.json", "train.csv", "evaluations.csv")
FOLDERS = ("checkpoints", "tensorboard")
GONE = (errno.ENOENT, errno.ENOTDIR, errno.ESTALE)


@dataclass
class RunFolder:
    """A folder locked by this process until `release`, or until the process ends."""

    path: Path
    lock: int  # a handle of the locked file
    new: tuple[Path, ...]  # what this start has made, in that order

    def check(self) -> None:
        """Raise UserError if the folder is no longer the one that was claimed."""
        try:
            now = os.stat(self.path / LOCK)
        except OSError as error:
            if error.errno not in GONE:
                return
        else:
            if os.path.samestat(now, os.fstat(self.lock)):
                return
        raise UserError(
            f"the run folder {self.path} has gone: it, or its {LOCK}, was removed, renamed, replaced or unmounted "
            "while the run was writing to it; put it back, and the same command goes on from its newest checkpoint"
        )

    def release(self) -> None:
        os.close(self.lock)

    def abandon(self) -> None:
        """Remove what this start has made, unless others have put something there."""
        for path in (self.path / EVENTS, *reversed(self.new)):
            with suppress(OSError):
                if path in self.new or path.stat().st_size == 0:
                    path.rmdir() if path.is_dir() else path.unlink()


def claim(path: Path) -> RunFolder:
    """Hold a run folder for this run, and make it if there is none.

    Raises UserError if another run holds it, it cannot be written, or a link or something else that is no file has
    the name of one of its files.
    """
    new: list[Path] = []
    try:
        for folder in reversed([path, *path.parents]):
            if not folder.is_dir():
                folder.mkdir(exist_ok=True)
                new.append(folder)
        refuse_planted(path)
        new += [path / name for name in (LOCK, EVENTS) if not (path / name).exists()]
        lock = os.open(path / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise UserError(f"run_dir {path} cannot be written: {error.strerror}") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        raise UserError(f"another run is writing to {path}: wait for it, or give another run_dir") from None
    return RunFolder(path, lock, tuple(new))


def refuse_planted(path: Path) -> None:
    """Raise UserError if something else has the name of a file or folder that a run writes."""
    for name in FILES:
        refuse_other(path / name)
    refuse_shared(path / EVENTS)
    for name in FOLDERS:
        refuse_other(path / name, folder=True)
    for file in (path / "tensorboard").glob("events.out.*"):
        refuse_other(file)


# ---- JSON


def strict_json(content: Any, indent: int | None = None) -> str:
    """Return JSON that every reader takes: null for NaN and infinity, which JSON does not have."""
    return json.dumps(_finite(content), indent=indent, allow_nan=False)


def _finite(node: Any) -> Any:
    if isinstance(node, float):
        return node if math.isfinite(node) else None
    if isinstance(node, Mapping):
        return {key: _finite(value) for key, value in node.items()}
    return [_finite(value) for value in node] if isinstance(node, (list, tuple)) else node


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file into the run folder. Raises UserError if it cannot be written."""
    write_whole(path, strict_json(content, indent=2) + "\n")


def read_summary(path: Path) -> dict[str, Any] | None:
    """Return the content of a summary.json, NaN for null figures; None if it is missing or damaged."""
    try:
        summary = json.loads(read_plain(path))
        parts = [summary, summary["ema"]] if "ema" in summary else [summary]
        for part in parts:
            part.update({which: figures(part[which]) for which in ("last", "best")})
        numbers = [summary[name] for name in ("images_per_second", "wall_seconds") if name in summary]
        numbers += [summary["stopped"]] if summary.get("stopped") is not None else []
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return dict(summary) if all(map(is_number, numbers)) else None


def figures(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return metrics and their epoch with NaN for null.

    Raises KeyError, TypeError or AttributeError if they are not what a run writes.
    """
    read = {name: math.nan if value is None else value for name, value in entry.items()}
    if not all(map(is_number, read.values())):
        raise TypeError("a figure is no number")
    return {**read, "top1": read["top1"], "epoch": int(read["epoch"])}


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
