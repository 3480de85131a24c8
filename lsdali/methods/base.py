"""Method: the owner of the loss. One file each; the trainer knows this protocol and no method by name."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from lsdali import config, dist
from lsdali.batch import Batch
from lsdali.clock import Clock
from lsdali.errors import UserError
from lsdali.label_noise import Noise
from lsdali.models.student import AuxHead, Forward, Student
from lsdali.models.teacher import Teacher
from lsdali.models.teacher_cache import CachedTeacher
from lsdali.models.teacher_configs import TeacherConfig
from lsdali.state.memory import SampleMemory


@dataclass(frozen=True, slots=True)
class Loss:
    """The loss of one step, what `observe` gets, and what is logged."""

    total: Tensor  # [] to differentiate
    observed: Tensor  # [b, K] detached, passed to `observe`; usually the student's logits of the first b samples
    terms: dict[str, Tensor] = field(default_factory=dict)  # [] each, detached, to log


@dataclass(frozen=True, slots=True)
class MethodContext:
    """Arguments of a method's constructor beside its own part of the recipe."""

    classes: int
    samples: int  # in the training set
    channels: dict[str, int]  # of each stage of the student's network, in order
    device: torch.device
    seed: int
    teacher: Callable[[TeacherConfig], Teacher]
    label_noise: Noise | None = None  # data.noise
    class_weights: Tensor | None = None  # [K] float64, on the device; of the recipe's class_weights
    validation: Iterable[Batch] = ()  # this rank's part, as evaluation reads it, anew in every loop


Variant = Literal["paper", "code"]
"""A method as its paper defines it, or as its published code computes it if the two differ."""
NO_MIXUP_RULE = "no rule for mixed images is known for it"
"""For `Method.mixup_refusal`."""


class Method(ABC):
    """Owns the forward passes and the loss; the trainer owns the backward pass, the step and time."""

    sampler: ClassVar[str] = "shuffled"
    """The name of the order in which training samples are read."""
    group_size: ClassVar[int] = 1
    """Number of neighbours in a batch that belong together; a micro-batch is a multiple of it."""

    needs_length: ClassVar[bool] = False
    """Whether the loss of an epoch depends on how many follow: a run of such a method cannot be made longer."""
    weighs_classes: ClassVar[bool] = False
    """Whether the loss is a mean over samples that reads `class_scale`; others refuse class weights."""

    compares: int = 1
    """The minimum number of samples, over all ranks, that the loss must see at once to have an effect."""

    views: int = 1
    """Number of copies of each sample (`data.train.repeats`) that a batch must hold; first copies come first."""

    each_once: bool = False
    """Whether a sample may come only once in an epoch; methods with a row for each sample need that."""
    memory: SampleMemory | None = None
    """Its rows for all samples, which are its state or a part of it."""

    class Config(config.Config):
        """The method's own, typed part of the recipe."""

        name: str

    def __init__(self, config: Any, context: MethodContext) -> None:
        """Keep `config`, an instance of the method's own Config."""
        self.config: Any = config
        self.class_weights = context.class_weights

    def class_scale(self, labels: Tensor) -> Tensor | None:
        """Map [b] int64 of each rank -> [K]: the classes' weights over their mean in the batch of all ranks.

        None if all classes weigh the same. A collective if they do not.
        """
        if self.class_weights is None:
            return None
        return self.class_weights / dist.all_mean(self.class_weights[labels].mean())

    def aux_heads(self) -> dict[str, AuxHead]:
        """Return modules that run inside the student's forward. Called once, when the student is built."""
        return {}

    def begin(self, student: Student) -> None:  # noqa: B027
        """Prepare, once, on every rank, before the first step and before state is loaded: collectives are safe."""

    @property
    def reads_features(self) -> bool:
        """Whether the loss reads `Outputs.features`."""
        return False

    @property
    def delayed_until(self) -> tuple[str, int] | None:
        """Recipe key that delays the method, and its first active epoch; None if it is active from epoch 0."""
        return None

    @property
    def mixup_refusal(self) -> str | None:
        """Reason to refuse mixed images (mixup, CutMix); None if `loss` reads labels by `Batch.per_label` alone."""
        return None

    @abstractmethod
    def loss(self, student: Forward, batch: Batch, clock: Clock) -> Loss:
        """Return the loss; call the student as often as needed. Reads the method's state, never writes it."""

    def observe(self, batch: Batch, observed: Tensor) -> None:  # noqa: B027
        """Update per-batch memory after the step, from what the step's Loss has `observed`."""

    def end_epoch(self, student: Student, clock: Clock) -> None:  # noqa: B027
        """Update state after an epoch's last step, on every rank: collectives are safe."""

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint must hold; the same answer on every rank."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave. Raises UserError for state that the method does not know."""
        if state:
            names = ", ".join(sorted(state))
            raise UserError(
                f"the method '{self.config.name}' keeps no state, but the checkpoint holds {names} for it: "
                "it was saved by another method"
            )


def ask(teacher: Teacher, batch: Batch, clock: Clock) -> Tensor:
    """Return [B, K] logits of a teacher for the images of a training batch: its own, or those of its cache."""
    if isinstance(teacher, CachedTeacher):
        return teacher.answers(batch.index, clock.epoch, batch.images.device)
    return teacher(batch.images)


def matching_teacher(config: TeacherConfig, context: MethodContext) -> Teacher:
    """Return the teacher. Raises UserError if it knows another number of classes."""
    teacher = context.teacher(config)
    if teacher.classes != context.classes:
        raise UserError(f"the teacher knows {teacher.classes} classes, but the data set has {context.classes}")
    return teacher
