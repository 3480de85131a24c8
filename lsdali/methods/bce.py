"""Binary cross-entropy."""

from typing import Literal

import torch.nn.functional as F
from pydantic import Field

from lsdali.batch import Batch
from lsdali.clock import Clock
from lsdali.functional import Mass, as_float32, smooth_targets
from lsdali.methods.base import Loss, Method
from lsdali.models.student import Forward


class BinaryCrossEntropy(Method):
    """A yes-or-no question for every class, as Wightman et al. 2021 (arXiv 2110.00476) train ResNet-50 (A1 to A3)."""

    class Config(Method.Config):
        """Binary cross-entropy with the smoothed, mixed target: the mean over samples and classes."""

        name: Literal["bce"] = "bce"
        smoothing: float = Field(0.0, ge=0, lt=1)
        """The mass a that label smoothing spreads before images are mixed; published: 0.1 (A1), 0 (A2, A3)."""
        mass: Mass = "all"
        """Where the smoothed mass goes, as in the method ls."""
        threshold: float | None = Field(0.2, ge=0, lt=1)
        """Targets above it become 1, the others 0; published: 0.2. null: targets stay as they are."""
        sum_classes: bool = False
        """Sum over classes instead of the mean; the learning rate must be chosen to fit."""

    config: Config

    def loss(self, student: Forward, batch: Batch, clock: Clock) -> Loss:
        c, logits = self.config, student(batch.images).logits
        scores = as_float32(logits)
        classes = scores.shape[1]
        target = batch.per_label(lambda labels: smooth_targets(labels, classes, c.smoothing, c.mass)).to(scores.dtype)
        if c.threshold is not None:
            target = (target > c.threshold).to(scores.dtype)
        mean = F.binary_cross_entropy_with_logits(scores, target)
        return Loss(mean * classes if c.sum_classes else mean, logits.detach())


METHODS = {"bce": BinaryCrossEntropy}
