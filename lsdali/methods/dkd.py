"""Decoupled knowledge distillation."""

from typing import Literal

from pydantic import Field

from lsdali.batch import Batch
from lsdali.clock import Clock
from lsdali.functional import cross_entropy, decoupled_kl, standardised
from lsdali.methods.base import NO_MIXUP_RULE, Loss
from lsdali.methods.shared.taught import TaughtMethod
from lsdali.models.student import Forward


class DecoupledDistillation(TaughtMethod):
    """Zhao et al. 2022 (arXiv 2203.08679): distillation with separate weights for target and other classes.

    Defaults are those of megvii-research/mdistiller for CIFAR-100, where beta is 2 to 8 by the pair of networks.
    For ImageNet it has beta 0.5, temperature 1 and warmup_epochs 1.
    """

    mixup_refusal = NO_MIXUP_RULE

    class Config(TaughtMethod.Config):
        """hard cross-entropy + ramp T^2 (alpha target-class KL + beta non-target-class KL)."""

        name: Literal["dkd"] = "dkd"
        alpha: float = Field(1.0, ge=0, le=1e9)
        """Weight of the target-class KL: the label against all other classes together."""
        beta: float = Field(8.0, ge=0, le=1e9)
        """Weight of the non-target-class KL: the distribution over the other classes."""
        temperature: float = Field(4.0, gt=0, le=1e9)
        """T, which divides the logits of both."""
        hard: float = Field(1.0, ge=0, le=1e9)
        """Weight of the cross-entropy with the label."""
        warmup_epochs: int = Field(20, ge=1, le=1_000_000)
        """Epochs over which the teacher's terms rise in equal steps to their full weight."""
        standardise: bool = False
        """Give every row of logits, of both networks, mean 0 and standard deviation 1 (Sun et al. 2024)."""

    config: Config

    def loss(self, student: Forward, batch: Batch, clock: Clock) -> Loss:
        c = self.config
        taught, maps = self.ask(batch, clock)
        out = student(batch.images)
        logits = out.logits
        s, t = (standardised(logits), standardised(taught)) if c.standardise else (logits, taught)
        target, others = (c.temperature**2 * part.mean() for part in decoupled_kl(s, t, batch.labels, c.temperature))
        ce = cross_entropy(logits, batch.labels)
        ramp = min((clock.epoch + 1) / c.warmup_epochs, 1.0)
        total = c.hard * ce + ramp * (c.alpha * target + c.beta * others)
        total, terms = self.with_features(total, {"ce": ce, "target": target, "others": others}, out, maps)
        return Loss(total, logits.detach(), {name: term.detach() for name, term in terms.items()})


METHODS = {"dkd": DecoupledDistillation}
