"""What a run does beside its steps: it starts, evaluates, saves, and holds memory."""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from itertools import islice, repeat
from pathlib import Path
from typing import Any

import torch

from lsdali import dist
from lsdali.bench.training import batches_of, bench_trainer, one_step
from lsdali.bench.turns import Figures, Findings, in_new_process, seconds_of, take_turns, wait_for
from lsdali.errors import UserError
from lsdali.meter import Meter
from lsdali.recipe import load


def evaluation_cost(options: argparse.Namespace) -> None:
    """Measure an evaluation against its forward passes alone, on batches that are there already."""
    recipe = load(options.recipe, options.overrides)
    with dist.session() as device, tempfile.TemporaryDirectory() as folder:
        trainer = bench_trainer(recipe, Path(folder), device)
        loader: Any = trainer.val
        held = list(loader)
        images = sum(int(batch.valid.sum()) for batch in held)

        def forwards() -> None:
            trainer.student.eval()
            with torch.no_grad(), trainer.precision.autocast():
                for batch in held:
                    trainer.student.network(batch.images)

        def whole(val: Any) -> Callable[[], object]:
            def evaluate() -> object:
                trainer.val = val
                return trainer.evaluate()

            return evaluate

        kinds = {"forward passes alone": forwards, "evaluation": whole(held), "with its loader": whole(loader)}
        findings = Findings(f"evaluating {recipe.data.name}, {images:,} images", {"ms/image": 4}, "ms/image")
        findings.notes.append(f"medians of {options.turns} turns after one")

        def figures(name: str) -> Figures:
            return {"ms/image": 1000 * seconds_of(kinds[name], device) / images}

        take_turns(findings, {name: partial(figures, name) for name in kinds}, options.turns, warmup=1)
        findings.report(options)


def saving(options: argparse.Namespace) -> None:
    """Measure what a save of a recipe's run costs: how long the step stands, and when the file is there."""
    recipe = load(options.recipe, options.overrides)
    columns = {"a step, ms": 2, "steps stand, ms": 2, "written after, s": 3, "MB": 1}
    findings = Findings(f"saving {options.recipe}", columns, "steps stand, ms")
    with dist.session() as device, tempfile.TemporaryDirectory(dir=options.folder) as folder:
        trainer = bench_trainer(recipe, Path(folder), device)
        batches, meter = repeat(next(batches_of(trainer))), Meter()

        def save() -> Figures:
            began = time.perf_counter()
            one_step(trainer, batches, meter)
            wait_for(device)
            saves = time.perf_counter()
            trainer.save()
            goes_on = time.perf_counter()
            trainer.checkpoints.finish()
            there = time.perf_counter()
            size = trainer.checkpoints.files()[-1].stat().st_size
            found = (1000 * (saves - began), 1000 * (goes_on - saves), there - saves, size / 1e6)
            return dict(zip(columns, found, strict=True))

        take_turns(findings, {"a save": save}, options.turns, warmup=1)
    findings.notes.append(f"medians of {options.turns} saves into {options.folder or tempfile.gettempdir()}")
    findings.report(options)


def starting(options: argparse.Namespace) -> None:
    """Measure what it takes until something happens: fresh processes, from the shell's point of view."""
    lsdali = [sys.executable, "-m", "lsdali"]
    recipe = [options.recipe, *options.overrides]
    with tempfile.TemporaryDirectory() as folder:
        kinds = {
            "python": [sys.executable, "-c", "pass"],
            "import torch": [sys.executable, "-c", "import torch"],
            "lsdali --help": [*lsdali, "--help"],
            "lsdali train RECIPE --print": [*lsdali, "train", *recipe, "--print"],
            "lsdali train RECIPE epochs=1": [*lsdali, "train", *recipe, "epochs=1"],
        }
        findings = Findings(f"starting {' '.join(recipe)}", {"wall, s": 2, "CPU, s": 2}, "wall, s")
        findings.notes.append(f"medians of {options.turns} runs after one, which fills caches")
        turn = [0]

        def figures(name: str) -> Figures:
            turn[0] += 1
            more = [f"run_dir={folder}/{turn[0]}"] if name.endswith("epochs=1") else []
            before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
            done = subprocess.run([*kinds[name], *more], capture_output=True, text=True)
            spent, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
            if done.returncode:
                raise UserError(f"`{' '.join(kinds[name][1:])}` failed: {done.stderr.strip()}")
            cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            return {"wall, s": spent, "CPU, s": cpu}

        take_turns(findings, {name: partial(figures, name) for name in kinds}, options.turns, warmup=1)
    findings.report(options)


def held_memory(options: argparse.Namespace) -> None:
    """Measure the most memory that a recipe's process holds in its first steps, by batch."""
    findings = Findings(f"memory of {options.recipe}", {"host, MB": 0, "device, MB": 0}, "host, MB")
    findings.notes.append("the most in three steps, a batch or loader's first ones included, without evaluation")

    def run_of(batch: int) -> Callable[[], Figures]:
        return lambda: in_new_process("memory-part", options.recipe, *options.overrides, f"batch={batch}")

    batches = options.batches or [load(options.recipe, options.overrides).batch]
    take_turns(findings, {f"batch {batch}": run_of(batch) for batch in batches}, options.turns)
    findings.report(options)


def memory_part(options: argparse.Namespace) -> None:
    """Print the memory of one process as JSON; what `memory` starts."""
    recipe = load(options.recipe, options.overrides)
    with dist.session() as device, tempfile.TemporaryDirectory() as folder:
        trainer = bench_trainer(recipe, Path(folder), device)
        trainer.student.train()
        for batch in islice(batches_of(trainer), 3):
            trainer.step(batch)
        held = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
    host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"host, MB": host / 1e6, "device, MB": held / 1e6}))
