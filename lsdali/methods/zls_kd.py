"""Zipf's label smoothing with a teacher."""

from typing import Literal

from pydantic import Field
from torch import Tensor

from lsdali.batch import Batch
from lsdali.clock import Clock
from lsdali.functional import cross_entropy, distillation_kl
from lsdali.methods.base import MethodContext, ask, matching_teacher
from lsdali.methods.zls import ZipfLabelSmoothing
from lsdali.models.student import Outputs
from lsdali.models.teacher_configs import TeacherConfig


class ZipfWithTeacher(ZipfLabelSmoothing):
    """Liang et al. 2022, train_self_kd.py: the loss of ZLS and a distillation term.

    The published script does not run; this is its evident intent. It uses one weight for both the distillation and the
    Zipf term.
    """

    class Config(ZipfLabelSmoothing.Config):
        """Loss of zls + teacher_weight (alpha T^2 KL(teacher at T || student at T) + (1 - alpha) cross-entropy)."""

        name: Literal["zls_kd"] = "zls_kd"  # type: ignore[assignment]
        teacher: TeacherConfig
        """The network of the distillation term."""
        teacher_weight: float = Field(1.0, ge=0, le=1e9)
        """Weight of the distillation term."""
        alpha: float = Field(0.5, ge=0, le=1)
        """Share of the teacher in the distillation term; the rest is cross-entropy."""
        temperature: float = Field(1.0, gt=0, le=1000)
        """T, which divides the logits of both."""

    config: Config

    def __init__(self, config: Config, context: MethodContext) -> None:
        super().__init__(config, context)
        self.teacher = matching_teacher(config.teacher, context)

    def total(self, out: Outputs, batch: Batch, clock: Clock) -> tuple[Tensor, dict[str, Tensor]]:
        total, terms = super().total(out, batch, clock)
        alpha = self.config.alpha
        kd = distillation_kl(out.logits, ask(self.teacher, batch, clock), self.config.temperature)
        hard = batch.per_label(lambda labels: cross_entropy(out.logits, labels))
        term = alpha * kd + (1 - alpha) * hard
        return total + self.config.teacher_weight * term, {**terms, "kd": term}


METHODS = {"zls_kd": ZipfWithTeacher}
