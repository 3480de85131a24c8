"""Methods that break a promise each."""

from typing import Any, Literal

import torch
from torch import Tensor

from lsdali.batch import Batch
from lsdali.clock import Clock
from lsdali.functional import cross_entropy
from lsdali.methods.base import Loss, Method
from lsdali.models.student import Forward


class Writes(Method):
    """Counts its calls in `loss`."""

    class Config(Method.Config):
        """Counts its calls."""

        name: Literal["writes"] = "writes"

    calls = 0

    def loss(self, student: Forward, batch: Batch, clock: Clock) -> Loss:
        self.calls += 1
        logits = student(batch.images).logits
        return Loss(batch.per_label(lambda labels: cross_entropy(logits, labels)), logits.detach())

    def state_dict(self) -> dict[str, Any]:
        return {"calls": torch.tensor(self.calls)}


class Forgets(Writes):
    """Takes any state."""

    class Config(Method.Config):
        """Takes any state."""

        name: Literal["forgets"] = "forgets"

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Look at nothing."""


class Unsaved(Forgets):
    """Weighs the loss by what it has observed, and does not save it."""

    class Config(Method.Config):
        """Does not save what it has observed."""

        name: Literal["unsaved"] = "unsaved"

    seen = 0.0

    def loss(self, student: Forward, batch: Batch, clock: Clock) -> Loss:
        found = super().loss(student, batch, clock)
        return Loss(found.total * (1 + self.seen), found.observed)

    def observe(self, batch: Batch, observed: Tensor) -> None:
        self.seen += 0.1

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Refuse what it does not know."""
        Method.load_state_dict(self, state)


METHODS = {"writes": Writes, "forgets": Forgets, "unsaved": Unsaved}
