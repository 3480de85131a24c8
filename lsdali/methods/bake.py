"""Batch knowledge ensembling."""

from typing import Literal

from pydantic import Field

from lsdali import dist
from lsdali.batch import Batch
from lsdali.clock import Clock
from lsdali.functional import as_float32, cross_entropy, ensemble_targets, soft_kl
from lsdali.methods.base import NO_MIXUP_RULE, Loss, Method
from lsdali.models.student import Forward


class BatchEnsembling(Method):
    """Ge et al. 2021: the target is the batch's own predictions, mixed by how alike the samples' features are.

    Batches come in pairs of one class (one further image of each class, `intra-images 1` in megvii-research/zipfls).
    There the method's code (train_methods.py) detaches the student's logits too, so that its term trains nothing; here,
    as in the paper, only the target is without gradient. The mixture is over the (micro-)batches of all processes.
    """

    sampler = "class_pairs"
    group_size = 2
    mixup_refusal = NO_MIXUP_RULE

    class Config(Method.Config):
        """Cross-entropy + weight T^2 KL(mixed predictions at T || student at T)."""

        name: Literal["bake"] = "bake"
        temperature: float = Field(4.0, gt=0, le=1e9)
        """T, which divides the logits of both."""
        propagation: float = Field(0.5, ge=0, lt=1)
        """omega, how far predictions spread; published: 0.5 (ImageNet), 0.9 (TinyImageNet)."""
        weight: float = Field(1.0, ge=0, le=1e9)
        """Weight of the ensemble's term."""

    config: Config

    @property
    def reads_features(self) -> bool:
        """Always: it compares them."""
        return True

    def loss(self, student: Forward, batch: Batch, clock: Clock) -> Loss:
        out = student(batch.images)
        ce = cross_entropy(out.logits, batch.labels)
        t = self.config.temperature
        seen, features = dist.whole_batch(out.logits.detach()), dist.whole_batch(out.features.detach())
        target = dist.own_rows(ensemble_targets(seen, features, t, self.config.propagation))
        ensemble = t**2 * soft_kl(as_float32(out.logits) / t, target).mean()
        total = ce + self.config.weight * ensemble
        return Loss(total, out.logits.detach(), {"ce": ce.detach(), "ensemble": ensemble.detach()})


METHODS = {"bake": BatchEnsembling}
