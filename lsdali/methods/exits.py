"""Deep supervision: every stage has an exit, and exits may learn from the last one."""

from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor
from typing_extensions import Self

from lsdali.batch import Batch
from lsdali.clock import Clock
from lsdali.config import Config as Part
from lsdali.functional import Mass, distillation_kl, label_smoothing
from lsdali.methods.base import Loss, Method
from lsdali.methods.shared.deep_heads import HeadKind, MethodWithExits
from lsdali.models.student import Forward


class FromFinal(Part):
    """Distillation of each exit from the final logits, which get no gradient from it."""

    weight: float = Field(1.0, gt=0, le=1e9)
    """Weight of the sum over exits of T^2 KL(final at T || exit at T)."""
    temperature: float = Field(1.0, gt=0, le=1000)
    """T, which divides the logits of both."""


class DeepSupervision(MethodWithExits):
    """Lee et al. 2015 (deeply-supervised nets); with `distill`, Zhang et al. 2019 (be your own teacher, without hints).

    The weights are those of the deep-supervision script in the code of Zhang et al. 2021 (OLS), `--method ls`.
    """

    weighs_classes = True

    class Config(Method.Config):
        """final_weight L(final) + exit_weight sum of L(exit) + distillation; L is label smoothing or cross-entropy."""

        name: Literal["exits"] = "exits"
        exits: int = Field(2, ge=1, le=100)
        """How many of the stages before the last have one."""
        head: HeadKind = "linear"
        """linear: on the mean of the stage's positions; convolutional: three convolutions before that, as in the
        OLS code."""
        final_weight: float = Field(1.5, gt=0, le=1e9)
        """Weight of the loss on the final logits."""
        exit_weight: float = Field(0.5, ge=0, le=1e9)
        """Weight of the summed losses of the exits."""
        smoothing: float = Field(0.0, ge=0, lt=1)
        """Label smoothing; 0 is cross-entropy."""
        mass: Mass = "all"
        """Where the smoothed mass goes, as in the method ls."""
        hard_epochs: int = Field(0, ge=0, le=1_000_000)
        """Epochs at the start without smoothing; 1 in the OLS code."""
        distill: FromFinal | None = None
        """Distillation of the exits from the final logits; null: none."""

        @model_validator(mode="after")
        def nothing_is_dead(self) -> Self:
            if self.hard_epochs and not self.smoothing:
                raise ValueError("without smoothing every epoch is hard; give `smoothing`, or leave out `hard_epochs`")
            if not self.exit_weight and self.distill is None:
                raise ValueError(
                    "nothing trains the exits; give `exit_weight` or `distill`, or use the method ce or ls"
                )
            return self

    config: Config

    def loss(self, student: Forward, batch: Batch, clock: Clock) -> Loss:
        out, c = student(batch.images), self.config
        exits = self.exits.logits(out)
        smoothing = 0.0 if clock.epoch < c.hard_epochs else c.smoothing

        def on_each(labels: Tensor) -> Tensor:
            scale = self.class_scale(labels)
            return torch.stack([label_smoothing(z, labels, smoothing, c.mass, scale) for z in (out.logits, *exits)])

        final, *early = batch.per_label(on_each)
        terms = {"final": final, "exits": torch.stack(early).sum()}
        total = c.final_weight * final + c.exit_weight * terms["exits"]
        if c.distill is not None:
            pulls = [distillation_kl(z, out.logits.detach(), c.distill.temperature) for z in exits]
            terms["distill"] = torch.stack(pulls).sum()
            total = total + c.distill.weight * terms["distill"]
        return Loss(total, out.logits.detach(), {name: term.detach() for name, term in terms.items()})


METHODS = {"exits": DeepSupervision}
