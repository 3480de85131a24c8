"""Measure the training step of each method, relative to cross-entropy on the same network, and the size of its state.

Images are synthetic, so no loader is involved. The methods take turns step by step; the figures are medians over all
steps. On the CPU the time is that of the process (steadier than the clock on a machine with neighbours), on a GPU the
clock's, synchronised.
"""

import argparse
import atexit
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from lsdali.answers import TOP
from lsdali.batch import Batch
from lsdali.bench.machine import hardware
from lsdali.clock import Clock, PerEpoch
from lsdali.errors import UserError
from lsdali.methods import METHODS
from lsdali.methods.base import Method, MethodContext
from lsdali.models import ModelConfig, build_network
from lsdali.models.answer_rows import RowFormat
from lsdali.models.student import Student
from lsdali.models.teacher import Teacher
from lsdali.models.teacher_cache import AnswerFolder, CachedTeacher
from lsdali.optim import build_optimizer
from lsdali.optim.configs import SGD
from lsdali.optim.precision import Precision
from lsdali.recipe import load

FORWARD = "(the network's forward pass alone)"  # what a teacher of the same kind must cost
CACHED = ", from a cache"
SAMPLES = 4096  # of the pretended training set; methods with a memory hold one row each


@dataclass(frozen=True, slots=True)
class Shape:
    model: str
    size: int
    classes: int
    cpu_batch: int
    gpu_batch: int


SHAPES = {"imagenet": Shape("resnet50", 224, 1000, 8, 256), "cifar": Shape("preact_resnet18", 32, 100, 32, 512)}


def methods(options: argparse.Namespace) -> None:
    """Measure the step time of the method of each recipe, relative to ce."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    shape = SHAPES[options.shape]
    batch = options.batch or (shape.gpu_batch if device.type == "cuda" else shape.cpu_batch)
    configs = {"ce": METHODS["ce"].Config(name="ce"), **with_caches(configs_of(options.recipes))}
    steps = {label: stepper(config, shape, batch, device, options.precision) for label, config in configs.items()}
    steps[FORWARD] = forward(shape, batch, device, options.precision)
    times: dict[str, list[float]] = {label: [] for label in steps}
    labels = list(steps)
    for turn in range(options.warmup + options.reps):
        first = turn % len(labels)
        for label in labels[first:] + labels[:first]:
            spent = timed(steps[label], device)
            if turn >= options.warmup:
                times[label].append(spent)
    print(hardware(f"{torch.get_num_threads()} torch threads"))
    print(f"{shape.model}, {shape.size} px, {shape.classes} classes, batch {batch}, {options.precision};")
    print(f"medians of {options.reps} interleaved steps after {options.warmup} of warm-up\n")
    base = statistics.median(times["ce"])
    state = f"state, MB at {options.samples:,}"
    print(f"{'method':44}{'ms/step':>12}{state:>30}{'relative to ce':>16}")
    for label, values in times.items():
        middle = statistics.median(values)
        kept = "" if label == FORWARD else f"{state_bytes(configs[label], shape, options.samples, device) / 1e6:.1f}"
        print(f"{label:44}{1000 * middle:>12.1f}{kept:>30}{middle / base:>16.3f}")


def configs_of(recipes: list[str]) -> dict[str, Any]:
    """Return the method part of each recipe, once; labelled by what it sets."""
    found: dict[str, Any] = {}
    for path in recipes:
        if not Path(path).is_file():
            raise UserError(f"no recipe {path}: name YAML files such as recipes/imagenet_*.yaml")
        config = cast(Any, load(path).method)
        given = config.model_dump(exclude={"name", "teacher"}, exclude_unset=True)
        label = " ".join([config.name, *(f"{key}={value}" for key, value in given.items())])
        found.setdefault(label[:42], config)
    return found


def with_caches(configs: dict[str, Any]) -> dict[str, Any]:
    """Return the configs, and beside each that has a teacher the same one with a teacher cache."""
    found: dict[str, Any] = {}
    for label, config in configs.items():
        found[label] = config
        needs_network = getattr(config, "features", None) is not None or getattr(config, "memory", None) is not None
        if getattr(config, "teacher", None) is not None and not needs_network:
            teacher = config.teacher.model_copy(update={"cache": "made up"})
            found[f"{label[: 42 - len(CACHED)]}{CACHED}"] = config.model_copy(update={"teacher": teacher})
    return found


def made_up_answers(shape: Shape) -> CachedTeacher:
    """Return a teacher that reads answers of the usual form for the first two epochs, of a file of random numbers."""
    form = RowFormat(shape.classes, min(TOP, shape.classes), "fp16")
    folder = AnswerFolder(Path(tempfile.mkdtemp(prefix="lsdali-bench-")), form, SAMPLES, {})
    atexit.register(shutil.rmtree, folder.path, ignore_errors=True)
    for epoch in range(2):
        folder.file(epoch).write_bytes(form.pack(torch.randn(SAMPLES, shape.classes)).tobytes())
    return CachedTeacher(folder, "made up", 1.0)


def begun_method(config: Any, shape: Shape, samples: int, device: torch.device) -> tuple[Method, Student]:
    """Return a method and its student, begun."""
    torch.manual_seed(0)

    def network() -> Any:
        return build_network(ModelConfig(name=shape.model), shape.classes)

    student_network = network()
    needs = MethodContext(
        classes=shape.classes,
        samples=samples,
        channels=student_network.channels,
        device=device,
        seed=0,
        teacher=lambda config: (
            Teacher(network().to(device).to(memory_format=torch.channels_last))
            if config.cache is None
            else made_up_answers(shape)
        ),
    )
    method: Method = cast(Any, METHODS[config.name])(config, needs)
    student = Student(student_network, method.aux_heads()).to(device).to(memory_format=torch.channels_last).train()
    method.begin(student)
    return method, student


def state_bytes(config: Any, shape: Shape, samples: int, device: torch.device) -> int:
    """Return how many bytes a checkpoint holds of the method after the first epoch.

    They are extrapolated from those of two smaller training sets.
    """

    def kept(few: int) -> int:
        method, student = begun_method(config, shape, few, device)
        method.end_epoch(student, Clock(1, PerEpoch(1), 10))
        return sum(tensor_bytes(method.state_dict()))

    half = SAMPLES // 2
    return kept(half) + (kept(SAMPLES) - kept(half)) * (samples - half) // half


def tensor_bytes(state: Any) -> Iterator[int]:
    if isinstance(state, Tensor):
        yield state.numel() * state.element_size()
    elif isinstance(state, Mapping | list | tuple):
        for part in state.values() if isinstance(state, Mapping) else state:
            yield from tensor_bytes(part)


def stepper(
    config: Any,
    shape: Shape,
    size: int,
    device: torch.device,
    precision_name: Any,
    compile_mode: str | None = None,
) -> Callable[[], None]:
    """Return a function that makes one training step with a method."""
    method, student = begun_method(config, shape, SAMPLES, device)
    if compile_mode is not None:
        student.compile(mode=compile_mode, dynamic=False)
    optimizer = build_optimizer(student, SGD(lr=1e-3, momentum=0.9, weight_decay=1e-4), device)
    precision = Precision(precision_name, device)
    data = synthetic(shape, size, device)
    clock = Clock(SAMPLES // size, PerEpoch(SAMPLES // size), 10)  # past the first epoch, in which some methods do less

    def step() -> None:
        with precision.autocast():
            loss = method.loss(student, data, clock)
        precision.backward(loss.total)
        precision.step(optimizer)
        method.observe(data, loss.observed)

    return step


def forward(shape: Shape, size: int, device: torch.device, precision_name: Any) -> Callable[[], None]:
    """Return a function that makes one pass as a teacher does."""
    network = build_network(ModelConfig(name=shape.model), shape.classes)
    teacher = Teacher(network.to(device).to(memory_format=torch.channels_last))
    images, precision = synthetic(shape, size, device).images, Precision(precision_name, device)

    def step() -> None:
        with precision.autocast():
            teacher(images)

    return step


def synthetic(shape: Shape, size: int, device: torch.device) -> Batch:
    dtype = torch.float16 if device.type == "cuda" else torch.float32  # as the loader delivers them
    images = torch.randn(size, 3, shape.size, shape.size, device=device, dtype=dtype)
    images = images.to(memory_format=torch.channels_last)
    labels: Tensor = torch.randint(shape.classes, (size // 2,), device=device).repeat_interleave(2)  # in pairs
    valid = torch.ones(size, dtype=torch.bool, device=device)
    return Batch(images, labels, torch.randperm(SAMPLES)[:size], valid)


def timed(step: Callable[[], None], device: torch.device) -> float:
    """Return seconds of one step."""
    if device.type == "cpu":
        start = time.process_time()
        step()
        return time.process_time() - start
    torch.cuda.synchronize()
    start = time.perf_counter()
    step()
    torch.cuda.synchronize()
    return time.perf_counter() - start
