"""Multi-level logit distillation."""

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor
from typing_extensions import Self

from lsdali import dist
from lsdali.batch import Batch
from lsdali.clock import Clock
from lsdali.functional import as_float32, cross_entropy, distillation_kl, gram_distance, standardised
from lsdali.methods.base import Loss, Variant
from lsdali.methods.shared.taught import TaughtMethod
from lsdali.models.student import Forward

Degree = Annotated[float, Field(gt=0, le=1e9)]


class MultiLevelDistillation(TaughtMethod):
    """Jin et al. 2023 (MLLD, CVPR): match samples, the batch's and the classes' Gram matrices, at several temperatures.

    With one view of each image all samples and classes count alike. With two, the second strongly augmented
    (`data.train.repeats: 2`, and `copies: later` in its augmentation), the loss is that of the published code
    (KD_ours.py). There each term of the first view is multiplied by the share of samples, or of classes, about which
    the teacher is no surer than the median, and only samples are matched on the second view. Gram matrices are of the
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
        views: Literal[1, 2] = 1
        """Number of views of each image in a batch; published: 2."""
        variant: Variant = "paper"
        """With two views. paper: samples of the second are matched at all temperatures; code: at the first three, and
        those of the first view once more at the others, as the published code does."""
        standardise: bool = False
        """Give every row of logits in the KL term mean 0 and standard deviation 1 (Sun et al. 2024; weight 9 there)."""

        @model_validator(mode="after")
        def nothing_is_dead(self) -> Self:
            if self.variant == "code" and self.views == 1:
                raise ValueError("variant: code is about the second view: give views: 2")
            return self

    config: Config

    @property
    def views(self) -> int:  # type: ignore[override]
        """As the config has it."""
        return self.config.views

    def loss(self, student: Forward, batch: Batch, clock: Clock) -> Loss:
        c = self.config
        taught, maps = self.ask(batch, clock)
        t = as_float32(taught)
        out = student(batch.images)
        logits = out.logits
        if c.views == 2:
            total, terms = self.two_views(logits, taught, batch)
            total, terms = self.with_features(total, terms, out, maps)
            return Loss(total, logits.detach(), {name: term.detach() for name, term in terms.items()})
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
        total, terms = self.with_features(total, terms, out, maps)
        return Loss(total, logits.detach(), {name: term.detach() for name, term in terms.items()})

    def two_views(self, logits: Tensor, taught: Tensor, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Map [b, K], [b, K] -> loss [] and terms, from the batch of all ranks, whose first half is the first view."""
        c = self.config
        student, teacher = (dist.whole_batch(as_float32(x)) for x in (logits, taught))
        (s, s_strong), (t, t_strong) = student.chunk(2), teacher.chunk(2)
        sure = t.softmax(1)
        samples, classes = (unsure_share(x) for x in (sure.amax(1), sure.sum(0)))
        weak, strong = (self.matched(*pair, c.temperatures) for pair in ((s, t), (s_strong, t_strong)))
        if c.variant == "code":
            strong = self.matched(s_strong, t_strong, c.temperatures[:3]) + self.matched(s, t, c.temperatures[3:])
        softened = [((s / at).softmax(1), (t / at).softmax(1)) for at in c.temperatures]
        rows = samples * torch.stack([gram_distance(x, y) for x, y in softened]).sum()
        columns = classes * torch.stack([gram_distance(x.mT, y.mT) for x, y in softened]).sum()
        kd = samples * weak + strong
        ce = c.views * batch.per_label(lambda labels: cross_entropy(logits, labels))
        return c.hard * ce + c.weight * (kd + rows + columns), {"ce": ce, "kd": kd, "batch": rows, "class": columns}

    def matched(self, s: Tensor, t: Tensor, temperatures: Sequence[float]) -> Tensor:
        """Map [n, K], [n, K] -> []: the sum over temperatures of T^2 KL."""
        pair = (standardised(s), standardised(t)) if self.config.standardise else (s, t)
        return torch.stack([s.new_zeros(()), *(distillation_kl(*pair, at) for at in temperatures)]).sum()


def unsure_share(confidence: Tensor) -> Tensor:
    """Map [n] -> []: the share of values that are at most the median, the mean of the two in the middle."""
    return (confidence <= confidence.quantile(0.5)).to(confidence.dtype).mean()


METHODS = {"multi_level": MultiLevelDistillation}
