"""What grows with ranks, classes and samples."""

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch

from lsdali.bench.machine import hardware
from lsdali.clock import PerEpoch
from lsdali.data.sampling.crops import crop_uniforms, random_resized_crop
from lsdali.data.sampling.sampler import Plan, epoch_permutation
from lsdali.disk import in_words
from lsdali.faults.table import Beat, ProcessTable
from lsdali.functional import zipf_weights
from lsdali.metrics import measure, score
from lsdali.models.answer_rows import RowFormat
from lsdali.state.memory import Layout


def cpu_of(work: Callable[[], object], times: int = 1) -> str:
    """Return the least CPU time of some calls, in words."""
    best = float("inf")
    for _ in range(times):
        began = time.process_time()
        work()
        best = min(best, time.process_time() - began)
    return f"{1000 * best:,.2f} ms"


def samples(options: argparse.Namespace) -> None:
    """Print what a run keeps and computes by the number of samples."""
    print(f"\n{'samples':>12}{'order of an epoch':>20}{'its memory':>14}{'metrics, AURC':>16}{'PS-KD, top 16':>16}")
    for n in options.samples:
        scores = torch.rand(n, 4, dtype=torch.float64)
        scores[:, :2].round_()
        order = cpu_of(lambda n=n: epoch_permutation(0, 1, n))  # type: ignore[misc]
        metrics = cpu_of(lambda scores=scores: measure(scores))  # type: ignore[misc]
        row = sum(kind.itemsize * width for kind, width in Layout("topk", 1000, 16).columns().values())
        print(f"{n:>12,}{order:>20}{in_words(8 * n):>14}{metrics:>16}{in_words(row * n):>16}")


def classes(options: argparse.Namespace) -> None:
    """Print what a step computes and a memory keeps by the number of classes."""
    print(f"\n{'classes':>12}{'scores of 256':>16}{'Zipf of 256':>14}{'dense16 of 1.28 M':>20}{'32 answers':>16}")
    for k in options.classes:
        logits, labels = torch.randn(256, k), torch.zeros(256, dtype=torch.int64)
        ranks = logits.argsort(1, descending=True).argsort(1) + 1
        found = cpu_of(lambda logits=logits, labels=labels: score(logits, labels), 3)  # type: ignore[misc]
        zipf = cpu_of(lambda ranks=ranks: zipf_weights(ranks, 1.0), 3)  # type: ignore[misc]
        row = RowFormat(k, min(32, k), "fp16").dtype.itemsize
        print(f"{k:>12,}{found:>16}{zipf:>14}{in_words(2 * k * 1_281_167):>20}{row:>10} bytes")


def ranks(options: argparse.Namespace) -> None:
    """Print what one rank does for its place in a step, and rank 0 for all beats of a second."""
    print(f"\n{'ranks':>12}{'share of a step':>18}{'its crops':>14}{'beats of a second':>20}")
    labels = np.zeros(1_281_167, np.int64)
    for world in options.ranks:
        plan = Plan(labels, PerEpoch(64 * world), world, 0)
        plan.indices(0, 0)
        size = np.full((64, 2), 400)
        share = cpu_of(lambda plan=plan, world=world: plan.indices(7, world - 1), 5)  # type: ignore[misc]
        rows = plan.indices(7, world - 1)
        crops = cpu_of(
            lambda rows=rows, size=size: random_resized_crop(  # type: ignore[misc]
                crop_uniforms(0, 0, rows), size, (0.08, 1.0), (3 / 4, 4 / 3)
            ),
            5,
        )
        table = ProcessTable(world, 300)

        def second(table: ProcessTable = table, world: int = world) -> None:
            for rank in range(world):
                table.hear(Beat(rank, "host", step=5, count=9))
            table.tick()

        second()
        print(f"{world:>12,}{share:>18}{crops:>14}{cpu_of(second, 3):>20}")


def scale(options: argparse.Namespace) -> None:
    """What grows with ranks, classes and samples, in CPU time of one process: the least of a few calls."""
    torch.set_num_threads(1)
    print(hardware("1 torch thread"))
    samples(options)
    classes(options)
    ranks(options)


def add_arguments(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    sub = commands.add_parser("scale", help="what grows with ranks, classes and samples", description=scale.__doc__)
    sub.add_argument("--samples", type=int, nargs="+", default=[1000, 100_000, 1_281_167, 20_000_000])
    sub.add_argument("--classes", type=int, nargs="+", default=[10, 1000, 20_000])
    sub.add_argument("--ranks", type=int, nargs="+", default=[1, 8, 64, 1024])
    sub.set_defaults(run_command=scale)
