"""Instance-based label smoothing."""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from lsdali.batch import Batch
from lsdali.clock import Clock
from lsdali.functional import (
    Strength,
    alone_target,
    even_target,
    instance_strength,
    logit_target,
    soft_cross_entropy,
    teacher_spread,
)
from lsdali.methods.base import Loss, Method, Needs, matching_teacher
from lsdali.models.student import Forward
from lsdali.models.teacher import TeacherConfig

Rule = Literal["logits", "logits_code", "ils1", "ils11", "ils2", "ils12", "ils112", "ils12_code", "ils112_code"]

STRENGTHS: dict[str, Strength] = {
    "ils1": "sure",
    "ils11": "unsure",
    "ils2": "constant",
    "ils12": "sure",
    "ils112": "unsure",
    "ils12_code": "sure",
    "ils112_code": "unsure",
}


class InstanceSmoothing(Method):
    """Maher and Kull 2021: each sample is smoothed by its own amount, as a teacher trained without smoothing tells.

    The name stands for a family; p is the teacher's softmax at T, p[label] its probability of the label, a `smoothing`.

    | rule | taken from the label | shared among the other classes |
    |---|---|---|
    | logits | a g[label] / sum g, g: logits less their minimum | in proportion to g |
    | ils1, ils11 | a p[label]; a (1 - p[label]) | evenly |
    | ils2 | a | in proportion to p |
    | ils12, ils112 | a p[label]; a (1 - p[label]) | in proportion to p |

    logits is the figure of the README of mmaher22/Instance-based-smoothing; logits_code is that repository's
    Instance-based-smoothing.py, which subtracts the minimum only where it is negative (its mul_factor cancels out). The
    others are utils/loss.py of mmaher22/Instance-based-label-smoothing, for as many classes as there are (there: 10).
    ils12_code and ils112_code are what it does: all of a goes to the other classes, whatever the label lost, so that
    rows do not sum to 1. The paper's ILS2 is ils2; its ILS1 and ILS rest on an equation that its code does not have.
    """

    class Config(Method.Config):
        """Cross-entropy against the smoothed label."""

        name: Literal["ibls"] = "ibls"
        teacher: TeacherConfig
        """A network of the student's own kind, trained with cross-entropy alone; it reads the student's own images."""
        rule: Rule = "logits"
        """Who loses how much, and to whom; see the table of the method."""
        smoothing: float = Field(0.1, ge=0, lt=1)
        """a, the most that a label loses."""
        temperature: float = Field(1.0, gt=0)
        """T, which divides the teacher's logits; the rules logits and logits_code do not depend on it."""

    config: Config
    unmixable = None

    def __init__(self, config: Config, needs: Needs) -> None:
        super().__init__(config, needs)
        self.teacher = matching_teacher(config.teacher, needs)

    def loss(self, student: Forward, batch: Batch, clock: Clock) -> Loss:
        taught = self.teacher(batch.images)
        logits = student(batch.images).logits
        total = batch.per_label(lambda labels: soft_cross_entropy(logits, self.target(taught, labels)))
        return Loss(total, logits.detach())

    def target(self, taught: Tensor, labels: Tensor) -> Tensor:
        """[B, K] logits of the teacher, [B] int64 -> [B, K]."""
        rule, a, t = self.config.rule, self.config.smoothing, self.config.temperature
        if rule in ("logits", "logits_code"):
            return logit_target(taught, labels, a, "always" if rule == "logits" else "negative")
        strength = instance_strength(taught, labels, a, t, STRENGTHS[rule])
        if rule in ("ils1", "ils11"):
            return even_target(strength, labels, taught.shape[1])
        spread = teacher_spread(taught, labels, t)
        target = alone_target(strength, spread, labels)
        return target if not rule.endswith("_code") else unscaled(target, spread, labels, a)


def unscaled(target: Tensor, spread: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    """[B, K], [B, K], [B] int64 -> [B, K]: `target` on the label, smoothing times spread elsewhere."""
    label = labels[:, None]
    return torch.scatter(smoothing * spread, 1, label, target.gather(1, label))
