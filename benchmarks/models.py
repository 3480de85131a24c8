"""What a training step of each network costs on this machine: forward and backward, eager and compiled, both layouts,
and torchvision's own module where there is one.

Each network runs at its own image size. The contestants take turns in small blocks, each time another one begins; a
ratio compares blocks of one turn. On a CPU the time is that of the process, so that other processes count less.
"""

import argparse
import os
import shutil
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torchvision
from pydantic import ValidationError
from torch import nn

from lsdali.bench.machine import hardware, spread
from lsdali.errors import UserError
from lsdali.models import CIFAR, ModelConfig, build_network
from lsdali.models.families.torchvision import TORCHVISION

DEFAULT = ("cifar_resnet18", "wrn_16_2", "resnet50", "densenet121", "mobilenet_v2", "efficientnet_b0")
BASE = "eager, channels_last"


@dataclass(frozen=True, slots=True)
class Way:
    """One way to run a network."""

    layout: torch.memory_format
    compiled: bool = False
    whose: str = "ours"


WAYS = {
    BASE: Way(torch.channels_last),
    "eager, contiguous": Way(torch.contiguous_format),
    "compiled, channels_last": Way(torch.channels_last, compiled=True),
    "compiled, contiguous": Way(torch.contiguous_format, compiled=True),
    "torchvision, channels_last": Way(torch.channels_last, whose="torchvision"),
}


@dataclass(frozen=True, slots=True)
class Measure:
    """How each is measured."""

    device: torch.device
    batch: int
    steps: int
    precision: torch.dtype  # of autocast; float32 is no autocast


def image_size(name: str) -> int:
    """The side of images, in pixels, for which a network was made."""
    if name in CIFAR:
        return 32
    return 299 if "inception" in name else 224


def runs(name: str, way: str) -> bool:
    """Whether the network can run this way."""
    return WAYS[way].whose == "ours" or (name in TORCHVISION and hasattr(torchvision.models, name))


def module_for(name: str, whose: str) -> nn.Module:
    if whose == "ours":
        return build_network(ModelConfig(name=name), 100)
    theirs: nn.Module = torchvision.models.get_model(name, weights=None, num_classes=100)
    return theirs


def contestant(name: str, way: Way, measure: Measure) -> Callable[[], None]:
    """A function that does one forward and backward pass; warmed up already."""
    torch.manual_seed(0)
    model = module_for(name, way.whose).to(measure.device).to(memory_format=way.layout)
    size = image_size(name)
    images = torch.randn(measure.batch, 3, size, size, device=measure.device).to(memory_format=way.layout)
    labels = torch.randint(100, (measure.batch,), device=measure.device)
    if way.compiled:
        model.compile()
    half = measure.precision is not torch.float32

    def step() -> None:
        with torch.autocast(measure.device.type, dtype=measure.precision if half else None, enabled=half):
            loss = nn.functional.cross_entropy(model(images), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        for p in model.parameters():
            p.grad = None

    for _ in range(3):
        step()
    return step


def images_per_second(step: Callable[[], None], measure: Measure) -> float:
    cuda = measure.device.type == "cuda"
    clock = time.perf_counter if cuda else time.process_time
    if cuda:
        torch.cuda.synchronize(measure.device)
    started = clock()
    for _ in range(measure.steps):
        step()
    if cuda:
        torch.cuda.synchronize(measure.device)
    return measure.steps * measure.batch / (clock() - started)


def compare(name: str, ways: Sequence[str], measure: Measure, reps: int) -> dict[str, list[float]]:
    """Images per second of one network, by way, `reps` measurements each; the ways take turns."""
    steps = {way: contestant(name, WAYS[way], measure) for way in ways}
    rates: dict[str, list[float]] = {way: [] for way in ways}
    for turn in range(reps):
        first = turn % len(ways)
        for way in (*ways[first:], *ways[:first]):
            rates[way].append(images_per_second(steps[way], measure))
    return rates


def ratios(rates: Sequence[float], base: Sequence[float]) -> str:
    """Median of the ratios of each turn, and between which ratios the middle half of them lies."""
    found = [a / b for a, b in zip(rates, base, strict=True)]
    low, _, high = statistics.quantiles(found, n=4, method="inclusive") if len(found) > 1 else found * 3
    return f"{statistics.median(found):.3f} ({low:.3f}-{high:.3f})"


def table(names: Sequence[str], ways: Sequence[str], measure: Measure, reps: int) -> None:
    precision = str(measure.precision).removeprefix("torch.")
    print(hardware(f"{torch.get_num_threads()} torch threads, {precision}"))
    kind = "time of the process" if measure.device.type == "cpu" else "time on the wall"
    print(f"forward and backward, batch {measure.batch}, blocks of {measure.steps} steps, {reps} turns, {kind};")
    print("images/s: median (lowest-highest); relative: to the first way in the same turn, median (quartiles)\n")
    print(f"{'network':28}{'px':>5}  {'way':28}{'images/s':>24}{'relative':>24}")
    for name in names:
        able = [way for way in ways if runs(name, way)]
        rates = compare(name, able, measure, reps)
        for way in able:
            relative = ratios(rates[way], rates[able[0]])
            print(f"{name:28}{image_size(name):>5}  {way:28}{spread(rates[way], 2):>24}{relative:>24}", flush=True)
        torch.compiler.reset()


PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def models(options: argparse.Namespace) -> None:
    """Forward and backward of networks: eager, compiled, contiguous, channels last, torchvision's own."""
    compiler = os.environ.get("CXX", "g++")
    if any(WAYS[way].compiled for way in options.ways) and shutil.which(compiler) is None:
        raise UserError(
            f"the compiled ways need a C++ compiler, and there is no {compiler}: install it, or choose --ways"
        )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    measure = Measure(device, options.batch, options.steps, PRECISIONS[options.precision])
    for name in options.names:
        known(name)
    table(options.names, options.ways, measure, options.reps)


def add_arguments(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    sub = commands.add_parser("models", help="forward and backward of networks", description=__doc__)
    sub.add_argument("names", nargs="*", default=DEFAULT, metavar="NAME", help="networks, as in recipes")
    sub.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS), metavar="WAY", help="; ".join(WAYS))
    sub.add_argument("--batch", type=int, default=8, help="images a step")
    sub.add_argument("--steps", type=int, default=1, help="steps a block")
    sub.add_argument("--reps", type=int, default=9, help="turns: blocks of each way")
    sub.add_argument("--precision", choices=sorted(PRECISIONS), default="fp32")
    sub.set_defaults(run_command=models)


def known(name: str) -> None:
    try:
        ModelConfig(name=name)
    except ValidationError as fault:
        raise UserError(fault.errors()[0]["msg"].removeprefix("Value error, ")) from fault
