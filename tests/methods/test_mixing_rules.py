"""Which methods read mixed images and what they make of them; samples that belong together stay together."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lsdali.errors import UserError
from lsdali.testing.contract import check_resume, final_state
from tests.harness import equal
from tests.methods.trainers import CONFIGS, named, trainer_for, with_teacher

MIXED = {"ce", "ls", "bce", "exits", "kd", "dist", "multi_level", "ibls", "tfkd", "zls", "zls_kd"}
MIX = {"name": "mixup", "alpha": 0.5}


def mixes(config: Any) -> bool:
    return (config["name"] in MIXED and "memory" not in config) or config.get("history") == "network"


def linear(config: Any) -> bool:
    """Whether the loss is linear in the target; with a threshold it is not."""
    return mixes(config) and not (config["name"] == "bce" and config.get("threshold", 0.2) is not None)


REASONS = {
    "pskd": "predictions of mixed images are none of whole ones to remember; use history: network",
    "nkd": "its published rule for mixed images is not offered",
    "uskd": "its published rule for mixed images is not offered",
    "ibls": "the teacher's answers to mixed images are none to whole ones to remember; leave out `memory`",
}


@pytest.mark.parametrize("config", [c for c in CONFIGS if linear(c)], ids=named)
def test_the_loss_is_that_of_both_labels(config: Any, folder: Path, tmp_path: Path) -> None:
    """One forward gives what two, with either label, would give together."""
    trainer = trainer_for(with_teacher(config, folder), folder / tmp_path.name, mix=MIX)
    trainer.method.end_epoch(trainer.student, trainer.clock)  # so that there is a past
    trainer.student.eval()
    batch = next(trainer.train.epoch(0))
    assert batch.mixture is not None
    forwards = 0

    def counted(images: torch.Tensor) -> Any:
        nonlocal forwards
        forwards += 1
        return trainer.student(images)

    found = trainer.method.loss(counted, batch, trainer.clock).total
    assert forwards == 1
    own, partner = (
        trainer.method.loss(trainer.student, replace(batch, labels=labels, mixture=None), trainer.clock).total
        for labels in (batch.labels, batch.mixture.labels)
    )
    share = batch.mixture.lam
    torch.testing.assert_close(found, share * own + (1 - share) * partner)


@pytest.mark.parametrize("config", [c for c in CONFIGS if not mixes(c)], ids=named)
def test_other_methods_refuse_by_name(config: Any, folder: Path, tmp_path: Path) -> None:
    reason = REASONS.get(config["name"], "no rule for mixed images is known for it")
    with pytest.raises(UserError) as caught:
        trainer_for(with_teacher(config, folder), folder / tmp_path.name, mix=MIX)
    assert str(caught.value) == f"mix: mixup and the method '{config['name']}' do not go together: {reason}"


@pytest.mark.parametrize("mix", [MIX, {"name": "cutmix", "probability": 0.5}], ids=lambda mix: mix["name"])
def test_a_mixed_run_resumes_exactly(mix: Any, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = trainer_for({"name": "ce"}, folder / f"{tmp_path.name}plain")
    plain.run()
    mixed = trainer_for({"name": "ce"}, folder / f"{tmp_path.name}mixed", mix=mix)
    mixed.run()
    assert not equal(final_state(plain)["student"], final_state(mixed)["student"]), "nothing was mixed"
    monkeypatch.setattr(
        "tests.methods.test_contract.trainer_for", lambda *a, **others: trainer_for(*a, **{**others, "mix": mix})
    )
    check_resume({"name": "ce"}, folder / tmp_path.name)


def test_mixing_needs_even_shares(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        trainer_for({"name": "ce"}, folder / tmp_path.name, mix=MIX, batch=5)
    assert str(caught.value) == (
        "mix: mixup mixes neighbours, so each of 1 processes needs an even share; batch 5 is no multiple of 2"
    )


def test_micro_batches_do_not_change_what_is_mixed(folder: Path, tmp_path: Path) -> None:
    grads = []
    for size in (None, 3):
        trainer = trainer_for({"name": "ce"}, folder / f"{tmp_path.name}{size}", micro_batch=size, mix=MIX)
        trainer.student.eval()
        batch = next(trainer.train.epoch(0))
        parts = trainer.micro_batches(batch)
        assert [p.mixture.lam for p in parts if p.mixture] == [batch.mixture.lam] * len(parts)
        for part in parts:
            trainer.backward(part, len(part) / len(batch), last=part is parts[-1])
        grads.append(torch.cat([p.grad.flatten() for p in trainer.student.parameters() if p.grad is not None]))
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-4, atol=1e-6)


def test_pairs_stay_together_in_micro_batches(folder: Path, tmp_path: Path) -> None:
    trainer = trainer_for({"name": "cskd"}, folder / tmp_path.name, micro_batch=3)
    batch = next(trainer.train.epoch(0))
    parts = trainer.micro_batches(batch)
    assert [len(p) for p in parts] == [2, 2, 2, 2]
    assert all(len(set(p.labels.tolist())) == 1 for p in parts)
    with pytest.raises(UserError) as caught:
        trainer_for({"name": "cskd"}, folder / f"{tmp_path.name}1", micro_batch=1)
    assert str(caught.value) == "micro_batch 1 is too small: the method 'cskd' reads 2 samples together"


def test_an_odd_batch_of_pairs_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        trainer_for({"name": "cskd"}, folder / tmp_path.name, batch=7)
    assert str(caught.value) == "batch 7 cannot be shared in pairs among 1 ranks; use 6 or 8"
