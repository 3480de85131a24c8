"""Processes that stay: a group of ranks that runs one check after another.

To import torch takes seconds, and most checks take less than one: each process is forked from one that has done so.
"""

import gc
import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerContext, ForkServerProcess, SpawnContext, SpawnProcess
from typing import Any, cast

import torch

from lsdali import dist

PRELOADED = ["lsdali.testing.contract", "lsdali.train", "torch._dynamo"]
"""Modules that a training process imports; the last one with its optimizer takes as long as torch itself."""
OnRanks = Callable[..., None]
"""on_ranks(world, check, *arguments): see `Ranks.run`."""


def forks() -> ForkServerContext | SpawnContext:
    """Return what starts processes in which all that trains is imported; they share no state with this one.

    On a machine with GPUs each imports it anew: CUDA does not outlive a fork, and an import may look for devices.
    """
    if torch.cuda.is_available():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


class Ranks:
    """At most one group of processes, of the size last asked for."""

    def __init__(self) -> None:
        self.processes: list[ForkServerProcess | SpawnProcess] = []
        self.links: list[Connection] = []

    def run(self, world: int, check: Callable[..., None], *arguments: Any) -> None:
        """Call `check(*arguments)` on each of `world` ranks of one process group.

        Raises AssertionError with the traceback of the rank that fails first; the group is then given up, since its
        other ranks may wait in a collective for ever.
        """
        if len(self.processes) != world or not all(process.is_alive() for process in self.processes):
            self.stop()
            self.start(world)
        try:
            for link in self.links:
                link.send((dict(os.environ), check, arguments))
            waiting = set(self.links)
            while waiting:
                for ready in cast(list[Connection], wait(waiting)):
                    self.answer(self.links.index(ready))
                    waiting.discard(ready)
        except BaseException:
            self.stop()
            raise

    def answer(self, rank: int) -> None:
        try:
            failure = self.links[rank].recv()
        except EOFError:
            self.processes[rank].join()
            failure = f"the process ended with exit code {self.processes[rank].exitcode}"
        assert failure is None, f"rank {rank} of {len(self.links)}: {failure}"

    def start(self, world: int) -> None:
        context = forks()
        port = free_port()
        for rank in range(world):
            ours, theirs = context.Pipe()
            process = context.Process(target=serve, args=(rank, world, port, theirs), daemon=True)
            process.start()
            theirs.close()
            self.processes.append(process)
            self.links.append(ours)

    def stop(self) -> None:
        """Kill the processes: those that only wait for work lose nothing by it."""
        for process, link in zip(self.processes, self.links, strict=True):
            process.kill()
            process.join()
            link.close()
        self.processes, self.links = [], []


def serve(rank: int, world: int, port: int, link: Connection) -> None:
    """Work as each process does until it is killed, or the tests end."""
    torch.set_num_threads(1)
    mine = rank_environment(rank, world, port)
    os.environ.update(mine)
    with dist.session():
        while True:
            try:
                environment, check, arguments = link.recv()
            except EOFError:
                return
            os.environ.clear()
            os.environ.update({**environment, **mine})
            link.send(failure_of(check, arguments))
            gc.collect()


def failure_of(check: Callable[..., None], arguments: tuple[Any, ...]) -> str | None:
    try:
        check(*arguments)
    except BaseException:  # also SystemExit, and what pytest raises
        return traceback.format_exc()
    return None


def rank_environment(rank: int, world: int, port: int) -> Mapping[str, str]:
    """Return what torchrun sets for processes of one node."""
    return {
        "RANK": str(rank),
        "WORLD_SIZE": str(world),
        "LOCAL_RANK": str(rank),
        "LOCAL_WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])
