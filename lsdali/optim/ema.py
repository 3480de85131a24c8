"""A moving average of the weights."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from lsdali import dist
from lsdali.clock import Clock
from lsdali.config import Config
from lsdali.errors import UserError
from lsdali.state.module_state import ModuleState, RankBuffers


class EMA(Config):
    """Exponential moving average of the weights (as in Mean Teacher, Tarvainen and Valpola, NeurIPS 2017)."""

    decay: float = Field(gt=0, lt=1)
    """Share of the old average kept at each update."""
    every: int = Field(default=1, gt=0, le=1_000_000_000)
    """Steps from one update to the next."""
    warmup: bool = False
    """Let the decay rise to its value as (1 + n) / (10 + n) with the number n of updates, as timm and TensorFlow do."""


class Average:
    """The average of a student's parameters and floating-point buffers, starting as a copy of them.

    BatchNorm's statistics are averaged like the weights, because those of the newest weights do not fit the
    average ones. Integer buffers (counters) are copied. Under DDP the buffers differ between ranks;
    `swapped` gives every rank their mean and `state_dict` saves it beside them; call both on all ranks.
    """

    def __init__(self, config: EMA, student: nn.Module) -> None:
        self._config = config
        self._module = deepcopy(student).requires_grad_(requires_grad=False)
        self._watched: nn.Module | None = None
        self._pairs: tuple[tuple[list[Tensor], list[Tensor]], ...] = ()
        self._parts = {"weights": ModuleState(self._module), "buffers": RankBuffers(self._module)}

    @torch.no_grad()
    def after_step(self, student: nn.Module, clock: Clock) -> None:
        """Set average = d * average + (1 - d) * student at every `every`-th step; d is the decay, or less in a warm-up.

        `clock` is that of the step just made: it has not ticked yet.
        """
        update, left = divmod(clock.step + 1, self._config.every)
        if left:
            return
        decay = min(self._config.decay, (1 + update) / (10 + update)) if self._config.warmup else self._config.decay
        if self._watched is not student:  # listing the tensors of every module takes longer than the update
            self._watched = student
            self._pairs = _by_kind(_tensors(self._module)), _by_kind(_tensors(student))
        (floats, counters), (new_floats, new_counters) = self._pairs
        torch._foreach_lerp_(floats, new_floats, 1 - decay)
        if counters:
            torch._foreach_copy_(counters, new_counters)

    @contextmanager
    def swapped(self, student: nn.Module) -> Iterator[None]:
        """Give the student the average weights inside the block, and exactly its own again after it."""
        own = [x.detach().clone() for x in _tensors(student)]
        dist.average_buffers(self._module)
        _copy_into(_tensors(self._module), student)
        try:
            yield
        finally:
            _copy_into(own, student)

    def state_dict(self) -> dict[str, Any]:
        return {name: part.state_dict() for name, part in self._parts.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load the state. Raises UserError if it is of another student."""
        try:
            for name, part in self._parts.items():
                part.load_state_dict(state[name])
        except RuntimeError as error:
            raise UserError(
                "ema: the checkpoint's average is of another model; set model to the one that wrote it"
            ) from error


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


def _by_kind(tensors: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Those of real numbers, and the others."""
    return [x for x in tensors if x.is_floating_point()], [x for x in tensors if not x.is_floating_point()]


@torch.no_grad()
def _copy_into(values: list[Tensor], module: nn.Module) -> None:
    for x, value in zip(_tensors(module), values, strict=True):
        x.copy_(value)
