"""What all benchmarks share: contestants that take turns, processes that measure, a table and a file of JSON."""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch

from lsdali.bench.machine import commit_in_use, hardware, spread
from lsdali.disk import write_whole
from lsdali.errors import UserError

Figures = Mapping[str, float]  # of one turn: what was measured, by column
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node")


@dataclass
class Findings:
    """What each contestant did in each turn."""

    title: str
    columns: dict[str, int]  # name with unit -> digits after the point
    compared: str  # the column of the last one, relative to that of the first contestant
    rows: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def add(self, name: str, figures: Figures) -> None:
        row = self.rows.setdefault(name, {column: [] for column in self.columns})
        for column in self.columns:
            row[column].append(figures[column])

    def median(self, name: str, column: str) -> float:
        return statistics.median(self.rows[name][column])

    def relative(self, name: str) -> float:
        """Return the median of the turns' ratios to the first contestant, so that what hits a turn hits both."""
        first = next(iter(self.rows.values()))[self.compared]
        return statistics.median(b / a for a, b in zip(first, self.rows[name][self.compared], strict=True))

    def lines(self) -> list[str]:
        """Return the table: medians, lowest and highest in brackets, and the ratio to the first contestant."""
        heads = "".join(f"{column:>22}" for column in self.columns)
        out = [self.title, *self.notes, "", f"{'':44}{heads}{f'ratio of {self.compared}':>24}"]
        for name, row in self.rows.items():
            cells = "".join(spread(row[column], digits) for column, digits in self.columns.items())
            out.append(f"{name:44}{cells}{self.relative(name):>24.3f}")
        return out

    def report(self, options: argparse.Namespace, note: str = "") -> None:
        """Print the table, and write the file that `--json` names. Raises UserError if it cannot be written."""
        machine = hardware(note or f"{torch.get_num_threads()} torch threads")
        print("\n".join([machine, f"commit {commit_in_use()}", *self.lines()]))
        if options.json is not None:
            content = {
                "command": sys.argv[1:],
                "commit": commit_in_use(),
                "hardware": machine,
                "title": self.title,
                "notes": self.notes,
                "rows": self.rows,
                "ratios": {name: self.relative(name) for name in self.rows},
            }
            write_whole(options.json, json.dumps(content, indent=1) + "\n")


def take_turns(
    findings: Findings, contestants: Mapping[str, Callable[[], Figures]], turns: int, warmup: int = 0
) -> None:
    """Let each contestant measure once a turn; another one begins each turn."""
    names = list(contestants)
    for name in names:
        findings.rows.setdefault(name, {column: [] for column in findings.columns})
    for turn in range(warmup + turns):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            figures = contestants[name]()
            if turn >= warmup:
                findings.add(name, figures)


def in_new_process(*arguments: str, ranks: int = 0) -> Figures:
    """Return what `lsdali bench ARGUMENTS` prints last, as JSON, in a fresh process or in so many under torchrun.

    Raises UserError if it fails.
    """
    start = [*TORCHRUN, str(ranks)] if ranks else []
    command = [sys.executable, "-W", "ignore", *start, "-m", "lsdali.bench", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")} if ranks else None
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        why = [line for line in done.stderr.splitlines() if line.startswith("error:")] or done.stderr.splitlines()[-1:]
        raise UserError(f"`lsdali bench {' '.join(arguments)}` failed: {' '.join(why) or 'it said nothing'}")
    found: Figures = json.loads(done.stdout.splitlines()[-1])
    return found


def seconds_of(work: Callable[[], object], device: torch.device) -> float:
    """Return how long some work takes: CPU time of this process if the CPU does it, else the clock's."""
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    wait_for(device)
    began = clock()
    work()
    wait_for(device)
    return clock() - began


def wait_for(device: torch.device) -> None:
    """Wait until a GPU has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def visible_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
