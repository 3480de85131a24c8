"""The work of one cell: its claim, its commands, and the processes that carry them out."""

import fcntl
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from lsdali.errors import UserError
from lsdali.sweep.cells import Cell, label_text
from lsdali.sweep.figures import load_json, lookup_of
from lsdali.sweep.forker import Forked
from lsdali.terminal import say


@dataclass(frozen=True)
class Command:
    """A program's arguments, and what to do after it has succeeded."""

    arguments: list[str]
    after: Callable[[], object] = lambda: None


def commands(cell: Cell, launcher: Sequence[str]) -> list[Callable[[], Command]]:
    """Return what makes a cell complete, in order.

    Each is made when its turn comes, since it may read what came before.

    Finished parts are cheap to do again: a finished run says so and stops, and evaluations that are there are left.
    """
    out: list[Callable[[], Command]] = []
    if not (cell.folder / "summary.json").is_file():
        out.append(lambda: Command([*launcher, "-m", "lsdali.train", *cell.arguments(lookup_of(cell))]))
    names = [name for name in cell.evaluations if not (cell.folder / f"{name}.json").is_file()]
    return out + [lambda name=name: evaluation_command(cell, name, launcher) for name in names]


def evaluation_command(cell: Cell, name: str, launcher: Sequence[str]) -> Command:
    """Return the command of one evaluation; its file appears when it is whole."""
    config, target = cell.evaluations[name], cell.folder / f"{name}.json"
    part = cell.folder / f".{name}.json"
    files = [str(cell.folder)] if config.members is None else members(cell, config.members)
    arguments = [*files, *(f"{key}={label_text(value)}" for key, value in config.set.items())]
    arguments += ["--checkpoint", config.checkpoint] if config.members is None else []
    arguments += ["--ensemble"] if len(files) > 1 else []
    arguments += [f"--bins={bins}" for bins in config.bins]
    arguments += ["--temperature", config.temperature] if config.temperature else []
    return Command([*launcher, "-m", "lsdali.evaluate", *arguments, "--json", str(part)], lambda: part.replace(target))


def members(cell: Cell, count: int) -> list[str]:
    """Return so many checkpoints of a finished run, evenly spaced over its steps.

    Raises UserError if one is not there.
    """
    steps = load_json(cell.folder / "summary.json")["steps"]
    files = [cell.folder / "checkpoints" / f"step-{steps * k // count:010d}.pt" for k in range(1, count + 1)]
    if missing := [file for file in files if not file.is_file()]:
        raise UserError(
            f"{cell.name} kept no {missing[0]}: an ensemble of {count} needs save.every_epochs to meet its epochs, "
            "and save.keep to keep them"
        )
    return [str(file) for file in files]


# ---- claims


def claim_cell(cell: Cell) -> IO[str] | None:
    """Hold the cell for this process, on every host that sees the folder; None: another process holds it.

    The lock goes with the process, however it ends. A run that has outlived the sweep that started it holds its own
    lock (`.lock` in its folder), which counts too.
    """
    path = cell.folder.parent / ".claims" / cell.folder.name
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.open("a+")
    if not locked(lock) or runs_alone(cell.folder / ".lock"):
        lock.close()
        return None
    lock.truncate(0)
    lock.write(f"{socket.gethostname()} {os.getpid()}\n")
    lock.flush()
    return lock


def locked(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def runs_alone(path: Path) -> bool:
    """Return whether a run holds the lock of its folder."""
    if not path.is_file():
        return False
    with path.open("a") as own:
        return not locked(own)


def holder(cell: Cell) -> str:
    """Return who holds a cell, as the claim says."""
    path = cell.folder.parent / ".claims" / cell.folder.name
    return path.read_text().strip() if path.is_file() else "another process"


# ---- processes

Start = Callable[[Sequence[str], Path], "subprocess.Popen[bytes] | Forked"]
"""Begins a command that writes into a log."""


def spawn(environment: Mapping[str, str], arguments: Sequence[str], log: Path) -> "subprocess.Popen[bytes]":
    """Start a new process."""
    with log.open("a") as file:
        return subprocess.Popen(
            arguments,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment},
            start_new_session=True,
        )


class Process:
    """A running cell. It has a session of its own, so that a terminal's Ctrl-C reaches it through the sweep alone."""

    def __init__(self, cell: Cell, lock: IO[str], launcher: Sequence[str], start: Start) -> None:
        self.cell, self._lock, self._start = cell, lock, start
        self._rest = commands(cell, launcher)
        self.log = cell.folder.parent / "logs" / f"{cell.folder.name}.txt"
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self._begin()

    def _begin(self) -> None:
        self._command = self._rest.pop(0)()
        with self.log.open("a") as log:
            say("$", *self._command.arguments, file=log, flush=True)
        self._child = self._start(self._command.arguments, self.log)

    def poll(self, *, stopping: bool) -> int | None:
        """Return the exit status once the cell's last command has ended, or one has failed; None: it runs."""
        status = self._child.poll()
        if status == 0:
            self._command.after()
            if self._rest and not stopping:
                self._begin()
                return None
            status = -signal.SIGINT if self._rest else 0
        return status

    def close(self) -> None:
        """Let go of the cell."""
        self._lock.close()

    def send(self, number: int) -> None:
        if self._child.poll() is None:
            self._child.send_signal(number)

    def last_words(self) -> str:
        """Return what the log says last: the error's own line if it has one."""
        lines = [line.strip() for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        told = [line for line in lines if line.startswith("error:")]
        return (told or lines or [""])[-1]


def launch(processes: int) -> list[str]:
    """Return how Python is started for so many processes a run."""
    if processes == 1:
        return [sys.executable]
    alone = ["--standalone", "--local-addr", "127.0.0.1"]  # the node's name may lead nowhere
    return [sys.executable, "-m", "torch.distributed.run", *alone, "--nproc_per_node", str(processes)]
