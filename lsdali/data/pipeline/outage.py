"""Recover if images cannot be read during a run: wait for a short outage, or name the bad files."""

import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from lsdali import dist
from lsdali.data.index.stored import Log
from lsdali.data.io.header import FAULTS, GOOD, MISSING, SystemFault
from lsdali.data.pipeline.dali_pipeline import DaliPipeline
from lsdali.data.sets.sample_index import Index
from lsdali.errors import UserError
from lsdali.terminal import say

LOOK_SECONDS = 0.2  # seconds between two looks at what is away
TRIES = 3  # of one batch that fails though no file of it does


def print_for_rank(text: str) -> None:
    say(text, file=sys.stderr, flush=True)


class Recovery:
    """Recovery of a failed batch: it waits for a short outage and retries, or names the bad files."""

    def __init__(self, index: Index, runner: DaliPipeline, wait_seconds: float, log: Log = print_for_rank) -> None:
        self._index, self._runner, self._seconds = index, runner, wait_seconds
        self._log = log if dist.is_main() else print_for_rank
        self._failed = (-1, 0)  # the position that failed without a culprit, and how often

    def bad_files(self, error: RuntimeError) -> dict[int, str]:
        """Return the bad files of the runner's present batch, and why; none if the batch should be tried again.

        Raises UserError for what is still away after wait_seconds, and `error` if no file is to blame.
        """
        try:
            found = self._runner.culprits(error)
        except SystemFault as fault:
            self._wait(partial(_unreadable, fault.path))
            return {}
        except RuntimeError:
            position, count = self._failed
            self._failed = self._runner.position, count + 1 if position == self._runner.position else 1
            if self._failed[1] >= TRIES:
                raise
            return {}
        for i in [i for i, reason in found.items() if reason == FAULTS[MISSING]]:
            if isinstance(self._index.root, Path) and self._lost(i):
                self._wait(partial(self._lost, i))
                return {}
            if self._index.read_header(i)[2] == GOOD:  # it came back with its folder
                del found[i]
        return found

    def _lost(self, i: int) -> str:
        """Return which folder above sample i is gone; empty if none is."""
        file, root = Path(os.fsdecode(self._index.byte_range(i).path)), Path(self._index.root)
        inside = [folder for folder in reversed(file.parents) if folder == root or root in folder.parents]
        for folder in inside:
            try:
                with os.scandir(folder) as entries:
                    empty = next(entries, None) is None
                if empty:
                    return f"folder {folder} is empty: its images are gone"
            except OSError as error:
                return f"folder {folder} is gone: {error.strerror}"
        return ""

    def _wait(self, problem: Callable[[], str]) -> None:
        """Wait until there is no problem. Raises UserError if there is one after the seconds that are allowed."""
        said = problem()
        if not said:
            return
        started = time.monotonic()
        self._log(f"{said}; waiting for it, {self._seconds:g} s at most (data.wait_seconds)")
        while now := problem():
            if time.monotonic() - started > self._seconds:
                raise UserError(f"{now}; bring it back, and the same command goes on from the last checkpoint")
            time.sleep(LOOK_SECONDS)
        self._log(f"it is back after {time.monotonic() - started:.1f} s; the run goes on")


def _unreadable(path: str) -> str:
    try:
        with open(path, "rb") as file:
            file.read(1)
    except OSError as error:
        return f"{path} cannot be read: {error.strerror}"
    return ""
