"""Cross-entropy: the baseline."""

from typing import Literal

from lsdali.batch import Batch
from lsdali.clock import Clock
from lsdali.functional import cross_entropy
from lsdali.methods.base import Loss, Method
from lsdali.models.student import Forward


class CrossEntropy(Method):
    """Cross-entropy with the hard label."""

    weighs_classes = True

    class Config(Method.Config):
        """Cross-entropy with the hard label."""

        name: Literal["ce"] = "ce"

    def loss(self, student: Forward, batch: Batch, clock: Clock) -> Loss:
        logits = student(batch.images).logits
        total = batch.per_label(lambda labels: cross_entropy(logits, labels, self.class_scale(labels)))
        return Loss(total, logits.detach())


METHODS = {"ce": CrossEntropy}
