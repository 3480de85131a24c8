"""Multi-level logit distillation."""

from typing import Annotated, Literal

import torch
from pydantic import Field

from lsdali import dist
from lsdali.batch import Batch
from lsdali.clock import Clock
from lsdali.functional import as_float32, cross_entropy, distillation_kl, gram_distance, standardised
from lsdali.methods.base import Loss, ask
from lsdali.methods.shared.taught import TaughtMethod
from lsdali.models.student import Forward

Degree = Annotated[float, Field(gt=0, le=1e9)]


class MultiLevelDistillation(TaughtMethod):
    """Jin et al. 2023 (MLLD, CVPR): match samples, the batch's and the classes' Gram matrices, at several temperatures.

    The published code also reads a second, strongly augmented view of every image, and drops the more confident half of
    samples and classes from the first; here each image has one view, and all count. Gram matrices are of the
    (micro-)batch of all processes.
    """

    class Config(TaughtMethod.Config):
        """hard cross-entropy + weight sum over T of (T^2 KL + batch + class distance of Gram matrices)."""

        name: Literal["multi_level"] = "multi_level"
        temperatures: list[Degree] = Field([2.0, 3.0, 4.0, 5.0, 6.0], min_length=1, max_length=20)
        """T, each above 0; every term is a sum over them."""
        weight: float = Field(0.9, gt=0, le=1e9)
        """Weight of the teacher's terms."""
        hard: float = Field(0.1, ge=0, le=1e9)
        """Weight of the cross-entropy with the label."""
        standardise: bool = False
        """Give every row of logits in the KL term mean 0 and standard deviation 1 (Sun et al. 2024; weight 9 there)."""

    config: Config

    def loss(self, student: Forward, batch: Batch, clock: Clock) -> Loss:
        c = self.config
        t = as_float32(ask(self.teacher, batch, clock))
        logits = student(batch.images).logits
        s = as_float32(logits)
        pair = (standardised(s), standardised(t)) if c.standardise else (s, t)
        samples = torch.stack([distillation_kl(*pair, temperature) for temperature in c.temperatures]).sum()
        s_all, t_all = dist.whole_batch(s), dist.whole_batch(t)
        softened = [((s_all / at).softmax(1), (t_all / at).softmax(1)) for at in c.temperatures]
        rows = torch.stack([gram_distance(x, y) for x, y in softened]).sum()
        columns = torch.stack([gram_distance(x.mT, y.mT) for x, y in softened]).sum()
        ce = batch.per_label(lambda labels: cross_entropy(logits, labels))
        total = c.hard * ce + c.weight * (samples + rows + columns)
        terms = {"ce": ce, "kd": samples, "batch": rows, "class": columns}
        return Loss(total, logits.detach(), {name: term.detach() for name, term in terms.items()})


METHODS = {"multi_level": MultiLevelDistillation}
