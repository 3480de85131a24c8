"""What every method promises (lsdali.testing.contract), for each entry of METHODS: nothing here names one."""

from pathlib import Path
from typing import Any

import pytest
import torch

from lsdali.methods import METHODS
from lsdali.testing.contract import (
    check_loss,
    check_resume,
    check_unknown_state,
    check_weights,
    save_weights,
)
from tests.methods.trainers import CONFIGS, EACH, STATEFUL, named, trainer_for, trainer_in_float64, with_teacher
from tests.ranks import OnRanks


def test_every_method_is_tested() -> None:
    assert {config["name"] for config in CONFIGS} == set(METHODS)


@pytest.mark.parametrize("config", CONFIGS, ids=named)
def test_one_loss(config: Any, folder: Path, place: Path) -> None:
    check_loss(with_teacher(config, folder), place)


@pytest.mark.parametrize("config", CONFIGS, ids=named)
def test_state_that_it_does_not_know_is_refused(config: Any, folder: Path, place: Path) -> None:
    check_unknown_state(with_teacher(config, folder), place)


@pytest.mark.parametrize("config", CONFIGS, ids=named)
def test_resume_is_exact_on_one_rank(config: Any, folder: Path, place: Path) -> None:
    check_resume(with_teacher(config, folder), place)


BATCHWIDE = [
    {"name": "zls", "samples": "correct"},
    {"name": "zls", "ranking": "friends"},
    {"name": "pairwise_confusion", "of": "logits", "variant": "code"},
]
"""Losses that read more of the batch than one sample, and that no recipe uses."""


@pytest.mark.ranks
@pytest.mark.parametrize("config", [c for c in CONFIGS + BATCHWIDE if c not in EACH], ids=named)
def test_two_ranks_train_as_one_does(config: Any, folder: Path, place: Path, on_ranks: OnRanks) -> None:
    """With BatchNorm frozen; one recipe of each method is tested with BatchNorm as it is, below."""
    config = with_teacher(config, folder)
    save_weights(config, place)
    on_ranks(2, check_weights, config, place)


def numbers_after(config: Any, folder: Path) -> torch.Tensor:
    """Return the final weights and running statistics of a run whose BatchNorm reads the images of all ranks."""
    trainer = trainer_in_float64(config, folder, model={"name": "preact_resnet10", "width": 16, "sync_batchnorm": True})
    for _ in range(trainer.clock.epochs):
        for batch in trainer.train.epoch(trainer.clock.step):
            trainer.step(batch)
            trainer.clock = trainer.clock.tick()
        trainer.method.end_epoch(trainer.student, trainer.clock)
    numbers = (*trainer.student.parameters(), *trainer.student.buffers())
    return torch.cat([x.detach().flatten().double() for x in numbers])


def check_numbers(config: Any, place: Path) -> None:
    """Compare this rank's numbers with those that one process left in the folder."""
    one = torch.load(place / "one.pt")
    away = torch.dist(numbers_after(config, place), one) / one.norm()
    assert away < 1e-7, f"{named(config)}: {away:.1e} away"


@pytest.mark.ranks
@pytest.mark.parametrize("config", EACH, ids=named)
def test_two_ranks_with_shared_norms_train_as_one_does(
    config: Any, folder: Path, place: Path, on_ranks: OnRanks
) -> None:
    config = with_teacher(config, folder)
    place.mkdir()
    torch.save(numbers_after(config, place), place / "one.pt")
    on_ranks(2, check_numbers, config, place)


@pytest.mark.ranks
@pytest.mark.parametrize(
    ("ranks", "config"),
    [
        pytest.param(ranks, config, id=f"{ranks}-{named(config)}")
        for ranks, configs in ((2, CONFIGS), (4, [c for c in CONFIGS if c in EACH or c in STATEFUL]))
        for config in configs
    ],
)
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
