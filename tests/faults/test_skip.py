"""Steps that are not finite: skipped on every rank alike, counted, told with their cause, and never saved."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lsdali import dist
from lsdali.errors import SharedError
from lsdali.events import Events, Message
from lsdali.skips import observe
from lsdali.state.checkpoint import Checkpoints
from lsdali.trainer import Trainer
from tests.harness import equal
from tests.methods.trainers import trainer_for
from tests.ranks import OnRanks

Poison = Callable[[torch.Tensor], torch.Tensor]


def state(trainer: Trainer) -> dict[str, Any]:
    """Everything a skipped step must leave alone, copied."""
    counted = {k: v.clone() for k, v in trainer.student.state_dict().items() if not k.endswith("num_batches_tracked")}
    moments = trainer.optimizer.state_dict()["state"]
    return {"student": counted, "moments": {k: {n: x.clone() for n, x in v.items()} for k, v in moments.items()}}


def poisoned(trainer: Trainer, steps: set[int], value: float) -> None:
    """From now on the images of these steps (from 0) hold such a number, and with them BatchNorm and the loss."""
    inner = trainer.method.loss

    def loss(student: Any, batch: Any, clock: Any) -> Any:
        if clock.step in steps:
            images = batch.images.clone()
            images[0, 0, 0, 0] = value
            batch = replace(batch, images=images)
        return inner(student, batch, clock)

    trainer.method.loss = loss  # type: ignore[method-assign]


class Told:
    """A sink that keeps what is told."""

    def __init__(self) -> None:
        self.events: list[Any] = []

    def write(self, event: Any) -> None:
        self.events.append(event)

    def close(self) -> None: ...

    @property
    def sentences(self) -> list[str]:
        return [event.text for event in self.events if isinstance(event, Message)]


OPTIMIZERS = [
    {"name": "nesterov", "lr": 0.05},
    {"name": "nesterov", "lr": 0.05, "clip": 1.0},
    {"name": "sgd", "lr": 0.05, "implementation": "foreach"},
    {"name": "adamw", "lr": 0.001},
    {"name": "lamb", "lr": 0.001},
]


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda o: "-".join(map(str, o.values())))
@pytest.mark.parametrize("first", [0, 1])
def test_a_skipped_step_changes_nothing(folder: Path, place: Path, optimizer: dict[str, Any], first: int) -> None:
    trainer = trainer_for({"name": "ce"}, place, optimizer=optimizer, micro_batch=4)
    poisoned(trainer, {first}, float("nan"))
    batches = trainer.train.epoch(0)
    for step, batch in zip(range(3), batches, strict=False):
        before = state(trainer)
        terms = trainer.step(batch)
        assert terms["skipped"].item() == (step == first)
        weights = {k: v for k, v in before["student"].items() if "running" not in k}
        assert equal(state(trainer)["student"], before["student"]) == (step == first)
        assert not torch.isnan(torch.cat([x.flatten() for x in weights.values()])).any()
        if step == first > 0:
            assert equal(state(trainer)["moments"], before["moments"])
        trainer.clock = trainer.clock.tick()
    assert all(x.isfinite().all() for x in state(trainer)["student"].values())


def test_a_loss_that_is_not_finite_though_its_gradient_is(folder: Path, place: Path) -> None:
    trainer = trainer_for({"name": "ce"}, place)
    inner = trainer.method.loss
    trainer.method.loss = lambda *args: (lambda found: replace(found, total=found.total + float("inf")))(inner(*args))  # type: ignore[method-assign]
    before = state(trainer)
    assert trainer.step(next(trainer.train.epoch(0)))["skipped"].item() == 1
    assert equal(state(trainer)["student"], before["student"])


def test_what_was_skipped_is_told_and_too_much_of_it_ends_the_run(folder: Path, place: Path) -> None:
    told = Told()
    trainer = trainer_for({"name": "ce"}, place, faults={"max_skipped_steps": 2})
    trainer.events = Events([told])
    poisoned(trainer, {1, 4}, float("inf"))
    trainer.run()
    assert told.sentences == ["step 2 was skipped: loss is nan on rank 0", "step 5 was skipped: loss is nan on rank 0"]
    assert all(event.loss == event.loss for event in told.events if hasattr(event, "loss"))
    again = trainer_for({"name": "ce"}, place, faults={"max_skipped_steps": 2})
    content = again.checkpoints.newest()
    assert content is not None
    assert content["parts"]["trainer"]["skipped"] == 2, "a resumed run goes on counting"

    trainer = trainer_for({"name": "ce"}, place / "more", faults={"max_skipped_steps": 2})
    poisoned(trainer, {1, 2, 3}, float("nan"))
    with pytest.raises(SharedError, match=r"step 4 was skipped: loss is nan on rank 0, 3 skipped in all: .*diverged"):
        trainer.run()


def check_one_bad_rank(place: Path) -> None:
    """Rank 1 alone meets a NaN; both skip, both know why, and both are equal after."""
    told = Told()
    trainer = trainer_for({"name": "ce"}, place)
    trainer.events = Events([told])
    if dist.rank() == 1:
        poisoned(trainer, {1}, float("nan"))
    trainer.run()
    assert told.sentences == ["step 2 was skipped: loss is nan on rank 1"]
    flat = torch.cat([p.detach().flatten() for p in trainer.student.parameters()])
    assert flat.isfinite().all()
    first, second = dist.gather_objects(flat)
    assert torch.equal(first, second)


@pytest.mark.ranks
def test_ranks_skip_together(folder: Path, place: Path, on_ranks: OnRanks) -> None:
    on_ranks(2, check_one_bad_rank, place)


REMEMBERING = [
    {"name": "pskd", "history": "dense32"},
    {"name": "pskd", "history": "topk", "keep": 3},
    {"name": "ols"},
    {"name": "ols_deep"},
    {"name": "forward", "noise": {"name": "estimated", "epochs": 1}},
]


@pytest.mark.parametrize("config", REMEMBERING, ids=lambda c: "-".join(map(str, c.values())))
def test_a_skipped_step_leaves_the_memory_of_a_method_alone(folder: Path, place: Path, config: dict[str, Any]) -> None:
    trainer = trainer_for(config, place, micro_batch=4)
    poisoned(trainer, {1}, float("nan"))
    states = []
    for _, batch in zip(range(3), trainer.train.epoch(0), strict=False):
        trainer.step(batch)
        states.append(deepcopy(trainer.method.state_dict()))
        trainer.clock = trainer.clock.tick()
    assert equal(states[0], states[1]), "the second step was skipped"
    assert not equal(states[1], states[2])


def test_too_many_skipped_steps_end_the_run_before_the_next_report(folder: Path, place: Path) -> None:
    trainer = trainer_for({"name": "ce"}, place, faults={"max_skipped_steps": 1}, log={"every_steps": 1000}, epochs=9)
    poisoned(trainer, {0, 2, 3, 4}, float("nan"))
    with pytest.raises(SharedError, match="step 3 was skipped: loss is nan on rank 0, 2 skipped in all"):
        trainer.run()
    assert trainer.clock.step == 3


def test_a_gpu_puts_back_what_a_skipped_step_has_written() -> None:
    """The arithmetic that a device does without asking the host, done here on tensors that say they are a GPU's."""

    class OnDevice(torch.Tensor):
        @property
        def is_cuda(self) -> bool:  # type: ignore[override]
            return True

    class Remembers:
        def __init__(self) -> None:
            self.memory, self.sums, self.best = None, torch.zeros(3), torch.ones(2)

        def observe(self, batch: torch.Tensor, observed: torch.Tensor) -> None:
            self.sums += observed
            self.best = self.best + batch

    method = Remembers()
    for flag, sums, best in ((0.0, 1.0, 2.0), (1.0, 1.0, 2.0), (0.0, 2.0, 3.0)):
        seen = torch.full((3,), float("nan") if flag else 1.0)
        observe(method, [(torch.ones(2), seen)], torch.tensor(flag).as_subclass(OnDevice))
        assert method.sums.tolist() == [sums] * 3
        assert method.best.tolist() == [best] * 2


class Part:
    def __init__(self, value: float) -> None:
        self.value = torch.full((10,), value)

    def state_dict(self) -> dict[str, Any]:
        return {"inside": [self.value]}

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


def test_a_state_that_is_not_finite_never_replaces_a_good_one(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, 1, print)
    header = {"recipe": {}, "classes": 3, "data": "", "teachers": [], "steps": 9}
    checkpoints.save({"student": Part(1.0)}, {**header, "step": 1}, best=True)
    for value in (float("nan"), float("inf")):
        with pytest.raises(SharedError, match="the state of the student is not finite at step 2, so no checkpoint"):
            checkpoints.save({"student": Part(value)}, {**header, "step": 2}, best=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["best.pt", "step-0000000001.pt"]
