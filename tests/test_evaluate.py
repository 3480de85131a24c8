"""Evaluation of trained runs from the command line: the figures of training again, on any number of processes."""

import json
import re
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from sklearn.metrics import log_loss
from torchvision.transforms.functional import five_crop, ten_crop

from lsdali.build import build
from lsdali.data.pipeline.loaders import eval_loader
from lsdali.data.sampling.sampler import stratified
from lsdali.errors import UserError
from lsdali.evaluate.__main__ import VIEW_NAMES, WAYS, parse, start
from lsdali.evaluate.__main__ import main as command
from lsdali.evaluate.figures import CALIBRATE_ON, calibrate, rows
from lsdali.evaluate.runs import Predicted, open_run, open_samples
from lsdali.events import Events
from lsdali.posthoc import fit_temperature
from lsdali.recipe import Recipe
from lsdali.state.checkpoint import Checkpoints
from tests.forks import run_forked
from tests.harness import make_images, summary, tiny


def train(tree: dict, folder: Path) -> None:
    checkpoints = Checkpoints(folder / "checkpoints", 2, print)
    build(Recipe.model_validate(tree), folder, torch.device("cpu"), checkpoints, Events([])).run()


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs on five classes, the first with an average; a third that held out a quarter of its training data."""
    base = tmp_path_factory.mktemp("evaluate")
    make_images(base / "images")
    make_images(base / "three", classes=3, train=1)
    crops = {"train": {"crop": "pad", "size": 16}, "eval": {"resize": 16, "size": 16}}
    changes = [
        ("a", 0, {"ema": {"decay": 0.5}}, {}),
        ("b", 1, {}, {}),
        ("kept", 2, {}, {"holdout": {"fraction": 0.25}}),
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LSDALI_CACHE", str(base / "cache"))
        for name, seed, more, data in changes:
            tree = tiny({"name": "ce"}, base / "images", base / name, seed=seed, **more)
            tree["data"] |= {**crops, **data}
            train(tree, base / name)
    return base


@pytest.fixture(autouse=True)
def cache(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LSDALI_CACHE", str(base / "cache"))


def main(argv: list[str]) -> int:
    """Less torchrun's `record`, which does not go together with pytest's standard error."""
    return start(parse(argv))


def evaluated(folder: Path, *arguments) -> dict:
    assert main([*map(str, arguments), "--json", str(folder / "found.json")]) == 0
    return json.loads((folder / "found.json").read_text())


@pytest.mark.parametrize(("options", "weights"), [([], "model"), (["--weights", "ema"], "ema")])
def test_the_figures_are_those_of_the_run(base, tmp_path, capsys, options, weights):
    expected = summary(base / "a")
    expected = expected["last"] if weights == "model" else expected["ema"]["last"]
    found = evaluated(tmp_path, base / "a", "--checkpoint", "last", *options)
    (row,) = found["rows"]
    expected.pop("epoch")
    assert {key: row["metrics"][key] for key in expected} == expected
    assert row["metrics"]["error1"] == 100 - expected["top1"]
    assert sum(b["count"] for b in row["reliability"]) == 25
    assert found["runs"][0]["weights"] == weights
    assert (found["runs"][0]["epoch"], found["runs"][0]["step"]) == (2, 10)
    assert f"{expected['nll']:.4f}" in capsys.readouterr().out
    if weights == "model":
        assert found["runs"][0]["digest"] == summary(base / "a")["digest"]


def test_which_checkpoint(base, tmp_path):
    best = evaluated(tmp_path, base / "a")["rows"][0]["metrics"]
    assert best["nll"] == summary(base / "a")["best"]["nll"]
    early = evaluated(tmp_path, base / "a", "--checkpoint", "step-0000000005.pt")
    assert early["runs"][0]["step"] == 5
    path = base / "a/checkpoints/step-0000000005.pt"
    assert evaluated(tmp_path, path)["rows"][0]["metrics"] == early["rows"][0]["metrics"]
    assert evaluated(tmp_path, base / "b", "--checkpoint", path)["rows"][0]["metrics"] == early["rows"][0]["metrics"]


def test_predictions_and_a_temperature_of_one_half(base, tmp_path):
    arguments = (base / "a", "--temperature", "--predictions", tmp_path / "p.npz", "evaluate.batch=7")
    found = evaluated(tmp_path, *arguments)
    whole, before, after = found["rows"]
    p = np.load(tmp_path / "p.npz")
    assert p["labels"].tolist() == [label for label in range(5) for _ in range(5)]
    assert p["index"].tolist() == list(range(25))
    logits = torch.from_numpy(p["logits"]).double()
    assert log_loss(p["labels"], logits.softmax(1).numpy()) == pytest.approx(whole["metrics"]["nll"], rel=1e-9)
    chosen = stratified(p["labels"], 12)
    rest = np.setdiff1d(np.arange(25), chosen)
    t = fit_temperature(logits[chosen], torch.from_numpy(p["labels"][chosen]))
    assert after["temperature"] == t
    for row, scale in ((before, 1), (after, t)):
        loss = log_loss(p["labels"][rest], (logits[rest] / scale).softmax(1).numpy(), labels=np.arange(5))
        assert row["metrics"]["nll"] == pytest.approx(loss, rel=1e-9)
        assert row["metrics"]["n"] == 13
    assert before["metrics"]["top1"] == after["metrics"]["top1"]
    assert found["temperature"].startswith("half of the samples evaluated, drawn with seed 0")


@pytest.mark.ranks
def test_no_number_of_processes_changes_a_digit(base, tmp_path):
    arguments = [str(base / name) for name in "ab"] + ["--ensemble", "--temperature", "half"]
    alone = evaluated(tmp_path, *arguments)
    assert [row["name"] for row in alone["rows"]] == [str(base / "a"), str(base / "b"), "ensemble of 2"] * 3
    file = tmp_path / "two.json"
    done = run_forked(2, command, [*arguments, "--json", str(file)])
    assert done.returncode == 0, done.stderr
    assert json.loads(file.read_text()) == alone
    assert done.stdout.count("ensemble of 2") == 3


def test_the_page_has_a_diagram_a_row(base, tmp_path):
    page = tmp_path / "page.html"
    found = evaluated(tmp_path, base / "a", base / "b", "--ensemble", "--temperature", "same", "--html", page)
    text = page.read_text()
    assert len(found["rows"]) == 6
    assert text.count('aria-label="reliability diagram"') == 6
    assert text.count('aria-label="Gains of the classes"') == 2
    assert text.count('aria-label="Risk and coverage') == 1
    assert not re.search("https?:|src=", text)
    assert "the figures flatter" in text
    assert f"model weights of {base}/a/checkpoints/best.pt" in text


def test_classes_risk_and_other_bins(base, tmp_path):
    arguments = ("--predictions", tmp_path / "p.npz", "--bins", "width:4", "--bins", "mass:3")
    (row,) = evaluated(tmp_path, base / "a", *arguments)["rows"]
    p = np.load(tmp_path / "p.npz")
    probabilities = torch.from_numpy(p["logits"]).double().softmax(1).numpy()
    confidence, right = probabilities.max(1), probabilities.argmax(1) == p["labels"]
    assert row["per_class"] == [100 * right[p["labels"] == k].mean() for k in range(5)]
    assert row["risk"][-1] == [100.0, pytest.approx(row["metrics"]["error1"])]
    assert 10 * sum(risk for _, risk in row["risk"]) / 25 == pytest.approx(row["metrics"]["aurc"])
    place = np.minimum((confidence * 4).astype(int), 3)
    gaps = [abs(right[place == k].sum() - confidence[place == k].sum()) for k in range(4)]
    assert row["metrics"]["ece width:4"] == pytest.approx(100 * sum(gaps) / 25)
    assert 0 <= row["metrics"]["ace mass:3"] <= row["metrics"]["mce mass:3"] <= 100


def test_the_ensemble_of_the_newest_checkpoints(base, tmp_path, capsys):
    found = evaluated(tmp_path, base / "a", "--ensemble", "last:2")
    (one,) = found["ensembles"]
    assert [m["members"] for m in one["curve"]] == [1, 2]
    parts = []
    for name in ("step-0000000010.pt", "step-0000000005.pt"):
        evaluated(tmp_path, base / "a", "--checkpoint", name, "--predictions", tmp_path / "p.npz")
        p = np.load(tmp_path / "p.npz")
        parts.append(torch.from_numpy(p["logits"]).double().softmax(1).numpy())
        nll = one["curve"][len(parts) - 1]["metrics"]["nll"]
        assert nll == pytest.approx(log_loss(p["labels"], sum(parts) / len(parts)), rel=1e-9)
    assert found["rows"][-1]["metrics"] == one["curve"][-1]["metrics"]
    assert "needs 3 checkpoints, and" in said(capsys, base / "a", "--ensemble", "last:3")


def test_the_ensemble_of_the_newest_checkpoints_with_temperatures(base, tmp_path):
    found = evaluated(tmp_path, base / "a", "--ensemble", "last:2", "--temperature", "half")
    a = str(base / "a")
    ways = ["", ", other half", ", other half, with temperatures"]
    assert [one["run"] for one in found["ensembles"]] == [a + way for way in ways]
    mean = 0
    for name in ("step-0000000010.pt", "step-0000000005.pt"):
        options = ("--temperature", "--predictions", tmp_path / "p.npz")
        one = evaluated(tmp_path, base / "a", "--checkpoint", name, *options)
        p = np.load(tmp_path / "p.npz")
        rest = np.setdiff1d(np.arange(25), stratified(p["labels"], 12))
        logits = torch.from_numpy(p["logits"][rest]).double() / one["rows"][-1]["temperature"]
        mean = mean + logits.softmax(1).numpy() / 2
    last = found["rows"][-1]
    assert last["scaled"]
    assert last["metrics"]["n"] == 13
    assert last["metrics"]["nll"] == pytest.approx(log_loss(p["labels"][rest], mean, labels=np.arange(5)), rel=1e-9)


@pytest.mark.parametrize("views", VIEW_NAMES)
def test_views_are_averaged(base, tmp_path, views):
    """Torchvision's FlipCrop and TenCrop of the same images, through the network by hand."""
    size = [] if views == "flip" else ["data.eval.resize=20"]
    evaluated(tmp_path, base / "a", "--views", views, "--predictions", tmp_path / "p.npz", *size)
    run = open_run(base / "a", "best", "model")
    samples = open_samples(run, [*size, *(["data.eval.size=20"] if size else [])])
    cut = {"flip": lambda x: (x, x.flip(3)), "five": partial(five_crop, size=16), "ten": partial(ten_crop, size=16)}
    with torch.no_grad():
        mean = torch.cat([sum(run.network(x).softmax(1) for x in cut[views](images)) for images in pictures(samples)])
    found = torch.from_numpy(np.load(tmp_path / "p.npz")["logits"]).exp()
    assert torch.allclose(found, mean / {"flip": 2, "five": 5, "ten": 10}[views], atol=1e-5)


def pictures(samples):
    loader = eval_loader(samples.index, samples.recipe.data, batch=25, device=torch.device("cpu"), half=False)
    out = [batch.images[batch.valid] for batch in loader]
    loader.close()
    return out


# ---- temperatures of samples kept from training


def test_a_temperature_of_held_out_samples(base, tmp_path):
    arguments = (base / "kept", "--temperature", "held_out", "data.holdout=null")
    before, after = evaluated(tmp_path, *arguments)["rows"]
    assert (before["metrics"]["n"], after["metrics"]["n"]) == (25, 25)
    evaluated(tmp_path, base / "kept", "--predictions", tmp_path / "p.npz")
    p = np.load(tmp_path / "p.npz")
    assert len(p["labels"]) == 10
    assert after["temperature"] == fit_temperature(torch.from_numpy(p["logits"]), torch.from_numpy(p["labels"]))
    evaluated(tmp_path, base / "kept", "data.holdout=null", "--predictions", tmp_path / "p.npz")
    p = np.load(tmp_path / "p.npz")
    loss = log_loss(p["labels"], (torch.from_numpy(p["logits"]).double() / after["temperature"]).softmax(1).numpy())
    assert after["metrics"]["nll"] == pytest.approx(loss, rel=1e-9)


def predicted(name="x"):
    g = torch.Generator().manual_seed(len(name))
    labels = torch.arange(30) % 3
    logits = torch.randn(30, 3, generator=g) + 3 * torch.eye(3)[labels]
    return Predicted(name, logits, labels, torch.arange(30))


def test_the_samples_evaluated_on_change_no_temperature():
    assert tuple(CALIBRATE_ON) == WAYS
    part = predicted()
    found = calibrate("half", part, None)
    assert found.samples == len(found.rest) == 15
    assert torch.equal(part.labels[found.rest].bincount(), torch.tensor([5, 5, 5]))
    logits = part.logits.clone()
    logits[found.rest] *= 7
    assert calibrate("half", replace(part, logits=logits), None).temperature == found.temperature
    assert (
        calibrate("same", replace(part, logits=logits), None).temperature != calibrate("same", part, None).temperature
    )
    assert calibrate("ibls", replace(part, logits=part.logits / 99), None).temperature == 0.8


def test_the_ensemble_of_scaled_networks():
    parts = [predicted("x"), predicted("xx")]
    calibrations = [calibrate("same", part, None) for part in parts]
    last = rows(parts, calibrations, (), together=True)[-1]
    p = sum((part.logits.double() / f.temperature).softmax(1) for part, f in zip(parts, calibrations)) / 2
    assert last.metrics["nll"] == pytest.approx(log_loss(parts[0].labels, p.numpy()), rel=1e-9)
    assert last.temperature is None
    assert last.scaled


# ---- sentences


def said(capsys, *arguments) -> str:
    capsys.readouterr()
    assert main([*map(str, arguments)]) == 2
    return capsys.readouterr().err


def test_what_cannot_be_opened_is_said(base, tmp_path, capsys):
    nothing = f"error: there is no checkpoint {tmp_path}/checkpoints"
    more = ": name a run folder or a checkpoint file\n"
    assert said(capsys, tmp_path) == f"{nothing}/best.pt{more}"
    assert said(capsys, tmp_path, "--checkpoint", "last") == f"{nothing}/step-*.pt{more}"
    assert said(capsys, base / "b", "--weights", "ema") == (
        f"error: the checkpoint {base}/b/checkpoints/best.pt keeps no moving average of its weights (ema): "
        "evaluate those of the model\n"
    )
    other = f"the checkpoint {base}/a/checkpoints/best.pt knows 5 classes, but the data in {base}/three has 3"
    assert said(capsys, base / "a", f"data.root={base}/three") == f"error: {other}\n"
    assert "as class 0, which is 'class4' in the data" in said(
        capsys, base / "a", "data.classes=[class4,class3,class2,class1,class0]"
    )
    torch.save({"weight": torch.zeros(1)}, tmp_path / "theirs.pth")
    assert said(capsys, tmp_path / "theirs.pth") == (
        f"error: the checkpoint {tmp_path}/theirs.pth is not a checkpoint of lsdali; a recipe reads others' weights: "
        f"model.weights={{source: file, path: {tmp_path}/theirs.pth}}\n"
    )
    assert "data.rot: unknown key; did you mean 'root'?" in said(capsys, base / "a", "data.rot=x")
    assert "only data.*, evaluate.batch and precision can be changed" in said(capsys, base / "a", "model.name=lenet")


def test_a_run_is_evaluated_on_images_without_a_split_or_in_lists(base, tmp_path):
    """All classes in a folder of their own; some of them under the network's numbers; lists with names or numbers."""
    expected = evaluated(tmp_path, base / "a")["rows"][0]["metrics"]
    alone = tmp_path / "alone"
    shutil.copytree(base / "images/val", alone / "test")
    kind = ["data.train_dir=null", "data.val_dir=test"]
    assert evaluated(tmp_path, base / "a", f"data.root={alone}", *kind)["rows"][0]["metrics"] == expected
    rows = [(f"class{k}", n) for k in range(5) for n in range(5)]
    for label in (str, lambda k: f"class{k}"):
        (alone / "all.txt").write_text("".join(f"test/{c}/{n}.png;{label(int(c[-1]))}\n" for c, n in rows))
        lists = ["data.name=list", f"data.root={alone}", "data.val_list=all.txt", "data.train_list=null"]
        assert evaluated(tmp_path, base / "a", *lists)["rows"][0]["metrics"] == expected
    for gone in ("class0", "class2"):
        shutil.rmtree(alone / "test" / gone)
    some = evaluated(tmp_path, base / "a", f"data.root={alone}", *kind, "--predictions", tmp_path / "some.npz")
    assert some["classes"] == [f"class{k}" for k in range(5)]
    whole = evaluated(tmp_path, base / "a", "--predictions", tmp_path / "whole.npz")
    assert whole["rows"][0]["metrics"] == expected
    found, all_ = np.load(tmp_path / "some.npz"), np.load(tmp_path / "whole.npz")
    kept = np.isin(all_["labels"], [1, 3, 4])
    assert found["labels"].tolist() == all_["labels"][kept].tolist()
    np.testing.assert_allclose(found["logits"], all_["logits"][kept], rtol=1e-4, atol=1e-5)
    tree = tiny({"name": "ce"}, alone, base / "none")
    tree["data"]["train_dir"] = None
    with pytest.raises(UserError, match=r"data.train_dir is null, so there is nothing to train on"):
        train(tree, base / "none")


def test_what_does_not_go_together_is_said(base, tmp_path, capsys):
    a, kept = base / "a", base / "kept"
    assert (
        said(capsys, a, "--ensemble")
        == f"error: --ensemble needs two runs or more, and {a} is one; last:20 takes its checkpoints\n"
    )
    assert said(capsys, "data.max_samples=3").startswith("error: which run?")
    assert "writes those of one run, and these are 2" in said(capsys, a, a, "--predictions", tmp_path / "p.npz")
    assert "there is no folder" in said(capsys, a, "--json", tmp_path / "none/x.json")
    assert "which are other samples" in said(capsys, a, kept, "--ensemble")
    assert f"{a} held out no part of its training data" in said(capsys, a, "--temperature", "held_out")
    again = (kept, "--temperature", "held_out")
    for change in ([], ["data.holdout.seed=9"]):
        assert "on training data, as it is fitted on: add data.holdout=null" in said(capsys, *again, *change)
    shutil.copytree(base / "images", tmp_path / "images")
    (tmp_path / "images/train/class0/0.png").rename(tmp_path / "images/train/class0/new.png")
    arguments = (kept, "--temperature", "held_out", "data.holdout=null", f"data.root={tmp_path}/images")
    assert "was trained on other data" in said(capsys, *arguments)
    three = tiny({"name": "ce"}, base / "images", base / "three", epochs=1)
    three["data"]["classes"] = ["class0", "class1", "class2"]
    train(three, base / "of_three")
    sentence = f"an ensemble needs runs of the same classes: {a} and {base}/of_three differ"
    assert sentence in said(capsys, a, base / "of_three", "--ensemble")


def test_features_of_three_classes_in_a_plane(base, tmp_path, capsys):
    """Eight training and five validation images a class, in the order of the names that are asked for."""
    names = ["class4", "class0", "class2"]
    files = ["--html", str(tmp_path / "page.html"), "--json", str(tmp_path / "found.json")]
    runs = [str(base / "a"), str(base / "b")]
    assert main([*runs, "--plane", *names, *files]) == 0
    found = json.loads((tmp_path / "found.json").read_text())
    assert list(found) == [str(base / "a"), str(base / "b")]
    for part, images in (("train", 8), ("val", 5)):
        drawn = found[str(base / "a")][part]
        assert sorted(drawn["labels"]) == [k for k in range(3) for _ in range(images)]
        for k in range(3):
            own = [p for p, label in zip(drawn["points"], drawn["labels"], strict=True) if label == k]
            assert np.mean(own, 0) == pytest.approx(drawn["centroids"][k])
    page = (tmp_path / "page.html").read_text()
    assert page.count('aria-label="features in a plane"') == 2 * 2
    assert not re.search("https?:|src=", page)
    assert [page.index(name) for name in names] == sorted(page.index(name) for name in names)
    for wrong, why in (
        (["--plane", "class0", "class1", "x", *files], "no class x"),
        (["--plane", *names], "--html"),
        (["--plane", *names, *files, "--ensemble"], "leave out --ensemble"),
    ):
        assert main([*runs, *wrong]) == 2
        assert why in capsys.readouterr().err


def test_a_recipe_with_weights_is_evaluated(base, tmp_path, capsys):
    """The figures are those of the run whose weights they are; without weights, or with a part of them, none."""
    run = base / "a"
    recipe = tmp_path / "recipe.yaml"
    content = torch.load(run / "checkpoints/best.pt", weights_only=True)
    recipe.write_text(yaml.safe_dump(content["recipe"]))
    expected = evaluated(tmp_path, run)["rows"][0]["metrics"]
    assert main([str(recipe)]) == 2
    assert capsys.readouterr().err == (
        f"error: {recipe} has no model.weights, so that its network is untrained: name them, or a run\n"
    )
    weights = f"{{source: run, path: {run}}}"
    found = evaluated(tmp_path, recipe, f"model.weights={weights}")
    assert found["rows"][0]["metrics"] == expected
    assert found["runs"][0]["digest"] == evaluated(tmp_path, run)["runs"][0]["digest"]
    new = f"{{source: run, path: {run}, classifier: new}}"
    assert main([str(recipe), f"model.weights={new}"]) == 2
    assert "the classifier for 5 begins untrained" in capsys.readouterr().err
