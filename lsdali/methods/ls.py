"""Label smoothing."""

from typing import Literal

from pydantic import Field

from lsdali.batch import Batch
from lsdali.clock import Clock
from lsdali.functional import Mass, label_smoothing
from lsdali.methods.base import Loss, Method
from lsdali.models.student import Forward


class LabelSmoothing(Method):
    """Szegedy et al. 2016: a share of the label's mass goes to all classes alike."""

    weighs_classes = True

    class Config(Method.Config):
        """Label smoothing."""

        name: Literal["ls"] = "ls"
        smoothing: float = Field(0.1, ge=0, lt=1)
        """The mass a that the label gives away."""
        mass: Mass = "all"
        """all: a/K on every class, the label included (PyTorch, LS-KD);
        others: a/(K - 1) on the other classes (ZLS)."""

    config: Config

    def loss(self, student: Forward, batch: Batch, clock: Clock) -> Loss:
        logits = student(batch.images).logits
        smoothing, mass = self.config.smoothing, self.config.mass
        total = batch.per_label(
            lambda labels: label_smoothing(logits, labels, smoothing, mass, self.class_scale(labels))
        )
        return Loss(total, logits.detach())


METHODS = {"ls": LabelSmoothing}
