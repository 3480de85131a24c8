"""What a save costs."""

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

    def __init__(self, model: str, rows: int) -> None:
        torch.manual_seed(0)
        network = build_network(ModelConfig(name=model), CLASSES)
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


def saves(options: argparse.Namespace) -> None:
    """The time that a save takes from training.

    Trains a network with momentum on made-up images for so many seconds, by turns with and without a save at the start,
    and prints the medians. With `--rows` there is a memory of so many samples of 1000 classes in half precision, as
    PS-KD keeps it; 1,281,167 are ImageNet.
    """
    torch.set_num_threads(1)
    training = Training(options.model, options.rows)
    folder = Path(tempfile.mkdtemp(dir=options.folder))
    checkpoints = Checkpoints(folder, 1, print)
    header = {"recipe": {}, "classes": CLASSES, "data": "", "teachers": [], "steps": 10**6}
    training.steps_of(options.seconds / 4)
    count = training.steps_of(options.seconds)
    figures: dict[str, list[float]] = {"without": [], "with": [], "stopped": []}
    for run in range(options.runs):
        for kind in ("without", "with"):
            began = time.perf_counter()
            if kind == "with":
                checkpoints.save(training.parts, {**header, "step": run}, best=False, memory=training.memory)
                figures["stopped"].append(time.perf_counter() - began)
            for _ in range(count):
                training.step()
            figures[kind].append(time.perf_counter() - began)
            checkpoints.finish()
    size = next(folder.glob("step-*.pt")).stat().st_size
    shutil.rmtree(folder)
    lost = statistics.median(a - b for a, b in zip(figures["with"], figures["without"], strict=True))
    stopped = statistics.median(figures["stopped"])
    print(f"{size / 1e9:.2f} GB, {count} steps, medians of {options.runs} interleaved runs")
    print(f"a save stops the step for {stopped:.2f} s and costs {lost:.2f} s in all: {lost / 40:.1%} of 40 s")


def add_arguments(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    sub = commands.add_parser("saves", help="the time that a save takes from training", description=saves.__doc__)
    sub.add_argument("--model", default="resnet50")
    sub.add_argument("--rows", type=int, default=0, help="samples in the memory; 0: there is none")
    sub.add_argument("--seconds", type=float, default=8.0, help="of a run; more than the thread needs to write")
    sub.add_argument("--runs", type=int, default=7)
    sub.add_argument("--folder", type=Path, help="on the disk to measure; default: that of temporary files")
    sub.set_defaults(run_command=saves)
