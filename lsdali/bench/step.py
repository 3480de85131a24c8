"""A training step on made-up images, with one thing changed in each contestant."""

import argparse
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F

from lsdali.bench.methods import SHAPES, Shape, stepper, synthetic
from lsdali.bench.turns import Figures, Findings, seconds_of, take_turns, visible_device
from lsdali.methods import METHODS
from lsdali.models import ModelConfig, build_network
from lsdali.recipe import load


def step(options: argparse.Namespace) -> None:
    """Measure the step with each precision, compiled, and with `--compare` that of a plain PyTorch loop."""
    device, shape = visible_device(), SHAPES[options.shape]
    shape = Shape(options.model or shape.model, shape.size, shape.classes, shape.cpu_batch, shape.gpu_batch)
    batch = options.batch or (shape.gpu_batch if device.type == "cuda" else shape.cpu_batch)
    config = METHODS["ce"].Config(name="ce") if options.recipe is None else load(options.recipe).method
    steps: dict[str, Callable[[], None]] = {}
    for precision in options.precision:
        steps[f"lsdali, {precision}"] = stepper(config, shape, batch, device, precision)
    for mode in options.compile:
        kind = options.precision[0]
        steps[f"lsdali, {kind}, compile {mode}"] = stepper(config, shape, batch, device, kind, compile_mode=mode)
    if options.compare:
        for layout in ("contiguous", "channels last"):
            steps[f"plain PyTorch loop, {layout}"] = plain_step(shape, batch, device, options.precision[0], layout)
    title = f"{shape.model}, {shape.size} px, {shape.classes} classes, batch {batch}, made-up images"
    findings = Findings(title, {"ms/step": 2}, "ms/step")
    findings.notes.append(f"medians of {options.turns} interleaved steps after {options.warmup} of warm-up")

    def figures(name: str) -> Figures:
        return {"ms/step": 1000 * seconds_of(steps[name], device)}

    take_turns(findings, {name: partial(figures, name) for name in steps}, options.turns, options.warmup)
    findings.report(options)


def plain_step(shape: Shape, batch: int, device: torch.device, precision: str, layout: str) -> Callable[[], None]:
    """Return a step as tutorials write it: cross-entropy, SGD with momentum, the network alone."""
    torch.manual_seed(0)
    network = build_network(ModelConfig(name=shape.model), shape.classes).to(device).train()
    images = synthetic(shape, batch, device).images.float()
    if layout == "channels last":
        network = network.to(memory_format=torch.channels_last)
    else:
        images = images.contiguous()
    labels = torch.randint(shape.classes, (batch,), device=device)
    optimizer = torch.optim.SGD(network.parameters(), 1e-3, momentum=0.9, weight_decay=1e-4)
    half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)

    def take() -> None:
        with torch.autocast(device.type, dtype=half, enabled=half is not None):
            loss = F.cross_entropy(network(images), labels)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return take
