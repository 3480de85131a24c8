"""Class-based label smoothing."""

from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor
from typing_extensions import Self

from lsdali import dist
from lsdali.batch import Batch
from lsdali.clock import Clock
from lsdali.functional import (
    as_float32,
    smoothed_by_dissimilarity,
    smoothed_by_teacher,
    smoothed_evenly,
    soft_cross_entropy,
    teacher_spread,
)
from lsdali.methods.base import Loss, Method, MethodContext, Variant, ask, matching_teacher
from lsdali.methods.shared.class_matrix import ClassMatrix
from lsdali.models.student import Forward, Student
from lsdali.models.teacher_configs import TeacherConfig


class ClassSmoothing(ClassMatrix):
    """Maher and Kull 2021, utils/loss.py of their code (cls-ce): a label's mass goes to similar classes.

    A teacher defines which classes are similar: the softmax at T of its mean logits over the samples of a class
    (`means` says which samples). The teacher is not used after that. A class without a sample there is smoothed evenly
    (published: NaN).

    `variant: paper` is the evident intent: each class gets a in proportion to q. `variant: code` is the published code:
    in proportion to (1 - q) / (1 - q[label]), in rows that do not sum to 1 and are huge if the teacher is sure; and the
    matrix is replaced by its own softmax at T in every step (here: in every micro-batch), so that soon all classes are
    equal.
    """

    class Config(Method.Config):
        """Cross-entropy against the smoothed label."""

        name: Literal["ibls_cls"] = "ibls_cls"
        teacher: TeacherConfig
        """A network of the student's own kind, trained with cross-entropy alone; it reads the student's own images."""
        variant: Variant = "paper"
        """paper: more mass for classes that the teacher takes for the label's; code: as the published code has it."""
        smoothing: float = Field(0.1, ge=0, lt=1)
        """a, the mass that a label loses."""
        temperature: float = Field(1.0, gt=0, le=1e9)
        """T, which divides the mean logits."""
        means: Literal["training", "validation"] = "training"
        """training: over the training images of the first epoch, in which labels are smoothed evenly. validation: over
        the validation images, before the first step, as published: their labels take part in the training, so hold
        out a part of the training set (data.holdout) and test on other data."""

        @model_validator(mode="after")
        def cache_has_training_images(self) -> Self:
            if self.means == "validation" and self.teacher.cache is not None:
                raise ValueError(
                    "`teacher.cache` holds answers to training images; leave it out, or use `means: training`"
                )
            return self

    config: Config

    def __init__(self, config: Config, context: MethodContext) -> None:
        super().__init__(config, context, 0.0)
        self.teacher = matching_teacher(config.teacher, context)
        self.filled = False  # whether the matrix holds anything; the same on every rank
        self.validation = context.validation

    def begin(self, student: Student) -> None:
        if self.config.means == "training":
            return
        with dist.raise_together():
            for batch in self.validation:
                outputs = self.teacher(batch.images.to(torch.get_default_dtype()))  # no autocast here
                self.collect(outputs[batch.valid], batch.labels[batch.valid])
        self.fill()

    def loss(self, student: Forward, batch: Batch, clock: Clock) -> Loss:
        shown = None if self.filled else ask(self.teacher, batch, clock)
        logits = student(batch.images).logits
        total = soft_cross_entropy(logits, self.target(batch.labels))
        return Loss(total, logits.detach() if shown is None else shown)

    def target(self, labels: Tensor) -> Tensor:
        """Map [B] int64 -> [B, K]."""
        a, t = self.config.smoothing, self.config.temperature
        strength = torch.full_like(labels, a, dtype=self.matrix.dtype)
        if not self.filled:
            return smoothed_evenly(strength, labels, len(self.matrix))
        rows = self.matrix[labels]
        if self.config.variant == "code":
            return smoothed_by_dissimilarity(rows, labels, a, t)
        return smoothed_by_teacher(strength, teacher_spread(rows, labels, t), labels)

    def observe(self, batch: Batch, observed: Tensor) -> None:
        """Collect `observed`, the teacher's logits, until the matrix is there."""
        if not self.filled:
            self.collect(observed, batch.labels)
        elif self.config.variant == "code":
            self.matrix.copy_((self.matrix / self.config.temperature).softmax(1))

    def end_epoch(self, student: Student, clock: Clock) -> None:
        if not self.filled:
            self.fill()

    def collect(self, outputs: Tensor, labels: Tensor) -> None:
        """Add [B, K] logits of the teacher and [B] int64 labels to the means."""
        self.sums.index_add_(0, labels, as_float32(outputs).to(self.sums.dtype))
        self.counts.index_add_(0, labels, torch.ones_like(labels, dtype=self.counts.dtype))
        self.empty = False

    def fill(self) -> None:
        """Make the matrix of all ranks' parts; a collective."""
        sums, counts = self.collected()
        self.matrix.copy_(sums / counts.clamp(min=1)[:, None])
        self.filled = True

    def load_state_dict(self, state: dict[str, object]) -> None:
        super().load_state_dict(state)
        self.filled = bool(self.matrix.any())


METHODS = {"ibls_cls": ClassSmoothing}
