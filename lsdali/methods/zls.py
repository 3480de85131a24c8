"""Zipf's label smoothing."""

from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor
from typing_extensions import Self

from lsdali.batch import Batch
from lsdali.clock import Clock
from lsdali.functional import count_votes, cross_entropy, off_label_kl, vote_rank, zipf_target
from lsdali.methods.base import Loss, Method
from lsdali.models.probes import DenseVotes, Upsample
from lsdali.models.student import Forward, Outputs, Probe


class ZipfLabelSmoothing(Method):
    """Liang et al. 2022: the places of the last map vote for classes; rank r earns a mass like 1/r."""

    class Config(Method.Config):
        """Cross-entropy + weight KL(Zipf target || softmax without the label)."""

        name: Literal["zls"] = "zls"
        weight: float = Field(1.0, ge=0)
        """Weight of the Zipf term; published: 0.1 (CIFAR-100, ImageNet), 1.0 (TinyImageNet, INAT21)."""
        distribution: Literal["rank_zipf", "constant"] = "rank_zipf"
        """rank_zipf: by the rank of the votes; constant: 1/(K - 1) on every class but the label."""
        power: float = Field(1.0, gt=0)
        """The target is rank^-power."""
        upsample: Upsample | None = None
        """How the last map is interpolated to twice its size before it votes; null: not at all."""

        @model_validator(mode="after")
        def constant_has_no_votes(self) -> Self:
            if self.distribution == "constant" and (self.upsample is not None or self.power != 1.0):
                raise ValueError("the constant distribution reads no votes; leave out `power` and `upsample`")
            return self

    config: Config

    def probes(self) -> dict[str, Probe]:
        return {} if self.config.distribution == "constant" else {"votes": DenseVotes(self.config.upsample)}

    def loss(self, student: Forward, batch: Batch, clock: Clock) -> Loss:
        out = student(batch.images)
        ce = cross_entropy(out.logits, batch.labels)
        zipf = off_label_kl(out.logits, self.target(out, batch.labels), batch.labels).mean()
        total = ce + self.config.weight * zipf
        return Loss(total, out.logits.detach(), {"ce": ce.detach(), "zipf": zipf.detach()})

    def target(self, out: Outputs, labels: Tensor) -> Tensor:
        """[B, K] with 0 on the label, rows summing to 1."""
        if self.config.distribution == "constant":
            return zipf_target(torch.ones_like(out.logits, dtype=torch.float32), labels)
        votes = out.probes["votes"]
        counts = count_votes(votes, out.logits.shape[1])
        return zipf_target(vote_rank(counts, votes.shape[1]), labels, self.config.power)
