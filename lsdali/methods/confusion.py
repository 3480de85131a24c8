"""Pairwise confusion."""

from typing import Literal

import torch.nn.functional as F
from pydantic import Field

from lsdali import dist
from lsdali.batch import Batch
from lsdali.clock import Clock
from lsdali.functional import as_float32, confusion, cross_entropy
from lsdali.methods.base import NO_MIXUP_RULE, Loss, Method, Variant
from lsdali.models.student import Forward


class PairwiseConfusion(Method):
    """Dubey et al. 2018 (arXiv 1705.08016): the predictions of two samples are drawn together.

    Every pair counts, also one of two samples of the same class; a last odd sample has no partner.
    The OLS code (loss_all_methods.py, PC) takes logits and one norm for each class over all pairs:
    `of: logits, variant: code, from_epoch: 200`.
    """

    mixup_refusal = NO_MIXUP_RULE
    compares = 2

    class Config(Method.Config):
        """CE + weight / B * sum of norms of the differences between the first and the second half of the batch."""

        name: Literal["pairwise_confusion"] = "pairwise_confusion"
        weight: float = Field(10.0, ge=0, le=1e9)
        """Weight of the confusion term."""
        of: Literal["probabilities", "logits"] = "probabilities"
        """Which outputs are compared."""
        variant: Variant = "paper"
        """paper: the Euclidean distance of each pair; code: for each class the norm over all pairs (OLS)."""
        from_epoch: int = Field(0, ge=0, le=1_000_000)
        """Number of epochs of cross-entropy alone before the term is added."""

    config: Config

    @property
    def delayed_until(self) -> tuple[str, int]:
        return "method.from_epoch", self.config.from_epoch

    def loss(self, student: Forward, batch: Batch, clock: Clock) -> Loss:
        logits = student(batch.images).logits
        ce = cross_entropy(logits, batch.labels)
        if clock.epoch < self.config.from_epoch:
            return Loss(ce, logits.detach(), {"ce": ce.detach()})
        x = as_float32(logits) if self.config.of == "logits" else F.softmax(as_float32(logits), 1)
        apart = confusion(dist.whole_batch(x), 1 if self.config.variant == "paper" else 0)
        return Loss(ce + self.config.weight * apart, logits.detach(), {"ce": ce.detach(), "confusion": apart.detach()})


METHODS = {"pairwise_confusion": PairwiseConfusion}
