"""What the target of Zipf's label smoothing costs, against the published way to work it out.

The published way (megvii-research/zipfls, losses.py) copies votes to the host, counts them in a table of all classes,
ranks every class with SciPy, and turns the ranks into weights in NumPy. SciPy before 1.10 ranked row by row in a Python
loop; both ways are measured, with the SciPy that is installed. The votes are made up, the targets are compared before
anything is timed, and the contestants take turns.
"""

import argparse
import statistics
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import rankdata
from torch import Tensor

from lsdali.bench.machine import hardware, spread
from lsdali.bench.methods import timed
from lsdali.functional import vote_target, zipf_weights

Reals = NDArray[np.float64]
Rank = Callable[[NDArray[np.float32]], Reals]


def zls(options: argparse.Namespace) -> None:
    """The target of a batch of votes: ours, and as published with SciPy of today and of then."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    print(hardware(f"{torch.get_num_threads()} torch threads"))
    print(f"batch {options.batch}, {options.positions} positions;")
    print(f"medians of {options.reps} interleaved runs of {options.calls} calls, lowest to highest in brackets\n")
    print(f"{'classes':>8}  {'target':30}{'ms':>22}{'times lsdali':>14}")
    for classes in options.classes:
        ways = contestants(*made_up(options.batch, options.positions, classes, device), classes)
        times: dict[str, list[float]] = {name: [] for name in ways}
        for turn in range(options.warmup + options.reps):
            for name, way in ways.items():
                spent = timed(repeated(way, options.calls), device)
                if turn >= options.warmup:
                    times[name].append(1000 * spent / options.calls)
        base = statistics.median(times["lsdali"])
        for name, values in times.items():
            print(f"{classes:>8}  {name:30}{spread(values, 2)}{statistics.median(values) / base:>14.1f}")


def repeated(way: Callable[[], Tensor], calls: int) -> Callable[[], None]:
    def run() -> None:
        for _ in range(calls):
            way()

    return run


def made_up(batch: int, positions: int, classes: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """[B, L] votes, most for classes of low numbers, and [B] labels."""
    generator = torch.Generator().manual_seed(0)
    votes = (torch.rand(batch, positions, generator=generator) ** 4 * classes).long()
    return votes.to(device), torch.randint(classes, (batch,), generator=generator).to(device)


def contestants(votes: Tensor, labels: Tensor, classes: int) -> dict[str, Callable[[], Tensor]]:
    """Raises AssertionError where their targets differ."""
    ways: dict[str, Callable[[], Tensor]] = {
        "lsdali": partial(vote_target, votes, labels, classes, lambda rank, tied: zipf_weights(rank)),
        "published, SciPy of today": partial(published, votes, labels, classes, rank_table),
        "published, SciPy before 1.10": partial(published, votes, labels, classes, rank_rows),
    }
    others = torch.ones(len(votes), classes, dtype=torch.bool, device=votes.device)
    others.scatter_(1, labels[:, None], value=False)
    target = ways["lsdali"]()[others].view(len(votes), -1)
    for way in list(ways.values())[1:]:
        torch.testing.assert_close(way(), target, rtol=1e-5, atol=0)
    return ways


def published(votes: Tensor, labels: Tensor, classes: int, rank: Rank) -> Tensor:
    """[B, L], [B] -> [B, K - 1]: by way of the host, without the column of the label."""
    positions, label = votes.cpu(), labels.cpu()[:, None]
    others = torch.ones(len(positions), classes).scatter_(1, label, 0.0).bool().numpy()
    table = torch.zeros(len(positions), max(classes, positions.shape[1]))
    counts = table.scatter_add(1, positions, torch.ones_like(table))[:, :classes]
    weights = (1 / rank(-counts.numpy())) ** 1.0
    kept = weights[others].reshape(len(positions), classes - 1)
    return torch.from_numpy(kept / kept.sum(axis=1, keepdims=True)).float().to(votes.device)


def rank_table(scores: NDArray[np.float32]) -> Reals:
    ranks: Reals = rankdata(scores, axis=1, method="min")
    return ranks


def rank_rows(scores: NDArray[np.float32]) -> Reals:
    """What `axis` meant in SciPy 1.4 to 1.9."""
    ranks: Reals = np.apply_along_axis(rankdata, 1, scores, "min")
    return ranks


def add_arguments(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    sub = commands.add_parser("zls", help="the target of Zipf's label smoothing", description=zls.__doc__)
    sub.add_argument("--batch", type=int, default=256)
    sub.add_argument("--positions", type=int, default=49, help="of the last map, which vote; 49: 7 x 7")
    sub.add_argument("--classes", type=int, nargs="+", default=[1000, 10_000])
    sub.add_argument("--reps", type=int, default=15, help="runs of each way")
    sub.add_argument("--calls", type=int, default=100, help="in a run")
    sub.add_argument("--warmup", type=int, default=3, help="runs of each way before")
    sub.set_defaults(run_command=zls)
