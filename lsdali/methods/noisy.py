"""Losses for labels that may be wrong: the ones that the code of Zhang et al. 2021 (OLS) compares with."""

from abc import abstractmethod
from collections.abc import Callable
from typing import ClassVar, Literal

from pydantic import Field, model_validator
from torch import Tensor

from lsdali import dist
from lsdali.batch import Batch
from lsdali.clock import Clock
from lsdali.functional import (
    as_float32,
    clamped_symmetric_cross_entropy,
    class_prior_kl,
    cross_entropy,
    entropy,
    generalised_cross_entropy,
    hard_bootstrap,
    soft_bootstrap,
    symmetric_cross_entropy,
)
from lsdali.methods.base import NO_MIXUP_RULE, Loss, Method, Variant
from lsdali.methods.shared.clamp import CLAMP, clamp_of
from lsdali.models.student import Forward


class LogitLoss(Method):
    """A method whose loss is a function of logits and labels."""

    mixup_refusal = NO_MIXUP_RULE

    def loss(self, student: Forward, batch: Batch, clock: Clock) -> Loss:
        logits = student(batch.images).logits
        return Loss(self.value(logits, batch.labels), logits.detach())

    @abstractmethod
    def value(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Map [B, K], [B] int64 -> []."""


class SymmetricCrossEntropy(LogitLoss):
    """Wang et al. 2019: cross-entropy, and the same with label and prediction exchanged.

    The OLS code (loss_all_methods.py) clamps the label of both parts, so every wrong class adds zero * -log p to the
    first; `variant: code` gives that. Its weights are 6 and 0.1, and 0.1 and 1 for CIFAR-10.
    """

    weighs_classes = True

    class Config(Method.Config):
        """forward * CE + reverse * CE with label and prediction exchanged."""

        name: Literal["sce"] = "sce"
        forward: float = Field(6.0, ge=0, le=1e9)
        """Weight of the cross-entropy."""
        reverse: float = Field(0.1, ge=0, le=1e9)
        """Weight of the reverse cross-entropy."""
        zero: float = Field(1e-4, ge=1e-30, lt=1)
        """log 0 in the label is log of this."""
        variant: Variant = "paper"
        """paper: exact; code: probabilities of at least 1e-7, and both parts with a clamped label, as in OLS's code."""

        @model_validator(mode="after")
        def _loses(self) -> "SymmetricCrossEntropy.Config":
            if self.forward == 0 and self.reverse == 0:
                raise ValueError("forward and reverse are both 0, so there is no loss; give one of them a weight")
            return self

    config: Config

    def value(self, logits: Tensor, labels: Tensor) -> Tensor:
        c, scale = self.config, self.class_scale(labels)
        if c.variant == "paper":
            return symmetric_cross_entropy(logits, labels, c.forward, c.reverse, c.zero, scale)
        return clamped_symmetric_cross_entropy(logits, labels, c.forward, c.reverse, c.zero, CLAMP, scale)


class GeneralisedCrossEntropy(LogitLoss):
    """Zhang and Sabuncu 2018 (arXiv 1805.07836): between cross-entropy (q to 0) and mean absolute error (q = 1)."""

    weighs_classes = True

    class Config(Method.Config):
        """(1 - p[label]^q) / q."""

        name: Literal["gce"] = "gce"
        q: float = Field(0.7, ge=1e-30, le=1)
        """Exponent: near 0 it is cross-entropy, 1 is the mean absolute error."""

    config: Config

    def value(self, logits: Tensor, labels: Tensor) -> Tensor:
        return generalised_cross_entropy(logits, labels, self.config.q, self.class_scale(labels))


class JointOptimisation(LogitLoss):
    """Tanaka et al. 2018 (arXiv 1803.11364), the loss alone: as in the OLS code, labels are never updated.

    The prior term reads the mean prediction over the (micro-)batches of all processes.
    """

    class Config(Method.Config):
        """CE + prior * distance of the mean prediction from uniform + entropy * mean entropy."""

        name: Literal["joint"] = "joint"
        prior: float = Field(1.2, ge=0, le=1e9)
        """Weight of the prior term, which keeps the mean prediction near uniform."""
        entropy: float = Field(0.8, ge=0, le=1e9)
        """Weight of the predictions' mean entropy."""

    config: Config

    def value(self, logits: Tensor, labels: Tensor) -> Tensor:
        prior = self.config.prior * class_prior_kl(dist.whole_batch(as_float32(logits)))
        return cross_entropy(logits, labels) + prior + self.config.entropy * entropy(logits)


class Bootstrap(LogitLoss):
    """Base of both bootstraps."""

    weighs_classes = True
    loss_of: ClassVar[Callable[..., Tensor]]

    class Config(Method.Config):
        """The target's weights."""

        trust: float = Field(ge=0, le=1)
        """Weight of the label in the target; the rest is the student's prediction."""
        variant: Variant = "paper"
        """paper: exact; code: probabilities in [1e-7, 1 - 1e-7], without gradient outside, as in the OLS code."""

    config: Config

    def value(self, logits: Tensor, labels: Tensor) -> Tensor:
        scale = self.class_scale(labels)
        return self.loss_of(logits, labels, self.config.trust, clamp_of(self.config.variant), scale)


class SoftBootstrap(Bootstrap):
    """Reed et al. 2015 (arXiv 1412.6596): the target mixes the label and the student's own prediction."""

    loss_of = staticmethod(soft_bootstrap)

    class Config(Bootstrap.Config):
        """Cross-entropy against trust * label + (1 - trust) * prediction."""

        name: Literal["bootstrap_soft"] = "bootstrap_soft"
        trust: float = Field(0.95, ge=0, le=1)

    config: Config


class HardBootstrap(Bootstrap):
    """Reed et al. 2015 (arXiv 1412.6596): the target mixes the label and the class that the student predicts."""

    loss_of = staticmethod(hard_bootstrap)

    class Config(Bootstrap.Config):
        """Cross-entropy against trust * label + (1 - trust) * one-hot of the arg-max."""

        name: Literal["bootstrap_hard"] = "bootstrap_hard"
        trust: float = Field(0.8, ge=0, le=1)
        """Weight of the label in the target; the rest is the class that the student predicts."""

    config: Config


METHODS = {
    "sce": SymmetricCrossEntropy,
    "gce": GeneralisedCrossEntropy,
    "joint": JointOptimisation,
    "bootstrap_soft": SoftBootstrap,
    "bootstrap_hard": HardBootstrap,
}
