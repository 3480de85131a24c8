"""Normalised knowledge distillation, with a teacher (NKD) and without (USKD)."""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from lsdali import dist
from lsdali.batch import Batch
from lsdali.clock import Clock
from lsdali.functional import (
    as_float32,
    cross_entropy,
    label_smoothing,
    normalised_cross_entropy,
    rank_shares,
    without_label,
)
from lsdali.methods.base import Loss, Method, MethodContext, Variant
from lsdali.methods.shared.deep_heads import Exits
from lsdali.methods.shared.taught import TaughtMethod
from lsdali.models.student import AuxHead, Forward

UNOFFERED = "its published rule for mixed images is not offered"


class NormalisedDistillation(TaughtMethod):
    """NKD of Yang et al. 2023 (arXiv 2303.13005): the other classes' probabilities sum to 1 on both sides.

    Defaults are the published ones for ImageNet; for CIFAR-100 temperature 3 and gamma 3.5.
    """

    mixup_refusal = UNOFFERED

    class Config(TaughtMethod.Config):
        """cross-entropy - p_t log p_s of the label + gamma T^2 cross-entropy among the other classes at T."""

        name: Literal["nkd"] = "nkd"
        gamma: float = Field(1.5, ge=0, le=1e9)
        """Weight of the other classes' term."""
        temperature: float = Field(1.0, gt=0, le=1e9)
        """T, which divides the logits of both in the other classes' term."""

    config: Config

    def loss(self, student: Forward, batch: Batch, clock: Clock) -> Loss:
        t = self.config.temperature
        answer, maps = self.ask(batch, clock)
        taught, out = as_float32(answer), student(batch.images)
        logits = out.logits
        s, labels = as_float32(logits), batch.labels
        trust = taught.softmax(1).gather(1, labels[:, None]).squeeze(1)
        on_label = -s.log_softmax(1).gather(1, labels[:, None]).squeeze(1)
        shares = without_label(taught / t, labels).softmax(1)
        target, others = (trust * on_label).mean(), t**2 * normalised_cross_entropy(s / t, shares, labels).mean()
        ce = on_label.mean()
        terms = {"ce": ce, "target": target, "others": others}
        total, terms = self.with_features(ce + target + self.config.gamma * others, terms, out, maps)
        return Loss(total, logits.detach(), {name: term.detach() for name, term in terms.items()})


class NormalisedSelfDistillation(Method):
    """USKD of Yang et al. 2023 (arXiv 2303.13005): the same without a teacher.

    The label's target is 1 + p^2 less the mean of p^2 over the (micro-)batch of all processes, with the student's own
    probability p. The other classes' target is Zipf's law over their order by two normalised predictions: that of
    the student, and that of a linear exit on the stage before the last, which learns smoothed labels. The label keeps
    its rank.
    `variant: code` is yzd-v/cls_KD (uskd.py), which orders by the student's log-probabilities in place of the first.
    """

    mixup_refusal = UNOFFERED

    class Config(Method.Config):
        """cross-entropy + alpha target's term + beta other classes' term + mu smoothed cross-entropy of the exit."""

        name: Literal["uskd"] = "uskd"
        alpha: float = Field(1.0, ge=0, le=1e9)
        """Weight of the label's term; published: 1 (ImageNet's ResNets), 0.1 (CIFAR-100)."""
        beta: float = Field(0.1, ge=0, le=1e9)
        """Weight of the other classes' term."""
        mu: float = Field(0.005, gt=0, le=1e9)
        """Weight of the exit's loss; published: 0.005 (ImageNet), 0.1 (CIFAR-100)."""
        variant: Variant = "paper"
        """paper: order the classes by two sums of probabilities; code: by what the published code adds."""

    config: Config

    def __init__(self, config: Config, context: MethodContext) -> None:
        super().__init__(config, context)
        self.exits = Exits(context, 1, key="the exits that uskd needs")

    def aux_heads(self) -> dict[str, AuxHead]:
        return {**self.exits.heads()}

    def loss(self, student: Forward, batch: Batch, clock: Clock) -> Loss:
        c, out = self.config, student(batch.images)
        (weak,) = self.exits.logits(out)
        logits, labels = as_float32(out.logits), batch.labels
        on_label = -logits.log_softmax(1).gather(1, labels[:, None]).squeeze(1)
        with torch.no_grad():
            squared = (-2 * on_label).exp()
            trust = squared + 1 - dist.all_mean(squared.mean())
            shares = without_label(rank_shares(self.order(logits, as_float32(weak), labels)), labels)
            shares = shares / shares.sum(1, keepdim=True)
        target = (trust * on_label).mean()
        others = normalised_cross_entropy(logits, shares, labels).mean()
        exits = label_smoothing(weak, labels, 0.1)
        ce = cross_entropy(logits, labels)
        total = ce + c.alpha * target + c.beta * others + c.mu * exits
        terms = {"ce": ce, "target": target, "others": others, "exit": exits}
        return Loss(total, out.logits.detach(), {name: term.detach() for name, term in terms.items()})

    def order(self, logits: Tensor, weak: Tensor, labels: Tensor) -> Tensor:
        """Map [B, K], [B, K] logits, [B] int64 -> [B, K]: by what the classes are ranked."""
        own = logits.softmax(1) if self.config.variant == "paper" else logits.log_softmax(1)
        both = (weak.softmax(1), own)
        return torch.stack([p / (1 - p.gather(1, labels[:, None]) + 1e-6) for p in both]).sum(0)


METHODS = {"nkd": NormalisedDistillation, "uskd": NormalisedSelfDistillation}
