"""Learning rates as pure functions of the step."""

import math
from bisect import bisect_right
from collections.abc import Callable
from itertools import pairwise
from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator

from lsdali.clock import PerEpoch
from lsdali.config import Config


class Warm(Config):
    """Base of all schedules."""

    needs_length: ClassVar[bool] = True  # whether the rate of an epoch depends on how many follow

    warmup_epochs: float = Field(default=0.0, ge=0, le=1_000_000)
    """Epochs of linear warm-up: the rate rises with each of its W steps, from peak / W to the peak."""


class StepSchedule(Warm):
    """The rate is multiplied by gamma after each milestone's number of epochs, and by the warm-up."""

    needs_length = False
    name: Literal["step"] = "step"
    milestones: Annotated[tuple[Annotated[int, Field(gt=0, le=1_000_000)], ...], Field(strict=False)]
    """Numbers of epochs after which the learning rate is multiplied by gamma."""
    gamma: float = Field(default=0.1, gt=0, lt=1)
    """Factor on the learning rate at each milestone."""

    @field_validator("milestones")
    @classmethod
    def _increasing(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if not all(a < b for a, b in pairwise(value)):
            raise ValueError(f"milestones must increase strictly; got {list(value)}")
        return value

    def fraction(self, epoch: int, done: float) -> float:
        return self.gamma ** bisect_right(self.milestones, epoch)


class CosineSchedule(Warm):
    """Half a cosine from the end of the warm-up to the run's end (Loshchilov and Hutter, ICLR 2017)."""

    name: Literal["cosine"] = "cosine"
    final: float = Field(default=0.0, ge=0, lt=1)
    """Final learning rate, as a share of the peak."""

    def fraction(self, epoch: int, done: float) -> float:
        return self.final + (1 - self.final) * (1 + math.cos(math.pi * done)) / 2


class LinearSchedule(Warm):
    """A straight line from the end of the warm-up to the run's end."""

    name: Literal["linear"] = "linear"
    final: float = Field(default=0.0, ge=0, lt=1)
    """Final learning rate, as a share of the peak."""

    def fraction(self, epoch: int, done: float) -> float:
        return 1 - (1 - self.final) * done


class PolynomialSchedule(Warm):
    """(1 - share done)^power from the end of the warm-up to the run's end."""

    name: Literal["polynomial"] = "polynomial"
    power: float = Field(default=2.0, gt=0, le=1e9)
    """1 is the linear schedule; published: 2 (LARS, You et al., 2017)."""
    final: float = Field(default=0.0, ge=0, lt=1)
    """Final learning rate, as a share of the peak."""

    def fraction(self, epoch: int, done: float) -> float:
        left: float = (1 - done) ** self.power
        return self.final + (1 - self.final) * left


class OneCycleSchedule(Config):
    """Half a cosine up from 1/start of the peak, and half a cosine down to 1/end of that (Smith and Topin, 2018).

    The learning rate's half of the policy: momentum stays as it is.
    """

    needs_length: ClassVar[bool] = True
    name: Literal["one_cycle"] = "one_cycle"
    rise: float = Field(default=0.3, gt=0, lt=1)
    """Share of the run in which the rate rises."""
    start: float = Field(default=25.0, ge=1, le=1_000_000)
    """The initial rate is the peak divided by this: PyTorch's div_factor."""
    end: float = Field(default=1e4, ge=1, le=1_000_000)
    """The final rate is the initial rate divided by this: PyTorch's final_div_factor."""
    warmup_epochs: ClassVar[float] = 0.0

    def fraction(self, epoch: int, done: float) -> float:
        first = 1 / self.start
        low, way = (first, done / self.rise) if done < self.rise else (first / self.end, (1 - done) / (1 - self.rise))
        return low + (1 - low) * (1 - math.cos(math.pi * way)) / 2


class ConstantSchedule(Warm):
    """The same rate throughout, after the warm-up."""

    needs_length = False
    name: Literal["constant"] = "constant"

    def fraction(self, epoch: int, done: float) -> float:
        return 1.0


Schedule = StepSchedule | CosineSchedule | LinearSchedule | PolynomialSchedule | OneCycleSchedule | ConstantSchedule
ScheduleConfig = Annotated[Schedule, Field(discriminator="name")]

SCHEDULES: dict[str, type[Schedule]] = {
    "step": StepSchedule,
    "cosine": CosineSchedule,
    "linear": LinearSchedule,
    "polynomial": PolynomialSchedule,
    "one_cycle": OneCycleSchedule,
    "constant": ConstantSchedule,
}


def schedule(config: ScheduleConfig, peak: float, steps_per_epoch: PerEpoch, epochs: int) -> Callable[[int], float]:
    """Return the learning rate of optimizer step s, from 0: peak * min(1, (s + 1) / W) * share.

    The share of the peak is the schedule's own: of the step's epoch, and of what is done, 0 to 1, of the
    steps after the warm-up. If epochs differ in length, s counts as if all had that of the step's own epoch:
    time runs in epochs.
    """

    def rate(step: int) -> float:
        epoch, into = steps_per_epoch.locate(step)
        length = steps_per_epoch.at(epoch)
        s, total, warm = epoch * length + into, epochs * length, round(config.warmup_epochs * length)
        fraction = config.fraction(epoch, max(s - warm, 0) / max(total - warm, 1))
        return peak * fraction * (s + 1) / warm if s < warm else peak * fraction

    return rate
