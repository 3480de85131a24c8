"""The time that a save takes from training: `python -m benchmarks.saves [--rows N] [--seconds S] [--runs R]`.

Trains a ResNet-50 with momentum on made-up images for so many seconds, by turns with and without a save at the start,
and prints the medians. `--rows` adds a memory of N samples of 1000 classes in half precision, as PS-KD keeps it; 1.28
million are ImageNet. On a commit whose saves are not in the background, `save` itself waits.
"""

import argparse
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from lsdali.models import build_network
from lsdali.models.student import Student
from lsdali.recipe.schema import ModelConfig
from lsdali.state.checkpoint import Checkpoints
from lsdali.state.memory import Layout, SampleMemory
from lsdali.state.module_state import ModuleState

BATCH, SIZE, CLASSES = 8, 64, 1000


class Training:
    """A network, its optimizer and perhaps a memory of samples."""

    def __init__(self, rows: int) -> None:
        torch.manual_seed(0)
        network = build_network(ModelConfig(name="resnet50"), CLASSES)
        self.student = Student(network, {}).to(memory_format=torch.channels_last)
        self.optimizer = torch.optim.SGD(self.student.parameters(), 0.01, momentum=0.9, fused=True)
        self.images = torch.randn(BATCH, 3, SIZE, SIZE).contiguous(memory_format=torch.channels_last)
        self.parts: dict[str, Any] = {"student": ModuleState(self.student), "optimizer": self.optimizer}
        self.memory: SampleMemory | None = None
        self.done = 0
        if rows:
            self.memory = SampleMemory(rows, Layout("dense16", CLASSES), torch.device("cpu"))
            self.memory.open()
            for table in [*self.memory.tables.values(), self.memory.seen]:
                table.fill_(1)  # touch every page
            self.parts["method"] = self.memory

    def step(self) -> None:
        logits = self.student(self.images).logits
        logits.square().mean().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.memory is not None:
            index = torch.arange(self.done, self.done + BATCH) % self.memory.samples
            self.memory.write(index, logits.detach().softmax(1))
        self.done += BATCH

    def steps_of(self, seconds: float) -> int:
        began, count = time.perf_counter(), 0
        while time.perf_counter() - began < seconds:
            self.step()
            count += 1
        return count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=8.0, help="longer than the thread needs to write")
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--folder", type=Path, help="on the disk to measure; default: a temporary folder")
    options = parser.parse_args()
    torch.set_num_threads(1)
    training = Training(options.rows)
    folder = Path(tempfile.mkdtemp(dir=options.folder))
    checkpoints = Checkpoints(folder, 1, print)
    header = {"recipe": {}, "classes": CLASSES, "data": "", "teachers": [], "steps": 10**6}
    extra: dict[str, Any] = {} if not hasattr(checkpoints, "finish") else {"memory": training.memory}
    training.steps_of(2.0)
    count = training.steps_of(options.seconds)
    figures: dict[str, list[float]] = {"without": [], "with": [], "stopped": []}
    for run in range(options.runs):
        for kind in ("without", "with"):
            began = time.perf_counter()
            if kind == "with":
                checkpoints.save(training.parts, {**header, "step": run}, best=False, **extra)
                figures["stopped"].append(time.perf_counter() - began)
            for _ in range(count):
                training.step()
            figures[kind].append(time.perf_counter() - began)
            if extra:
                checkpoints.finish()
    size = next(folder.glob("step-*.pt")).stat().st_size
    shutil.rmtree(folder)
    lost = statistics.median(a - b for a, b in zip(figures["with"], figures["without"], strict=True))
    medians = {kind: statistics.median(values) for kind, values in figures.items()}
    print(f"{size / 1e9:.2f} GB, {count} steps, {options.runs} runs, seconds: {medians}")
    print(f"a save stops the step for {medians['stopped']:.2f} s and costs {lost:.2f} s in all")
    print(f"that is {lost / 40:.1%} of an epoch of 40 s")


if __name__ == "__main__":
    main()
