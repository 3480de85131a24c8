"""DisturbLabel."""

from typing import Literal

import numpy as np
from pydantic import Field
from torch import Tensor

from lsdali.batch import Batch
from lsdali.clock import Clock
from lsdali.functional import cross_entropy
from lsdali.methods.base import NO_MIXUP_RULE, Loss, Method, MethodContext
from lsdali.methods.shared.draws import DISTURBED_LABELS, draws, to_device
from lsdali.models.student import Forward


class DisturbLabel(Method):
    """Xie et al. 2016 (arXiv 1605.00055): in every epoch some labels are replaced by random classes.

    Which ones is a function of (seed, epoch, sample), so repeats of a sample in an epoch share theirs. The OLS code
    disturbs validation labels too; here nothing does.
    """

    mixup_refusal = NO_MIXUP_RULE

    class Config(Method.Config):
        """Cross-entropy with labels drawn anew, uniformly from all classes, with probability `rate`."""

        name: Literal["disturb"] = "disturb"
        rate: float = Field(0.1, ge=0, le=1)
        """A label changes with probability rate (K - 1) / K, since the draw may hit it."""

    config: Config

    def __init__(self, config: Config, context: MethodContext) -> None:
        super().__init__(config, context)
        self.seed, self.classes = context.seed, context.classes

    def loss(self, student: Forward, batch: Batch, clock: Clock) -> Loss:
        logits = student(batch.images).logits
        return Loss(cross_entropy(logits, self.disturbed(batch, clock)), logits.detach())

    def disturbed(self, batch: Batch, clock: Clock) -> Tensor:
        """Return [B] int64."""
        whether, which = draws(self.seed, clock, batch, 2, DISTURBED_LABELS).T
        # A shift by 0 .. K - 1 of any label is a uniform draw from all classes.
        shift = np.where(whether < self.config.rate, np.floor(which * self.classes), 0).astype(np.int64)
        return (batch.labels + to_device(shift, batch.labels.device)) % self.classes


METHODS = {"disturb": DisturbLabel}
