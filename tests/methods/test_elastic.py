"""Runs that go on with another number of ranks, and what is told of another number of threads."""

from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from lsdali.testing.contract import Interrupted, stop_after
from lsdali.train import main
from tests.harness import events, make_images, tiny
from tests.methods.trainers import STATEFUL, named, trainer_for, trainer_in_float64, with_teacher
from tests.ranks import OnRanks

EACH_STATE = list({config["name"]: config for config in STATEFUL}.values())
SHARED = {"name": "preact_resnet10", "width": 16, "sync_batchnorm": True}
CHANGES: dict[str, Any] = {
    **{"model": SHARED, "batch": 24, "epochs": 4, "evaluate": {"every_epochs": 4}},
    **{"save": {"every_steps": 1}, "ema": {"decay": 0.5}},
}
"""24 are 6, 24 and 8 images for each of 4, 1 and 3 ranks; 48 images make 2 steps an epoch."""


def advance(configs: list[Any], base: Path, until: int) -> None:
    """Train each method from its newest checkpoint to a step, with BatchNorm over all ranks."""
    for number, config in enumerate(configs):
        trainer = trainer_in_float64(config, base / str(number), **CHANGES)
        content = trainer.checkpoints.newest()
        if content is not None:
            trainer.restore(content["parts"])
        stop_after(trainer, until - trainer.clock.step)
        with suppress(Interrupted):
            trainer.run()
        assert trainer.clock.step == until, named(config)


def weights(folder: Path) -> torch.Tensor:
    """Weights, statistics and moving average in the checkpoint of the last step."""
    parts = torch.load(folder / "checkpoints/step-0000000008.pt", weights_only=True)["parts"]
    tensors = [*parts["student"].values(), *parts["ema"]["weights"].values()]
    return torch.cat([x.double().flatten() for x in tensors])


@pytest.mark.ranks
@pytest.mark.timeout(900)
def test_four_ranks_then_one_then_three_train_as_one(
    tmp_path: Path, on_ranks: OnRanks, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every method that remembers something, stopped in mid-epoch twice."""
    base = tmp_path / "runs"
    make_images(base / "images", classes=4, train=12)
    trainer_for({"name": "ce"}, base / "teacher", epochs=1).run()
    configs = [with_teacher(config, base) for config in EACH_STATE]
    assert len({config["name"] for config in configs}) >= 5
    for ranks, until in ((4, 3), (1, 5), (3, 8)):
        if ranks == 1:
            advance(configs, base / "elastic", until)
        else:
            on_ranks(ranks, advance, configs, base / "elastic", until)
    advance(configs, base / "whole", 8)
    for number, config in enumerate(configs):
        one, other = weights(base / f"whole/{number}"), weights(base / f"elastic/{number}")
        away = torch.dist(one, other) / one.norm()
        assert away < 1e-6, f"{named(config)}: {away:.1e} away"


def test_another_number_of_threads_is_told_and_can_be_pinned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LSDALI_CACHE", str(tmp_path / "cache"))
    tree = tiny({"name": "ce"}, make_images(tmp_path / "images"), tmp_path / "run", save={"keep": 9})
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(tree))
    before = torch.get_num_threads()

    def again(*changes: str) -> list[str]:
        """Begin the second epoch anew; what the run says of threads."""
        (tmp_path / "run/checkpoints/step-0000000010.pt").unlink(missing_ok=True)
        assert main([str(tmp_path / "recipe.yaml"), *changes]) == 0
        told = [line["text"] for line in events(tmp_path / "run", "message")]
        return [text for text in told if "threads" in text]

    try:
        torch.set_num_threads(1)
        assert again() == []
        assert again() == []
        torch.set_num_threads(2)
        told = again()
        assert len(told) == 1
        assert told[0] == (
            "torch computes with 2 threads here and did with 1 before, so the last bits of the weights may differ from "
            "those of an uninterrupted run; threads: 1 keeps them"
        )
        assert again("threads=1") == told, "nothing more is said"
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
