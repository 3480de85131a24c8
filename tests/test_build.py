"""Every recipe of the repository becomes live objects, on a data set cut down to a few files."""

import json
from pathlib import Path

import pytest
import torch
import torch._inductor.config
from torch._dynamo.utils import counters

from lsdali.build import build
from lsdali.errors import UserError
from lsdali.events import Events
from lsdali.faults.pulse import Pulse
from lsdali.models import ModelConfig, build_network
from lsdali.recipe import Recipe, check_recipe, load
from lsdali.state.checkpoint import Checkpoints
from lsdali.train import begun, run
from lsdali.trainer import Trainer
from tests.harness import ROOT, events, make_images, summary, tiny


def live(recipe: Recipe, folder: Path) -> Trainer:
    return build(recipe, folder, torch.device("cpu"), Checkpoints(folder / "checkpoints", 1, print), Events([]))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("build")
    make_images(base / "images", size=32)
    return base


@pytest.fixture(autouse=True)
def cache(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LSDALI_CACHE", str(base / "cache"))


@pytest.fixture(scope="module")
def teacher(base: Path) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LSDALI_CACHE", str(base / "cache"))
        tree = tiny({"name": "ce"}, base / "images", base / "teacher", epochs=1)
        live(Recipe.model_validate(tree), base / "teacher").run()
    return base / "teacher/checkpoints/best.pt"


@pytest.mark.parametrize("path", sorted(ROOT.glob("recipes/**/*.yaml")), ids=lambda p: p.stem)
def test_every_recipe_builds(path: Path, base: Path, teacher: Path, tmp_path: Path) -> None:
    whole = load(path)
    tree = whole.model_dump(mode="json")
    window = {"train": tree["data"]["train"], "eval": tree["data"]["eval"]}
    tree["data"] = {"name": "folder", "root": str(base / "images"), "threads": 1, **window}
    batch = tree["batch"] = 8 if 8 % whole.data.train.repeats == 0 else 6
    tree["model"]["weights"] = None  # those are fetched
    tree["precision"] = "fp32"  # fp16 and tf32 need a GPU
    if tree["method"].get("teacher") is not None:
        tree["method"]["teacher"] = {"source": "checkpoint", "path": str(teacher)}
    trainer = live(Recipe.model_validate(tree), tmp_path)
    assert trainer.classes == 5
    assert trainer.clock.steps == whole.epochs * (40 // batch)
    images = next(trainer.train.epoch(0)).images
    ramp = whole.data.train.ramp
    size = whole.data.train.size if ramp is None else ramp.first
    assert images.shape == (batch, 3, size, size)
    assert images.is_contiguous(memory_format=torch.channels_last)


def test_a_run_tells_what_it_validates_on(base: Path, tmp_path: Path) -> None:
    tree = tiny({"name": "ce"}, base / "images", tmp_path, epochs=1)
    crops = {"train": {"crop": "pad", "size": 32}, "eval": {"resize": 32, "size": 32}}
    more = {"holdout": {"fraction": 0.25, "seed": 3}, "noise": {"name": "symmetric", "rate": 1.0}, "resident": "always"}
    tree["data"] |= {**crops, **more}
    trainer = live(Recipe.model_validate(tree), tmp_path)
    trainer.run()
    told = json.loads((tmp_path / "summary.json").read_text())["data"]
    validation = "25 % of the training files, held out with seed 3"
    assert told == {"train": 30, "val": 10, "validation": validation, "wrong_labels": 30}
    assert begun(trainer).data == told
    assert trainer.record["model"]["last"]["n"] == 10


def test_a_resumed_run_needs_no_pretrained_weights(base: Path, tmp_path: Path) -> None:
    weights, cpu = tmp_path / "pretrained.pt", torch.device("cpu")
    torch.save(build_network(ModelConfig(name="preact_resnet18", width=16), 5).state_dict(), weights)
    model = {"name": "preact_resnet18", "width": 16, "weights": {"source": "file", "path": str(weights)}}
    tree = tiny({"name": "ce"}, base / "images", tmp_path / "run", model=model, epochs=1, save={"every_steps": 3})
    run(Recipe.model_validate(tree), cpu, Pulse())
    whole = summary(tmp_path / "run")["digest"]
    weights.unlink()
    (tmp_path / "run/summary.json").unlink()
    (tmp_path / "run/checkpoints/step-0000000005.pt").unlink()
    run(Recipe.model_validate(tree), cpu, Pulse())
    assert [b["step"] for b in events(tmp_path / "run", "begun")] == [0, 3]
    assert summary(tmp_path / "run")["digest"] == whole
    with pytest.raises(UserError, match=r"model.weights: the file '.*pretrained.pt' does not exist"):
        run(Recipe.model_validate({**tree, "run_dir": str(tmp_path / "fresh")}), cpu, Pulse())


@torch._inductor.config.patch(compile_threads=1)
def test_compiled_training_follows_the_eager_one(base: Path, tmp_path: Path) -> None:
    """A network of few layers, since each kernel is a run of the C++ compiler; not in processes of its own."""
    counters.clear()
    losses = []
    for mode in (None, "default"):
        tree = tiny({"name": "zls"}, base / "images", tmp_path, compile=mode, model="lenet")
        tree["data"]["train"]["size"] = 32
        trainer = live(check_recipe(tree, "test"), tmp_path)
        trainer.student.train()
        losses.append([float(trainer.step(batch)["loss"]) for batch in trainer.train.epoch(0)])
        assert (counters["aot_autograd"]["ok"] > 0) is (mode is not None)
    assert losses[0][0] == pytest.approx(losses[1][0], rel=1e-5)
    assert losses[0] == pytest.approx(losses[1], rel=2e-2)  # rounding grows from step to step
    assert len(set(losses[0])) == 5


def test_bf16_trains_on_the_cpu(base: Path, tmp_path: Path) -> None:
    trainer = live(Recipe.model_validate(tiny({"name": "zls"}, base / "images", tmp_path, precision="bf16")), tmp_path)
    trainer.run()
    assert trainer.record["model"]["last"]["n"] == 25
    assert all(p.dtype == torch.float32 for p in trainer.student.parameters())


def test_repeats_go_with_a_past_that_is_no_memory(base: Path, tmp_path: Path) -> None:
    tree = tiny({"name": "pskd", "history": "network"}, base / "images", tmp_path)
    tree["data"]["train"]["repeats"] = 2
    live(Recipe.model_validate(tree), tmp_path).run()


@pytest.mark.parametrize("method", ["pskd", "cskd"])
def test_repeated_samples_are_refused_where_each_must_come_once(method: str, base: Path, tmp_path: Path) -> None:
    tree = tiny({"name": method}, base / "images", tmp_path)
    tree["data"]["train"]["repeats"] = 2
    with pytest.raises(UserError, match=f"data.train.repeats 2 and the method '{method}' do not go together"):
        live(Recipe.model_validate(tree), tmp_path)
