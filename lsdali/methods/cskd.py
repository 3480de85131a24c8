"""Class-wise self-knowledge distillation."""

from typing import Literal

import torch
from pydantic import Field

from lsdali.batch import Batch
from lsdali.clock import Clock
from lsdali.errors import UserError
from lsdali.functional import cross_entropy, distillation_kl
from lsdali.methods.base import NO_MIXUP_RULE, Loss, Method
from lsdali.models.student import Forward


class ClassWiseDistillation(Method):
    """Yun et al. 2020: a sample's softened prediction should be that of another sample of its class.

    Samples 2j are trained; samples 2j + 1 of the same class are their partners, read without gradient in a forward of
    their own, in training mode, so that BatchNorm sees them apart. Published code (alinlab/cs-kd, datasets.py) draws a
    partner for every sample, perhaps itself: its epoch trains every sample and reads twice as many images. Here, as in
    megvii-research/zipfls, an epoch reads every sample once, half of them as partners: a batch of 128 and an epoch of
    alinlab's are a batch of 256 and two epochs here.
    """

    sampler = "class_pairs"
    group_size = 2
    mixup_refusal = NO_MIXUP_RULE

    class Config(Method.Config):
        """Cross-entropy + weight T^2 KL(partner at T || sample at T)."""

        name: Literal["cskd"] = "cskd"
        temperature: float = Field(4.0, gt=0, le=1e9)
        """T, which divides the logits of both."""
        weight: float = Field(1.0, ge=0, le=1e9)
        """Weight of the partner's term; published: 1, and 3 for fine-grained data and ImageNet's ResNet-50."""

    config: Config

    def loss(self, student: Forward, batch: Batch, clock: Clock) -> Loss:
        if len(batch) % 2:
            raise UserError(f"cskd reads pairs of one class, but the batch has {len(batch)} samples: use an even one")
        logits = student(batch.images[0::2]).logits
        with torch.no_grad():
            partner = student(batch.images[1::2]).logits
        ce = cross_entropy(logits, batch.labels[0::2])
        pair = distillation_kl(logits, partner, self.config.temperature)
        both = torch.stack([logits.detach(), partner], 1).flatten(0, 1)
        return Loss(ce + self.config.weight * pair, both, {"ce": ce.detach(), "pair": pair.detach()})


METHODS = {"cskd": ClassWiseDistillation}
