"""How long a run takes on this machine, from a few training steps and forward passes on made-up images."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch

from lsdali import dist
from lsdali.batch import Batch
from lsdali.clock import Clock, PerEpoch
from lsdali.errors import UserError, first_line
from lsdali.methods import METHODS
from lsdali.methods.base import Method, MethodContext
from lsdali.models import build_network
from lsdali.models.student import Student
from lsdali.models.teacher import Teacher
from lsdali.optim import build_optimizer
from lsdali.optim.precision import Precision
from lsdali.recipe import Recipe

MADE_UP_SAMPLES = 4096  # of the made-up training set; methods with a memory hold a row each
MOST_IMAGES = {"cpu": 16, "cuda": 256}  # images a measured step
STEPS = 3  # measured, after one that is not


@dataclass(frozen=True)
class Pace:
    """Seconds an image."""

    train: float
    evaluate: float


def measure_pace(recipe: Recipe, classes: int) -> Pace:
    """Return what a training image and a validation image cost on one process, without reading and decoding them.

    Teachers count as networks of the student's kind. Raises UserError if no step can be made here.
    """
    try:
        return _pace_of(recipe, classes)
    except (RuntimeError, MemoryError) as error:
        raise UserError(f"no step of {recipe.model.name} could be measured: {first_line(error)}") from None


def _pace_of(recipe: Recipe, classes: int) -> Pace:
    device = dist.own_device()
    precision = Precision(recipe.precision, device)
    method, student = ready_method(recipe, classes, device)
    optimizer = build_optimizer(student, recipe.optimizer, device, student.head())
    count = min(recipe.micro_batch or recipe.batch, MOST_IMAGES[device.type])
    count = max(count - count % method.group_size, method.group_size, min(method.compares, recipe.batch))
    data = made_up(count, recipe.data.train.size, classes, device, half=precision.half)
    seen = made_up(count, recipe.data.eval.size, classes, device, half=precision.half)
    clock = Clock(recipe.epochs - 1, PerEpoch(1), recipe.epochs)  # when all parts of a loss are at work

    def step() -> None:
        with precision.autocast():
            loss = method.loss(student, data, clock)
        precision.backward(loss.total)
        precision.step(optimizer)
        method.observe(data, loss.observed)

    def look() -> None:
        with torch.no_grad(), precision.autocast():
            student.network(seen.images)

    train = median_seconds(step, device)
    student.eval()
    return Pace(train / count, median_seconds(look, device) / count)


def ready_method(recipe: Recipe, classes: int, device: torch.device) -> tuple[Method, Student]:
    """Return the recipe's method and its student, ready for a step."""

    def network() -> Any:
        return build_network(recipe.model, classes)

    own = network()
    context = MethodContext(
        classes=classes,
        samples=MADE_UP_SAMPLES,
        channels=own.channels,
        device=device,
        seed=recipe.seed,
        teacher=lambda _: Teacher(network().to(device).to(memory_format=torch.channels_last)),
        label_noise=recipe.data.noise,
    )
    method: Method = cast(Any, METHODS[cast(Any, recipe.method).name])(recipe.method, context)
    student = Student(own, method.aux_heads()).to(device).to(memory_format=torch.channels_last).train()
    method.begin(student)
    return method, student


def made_up(count: int, size: int, classes: int, device: torch.device, *, half: bool) -> Batch:
    """Return a batch of noise, whose neighbours have one label."""
    images = torch.randn(count, 3, size, size, device=device, dtype=torch.float16 if half else torch.float32)
    labels = torch.randint(classes, (-(-count // 2),), device=device).repeat_interleave(2)[:count]
    valid = torch.ones(count, dtype=torch.bool, device=device)
    return Batch(images.to(memory_format=torch.channels_last), labels, torch.randperm(MADE_UP_SAMPLES)[:count], valid)


def median_seconds(work: Callable[[], None], device: torch.device) -> float:
    """Return the median of some repetitions, after one that is not counted."""
    times = []
    for _ in range(STEPS + 1):
        begun_at = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - begun_at)
    return statistics.median(times[1:])
