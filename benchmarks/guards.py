"""What a step pays for being watched."""

import argparse
import statistics
import time

import torch

from benchmarks.saves import Training
from lsdali.faults.pulse import Pulse
from lsdali.faults.table import ProcessTable
from lsdali.skips import Buffers, Skips


def guards(options: argparse.Namespace) -> None:
    """What a step pays for being watched.

    Trains a network on made-up images, by turns bare and with all that a run adds to a step: the count for the
    heartbeat and its thread, the question whether to stop, the copy of BatchNorm's statistics and the flag of a step
    that is not finite. Prints medians of the process's CPU time, which other processes on the machine disturb least.
    """
    torch.set_num_threads(1)
    training = Training(options.model, 0)
    pulse, buffers, skips = Pulse(), Buffers(), Skips()
    table = ProcessTable(1, 300)

    def watched() -> None:
        pulse.beat("waiting for data")
        pulse.beat("training")
        buffers.keep(training.student)
        training.step()
        skipped = torch.zeros(())
        buffers.undo(skipped)
        skips.add(skipped)
        assert not pulse.stops(training.done)

    def seconds(kind: str) -> float:
        began = time.process_time()
        for _ in range(options.steps):
            watched() if kind == "watched" else training.step()
        return (time.process_time() - began) / options.steps

    pulse.begin(table, table.tick)
    found: dict[str, list[float]] = {"bare": [], "watched": []}
    for kind in found:
        seconds(kind)
    for block in range(options.blocks):
        for kind in sorted(found, reverse=bool(block % 2)):
            found[kind].append(seconds(kind))
    pulse.leave(0)
    medians = {kind: statistics.median(values) for kind, values in found.items()}
    print({kind: f"{1000 * value:.2f} ms" for kind, value in medians.items()})
    differences = [b / a - 1 for a, b in zip(found["bare"], found["watched"], strict=True)]
    print(f"watched costs {statistics.median(differences):+.2%} (median of {options.blocks} pairs)")
    began = time.process_time()
    for _ in range(10_000):
        pulse.beat("training")
        pulse.stops(1)
    print(f"a beat and the question whether to stop: {(time.process_time() - began) * 100:.2f} us")


def add_arguments(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    sub = commands.add_parser("guards", help="what a step pays for being watched", description=guards.__doc__)
    sub.add_argument("--model", default="resnet50")
    sub.add_argument("--blocks", type=int, default=15)
    sub.add_argument("--steps", type=int, default=6, help="in a block")
    sub.set_defaults(run_command=guards)
