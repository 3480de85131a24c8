"""Processes that have imported all that trains when they begin, which takes others seconds."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from multiprocessing.context import ForkServerProcess, SpawnProcess
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from lsdali.testing.ranks import forks, free_port, rank_environment

ROOT = Path(__file__).parents[1]
SECONDS = 240
"""The longest that they may take."""
GRACE = 20
"""Seconds in which the other ranks end by themselves after one has failed."""


def environment(ranks: int) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def work(variables: Mapping[str, str], output: Path, main: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    """Be one of the processes: take its place and its outputs, call `main`, and end with the status that it returns."""
    os.chdir(ROOT)
    os.environ.clear()
    os.environ.update(variables)
    for number in (1, 2):
        os.dup2(os.open(output / str(number), os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    sys.exit(main(*arguments))


class Forked:
    """`main(*arguments)` in a process for each rank, placed as torchrun does; for 0 ranks in a plain one."""

    def __init__(self, output: Path, ranks: int, main: Callable[..., Any], *arguments: Any) -> None:
        port = free_port()
        self.output = output
        self.processes: list[ForkServerProcess | SpawnProcess] = []
        for rank in range(max(ranks, 1)):
            variables = {**environment(ranks), **(rank_environment(rank, ranks, port) if ranks else {})}
            process = forks().Process(target=work, args=(variables, output, main, arguments))
            process.start()
            self.processes.append(process)

    def status(self) -> int | None:
        """Return the exit status: None while a process runs, else the first that is not 0."""
        codes = [process.exitcode for process in self.processes]
        return None if None in codes else next((code for code in codes if code), 0)

    def wait(self) -> int:
        """Return the status once all have ended; if one has failed, the others are killed after their time of grace."""
        end = time.monotonic() + SECONDS
        while (status := self.status()) is None:
            if any(process.exitcode for process in self.processes):
                end = min(end, time.monotonic() + GRACE)
            if time.monotonic() > end:
                self.kill()
            time.sleep(0.01)
        return status

    def kill(self) -> None:
        """SIGKILL to every process."""
        for process in self.processes:
            process.kill()
            process.join()

    def told(self) -> list[str]:
        """Return what they have written to stdout and stderr."""
        files = [self.output / str(number) for number in (1, 2)]
        return [file.read_text() if file.exists() else "" for file in files]


@contextmanager
def forked(ranks: int, main: Callable[..., Any], *arguments: Any) -> Iterator[Forked]:
    """Yield the processes; what is left of them in the end is killed."""
    with TemporaryDirectory() as output:
        run = Forked(Path(output), ranks, main, *arguments)
        try:
            yield run
        finally:
            run.kill()


def run_forked(ranks: int, main: Callable[..., Any], *arguments: Any) -> subprocess.CompletedProcess[str]:
    """Return the status and the outputs of processes that came to their end."""
    with forked(ranks, main, *arguments) as run:
        status = run.wait()
        return subprocess.CompletedProcess(arguments, status, *run.told())


def run_script(code: str, *arguments: str) -> None:
    """Be a script that is started with these arguments; a `main` for the functions above."""
    sys.argv = ["script.py", *arguments]
    exec(code, {"__name__": "__main__"})
