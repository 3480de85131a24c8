"""The benchmarks measure what they say they measure; how fast it is, no test says."""

import json
from argparse import Namespace
from pathlib import Path

import pytest
import yaml

from benchmarks.__main__ import main as record
from benchmarks.models import image_size
from lsdali.bench import stream
from lsdali.bench.__main__ import main
from lsdali.bench.loader import LOADERS, LoaderRun, link_images
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
