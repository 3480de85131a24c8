"""Knowledge distillation."""

from typing import Literal

from pydantic import Field

from lsdali.batch import Batch
from lsdali.clock import Clock
from lsdali.functional import cross_entropy, distillation_kl, standardised
from lsdali.methods.base import Loss, MethodContext, Variant
from lsdali.methods.shared.taught import TaughtMethod
from lsdali.models.student import Forward


class KnowledgeDistillation(TaughtMethod):
    """Hinton et al. 2015: the student's softened prediction should be the teacher's.

    Also how IBLS (Maher and Kull 2021) teaches a shallow student: soft 0.9, hard 0.1, temperature 20, in its code with
    variant: code; half of its teachers have a `teacher.temperature`. The teacher reads the student's own images. The
    code of IBLS (Network-distillation.py) looks the teacher's answers up by batch number while every epoch is shuffled
    anew, so that they belong to other images; that is not offered.
    """

    class Config(TaughtMethod.Config):
        """soft T^2 KL(teacher at T || student at T) + hard cross-entropy."""

        name: Literal["kd"] = "kd"
        temperature: float = Field(1.0, gt=0, le=1e9)
        """T, which divides the logits of both."""
        hard: float = Field(0.0, ge=0, le=1e9)
        """Weight of the cross-entropy with the label; 0 trains on the teacher alone, as LS-KD does."""
        soft: float = Field(1.0, gt=0, le=1e9)
        """Weight of the teacher's term."""
        standardise: bool = False
        """Give every row of logits, of both networks, mean 0 and standard deviation 1, as Sun et al. 2024
        (arXiv 2403.01876) do, with temperature 2, hard 0.1 and soft 9 on CIFAR-100."""
        variant: Variant = "paper"
        """paper: the teacher's term is a mean over samples; code: also over classes, so K times smaller, as in IBLS's
        code (models/shallownet.py, PyTorch's default reduction)."""

    config: Config

    def __init__(self, config: Config, context: MethodContext) -> None:
        super().__init__(config, context)
        self.soft = config.soft / (context.classes if config.variant == "code" else 1)

    def loss(self, student: Forward, batch: Batch, clock: Clock) -> Loss:
        target, maps = self.ask(batch, clock)
        out = student(batch.images)
        logits = out.logits
        pair = (standardised(logits), standardised(target)) if self.config.standardise else (logits, target)
        kd = distillation_kl(*pair, self.config.temperature)
        total, terms = self.soft * kd, {"kd": kd}
        if self.config.hard > 0:
            ce = batch.per_label(lambda labels: cross_entropy(logits, labels))
            total, terms = total + self.config.hard * ce, {"kd": kd, "ce": ce}
        total, terms = self.with_features(total, terms, out, maps)
        return Loss(total, logits.detach(), {name: term.detach() for name, term in terms.items()})


METHODS = {"kd": KnowledgeDistillation}
