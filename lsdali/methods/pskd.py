"""Progressive self-knowledge distillation."""

from collections.abc import Mapping
from copy import deepcopy
from typing import Any, Literal, Protocol

import torch
from pydantic import Field, model_validator
from torch import Tensor
from typing_extensions import Self

from lsdali.batch import Batch
from lsdali.clock import Clock
from lsdali.errors import UserError
from lsdali.functional import as_float32, progressive_target, soft_cross_entropy
from lsdali.methods.base import Loss, Method, MethodContext
from lsdali.models.student import Forward, Network, Student
from lsdali.state.memory import Layout, SampleMemory


class ProgressiveDistillation(Method):
    """Kim et al. 2021 (PS-KD): the target moves from the label to the student's own prediction of the epoch before.

    The weight of the past grows by epochs, alpha (e + 1) / E, to alpha in the last one; in the first epoch, and for a
    sample that no epoch has read yet, the target is the label.

    Stored predictions are those of the training pass itself: before the step, in training mode, of that epoch's own
    crop, as in lgcnsai/PS-KD-Pytorch (main.py). There a run begun at a later epoch without a checkpoint has an empty
    past and targets that sum to 1 - a; here such samples keep their labels. A stand-in for a bad file is trained on its
    label and stores nothing.
    """

    needs_length = True

    class Config(Method.Config):
        """Cross-entropy against (1 - a) label + a past prediction."""

        name: Literal["pskd"] = "pskd"
        alpha: float = Field(0.8, ge=0, lt=1)
        """Weight of the past in the last epoch; published: 0.8 (CIFAR-100), 0.3 (ImageNet)."""
        history: Literal["dense32", "dense16", "topk", "network"] = "dense32"
        """How past predictions are stored. dense32: every probability of every sample, as published (5.1 GB per node
        and checkpoint on ImageNet); dense16: in half precision; topk: the `keep` greatest, the rest spread evenly;
        network: a copy of the network at the epoch's end, in evaluation mode, run once more on each batch."""
        keep: int = Field(16, ge=1, le=100_000)
        """How many probabilities of a sample the history topk keeps; all of them if there are fewer classes."""

        @model_validator(mode="after")
        def keep_belongs_to_topk(self) -> Self:
            if self.history != "topk" and self.keep != 16:
                raise ValueError(f"the history {self.history} has no choice to keep; leave out `keep`, or use topk")
            return self

    config: Config

    def __init__(self, config: Config, context: MethodContext) -> None:
        super().__init__(config, context)
        if config.history == "network":
            self.past: Past = NetworkPast()
            return
        layout = Layout(config.history, context.classes, min(config.keep, context.classes))
        self.memory = SampleMemory(context.samples, layout, context.device)
        self.past = StoredPast(self.memory)
        self.each_once = True

    @property
    def mixup_refusal(self) -> str | None:
        if self.config.history == "network":
            return None
        return "predictions of mixed images are none of whole ones to remember; use history: network"

    def begin(self, student: Student) -> None:
        self.past.begin(student)

    def loss(self, student: Forward, batch: Batch, clock: Clock) -> Loss:
        alpha = self.config.alpha * (clock.epoch + 1) / clock.epochs
        past, known = self.past.of(batch)
        logits = student(batch.images).logits
        trust = alpha * known.to(past.dtype)
        total = batch.per_label(lambda labels: soft_cross_entropy(logits, progressive_target(labels, past, trust)))
        return Loss(total, logits.detach())

    def observe(self, batch: Batch, logits: Tensor) -> None:
        self.past.observe(batch, logits)

    def end_epoch(self, student: Student, clock: Clock) -> None:
        self.past.end_epoch(student)

    def state_dict(self) -> dict[str, Any]:
        return self.past.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.past.load_state_dict(state)


class Past(Protocol):
    """The student's predictions for a batch in the epoch before."""

    def begin(self, student: Student) -> None: ...

    def of(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return [B, K] probabilities, [B] bool whether there are any."""
        ...

    def observe(self, batch: Batch, logits: Tensor) -> None: ...

    def end_epoch(self, student: Student) -> None: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


class StoredPast:
    """A row of probabilities for every sample."""

    def __init__(self, memory: SampleMemory) -> None:
        self.memory = memory

    def begin(self, student: Student) -> None:
        self.memory.open()

    def of(self, batch: Batch) -> tuple[Tensor, Tensor]:
        return self.memory.read(batch.index, batch.genuine)

    def observe(self, batch: Batch, logits: Tensor) -> None:
        self.memory.write(batch.index, as_float32(logits).softmax(1), batch.genuine)

    def end_epoch(self, student: Student) -> None:
        self.memory.sync()

    def state_dict(self) -> dict[str, Any]:
        return {**self.memory.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.memory.load_state_dict(state)


class NetworkPast:
    """The network as it was at the last epoch's end."""

    def __init__(self) -> None:
        self.network: Network
        self.taken = False

    def begin(self, student: Student) -> None:
        self.network = deepcopy(student.network).eval().requires_grad_(requires_grad=False)

    @torch.no_grad()
    def of(self, batch: Batch) -> tuple[Tensor, Tensor]:
        known = torch.full_like(batch.labels, self.taken, dtype=torch.bool)
        if not self.taken:
            return torch.zeros(len(batch), self.network.classes, device=known.device), known
        return as_float32(self.network(batch.images)).softmax(1), known

    def observe(self, batch: Batch, logits: Tensor) -> None:
        pass

    def end_epoch(self, student: Student) -> None:
        self.network.load_state_dict(student.network.state_dict())
        self.taken = True

    def state_dict(self) -> dict[str, Any]:
        return {"network": self.network.state_dict()} if self.taken else {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if state and state.keys() != {"network"}:
            names = ", ".join(sorted(state.keys() - {"network"}))
            raise UserError(f"pskd: the checkpoint holds {names}, which the history network does not know")
        if state:
            self.network.load_state_dict(state["network"])
        self.taken = bool(state)


METHODS = {"pskd": ProgressiveDistillation}
