"""Carry out cells: some at a time, each once whoever else works in the same folder, until nothing is left to do."""

import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from types import FrameType

import torch

from lsdali.errors import UserError
from lsdali.sweep.cells import Cell
from lsdali.sweep.figures import finished, lookup_of, other_recipe
from lsdali.sweep.forker import Forker
from lsdali.sweep.work import Process, Start, claim_cell, holder, launch, spawn

POLL_SECONDS = 0.05  # seconds between looks at our own processes
LOOK = 2.0  # seconds between looks at the disk for what others have done
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
Say = Callable[[str], None]


@dataclass
class Runner:
    """The state of one sweep command."""

    cells: Sequence[Cell]
    jobs: int
    processes: int
    say: Say
    done: set[Cell] = field(default_factory=set)
    failed: dict[Cell, str] = field(default_factory=dict)
    stopped: int = 0  # the signal that was sent to us
    _running: dict[int, Process] = field(default_factory=dict)  # by slot
    _told: set[Cell] = field(default_factory=set)  # whose other holder was named
    _forkers: dict[int, Forker] = field(default_factory=dict)  # by slot

    def run(self) -> None:
        """Return when every cell is done or has failed, or when a signal has ended what was running."""
        looked = -LOOK
        try:
            with self._signals():
                while self._running or (self._left() and not self.stopped):
                    ended = self._collect()
                    if not self.stopped and (ended or time.monotonic() - looked >= LOOK):
                        looked = self._start(looked)
                    if self._running or self._left():
                        time.sleep(POLL_SECONDS)
        finally:
            for forker in self._forkers.values():
                forker.close()

    def _left(self) -> list[Cell]:
        busy = {process.cell for process in self._running.values()}
        return [cell for cell in self.cells if not (cell in self.done or cell in self.failed or cell in busy)]

    def _start(self, looked: float) -> float:
        """Begin cells while there are free slots; what is finished or cannot be done leaves the queue.

        The disk is asked about every cell if that was done last at `looked`, LOOK seconds ago or more; else only about
        those that there is a slot for. Return when it was done last.
        """
        now = time.monotonic()
        whole = now - looked >= LOOK
        for cell in self._left():
            try:
                self._consider(cell, whole=whole)
            except UserError as error:
                self._fail(cell, str(error))
        return now if whole else looked

    def _consider(self, cell: Cell, *, whole: bool) -> None:
        needs = [need for group in cell.needs.values() for need in group]
        if lost := [need for need in needs if need in self.failed]:
            return self._fail(cell, f"needs {lost[0].name}, which failed")
        if not all(need in self.done for need in needs) or not (whole or len(self._running) < self.jobs):
            return
        if different := other_recipe(cell, lookup_of(cell)):
            return self._fail(cell, f"{cell.folder} holds a run of another recipe ({'; '.join(different)})")
        if finished(cell):
            self.done.add(cell)
            return
        free = [slot for slot in range(self.jobs) if slot not in self._running]
        if free:
            self._begin(cell, free[0])

    def _begin(self, cell: Cell, slot: int) -> None:
        lock = claim_cell(cell)
        if lock is None:
            if cell not in self._told:
                self._told.add(cell)
                self.say(f"elsewhere  {cell.name}: {holder(cell)}")
            return
        if finished(cell):  # by another process, since we looked
            lock.close()
            self.done.add(cell)
            return
        goes_on = any((cell.folder / "checkpoints").glob("step-*.pt"))
        self.say(f"{'resumes' if goes_on else 'starts':9}  {cell.name}")
        self._running[slot] = Process(cell, lock, launch(self.processes), self._way(slot))

    def _way(self, slot: int) -> Start:
        """Return how commands begin in a slot: as forks of one process, but for several processes a run, and on GPUs,
        whose drivers do not bear a fork."""
        own = environment(slot, self.jobs, self.processes)
        if self.processes > 1 or torch.cuda.device_count():
            return partial(spawn, own)
        if slot not in self._forkers or not self._forkers[slot].lives:
            self._forkers[slot] = Forker(own)
        return self._forkers[slot].begin

    def _collect(self) -> bool:
        """Take what has ended out of its slot; return whether anything has."""
        ended = False
        for slot, process in list(self._running.items()):
            try:
                status = process.poll(stopping=bool(self.stopped))
            except UserError as error:
                status = 2
                self._fail(process.cell, str(error))
            if status is not None:
                ended = True
                del self._running[slot]
                process.close()
                self._tell(process, status)
        return ended

    def _tell(self, process: Process, status: int) -> None:
        cell = process.cell
        if status == 0:
            self.done.add(cell)
            self.say(f"finished   {cell.name}")
        elif self.stopped:
            self.say(f"stopped    {cell.name}")
        elif cell not in self.failed:
            self._fail(cell, f"{process.last_words()} (status {status}; {process.log})")

    def _fail(self, cell: Cell, why: str) -> None:
        self.failed[cell] = why
        self.say(f"failed     {cell.name}: {why}")

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Hand signals on to the runs and wait for them; a second one ends them at once."""

        def handle(number: int, frame: FrameType | None) -> None:
            again = bool(self.stopped)
            self.stopped = number
            for process in self._running.values():
                process.send(signal.SIGTERM if again else number)

        before = {number: signal.getsignal(number) for number in SIGNALS}
        heard = [number for number, old in before.items() if old is not signal.SIG_IGN]  # nohup ignores SIGHUP
        try:
            for number in heard:
                signal.signal(number, handle)
            yield
        finally:
            for number in heard:
                signal.signal(number, before[number])


def environment(slot: int, jobs: int, processes: int) -> Mapping[str, str]:
    """Return what the run in one of several slots sees.

    That is its share of the CPU's threads, and GPUs of its own if there are enough for all; else one of them in turn.
    """
    if jobs == 1:
        return {}
    threads = max(1, len(os.sched_getaffinity(0)) // (jobs * processes))
    out = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads))}
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = [*map(str, range(torch.cuda.device_count()))] if named is None else [g for g in named.split(",") if g]
    if len(gpus) >= jobs * processes:
        return {**out, "CUDA_VISIBLE_DEVICES": ",".join(gpus[slot * processes : (slot + 1) * processes])}
    return {**out, "CUDA_VISIBLE_DEVICES": gpus[slot % len(gpus)]} if gpus and processes == 1 else out
