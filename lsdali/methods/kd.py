"""Knowledge distillation."""

from typing import Literal

from pydantic import Field

from lsdali.batch import Batch
from lsdali.clock import Clock
from lsdali.errors import UserError
from lsdali.functional import cross_entropy, distillation_kl
from lsdali.methods.base import Loss, Method, Needs
from lsdali.models.student import Forward
from lsdali.models.teacher import TeacherConfig


class KnowledgeDistillation(Method):
    """Hinton et al. 2015: the student's softened prediction should be the teacher's."""

    class Config(Method.Config):
        """T^2 KL(teacher at T || student at T) + hard cross-entropy."""

        name: Literal["kd"] = "kd"
        teacher: TeacherConfig
        temperature: float = Field(1.0, gt=0)
        """T, which divides the logits of both."""
        hard: float = Field(0.0, ge=0)
        """Weight of the cross-entropy with the label; 0 trains on the teacher alone, as LS-KD does."""

    config: Config

    def __init__(self, config: Config, needs: Needs) -> None:
        super().__init__(config, needs)
        self.teacher = needs.teacher(config.teacher)
        if self.teacher.classes != needs.classes:
            raise UserError(f"the teacher knows {self.teacher.classes} classes, but the data set has {needs.classes}")

    def loss(self, student: Forward, batch: Batch, clock: Clock) -> Loss:
        target = self.teacher(batch.images)
        logits = student(batch.images).logits
        kd = distillation_kl(logits, target, self.config.temperature)
        if self.config.hard == 0:
            return Loss(kd, logits.detach(), {"kd": kd.detach()})
        ce = cross_entropy(logits, batch.labels)
        return Loss(kd + self.config.hard * ce, logits.detach(), {"kd": kd.detach(), "ce": ce.detach()})
