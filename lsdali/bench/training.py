"""Training as users start it: the recipe's own loader, method, optimizer and meter for some steps, in a fresh process.

The share of made-up images is the speed with real ones as a part of that with one batch shown again and again: what is
missing from 1, the data cost.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice, repeat
from pathlib import Path

import torch

from lsdali import dist
from lsdali.batch import Batch
from lsdali.bench.loader import cpu_seconds
from lsdali.bench.peers import PEERS
from lsdali.bench.turns import Figures, Findings, in_new_process, take_turns, wait_for
from lsdali.build import build
from lsdali.events import Events
from lsdali.meter import Meter
from lsdali.recipe import Recipe, load
from lsdali.state.checkpoint import Checkpoints
from lsdali.trainer import Trainer

REAL, MADE_UP = "lsdali", "lsdali, one batch again and again"
MEASURED = {"images/s": 1, "CPU-ms/image": 3, "% waiting for data": 1}


def train_speed(options: argparse.Namespace) -> None:
    """Measure a recipe's training, and with `--compare` other people's loops on the same network and images."""
    recipe = load(options.recipe, options.overrides)
    kinds = [MADE_UP, REAL, *(PEERS if options.compare else ())]
    title = f"training {options.recipe} {' '.join(options.overrides)}".rstrip()
    findings = Findings(title, MEASURED, "CPU-ms/image" if not torch.cuda.is_available() else "images/s")
    runs = f"medians of {options.turns} runs of {options.steps} steps after {options.warmup}"
    findings.notes.append(f"{runs}, batch {recipe.batch}")
    take_turns(findings, {kind: partial(measured, kind, options) for kind in kinds}, options.turns)
    share = findings.median(REAL, "images/s") / findings.median(MADE_UP, "images/s")
    findings.notes.append(f"share of made-up images: {share:.3f}")
    if options.compare:
        findings.notes.append("the other loops train with cross-entropy, whatever the recipe's method is")
    findings.report(options)


def measured(kind: str, options: argparse.Namespace, ranks: int = 0) -> Figures:
    """Return the figures of one run in new processes."""
    counts = ("--steps", str(options.steps), "--warmup", str(options.warmup))
    return in_new_process("train-part", kind, options.recipe, *options.overrides, *counts, ranks=ranks)


def train_part(options: argparse.Namespace) -> None:
    """Print the figures of some steps as JSON; what the other commands start."""
    recipe = load(options.recipe, options.overrides)
    if recipe.threads is not None:
        torch.set_num_threads(recipe.threads)
    with dist.session() as device, tempfile.TemporaryDirectory() as folder:
        if options.kind in PEERS:
            figures = peer_figures(PEERS[options.kind](recipe, device), options, device)
        else:
            trainer = bench_trainer(recipe, Path(folder), device)
            figures = own_figures(trainer, options, made_up=options.kind == MADE_UP)
    if os.environ.get("RANK", "0") == "0":
        print(json.dumps(figures))


def bench_trainer(recipe: Recipe, folder: Path, device: torch.device) -> Trainer:
    """Return the trainer of a recipe, at step 0, that keeps nothing."""
    return build(recipe, folder, device, Checkpoints(folder / "checkpoints", 1, quiet), Events([]))


def quiet(line: str) -> None:
    """Say nothing."""


def batches_of(trainer: Trainer) -> Iterator[Batch]:
    """Yield training batches without end, as the clock goes on."""
    while True:
        yield from trainer.train.epoch(trainer.clock.step)


def own_figures(trainer: Trainer, options: argparse.Namespace, *, made_up: bool) -> Figures:
    """Take steps as a run does, with its meter, read as often as the recipe says."""
    trainer.student.train()
    source = batches_of(trainer)
    batches = repeat(next(source)) if made_up else source
    images, meter = 0, Meter()
    for _ in range(options.warmup):
        one_step(trainer, batches, meter)
    wait_for(trainer.device)
    meter, waited = Meter(), 0.0
    began, cpu = time.perf_counter(), cpu_seconds(os.getpid())
    for number in range(options.steps):
        images += one_step(trainer, batches, meter)
        if number == options.steps - 1 or (number + 1) % trainer.recipe.log.every_steps == 0:
            meter.read()
            waited, meter = waited + meter.data_seconds(), Meter()
    wait_for(trainer.device)
    spent, cpu = time.perf_counter() - began, cpu_seconds(os.getpid()) - cpu
    return figures_of(images * dist.world(), spent, cpu * dist.world(), waited)


def one_step(trainer: Trainer, batches: Iterator[Batch], meter: Meter) -> int:
    """Wait for a batch and train on it; return its images."""
    batch = trainer.next(batches, meter)
    assert batch is not None
    meter.add(trainer.step(batch))
    trainer.clock = trainer.clock.tick()
    return len(batch)


def peer_figures(loop: Iterator[int], options: argparse.Namespace, device: torch.device) -> Figures:
    """Drive another loop, which yields the images of each step that it has taken."""
    for _ in islice(loop, options.warmup):
        pass
    wait_for(device)
    began, cpu = time.perf_counter(), cpu_seconds(os.getpid())
    images = sum(islice(loop, options.steps))
    wait_for(device)
    spent, cpu = time.perf_counter() - began, cpu_seconds(os.getpid()) - cpu
    return figures_of(images, spent, cpu, float("nan"))


def figures_of(images: int, spent: float, cpu: float, waited: float) -> Figures:
    return dict(zip(MEASURED, (images / spent, 1000 * cpu / images, 100 * waited / spent), strict=True))


def scale(options: argparse.Namespace) -> None:
    """Measure a recipe's training on several numbers of processes, each with the recipe's batch."""
    recipe = load(options.recipe, options.overrides)
    findings = Findings(f"training {options.recipe} on several processes", MEASURED, "images/s")
    runs = f"medians of {options.turns} runs of {options.steps} steps"
    findings.notes.append(f"batch {recipe.batch} in each process; {runs}")

    def run_of(world: int) -> Callable[[], Figures]:
        own = argparse.Namespace(**vars(options))
        own.overrides = [*options.overrides, f"batch={recipe.batch * world}"]
        return lambda: measured(REAL, own, ranks=world)

    take_turns(findings, {f"{world} processes": run_of(world) for world in options.worlds}, options.turns)
    findings.report(options, "1 torch thread in each process, or OMP_NUM_THREADS")
