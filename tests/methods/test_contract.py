"""What every method promises, for each entry of METHODS: nothing here names one."""

import copy
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lsdali.batch import Batch
from lsdali.errors import UserError
from lsdali.methods import METHODS
from lsdali.models.digest import weights_digest
from lsdali.trainer import Trainer
from tests.harness import equal
from tests.methods.trainers import CONFIGS, named, trainer_for, trainer_in_float64, with_teacher
from tests.ranks import OnRanks


def test_every_method_is_tested() -> None:
    assert {config["name"] for config in CONFIGS} == set(METHODS)


@pytest.mark.parametrize("config", CONFIGS, ids=named)
def test_one_loss(config: Any, folder: Path, place: Path) -> None:
    trainer = trainer_for(with_teacher(config, folder), place)
    batch = next(trainer.train.epoch(0))
    trainer.step(batch)  # so that a memory holds something
    before = copy.deepcopy(trainer.method.state_dict())
    weights = weights_digest(trainer.student)
    loss = trainer.method.loss(trainer.forward, batch, trainer.clock)
    assert loss.total.shape == ()
    assert torch.isfinite(loss.total)
    assert not loss.observed.requires_grad
    assert loss.observed.shape[1] == trainer.classes
    assert not any(term.requires_grad for term in loss.terms.values())
    assert equal(before, trainer.method.state_dict()), "loss wrote to the method's state"
    loss.total.backward()
    without = [n for n, p in trainer.student.named_parameters() if p.grad is None or not p.grad.any()]
    assert not without, "no gradient reached these parameters"
    stepped = {id(p) for group in trainer.optimizer.inner.param_groups for p in group["params"]}
    assert stepped == {id(p) for p in trainer.student.parameters()}
    assert weights_digest(trainer.student) != weights or not list(trainer.student.buffers())


@pytest.mark.parametrize("config", CONFIGS, ids=named)
def test_state_that_it_does_not_know_is_refused(config: Any, folder: Path, place: Path) -> None:
    method = trainer_for(with_teacher(config, folder), place).method
    with pytest.raises(UserError):
        method.load_state_dict({**method.state_dict(), "nobody_knows_this": torch.zeros(1)})


class Stopped(Exception):
    pass


def stop_after(trainer: Trainer, steps: int) -> None:
    """Let the loader fail when `steps` batches have been read."""
    inner, count = trainer.train, 0

    class Failing:
        def epoch(self, step: int) -> Iterator[Batch]:
            nonlocal count
            for batch in inner.epoch(step):
                if count == steps:
                    raise Stopped
                count += 1
                yield batch

    trainer.train = Failing()


def final_state(trainer: Trainer) -> dict[str, Any]:
    """All that decides how a run would go on, less its clocks on the wall."""
    parts = {name: copy.deepcopy(part.state_dict()) for name, part in trainer.parts.items()}
    parts["trainer"].pop("seconds")
    return parts


def check_resume(config: Any, base: Path, others: Any = types.MappingProxyType({})) -> None:
    """A run to the end; one stopped in mid-epoch; one from its checkpoint to the end: equal on each rank.

    `others` are more parts of the recipe; an epoch must have 5 steps.
    """
    parts: dict[str, Any] = {"ema": {"decay": 0.5}, **others}
    whole = trainer_for(config, base / "whole", **parts)
    whole.run()
    stopped = trainer_for(config, base / "stopped", **parts, save={"every_steps": 3})
    stop_after(stopped, 8)  # 5 steps an epoch: the checkpoint of step 6 is inside the second epoch
    with pytest.raises(Stopped):
        stopped.run()
    resumed = trainer_for(config, base / "stopped", **parts, save={"every_steps": 3})
    content = resumed.checkpoints.newest()
    assert content is not None
    assert content["step"] == 6
    resumed.restore(content["parts"])
    resumed.run()
    first, second = final_state(whole), final_state(resumed)
    for name in first:
        told = f"\n{first[name]}\n{second[name]}" if name == "trainer" else ""
        assert equal(first[name], second[name]), f"{name} differs after a resume{told}"


@pytest.mark.parametrize("config", CONFIGS, ids=named)
def test_resume_is_exact_on_one_rank(config: Any, folder: Path, place: Path) -> None:
    check_resume(with_teacher(config, folder), place)


def weights_after(config: Any, folder: Path) -> Tensor:
    """Return the final weights of a run with BatchNorm frozen, since each rank would normalise over its own samples."""
    trainer = trainer_in_float64(config, folder)
    for module in trainer.student.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.train = types.MethodType(lambda self, mode=True: self, module.eval())  # type: ignore[method-assign]
    for _ in range(trainer.clock.epochs):
        for batch in trainer.train.epoch(trainer.clock.step):
            trainer.step(batch)
            trainer.clock = trainer.clock.tick()
        trainer.method.end_epoch(trainer.student, trainer.clock)
    return torch.cat([p.detach().flatten() for p in trainer.student.parameters()])


def check_weights(config: Any, place: Path) -> None:
    """Compare this rank's weights with those that one process left in the folder."""
    one = torch.load(place / "one.pt")
    away = torch.dist(weights_after(config, place), one) / one.norm()
    assert away < 1e-9, f"{named(config)}: {away:.1e} away"


BATCHWIDE = [
    {"name": "zls", "samples": "correct"},
    {"name": "zls", "ranking": "friends"},
    {"name": "pairwise_confusion", "of": "logits", "variant": "code"},
]
"""Losses that read more of the batch than one sample, and that no recipe uses."""


@pytest.mark.ranks
@pytest.mark.parametrize("config", CONFIGS + BATCHWIDE, ids=named)
def test_two_ranks_train_as_one_does(config: Any, folder: Path, place: Path, on_ranks: OnRanks) -> None:
    config = with_teacher(config, folder)
    place.mkdir()
    torch.save(weights_after(config, place), place / "one.pt")
    on_ranks(2, check_weights, config, place)


@pytest.mark.ranks
@pytest.mark.parametrize("config", CONFIGS, ids=named)
@pytest.mark.parametrize("ranks", [2, 4])
def test_resume_is_exact_on_several_ranks(
    ranks: int, config: Any, folder: Path, place: Path, on_ranks: OnRanks
) -> None:
    on_ranks(ranks, check_resume, with_teacher(config, folder), place)


def test_micro_batches_give_the_gradient_of_the_whole(place: Path) -> None:
    """In evaluation mode, since BatchNorm's statistics over a batch are those of its micro-batches otherwise."""
    grads = []
    for size in (None, 3):
        trainer = trainer_for({"name": "ce"}, place / str(size), micro_batch=size)
        trainer.student.eval()
        batch = next(trainer.train.epoch(0))
        parts = trainer.micro_batches(batch)
        assert [len(p) for p in parts] == ([8] if size is None else [3, 3, 2])
        for part in parts:
            trainer.backward(part, len(part) / len(batch), last=part is parts[-1])
        grads.append(torch.cat([p.grad.flatten() for p in trainer.student.parameters() if p.grad is not None]))
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-4, atol=1e-6)
