"""Learning rates as pure functions of the step."""

import math
from bisect import bisect_right
from collections.abc import Callable
from itertools import pairwise
from typing import Annotated, Literal

from pydantic import Field, field_validator

from lsdali.clock import PerEpoch
from lsdali.config import Config


class Warm(Config):
    """What every schedule has."""

    warmup_epochs: float = Field(default=0.0, ge=0)
    """Epochs of linear warm-up, per step from peak / W to peak, where W is the number of its steps."""


class StepSchedule(Warm):
    """Times gamma at the start of each milestone epoch, counted from 0; warm-up multiplies."""

    name: Literal["step"] = "step"
    milestones: Annotated[tuple[Annotated[int, Field(gt=0)], ...], Field(strict=False)]
    """Epochs, counted from 0, at whose start the learning rate falls."""
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
    """Share of the peak that the run ends on."""

    def fraction(self, epoch: int, done: float) -> float:
        return self.final + (1 - self.final) * (1 + math.cos(math.pi * done)) / 2


class LinearSchedule(Warm):
    """A straight line from the end of the warm-up to the run's end."""

    name: Literal["linear"] = "linear"
    final: float = Field(default=0.0, ge=0, lt=1)
    """Share of the peak that the run ends on."""

    def fraction(self, epoch: int, done: float) -> float:
        return 1 - (1 - self.final) * done


class ConstantSchedule(Warm):
    """The same rate throughout, after the warm-up."""

    name: Literal["constant"] = "constant"

    def fraction(self, epoch: int, done: float) -> float:
        return 1.0


ScheduleConfig = Annotated[
    StepSchedule | CosineSchedule | LinearSchedule | ConstantSchedule, Field(discriminator="name")
]

SCHEDULES: dict[str, type[StepSchedule | CosineSchedule | LinearSchedule | ConstantSchedule]] = {
    "step": StepSchedule,
    "cosine": CosineSchedule,
    "linear": LinearSchedule,
    "constant": ConstantSchedule,
}


def schedule(config: ScheduleConfig, peak: float, steps_per_epoch: PerEpoch, epochs: int) -> Callable[[int], float]:
    """The learning rate of optimizer step s, from 0: peak * min(1, (s + 1) / W) * share.

    The share of the peak is the schedule's own: of the step's epoch, and of what is done, 0 to 1, of the
    steps after the warm-up. Where epochs differ in length, s counts as if all had that of the step's own epoch:
    time runs in epochs.
    """

    def rate(step: int) -> float:
        epoch, place = steps_per_epoch.locate(step)
        length = steps_per_epoch.at(epoch)
        s, total, warm = epoch * length + place, epochs * length, round(config.warmup_epochs * length)
        fraction = config.fraction(epoch, max(s - warm, 0) / max(total - warm, 1))
        return peak * fraction * (s + 1) / warm if s < warm else peak * fraction

    return rate
