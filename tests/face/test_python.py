"""What `import lsdali` offers: names, laziness, the page that shows it, training with objects, data for any loop."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import nn

import lsdali
from lsdali import parts
from lsdali.cli import main
from lsdali.errors import UserError
from lsdali.functional import cross_entropy
from lsdali.methods.base import Loss, Method
from lsdali.models import MODELS
from lsdali.models.digest import weights_digest
from lsdali.testing.small import equal, make_images, tiny
from tests.harness import ROOT
from tests.ranks import OnRanks


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("LSDALI_CACHE", str(tmp_path / "cache"))
    before = {name: dict(registry.entries) for name, registry in parts.OPEN_REGISTRIES.items()}
    yield
    for name, entries in before.items():
        parts.OPEN_REGISTRIES[name].entries.clear()
        parts.OPEN_REGISTRIES[name].entries.update(entries)
    parts.USED.clear()
    parts._grown()


@pytest.fixture
def recipe(tmp_path: Path) -> dict[str, Any]:
    return tiny({"name": "ce"}, make_images(tmp_path / "images"), tmp_path / "run")


def test_import_is_light_and_complete() -> None:
    code = "import sys, lsdali; print({'torch', 'numpy', 'pydantic'} & {*sys.modules}, *dir(lsdali))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["set()", *sorted([*lsdali.__all__, "__version__"])]
    assert [name for name in lsdali.__all__ if getattr(lsdali, name) is None] == []
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        lsdali.nothing  # noqa: B018


def test_train_is_a_function_and_a_module() -> None:
    from lsdali.train import main

    assert callable(lsdali.train)
    assert callable(main)
    assert "from a recipe" in str(lsdali.train.__doc__)


def test_every_name_is_on_the_page() -> None:
    page = (ROOT / "docs/python.md").read_text()
    types = {"Batches", "Prediction", "Result", "TrainedNetwork"}
    assert [name for name in lsdali.__all__ if name not in types and f"lsdali.{name}" not in page] == []


def test_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "page"}
    monkeypatch.setitem(sys.modules, "page", type(sys)("page"))
    for code in re.findall(r"```python\n(.*?)```", (ROOT / "docs/python.md").read_text(), re.DOTALL):
        exec(code, names)
    assert names["result"].recipe.method.model_dump()["weight"] == 0.1
    assert names["result"].summary["data"]["train"] == 300
    assert names["prediction"].classes[0] in names["trained"].names
    assert names["logits"].shape == (1, 10)
    found = lsdali.load("runs/mine", model=names["small"])
    assert weights_digest(found.network) == weights_digest(names["mine"].network)
    assert lsdali.load("runs/own_data").names == ("dark", "light")
    Path("photos").mkdir()
    for photo in ("photo.jpg", "photos/photo.jpg"):
        names["image"].save(photo)
    for command in re.findall(r"^lsdali (.+)$", (ROOT / "docs/python.md").read_text(), re.MULTILINE):
        assert main(command.split()) == 0, command


def test_train_is_lsdali_train(recipe: dict[str, Any], tmp_path: Path) -> None:
    from lsdali.recipe import check_recipe
    from lsdali.train import run

    result = lsdali.train(recipe, epochs=1, **{"optimizer.lr": 0.02})
    assert result.folder == tmp_path / "run"
    other = tmp_path / "other"
    tree = {**recipe, "epochs": 1, "run_dir": str(other), "optimizer": {**recipe["optimizer"], "lr": 0.02}}
    run(check_recipe(tree, "test"), torch.device("cpu"))
    assert result.summary["digest"] == weights_digest(lsdali.load(other, checkpoint="last").network)
    assert result.trained.names == tuple(f"class{k}" for k in range(5))
    again = lsdali.train(recipe, epochs=1, **{"optimizer.lr": 0.02})  # it is finished, and says the same
    assert again.summary == result.summary


def test_bad_input_is_one_sentence(recipe: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"the recipe: method\.name: 'zl' is not allowed; did you mean 'zls'"):
        lsdali.train(recipe, method="zl")
    with pytest.raises(UserError, match=r"model: expected a name, a mapping of keys, a module .* got int"):
        lsdali.train(recipe, model=3)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="the recipe: batch_size: unknown key"):
        lsdali.train(recipe, batch_size=3)


class Halved(Method):
    """Half of cross-entropy."""

    class Config(Method.Config):
        """Half of cross-entropy."""

        name: Literal["halved"] = "halved"
        factor: float = 0.5
        """Factor on the loss."""

    def loss(self, student: Any, batch: Any, clock: Any) -> Loss:
        logits = student(batch.images).logits
        return Loss(self.config.factor * cross_entropy(logits, batch.labels), logits.detach())


def test_a_method_and_a_network_of_ones_own(recipe: dict[str, Any], tmp_path: Path) -> None:
    """The same numbers as by name, and the module that was given stays as it was."""
    torch.manual_seed(0)
    net = MODELS["preact_resnet10"](5, width=16)
    before = weights_digest(net)
    options = {"epochs": 1, "run_dir": str(tmp_path / "mine"), "optimizer": {"name": "sgd", "lr": 0.1}}
    mine = lsdali.train(recipe, model=net, method=Halved, **options, **{"method.factor": 0.25})
    assert weights_digest(net) == before != mine.summary["digest"]
    torch.manual_seed(0)
    options = {**options, "run_dir": str(tmp_path / "theirs"), "optimizer": {"name": "sgd", "lr": 0.025}}
    theirs = lsdali.train(recipe, method="ce", **options)
    first, second = (dict(result.trained.network.state_dict()) for result in (mine, theirs))
    for name, tensor in first.items():  # a quarter of the loss at four times the rate
        torch.testing.assert_close(tensor, second[name], rtol=1e-3, atol=1e-5)


def test_a_network_that_is_not_given_again_is_named(recipe: dict[str, Any], tmp_path: Path) -> None:
    def mine(classes: int) -> nn.Module:
        return MODELS["preact_resnet10"](classes, width=16)

    lsdali.train(recipe, model=mine, epochs=1)
    del parts.OPEN_REGISTRIES["MODELS"].entries["mine"]
    parts.USED.clear()
    with pytest.raises(UserError, match="there is no model 'mine'"):
        lsdali.load(tmp_path / "run")
    assert lsdali.load(tmp_path / "run", model=mine).network.classes == 5


def data_of(recipe: dict[str, Any]) -> dict[str, Any]:
    return dict(recipe["data"])


def test_the_loader_goes_on_at_any_step(recipe: dict[str, Any]) -> None:
    """The batches are the trainer's, and those from step 7 on the same whether or not those before were read."""
    from lsdali.testing.small import trainer_for

    images = lsdali.loader(data_of(recipe), 8, seed=3)
    assert images.classes == tuple(f"class{k}" for k in range(5))
    assert images.steps_per_epoch == 5
    whole = list(images.train(epochs=2))
    assert [step for step, _ in whole] == list(range(10))
    late = list(lsdali.loader(data_of(recipe), 8, seed=3).train(step=7, epochs=2))
    assert [step for step, _ in late] == [7, 8, 9]
    for (_, a), (_, b) in zip(whole[7:], late, strict=True):
        assert torch.equal(a.images, b.images)
        assert torch.equal(a.index, b.index)
    trainer = trainer_for({"name": "ce"}, Path(recipe["run_dir"]), seed=3)
    first = next(trainer.train.epoch(0))
    assert torch.equal(first.images, whole[0][1].images)
    seen = np.concatenate([batch.index[batch.valid].numpy() for batch in images.val()])
    assert sorted(seen) == list(range(25))
    images.close()


def test_a_batch_that_does_not_divide_is_refused(recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lsdali.dist.world", lambda: 3)
    with pytest.raises(UserError, match="batch 8 does not divide among 3 processes"):
        lsdali.loader(data_of(recipe), 8)


def shares(data: dict[str, Any], expected: list[list[int]]) -> None:
    from lsdali import dist

    images = lsdali.loader(data, 8, seed=3)
    found = [batch.index.tolist() for _, batch in images.train(epochs=1)]
    assert [row[4 * dist.rank() : 4 * dist.rank() + 4] for row in expected] == found


@pytest.mark.ranks
def test_ranks_share_the_batches(recipe: dict[str, Any], on_ranks: OnRanks) -> None:
    whole = [batch.index.tolist() for _, batch in lsdali.loader(data_of(recipe), 8, seed=3).train(epochs=1)]
    on_ranks(2, shares, data_of(recipe), whole)


SCRIPT = """
import sys, lsdali
for name in ("first", "second"):
    result = lsdali.train(sys.argv[1], run_dir=f"{sys.argv[2]}/{name}")
    print(name, result.summary["digest"], result.summary["world"])
"""


@pytest.mark.ranks
def test_a_script_under_torchrun_trains_twice(recipe: dict[str, Any], tmp_path: Path) -> None:
    from lsdali.recipe import check_recipe, to_yaml
    from tests.harness import TORCHRUN, environment

    (tmp_path / "script.py").write_text(SCRIPT)
    (tmp_path / "recipe.yaml").write_text(to_yaml(check_recipe({**recipe, "epochs": 1}, "test")))
    files = [str(tmp_path / "script.py"), str(tmp_path / "recipe.yaml"), str(tmp_path)]
    words = [*TORCHRUN, "--nproc_per_node", "2", *files]
    done = subprocess.run(words, capture_output=True, text=True, env=environment(2), timeout=240, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    said = sorted(set(re.findall(r"^(first|second) (\w+) 2$", done.stdout, re.MULTILINE)))
    assert [name for name, _ in said] == ["first", "second"]
    assert len({digest for _, digest in said}) == 1
    states = [lsdali.load(tmp_path / name).network.state_dict() for name in ("first", "second")]
    assert equal(dict(states[0]), dict(states[1]))
