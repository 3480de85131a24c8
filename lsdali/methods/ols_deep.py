"""Online label smoothing with deep supervision."""

from typing import Literal

import torch
from pydantic import Field

from lsdali.batch import Batch
from lsdali.clock import Clock
from lsdali.functional import cross_entropy
from lsdali.methods.base import Loss, Variant
from lsdali.methods.ols import OnlineLabelSmoothing
from lsdali.methods.shared.deep_heads import HeadKind, MethodWithExits
from lsdali.models.student import Forward


class DeepOnlineLabelSmoothing(MethodWithExits, OnlineLabelSmoothing):
    """Zhang et al. 2021, the deep-supervision script: OLS on the final logits and on exits of earlier stages.

    The matrix is collected from the final logits. The published first epoch is cross-entropy of the final logits alone,
    which trains no exit; the default trains the exits from the start.
    """

    class Config(OnlineLabelSmoothing.Config):
        """hard (final_weight CE + exit_hard CE of exits) + soft (final_weight SCE + exit_soft SCE of exits)."""

        name: Literal["ols_deep"] = "ols_deep"  # type: ignore[assignment]
        exits: int = Field(2, ge=1, le=100)
        """How many of the stages before the last have one."""
        head: HeadKind = "convolutional"
        """convolutional: three convolutions before a stage's positions are averaged, as published; linear: none."""
        final_weight: float = Field(1.5, gt=0, le=1e9)
        """Weight of the final logits, in the hard and in the soft term."""
        exit_hard: float = Field(0.5, ge=0, le=1e9)
        """Weight of the exits' summed cross-entropies in the hard term."""
        exit_soft: float = Field(0.25, ge=0, le=1e9)
        """Weight of the exits' summed soft cross-entropies in the soft term."""
        variant: Variant = "paper"
        """paper: one loss in all epochs; code: the first epoch is cross-entropy of the final logits, with weight 1."""

    config: Config

    def loss(self, student: Forward, batch: Batch, clock: Clock) -> Loss:
        out, c = student(batch.images), self.config
        exits = self.exits.logits(out)
        final = cross_entropy(out.logits, batch.labels)
        if clock.epoch == 0 and c.variant == "code":
            # DDP waits for a gradient of every parameter. So weight decay reaches the exits, which the published
            # first epoch leaves as they are.
            unused = torch.stack([z.sum() for z in exits]).sum() * 0.0
            return Loss(final + unused, out.logits.detach(), {"hard": final.detach(), "soft": torch.zeros_like(final)})
        early = torch.stack([cross_entropy(z, batch.labels) for z in exits]).sum()
        hard = c.final_weight * final + c.exit_hard * early
        early_soft = torch.stack([self.soft(z, batch.labels) for z in exits]).sum()
        soft = c.final_weight * self.soft(out.logits, batch.labels) + c.exit_soft * early_soft
        total = c.hard * hard + c.soft * soft
        return Loss(total, out.logits.detach(), {"hard": hard.detach(), "soft": soft.detach()})


METHODS = {"ols_deep": DeepOnlineLabelSmoothing}
