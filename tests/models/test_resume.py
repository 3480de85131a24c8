"""Networks that draw in their forward pass (stochastic depth, dropout, ShakeDrop) go on exactly after a stop."""

import copy
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml

from lsdali.build import build
from lsdali.events import Events
from lsdali.models import MODELS
from lsdali.models.digest import weights_digest
from lsdali.models.families.pyramid import pyramidnet
from lsdali.recipe import Recipe
from lsdali.state.checkpoint import Checkpoints
from lsdali.testing.contract import Interrupted, stop_after
from tests.harness import equal, events, make_images, summary, tiny, train, train_and_kill

STOCHASTIC = ("shallow_cnn", "resnet110_sd", "pyramidnet200_shakedrop")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    base = tmp_path_factory.mktemp("stochastic")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LSDALI_CACHE", str(base / "cache"))
        # ShakeDrop as it is, in 9 blocks instead of 66: each checkpoint would be 0.2 GB
        patch.setitem(MODELS, "pyramidnet200_shakedrop", partial(pyramidnet, 0.5, 29, 24))
        yield make_images(base / "images", train=5, val=1)


def trainer_for(name, images, folder):
    """Three steps, each of which is saved."""
    recipe = Recipe.model_validate(
        tiny({"name": "ce"}, images, folder, model={"name": name}, epochs=1, save={"every_steps": 1})
    )
    checkpoints = Checkpoints(folder / "checkpoints", 9, print)
    return build(recipe, folder, torch.device("cpu"), checkpoints, Events([]))


@pytest.mark.parametrize("name", STOCHASTIC)
def test_a_stopped_run_draws_on_where_it_was(name, images, tmp_path):
    whole = trainer_for(name, images, tmp_path / "whole")
    whole.run()
    stopped = trainer_for(name, images, tmp_path / "stopped")
    stop_after(stopped, 2)
    with pytest.raises(Interrupted):
        stopped.run()
    ends = []
    for reseed in (False, True):
        resumed = trainer_for(name, images, tmp_path / f"resumed{reseed}")
        resumed.restore(copy.deepcopy(stopped.checkpoints.newest()["parts"]))
        assert resumed.clock.step == 2
        if reseed:
            torch.manual_seed(99)
        resumed.run()
        ends.append(resumed)
    for part in ("student", "optimizer", "buffers", "rng"):
        assert equal(whole.parts[part].state_dict(), ends[0].parts[part].state_dict()), part
    assert weights_digest(whole.student) != weights_digest(ends[1].student), "the draws decide nothing here"


@pytest.mark.ranks
def test_dropout_on_two_killed_ranks(images: Path, tmp_path: Path) -> None:
    """Each rank draws from a generator of its own."""
    tree = tiny({"name": "ce"}, images, tmp_path, model={"name": "shallow_cnn"}, epochs=12)
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(tree))
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    train(2, str(path), f"run_dir={whole}")
    again = (str(path), f"run_dir={broken}", "save.every_steps=2")
    train_and_kill(2, "step-0000000008.pt", *again)
    train(2, *again)
    assert [b["step"] >= 8 for b in events(broken, "begun")] == [False, True]
    assert summary(whole)["digest"] == summary(broken)["digest"]
