"""Teacher-free knowledge distillation."""

from typing import Literal

from pydantic import Field, model_validator
from torch import Tensor
from typing_extensions import Self

from lsdali.batch import Batch
from lsdali.clock import Clock
from lsdali.errors import UserError
from lsdali.functional import cross_entropy, distillation_kl, soft_kl, virtual_teacher
from lsdali.methods.base import Loss, Method, MethodContext, Variant, ask, matching_teacher
from lsdali.models.student import Forward
from lsdali.models.teacher_configs import TeacherConfig


class TeacherFreeDistillation(Method):
    """Yuan et al. 2020: distillation from an earlier network of the same kind, or from a teacher made by hand.

    The virtual teacher's probabilities u (`correct` on the label) are softened as softmax(u / T), without a logarithm,
    as its code does; at T = 20 they are nearly even.

    `variant: paper` is distillation as Hinton et al. (2015) write it: both sides at temperature T, T^2 times the
    mean over samples.
    `variant: code` is yuanli2333/Teacher-free-Knowledge-Distillation (my_loss_function.py): the mean runs over samples
    and classes, so that the term is K times smaller, and `multiplier` makes up for it; with the virtual teacher the
    student is at temperature 1, and T^2 is left out.
    """

    class Config(Method.Config):
        """(1 - alpha) cross-entropy + alpha distillation."""

        name: Literal["tfkd"] = "tfkd"
        form: Literal["self", "virtual"]
        """self: a teacher of the student's own kind, trained with cross-entropy; virtual: made from the label."""
        teacher: TeacherConfig | None = None
        """The teacher of the form self."""
        alpha: float = Field(gt=0, lt=1)
        """Weight of the teacher; published for CIFAR-100's ResNet-18: self 0.95, virtual 0.1."""
        temperature: float = Field(gt=0, le=1e9)
        """T; published for CIFAR-100's ResNet-18: self 6, virtual 20."""
        correct: float = Field(0.99, gt=0, lt=1)
        """The virtual teacher's probability of the label."""
        variant: Variant = "paper"
        """paper: distillation as it is commonly written; code: what the published code does."""
        multiplier: float = Field(1.0, gt=0, le=1e9)
        """Factor on the distillation term of the variant code; published for CIFAR-100's ResNet-18: self 50, virtual
        100."""

        @model_validator(mode="after")
        def parts_fit(self) -> Self:
            if self.form == "self" and self.teacher is None:
                raise ValueError("the form self needs a teacher; name one under `teacher`, or use the form virtual")
            if self.form == "virtual" and self.teacher is not None:
                raise ValueError("the form virtual makes its own teacher; leave out `teacher`, or use the form self")
            if self.form == "self" and self.correct != 0.99:
                raise ValueError("the form self has no virtual teacher; leave out `correct`, or use the form virtual")
            if self.variant == "paper" and self.multiplier != 1.0:
                raise ValueError("the variant paper has no multiplier; leave out `multiplier`, or use the variant code")
            return self

    config: Config

    def __init__(self, config: Config, context: MethodContext) -> None:
        super().__init__(config, context)
        if config.correct <= 1 / context.classes:
            raise UserError(
                f"method.correct {config.correct:g} is no more than a guess among {context.classes} classes: "
                "give the label's probability, such as 0.99"
            )
        self.teacher = None if config.teacher is None else matching_teacher(config.teacher, context)

    def loss(self, student: Forward, batch: Batch, clock: Clock) -> Loss:
        taught = None if self.teacher is None else ask(self.teacher, batch, clock)
        logits = student(batch.images).logits
        kd = (
            batch.per_label(lambda labels: self.virtual(logits, labels))
            if taught is None
            else self.earlier(logits, taught)
        )
        ce = batch.per_label(lambda labels: cross_entropy(logits, labels))
        alpha = self.config.alpha
        return Loss((1 - alpha) * ce + alpha * kd, logits.detach(), {"kd": kd.detach(), "ce": ce.detach()})

    def earlier(self, logits: Tensor, taught: Tensor) -> Tensor:
        """Map [B, K], [B, K] logits -> []."""
        kd = distillation_kl(logits, taught, self.config.temperature)
        return kd if self.config.variant == "paper" else kd * self.config.multiplier / logits.shape[1]

    def virtual(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Map [B, K], [B] int64 -> []."""
        t, classes = self.config.temperature, logits.shape[1]
        u = virtual_teacher(labels, classes, self.config.correct)
        if self.config.variant == "paper":
            return distillation_kl(logits, u, t)
        return soft_kl(logits, (u / t).softmax(1)).mean() * self.config.multiplier / classes


METHODS = {"tfkd": TeacherFreeDistillation}
