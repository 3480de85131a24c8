"""Instance-based label smoothing."""

from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor
from typing_extensions import Self

from lsdali.batch import Batch
from lsdali.clock import Clock
from lsdali.config import Config as Part
from lsdali.functional import (
    Strength,
    instance_strength,
    logit_target,
    quadratic_strength,
    smoothed_by_teacher,
    smoothed_evenly,
    soft_cross_entropy,
    teacher_spread,
)
from lsdali.methods.base import Loss, Method, MethodContext, ask, matching_teacher
from lsdali.methods.shared.draws import to_device
from lsdali.models.student import Forward, Student
from lsdali.models.teacher_configs import TeacherConfig
from lsdali.state.memory import Layout, SampleMemory

Rule = Literal[
    "logits",
    "logits_code",
    "ils1",
    "ils11",
    "ils2",
    "ils12",
    "ils112",
    "ils12_code",
    "ils112_code",
    "paper_ils1",
    "paper_ils",
]
CURVED = ("paper_ils1", "paper_ils")
COLD = ("logits", "logits_code", "paper_ils1")  # rules that read no temperature

STRENGTHS: dict[str, Strength] = {
    "ils1": "sure",
    "ils11": "unsure",
    "ils2": "constant",
    "ils12": "sure",
    "ils112": "unsure",
    "ils12_code": "sure",
    "ils112_code": "unsure",
}


class Quadratic(Part):
    """What the label loses, P2 (p - P1)^2: least if the teacher's probability of it is P1, more on both sides."""

    shift: float = Field(0.8, ge=0, le=1)
    """P1; the paper's appendix tries 0.75 to 0.85 (made-up data) and 0.85 to 0.975 (images)."""
    coefficient: float = Field(2.0, ge=0, le=1e9)
    """P2; the paper's appendix tries 0.75 to 2."""


class InstanceSmoothing(Method):
    """Maher and Kull 2021: each sample has its own smoothing, set by a teacher trained without smoothing.

    The name stands for a family; p is the teacher's softmax at T, p[label] its probability of the label, a `smoothing`.
    In the paper's rules the curve reads p[label] at T = 1. Its appendix takes it from a teacher with temperature
    scaling, which is `teacher.temperature` here.

    | rule | taken from the label | shared among the other classes |
    |---|---|---|
    | logits | a g[label] / sum g, g: logits less their minimum | in proportion to g |
    | ils1, ils11 | a p[label]; a (1 - p[label]) | evenly |
    | ils2 | a | in proportion to p |
    | ils12, ils112 | a p[label]; a (1 - p[label]) | in proportion to p |
    | paper_ils1 | P2 (p[label] - P1)^2, at most a | evenly |
    | paper_ils | P2 (p[label] - P1)^2, at most a | in proportion to p |

    logits is the figure of the README of mmaher22/Instance-based-smoothing; logits_code is that repository's
    Instance-based-smoothing.py, which subtracts the minimum only if it is negative (its mul_factor cancels out). The
    others are utils/loss.py of mmaher22/Instance-based-label-smoothing, for as many classes as there are (there: 10).
    ils12_code and ils112_code are what it does: all of a goes to the other classes, whatever the label lost, so that
    rows do not sum to 1. The paper's ILS2 is ils2; its ILS1 and ILS are not in its code. paper_ils1 and paper_ils are
    inferred from the text and figure 6 of its appendix, and not checked against its Equation 3.

    In all published code the teacher reads the student's own images, once more in every step. With `memory` it reads
    each sample once, as the sample's first epoch crops it, and the answer is used for all later crops of it: a step
    costs no pass of the teacher after the first epoch, but the target no longer knows what the student sees. A sample
    without a row (a stand-in for a bad file, or the tail of the first epoch) is read by the teacher as before.
    """

    class Config(Method.Config):
        """Cross-entropy against the smoothed label."""

        name: Literal["ibls"] = "ibls"
        teacher: TeacherConfig
        """A network of the student's own kind, trained with cross-entropy alone; it reads the student's own images."""
        rule: Rule = "logits"
        """How much the label loses, and which classes get it; see the method's table."""
        smoothing: float = Field(0.1, ge=0, lt=1)
        """a, the maximum that a label loses."""
        temperature: float = Field(1.0, gt=0, le=1e9)
        """T, which divides the teacher's logits; not of the rules logits, logits_code and paper_ils1."""
        quadratic: Quadratic = Quadratic()
        """P1 and P2 of the rules paper_ils1 and paper_ils."""
        memory: Literal["dense32", "dense16"] | None = None
        """How the teacher's logits of every sample are stored (ImageNet: 5.1 or 2.6 GB per node and checkpoint); null:
        they are not, and the teacher reads the images of every step."""

        @model_validator(mode="after")
        def temperature_is_read(self) -> Self:
            if self.rule in COLD and self.temperature != 1:
                raise ValueError(f"the rule {self.rule} reads no temperature; leave out `temperature`")
            return self

        @model_validator(mode="after")
        def one_place_for_answers(self) -> Self:
            if self.memory is not None and self.teacher.cache is not None:
                raise ValueError("`memory` and `teacher.cache` both keep the teacher's answers; leave one out")
            return self

        @model_validator(mode="after")
        def curve_belongs_to_the_paper(self) -> Self:
            if self.rule not in CURVED and self.quadratic != Quadratic():
                raise ValueError(
                    f"the rule {self.rule} has no curve; leave out `quadratic`, or use one of {', '.join(CURVED)}"
                )
            return self

    config: Config

    def __init__(self, config: Config, context: MethodContext) -> None:
        super().__init__(config, context)
        self.teacher = matching_teacher(config.teacher, context)
        if config.memory is not None:
            self.memory = SampleMemory(context.samples, Layout(config.memory, context.classes), context.device)
            self.each_once = True

    @property
    def mixup_refusal(self) -> str | None:
        if self.memory is None:
            return None
        return "the teacher's answers to mixed images are none to whole ones to remember; leave out `memory`"

    def begin(self, student: Student) -> None:
        if self.memory is not None:
            self.memory.open()

    def loss(self, student: Forward, batch: Batch, clock: Clock) -> Loss:
        taught = self.taught(batch, clock)
        logits = student(batch.images).logits
        total = batch.per_label(lambda labels: soft_cross_entropy(logits, self.target(taught, labels)))
        return Loss(total, logits.detach() if self.memory is None else taught)

    def taught(self, batch: Batch, clock: Clock) -> Tensor:
        """Return [B, K] logits of the teacher.

        They are those remembered where known, else its answer to the batch's images.
        """
        if self.memory is None:
            return ask(self.teacher, batch, clock)
        new = (~self.memory.known(batch.index, batch.genuine)).nonzero().flatten()  # on the host
        if len(new) == len(batch):
            return ask(self.teacher, batch, clock).float()
        rows, _ = self.memory.read(batch.index)
        if len(new) == 0:
            return rows
        unknown = to_device(new.numpy(), rows.device)
        return rows.index_copy(0, unknown, self.teacher(batch.images[unknown]).float())

    def observe(self, batch: Batch, observed: Tensor) -> None:
        """Remember `observed`, the teacher's logits, if there is a memory."""
        if self.memory is None:
            return
        kept = batch.genuine
        new = ~self.memory.known(batch.index) if kept is None else ~self.memory.known(batch.index) & kept
        if new.any():
            self.memory.write(batch.index, observed, new)

    def end_epoch(self, student: Student, clock: Clock) -> None:
        if self.memory is not None:
            self.memory.sync()

    def state_dict(self) -> dict[str, Any]:
        return {} if self.memory is None else {**self.memory.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self.memory is None:
            super().load_state_dict(state)
        else:
            self.memory.load_state_dict(state)

    def target(self, taught: Tensor, labels: Tensor) -> Tensor:
        """Map [B, K] logits of the teacher, [B] int64 -> [B, K]."""
        rule, a, t = self.config.rule, self.config.smoothing, self.config.temperature
        if rule in ("logits", "logits_code"):
            return logit_target(taught, labels, a, "always" if rule == "logits" else "negative")
        if rule in CURVED:
            curve = self.config.quadratic
            strength = quadratic_strength(taught, labels, curve.shift, curve.coefficient, a)
        else:
            strength = instance_strength(taught, labels, a, t, STRENGTHS[rule])
        if rule in ("ils1", "ils11", "paper_ils1"):
            return smoothed_evenly(strength, labels, taught.shape[1])
        spread = teacher_spread(taught, labels, t)
        target = smoothed_by_teacher(strength, spread, labels)
        return target if not rule.endswith("_code") else unscaled(target, spread, labels, a)


def unscaled(target: Tensor, spread: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    """Map [B, K], [B, K], [B] int64 -> [B, K]: `target` on the label, smoothing times spread elsewhere."""
    label = labels[:, None]
    return torch.scatter(smoothing * spread, 1, label, target.gather(1, label))


METHODS = {"ibls": InstanceSmoothing}
