"""Runs in processes forked from one that has imported everything: a start takes a tenth of a second, not seven."""

import ctypes
import importlib
import multiprocessing
import os
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from lsdali.testing.ranks import free_port, rank_environment
from tests.faults.inject import FAULTS

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["lsdali.train", "lsdali.build", "lsdali.trainer", __name__])
CLONE_NEWNET = 0x40000000  # <linux/sched.h>
PLACES = {
    "building": "lsdali.build:build",
    "step": "lsdali.trainer:Trainer.step",
    "validation": "lsdali.trainer:Trainer.evaluate",
    "save": "lsdali.state.checkpoint:Checkpoints._write",
    "summary": "lsdali.trainer:Trainer.summarize",
}


@dataclass(frozen=True)
class Fault:
    """One of tests.faults.inject, in the nth call at one of the places, on one rank."""

    what: str
    place: str = "step"
    call: int = 10
    rank: int = 0

    def arm(self, mark: Path) -> None:
        """Let it happen in this process; `mark` is then touched."""
        module, _, path = PLACES[self.place].partition(":")
        owner: Any = importlib.import_module(module)
        *above, name = path.split(".")
        for part in above:
            owner = getattr(owner, part)
        inner, calls = getattr(owner, name), [0]

        def called(*args: Any, **kwargs: Any) -> Any:
            calls[0] += 1
            if calls[0] == self.call:
                mark.touch()
                FAULTS[self.what](*args)
            return inner(*args, **kwargs)

        setattr(owner, name, called)


@dataclass
class Forked:
    """A run of so many ranks: 0 without a launcher's variables. Each rank's terminal is a file in `logs`."""

    logs: Path
    ranks: int
    arguments: Sequence[str]
    faults: Sequence[Fault] = ()
    variables: Mapping[str, str] = field(default_factory=dict)
    limits: Mapping[int, int] = field(default_factory=dict)  # setrlimit
    networks: Sequence[str] = ()  # the name of each rank's network namespace
    head: str = "127.0.0.1"

    def __post_init__(self) -> None:
        self.seconds = 0.0  # from the fault to the end of the last process
        self.logs.mkdir(parents=True, exist_ok=True)
        port = free_port()
        self.processes: list[BaseProcess] = []
        for rank in range(max(self.ranks, 1)):
            place = dict(rank_environment(rank, self.ranks, port)) if self.ranks else {}
            if self.networks:
                place |= {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": self.head}
            process = CONTEXT.Process(target=carry_out, args=(self, rank, {**place, **self.variables}), daemon=True)
            self.processes.append(process)
        for process in self.processes:
            process.start()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "processes": []}

    @property
    def mark(self) -> Path:
        """A file that is as old as the fault."""
        return self.logs / "fault"

    def log(self, rank: int) -> Path:
        return self.logs / f"rank{rank}.txt"

    def ends(self, seconds: float = 240) -> list[int]:
        """Wait until every process is gone; their exit statuses."""
        deadline = time.monotonic() + seconds
        for process in self.processes:
            process.join(max(deadline - time.monotonic(), 0))
        late = [process for process in self.processes if process.exitcode is None]
        for process in late:
            process.kill()
        assert not late, self.text
        if self.mark.exists():
            self.seconds = time.time() - self.mark.stat().st_mtime
        return [process.exitcode or 0 for process in self.processes]

    @property
    def text(self) -> str:
        return "\n".join(self.log(rank).read_text() for rank in range(len(self.processes)))


def carry_out(run: Forked, rank: int, variables: Mapping[str, str]) -> None:
    """Be one rank of a run."""
    import resource

    out = os.open(run.log(rank), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(out, 1)
    os.dup2(out, 2)
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
    sys.__stdout__, sys.__stderr__ = sys.stdout, sys.stderr  # type: ignore[misc]
    if run.networks:
        with open(f"/run/netns/{run.networks[rank]}") as network:
            if ctypes.CDLL(None, use_errno=True).setns(network.fileno(), CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "setns")
    os.environ.update(variables)
    torch.set_num_threads(1)
    for limit, value in run.limits.items():
        resource.setrlimit(limit, (value, value))
    for fault in run.faults:
        if fault.rank == rank:
            fault.arm(run.mark)
    os._exit(status_of(run.arguments))


def status_of(arguments: Sequence[str]) -> int:
    from lsdali.train import main

    status = 1
    try:
        status = main(arguments)
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    return status
