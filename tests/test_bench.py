"""The benchmarks measure what they say they measure; how fast it is, no test says."""

import json
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from benchmarks.__main__ import main as record
from benchmarks.models import image_size
from lsdali.bench import stream
from lsdali.bench.__main__ import main
from lsdali.bench.loader import LOADERS, LoaderRun, link_images
from lsdali.bench.peers import PEERS, torch_loader
from lsdali.bench.training import MADE_UP, REAL
from lsdali.bench.turns import Findings, take_turns
from lsdali.recipe import load
from tests.harness import ROOT, make_images, tiny


@pytest.mark.parametrize("name", LOADERS)
def test_each_loader_delivers_whole_batches_without_end(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LSDALI_CACHE", str(tmp_path / "cache"))
    images = make_images(tmp_path / "images", size=40)
    assert link_images(images, tmp_path / "linked", 100) == 65
    workers = 1 if "lsdali" in name else 0  # no fork in a process that has threads of DALI
    sizes = LOADERS[name](LoaderRun(name, str(tmp_path / "linked"), size=32, batch=30, workers=workers))
    assert [next(sizes) for _ in range(5)] == [30] * 5


def test_small_images_are_measured_against_torchvision(capsys: pytest.CaptureFixture[str]) -> None:
    assert record(["resident", "--reps", "1", "--seconds", "0.05"]) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith(("lsdali,", "PIL,"))]
    assert len(rows) == 3
    assert rows[2].split()[-1] == "1.0"


@pytest.mark.ranks
def test_streams_of_several_ranks_are_compared(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tmp_path / "tiny.yaml"
    images = make_images(tmp_path / "images")
    recipe.write_text(yaml.safe_dump(tiny({"name": "ce"}, images, tmp_path / "run")))
    options = Namespace(recipe=str(recipe), overrides=["batch=6"], folder=str(tmp_path), start=0, stop=8)
    stream.stream_part(options)  # 6 steps an epoch
    alone = json.loads((tmp_path / "0.json").read_text())
    assert [len(step) for step in alone] == [6] * 8
    assert len({digest for step in alone for digest in step}) == 48
    assert stream.read_streams(options, 2, 0, 8) == alone
    for digest, code in ((lambda world: "same", 0), (str, 2)):  # streams that agree, and such that do not
        monkeypatch.setattr(
            stream, "read_streams", lambda o, world, start, stop, d=digest: [[d(world)] * 6] * (stop - start)
        )
        assert main(["stream", str(recipe), "--steps", "8", "--worlds", "1", "2"]) == code
        rows = [line.split() for line in capsys.readouterr().out.splitlines() if "rank" in line][-3:]
        assert [row[-2] for row in rows] == ["48"] * 3
        assert len({row[-1] for row in rows}) == (3 if code else 1)


def test_methods_are_measured_against_cross_entropy(capsys: pytest.CaptureFixture[str]) -> None:
    names = ("zls", "kd", "pskd", "cskd")
    recipes = [str(ROOT / f"recipes/digits/{name}.yaml") for name in names]
    assert main(["methods", *recipes, "--shape", "cifar", "--batch", "4", "--reps", "1", "--warmup", "0"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    relative = {row[0]: float(row[-1]) for row in rows if row and row[0] in ("ce", *names)}
    assert relative["ce"] == 1.0
    assert [row[-5:-3] for row in rows if row and row[0] == "kd"][1] == ["a", "cache"]
    assert relative.keys() == {"ce", *names}
    kept = {row[0]: row[-2] for row in rows if row and row[0] in ("ce", *names)}
    assert kept == {"ce": "0.0", "zls": "0.0", "kd": "0.0", "cskd": "0.0", "pskd": "513.7"}  # 1,281,167 (100 * 4 + 1)


def test_the_target_of_zipf_is_measured_against_the_published_way(capsys: pytest.CaptureFixture[str]) -> None:
    """Which compares the targets, too."""
    assert record(["zls", "--batch", "8", "--classes", "10", "300", "--reps", "1", "--calls", "1"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[-6:]]
    assert [row[0] for row in rows] == ["10"] * 3 + ["300"] * 3
    assert rows[0][-1] == rows[3][-1] == "1.0"


def test_the_memory_of_the_past_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    small = ["--samples", "5000", "--classes", "20", "--keep", "4", "20", "--spread", "2"]
    assert record(["pskd", *small, "--share", "0.5"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith(("dense", "topk", "made up"))]
    sizes, errors = lines[:4], [line.split() for line in lines[4:]]
    for line in sizes:
        assert float(line.split()[-1]) == pytest.approx(float(line.split()[-2]), abs=2e-4)
    by_form = {" ".join(row[4:-3]): (float(row[-2]), float(row[-1])) for row in errors}
    assert by_form["dense32"] == (0.0, 0.0)
    assert by_form["topk, 4"][1] > 10 * by_form["topk, 20"][1], "all 20 of 20 kept is dense16"


def test_what_is_missing_is_one_sentence(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["methods", "recipes/none.yaml"]) == 2
    assert capsys.readouterr().err.startswith("error: no recipe recipes/none.yaml: name YAML files")
    assert main(["loader", str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"error: {tmp_path} holds no image; name a folder of images\n"


def test_networks_are_measured_each_way(capsys: pytest.CaptureFixture[str]) -> None:
    ways = ["eager, channels_last", "eager, contiguous", "torchvision, channels_last"]
    assert record(["models", "lenet", "squeezenet1_1", "--reps", "2", "--batch", "2", "--ways", *ways]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith(("lenet ", "squeezenet1_1 "))]
    assert len(lines) == 5, "torchvision has no LeNet"
    assert [line.count("(") for line in lines] == [2] * 5
    assert ["1.000 (1.000-1.000)" in line for line in lines] == [True, False, True, False, False]
    assert [image_size(n) for n in ("resnet20", "resnet50", "timm/inception_v4")] == [32, 224, 299]
    assert record(["models", "resnet2x"]) == 2
    assert capsys.readouterr().err.startswith("error: there is no model 'resnet2x'; did you mean")


def test_networks_are_tried(capsys: pytest.CaptureFixture[str]) -> None:
    assert record(["networks", "lenet", "vgg11"]) == 0
    lenet, vgg = [
        line.split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith(("| le", "| vg"))
    ]
    assert lenet[1:] == ["32", "62,006 (10)", "62,006", "3", "yes, 1 positions", "yes", "", "0 |"]
    assert vgg[2:6] == ["132,863,336 (1000)", "132,863,336", "5", "no: the head reads all positions at once"]


def test_saves_and_what_watches_a_step_are_measured(capsys: pytest.CaptureFixture[str]) -> None:
    small = ["--model", "resnet18"]
    assert record(["saves", *small, "--rows", "1000", "--seconds", "0.1", "--runs", "2"]) == 0
    assert "a save stops the step for " in capsys.readouterr().out
    assert record(["guards", *small, "--blocks", "2", "--steps", "1"]) == 0
    assert "watched costs " in capsys.readouterr().out


# ---- step, train, scale, eval, save, start, memory


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("LSDALI_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(tiny({"name": "ce"}, make_images(tmp_path / "images"), tmp_path / "run")))
    return str(path)


def findings(tmp_path: Path, *arguments: str) -> dict[str, Any]:
    """What a benchmark writes as JSON."""
    assert main([*arguments, "--json", str(tmp_path / "found.json")]) == 0
    found: dict[str, Any] = json.loads((tmp_path / "found.json").read_text())
    assert found["commit"]
    assert "torch" in found["hardware"]
    return found


def test_turns_interleave_and_ratios_are_those_of_a_turn() -> None:
    order: list[str] = []
    values = {"a": iter([9.0, 1.0, 2.0, 4.0]), "b": iter([9.0, 2.0, 2.0, 12.0])}

    def contestant(name: str) -> Any:
        return lambda: order.append(name) or {"s": next(values[name])}

    found = Findings("title", {"s": 1}, "s")
    take_turns(found, {name: contestant(name) for name in values}, 3, warmup=1)
    assert "".join(order) == "abbaabba"
    assert found.rows == {"a": {"s": [1.0, 2.0, 4.0]}, "b": {"s": [2.0, 2.0, 12.0]}}
    assert (found.median("b", "s"), found.relative("b")) == (2.0, 2.0)
    assert found.lines()[-1].split() == ["b", "2.0", "(2.0-12.0)", "2.000"]


def test_a_step_is_measured_by_precision_and_against_a_plain_loop(tmp_path: Path) -> None:
    small = ("--shape", "cifar", "--model", "preact_resnet10", "--batch", "2", "--turns", "1", "--warmup", "0")
    rows = findings(tmp_path, "step", *small, "--precision", "fp32", "bf16", "--compare")["rows"]
    assert list(rows) == [
        "lsdali, fp32",
        "lsdali, bf16",
        "plain PyTorch loop, contiguous",
        "plain PyTorch loop, channels last",
    ]
    assert all(len(row["ms/step"]) == 1 and row["ms/step"][0] > 0 for row in rows.values())


def test_training_is_measured_as_users_start_it_and_against_others(tmp_path: Path, recipe: str) -> None:
    found = findings(tmp_path, "train", recipe, "--turns", "1", "--steps", "2", "--warmup", "1", "--compare")
    assert list(found["rows"]) == [MADE_UP, REAL, *PEERS]
    assert len(PEERS) == 3
    speed = {name: row["images/s"][0] for name, row in found["rows"].items()}
    assert f"share of made-up images: {speed[REAL] / speed[MADE_UP]:.3f}" in found["notes"]
    assert 0 <= found["rows"][REAL]["% waiting for data"][0] <= 100


@pytest.mark.parametrize("crop", [{"crop": "pad", "size": 16}, {"crop": "squared", "size": 16, "resize": 20}])
def test_other_loops_take_the_recipes_crop(crop: dict[str, Any], recipe: str) -> None:
    tree = load(recipe, [f"data.train={json.dumps(crop)}"])
    images, labels = next(torch_loader(tree, torch.device("cpu")))
    assert (images.shape, labels.shape) == ((8, 3, 16, 16), (8,))


@pytest.mark.ranks
def test_several_processes_are_measured(tmp_path: Path, recipe: str) -> None:
    found = findings(tmp_path, "scale", recipe, "--turns", "1", "--steps", "2", "--warmup", "1", "--worlds", "2")
    assert list(found["rows"]) == ["2 processes"]


def test_what_a_run_does_beside_its_steps_is_measured(tmp_path: Path, recipe: str) -> None:
    rows = findings(tmp_path, "eval", recipe, "--turns", "1")["rows"]
    assert list(rows) == ["forward passes alone", "evaluation", "with its loader"]
    (row,) = findings(tmp_path, "save", recipe, "--turns", "2")["rows"].values()
    assert row["MB"][0] == row["MB"][1] > 1
    rows = findings(tmp_path, "memory", recipe, "--batches", "4")["rows"]
    assert rows["batch 4"]["host, MB"][0] > 100
    rows = findings(tmp_path, "start", recipe, "--turns", "1")["rows"]
    assert rows["lsdali train RECIPE epochs=1"]["CPU, s"][0] > rows["python"]["CPU, s"][0]


def test_what_fails_in_another_process_is_told(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["memory", recipe, "--batches", "4000"]) == 2
    assert "failed: error: batch 4000 is larger than the data" in capsys.readouterr().err


def test_what_grows_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert record(["scale", "--samples", "100", "--classes", "10", "--ranks", "4"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("    ")]
    by_first = {row[0]: row for row in rows}
    assert by_first["100"][-2:] == ["6", "KB"]  # rows of 16 shares and 16 classes, 2 bytes each
    assert by_first["10"][-4:] == ["26", "MB", "24", "bytes"]  # 10 x 2 x 1,281,167; 4 + 10 x 2
    assert len(by_first["4"]) == 7
