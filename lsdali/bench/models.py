"""What a training step of each network costs on this machine: forward and backward, eager and compiled, both layouts.

Each network runs at its own image size. The contestants take turns, and the table shows medians with their ranges.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from pydantic import ValidationError
from torch import nn

from lsdali.bench.machine import hardware, spread
from lsdali.errors import UserError
from lsdali.models import CIFAR, ModelConfig, build_network

DEFAULT = ("cifar_resnet18", "wrn_28_10", "cifar_densenet121", "resnet50", "mobilenet_v2", "efficientnet_b0")
WAYS = {
    "eager, contiguous": (torch.contiguous_format, False),
    "eager, channels_last": (torch.channels_last, False),
    "compiled, contiguous": (torch.contiguous_format, True),
    "compiled, channels_last": (torch.channels_last, True),
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


def contestant(name: str, way: str, measure: Measure) -> Callable[[], None]:
    """A function that does one forward and backward pass; warmed up already."""
    layout, compiled = WAYS[way]
    model: nn.Module = build_network(ModelConfig(name=name), 100).to(measure.device).to(memory_format=layout)
    size = image_size(name)
    images = torch.randn(measure.batch, 3, size, size, device=measure.device).to(memory_format=layout)
    labels = torch.randint(100, (measure.batch,), device=measure.device)
    if compiled:
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
    wait(measure.device)
    started = time.perf_counter()
    for _ in range(measure.steps):
        step()
    wait(measure.device)
    return measure.steps * measure.batch / (time.perf_counter() - started)


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def compare(name: str, ways: Sequence[str], measure: Measure, reps: int) -> dict[str, list[float]]:
    """Images per second of one network, by way, `reps` measurements each; the ways take turns."""
    steps = {way: contestant(name, way, measure) for way in ways}
    rates: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(reps):
        for way, step in steps.items():
            rates[way].append(images_per_second(step, measure))
    return rates


def table(names: Sequence[str], ways: Sequence[str], measure: Measure, reps: int) -> None:
    precision = str(measure.precision).removeprefix("torch.")
    print(hardware(f"{torch.get_num_threads()} torch threads, {precision}"))
    print(f"forward and backward, batch {measure.batch}, {measure.steps} steps a measurement;")
    print(f"images/s, medians of {reps}, lowest to highest in brackets\n")
    print(f"{'network':28}{'px':>5}  " + "".join(f"{way:>28}" for way in ways))
    for name in names:
        rates = compare(name, ways, measure, reps)
        print(f"{name:28}{image_size(name):>5}  " + "".join(f"{spread(rates[way], 1):>28}" for way in ways), flush=True)
        torch.compiler.reset()


PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def models(options: argparse.Namespace) -> None:
    """Forward and backward of networks, eager and compiled, contiguous and channels last."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    measure = Measure(device, options.batch, options.steps, PRECISIONS[options.precision])
    for name in options.names:
        known(name)
    table(options.names, options.ways, measure, options.reps)


def add_arguments(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    sub = commands.add_parser("models", help="forward and backward of networks", description=__doc__)
    sub.add_argument("names", nargs="*", default=DEFAULT, metavar="NAME", help="networks, as in recipes")
    sub.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS), metavar="WAY")
    sub.add_argument("--batch", type=int, default=16, help="images a step")
    sub.add_argument("--steps", type=int, default=5, help="steps a measurement")
    sub.add_argument("--reps", type=int, default=5, help="measurements of each")
    sub.add_argument("--precision", choices=sorted(PRECISIONS), default="fp32")
    sub.set_defaults(run_command=models)


def known(name: str) -> None:
    try:
        ModelConfig(name=name)
    except ValidationError as fault:
        raise UserError(fault.errors()[0]["msg"].removeprefix("Value error, ")) from fault
