"""lsdali predict: the probabilities of evaluate, for images that are named by hand; bad ones are named."""

import csv
import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import lsdali
from lsdali.cli import main
from lsdali.errors import UserError
from lsdali.evaluate.runs import open_run, open_samples
from lsdali.evaluate.runs import predict as evaluated
from lsdali.testing.small import tiny


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A run on JPEGs of several sizes, and its images beside it."""
    base = tmp_path_factory.mktemp("predict")
    rng = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 5)):
        for label, name in enumerate(("ant", "bee", "cat")):
            (base / f"images/{split}/{name}").mkdir(parents=True)
            for n in range(count):
                noise = rng.integers(0, 160, (24 + 3 * n, 40 - 2 * label, 3)) + 40 * label
                Image.fromarray(noise.astype(np.uint8)).save(base / f"images/{split}/{name}/{n}.jpg", quality=95)
    data = {
        "name": "folder",
        "root": str(base / "images"),
        "train": {"crop": "random_resized", "size": 16},
        "eval": {"resize": 20, "size": 16},
        "threads": 1,
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LSDALI_CACHE", str(base / "cache"))
        lsdali.train(tiny({"name": "ce"}, base, base / "run", data=data, epochs=1))
        yield base / "run"


def shares_of_evaluate(run: Path, temperature: float = 1.0) -> dict[str, list[float]]:
    """The probabilities that lsdali evaluate has of each file of the validation data."""
    opened = open_run(run, "best", "model")
    samples = open_samples(opened, [])
    found = evaluated(opened, samples, torch.device("cpu"))
    rows = (found.logits.double() / temperature).softmax(1).tolist()
    return {samples.index.path(int(i)): row for i, row in zip(found.index, rows, strict=True)}


@pytest.mark.parametrize("temperature", [1.0, 1.7])
def test_probabilities_are_those_of_evaluate(run: Path, temperature: float) -> None:
    expected = shares_of_evaluate(run, temperature)
    found = lsdali.predict(run, run.parent / "images/val", top=3, temperature=temperature, batch=64)
    assert [one.image for one in found] == sorted(expected)
    for one in found:
        shares = dict(zip(one.classes, one.probabilities, strict=True))
        assert [shares[name] for name in ("ant", "bee", "cat")] == expected[one.image]
        assert list(one.probabilities) == sorted(one.probabilities, reverse=True)


def test_pillow_decodes_nearly_the_same(run: Path) -> None:
    expected = shares_of_evaluate(run)
    files = sorted(expected)
    images = [Image.open(file) for file in files]
    for found in (lsdali.predict(run, files, top=3, decoder="pillow"), lsdali.predict(run, images, top=3)):
        for file, one in zip(files, found, strict=True):
            shares = dict(zip(one.classes, one.probabilities, strict=True))
            assert max(abs(shares[n] - p) for n, p in zip(("ant", "bee", "cat"), expected[file], strict=True)) < 0.02


@pytest.fixture
def mixed(run: Path, tmp_path: Path) -> Path:
    """Good images, one cut off, one that breaks in its body, a text that is called an image, and a list."""
    good = run.parent / "images/val/bee"
    for n in range(3):
        shutil.copy(good / f"{n}.jpg", tmp_path / f"{n}.jpg")
    content = (good / "3.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(content[: len(content) // 2])
    noise = np.random.default_rng(1).integers(0, 255, (64, 64, 3)).astype(np.uint8)
    Image.fromarray(noise).save(tmp_path / "broken.png")
    body = bytearray((tmp_path / "broken.png").read_bytes())
    body[2000:4000] = bytes(2000)
    (tmp_path / "broken.png").write_bytes(body)
    (tmp_path / "text.jpg").write_text("no image")
    (tmp_path / "some.txt").write_text("# two of them\n2.jpg\nbroken.png\n0.jpg\n")
    return tmp_path


@pytest.mark.parametrize("decoder", ["dali", "pillow"])
def test_bad_images_are_named_and_the_others_are_there(run: Path, mixed: Path, decoder: Any) -> None:
    found = lsdali.predict(run, mixed, decoder=decoder, batch=2)
    assert [Path(one.image).name for one in found] == ["0.jpg", "1.jpg", "2.jpg", "broken.png", "cut.jpg", "text.jpg"]
    assert [one.fault is None for one in found] == [True, True, True, False, False, False]
    good = lsdali.predict(run, [mixed / f"{n}.jpg" for n in range(3)], decoder=decoder)
    assert found[:3] == good


def test_json_lines_of_a_list(run: Path, mixed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", str(run), str(mixed / "some.txt"), "--json", "--top", "2"]) == 1
    told = capsys.readouterr()
    rows = [json.loads(line) for line in told.out.splitlines()]
    assert [Path(row["image"]).name for row in rows] == ["2.jpg", "broken.png", "0.jpg"]
    assert [len(row["classes"]) for row in rows] == [2, 0, 2]
    assert told.err.startswith(f"bad image: {mixed / 'broken.png'} (")


def test_csv_and_plain_lines(run: Path, mixed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = str(mixed / "1.jpg")
    (one,) = lsdali.predict(run, file, top=2)
    assert main(["predict", str(run), file, "--csv", "--top", "2"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [(row["image"], row["rank"], row["class"]) for row in rows] == [
        (file, "1", one.classes[0]),
        (file, "2", one.classes[1]),
    ]
    assert [row["probability"] for row in rows] == [f"{p:.6f}" for p in one.probabilities]
    assert main(["predict", str(run), file, "--top", "1"]) == 0
    assert capsys.readouterr().out == f"{file}  {one.classes[0]} {100 * one.probabilities[0]:.2f} %\n"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["nowhere", "{mixed}"], "there is no checkpoint nowhere"),
        (["{run}", "nothing.jpg"], "there is no image, folder or list nothing.jpg"),
        (["{run}", "{mixed}/none"], "none holds no image"),
        (["{run}", "{mixed}", "--top", "0"], "--top 0 must be above 0"),
    ],
)
def test_bad_input_is_one_sentence(
    arguments: list[str], sentence: str, run: Path, mixed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (mixed / "none").mkdir()
    assert main(["predict", *(text.format(run=run, mixed=mixed) for text in arguments)]) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: ")
    assert sentence in told


def test_paths_and_images_do_not_mix(run: Path, mixed: Path) -> None:
    with pytest.raises(UserError, match="either PIL images or paths"):
        lsdali.predict(run, [mixed / "0.jpg", Image.new("RGB", (20, 20))])
