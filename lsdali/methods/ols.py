"""Online label smoothing."""

from typing import Literal

from pydantic import Field, model_validator
from torch import Tensor

from lsdali.batch import Batch
from lsdali.clock import Clock
from lsdali.functional import (
    accumulate_correct,
    class_averages,
    cross_entropy,
    freeze_confident_rows,
    soft_cross_entropy,
)
from lsdali.methods.base import Loss, Method, MethodContext
from lsdali.methods.shared.class_matrix import ClassMatrix
from lsdali.models.student import Forward, Student


class OnlineLabelSmoothing(ClassMatrix):
    """Zhang et al. 2021: the mean prediction of a class's right samples in one epoch is its soft label in the next.

    The published code holds two variants. The defaults are those of its CIFAR and ImageNet script; its fine-grained
    one is `hard: 1.0, soft: 1.0, start: uniform, freeze: 0.88`.
    """

    class Config(Method.Config):
        """hard * cross-entropy + soft * cross-entropy with the label's row of the matrix."""

        name: Literal["ols"] = "ols"
        hard: float = Field(0.5, ge=0, le=1e9)
        """Weight of the cross-entropy with the label."""
        soft: float = Field(0.5, ge=0, le=1e9)
        """Weight of the soft term."""
        start: Literal["zeros", "uniform"] = "zeros"
        """The matrix of the first epoch; zeros: no soft term there."""
        freeze: float | None = Field(None, gt=0, lt=1)
        """A row whose greatest entry has reached this stays as it is while its class has right samples; null: never."""

        @model_validator(mode="after")
        def _loses_from_the_start(self) -> "OnlineLabelSmoothing.Config":
            if self.hard == 0 and self.soft == 0:
                raise ValueError("hard and soft are both 0, so there is no loss; give one of them a weight")
            if self.hard == 0 and self.start == "zeros":
                raise ValueError("hard is 0, and start: zeros leaves the first epoch no other loss; use start: uniform")
            return self

    config: Config

    def __init__(self, config: Config, context: MethodContext) -> None:
        super().__init__(config, context, 0.0 if config.start == "zeros" else 1 / context.classes)

    def loss(self, student: Forward, batch: Batch, clock: Clock) -> Loss:
        logits = student(batch.images).logits
        hard = cross_entropy(logits, batch.labels)
        soft = self.soft(logits, batch.labels)
        total = self.config.hard * hard + self.config.soft * soft
        return Loss(total, logits.detach(), {"hard": hard.detach(), "soft": soft.detach()})

    def soft(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Map [B, K], [B] -> []."""
        return soft_cross_entropy(logits, self.matrix[labels])

    def observe(self, batch: Batch, logits: Tensor) -> None:
        accumulate_correct(self.sums, self.counts, logits, batch.labels)
        self.empty = False

    def end_epoch(self, student: Student, clock: Clock) -> None:
        sums, counts = self.collected()
        new = class_averages(sums, counts)
        if self.config.freeze is not None:
            new = freeze_confident_rows(new, self.matrix, counts, self.config.freeze)
        self.matrix.copy_(new)  # in place: graphs may hold it


METHODS = {"ols": OnlineLabelSmoothing}
