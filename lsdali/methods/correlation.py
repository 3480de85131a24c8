"""Distillation of correlations (DIST)."""

from typing import Literal

from pydantic import Field

from lsdali import dist
from lsdali.batch import Batch
from lsdali.clock import Clock
from lsdali.functional import as_float32, cross_entropy, pearson_distance
from lsdali.methods.base import Loss
from lsdali.methods.shared.taught import TaughtMethod
from lsdali.models.student import Forward


class CorrelationDistillation(TaughtMethod):
    """Huang et al. 2022 (arXiv 2205.10536), for strong teachers: match how predictions correlate, not what they are.

    The correlation of a class runs over the (micro-)batch of all processes; in the published code, over each process's.
    """

    class Config(TaughtMethod.Config):
        """hard cross-entropy + T^2 (between mean 1 - r(rows) + within mean 1 - r(columns)), r Pearson's correlation."""

        name: Literal["dist"] = "dist"
        between: float = Field(2.0, ge=0, le=1e9)
        """beta: weight of the relation between the classes of a sample."""
        within: float = Field(2.0, ge=0, le=1e9)
        """gamma: weight of the relation within a class, among the samples of a batch."""
        temperature: float = Field(1.0, gt=0, le=1e9)
        """T, which divides the logits of both; published: 1 (ImageNet), 4 (CIFAR-100)."""
        hard: float = Field(1.0, ge=0, le=1e9)
        """Weight of the cross-entropy with the label."""

    config: Config

    def loss(self, student: Forward, batch: Batch, clock: Clock) -> Loss:
        c = self.config
        taught, maps = self.ask(batch, clock)
        t = (as_float32(taught) / c.temperature).softmax(1)
        out = student(batch.images)
        logits = out.logits
        s = (as_float32(logits) / c.temperature).softmax(1)
        ce = batch.per_label(lambda labels: cross_entropy(logits, labels))
        between = c.temperature**2 * pearson_distance(s, t).mean()
        within = c.temperature**2 * pearson_distance(dist.whole_batch(s).mT, dist.whole_batch(t).mT).mean()
        total = c.hard * ce + c.between * between + c.within * within
        total, terms = self.with_features(total, {"ce": ce, "between": between, "within": within}, out, maps)
        return Loss(total, logits.detach(), {name: term.detach() for name, term in terms.items()})


METHODS = {"dist": CorrelationDistillation}
