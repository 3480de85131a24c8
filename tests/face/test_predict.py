"""lsdali predict: the probabilities of evaluate, for images that are named by hand; bad ones are named."""

import csv
import io
import json
import shutil
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import lsdali
from lsdali.cli import main
from lsdali.data.sets.catalog import CenterCrop, Folder, RandomResizedCrop
from lsdali.errors import UserError
from lsdali.evaluate.runs import open_run, open_samples
from lsdali.evaluate.runs import predict as evaluated
from lsdali.face.images import decoded, files_in
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


# ---- exported files


def missing(kind: str) -> bool:
    """Whether the packages of a format are not here."""
    return kind == "onnx" and any(find_spec(name) is None for name in ("onnx", "onnxscript", "onnxruntime"))


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
@pytest.mark.parametrize(
    ("kind", "flags"),
    [
        ("safetensors", []),
        ("onnx", []),
        ("onnx", ["--pixels"]),
        ("torch-export", []),
        ("torch-export", ["--pixels"]),
        ("torchscript", []),
    ],
)
@pytest.mark.parametrize("decoder", ["dali", "pillow"])
def test_an_export_says_what_its_run_says(
    run: Path, mixed: Path, kind: str, flags: list[str], decoder: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    if missing(kind):
        pytest.skip(f"the packages of {kind} are not installed")
    folder = run.parent / "exports"
    folder.mkdir(exist_ok=True)
    ending = {"onnx": "onnx", "safetensors": "safetensors"}.get(kind, "bin")
    out = folder / f"{kind}{''.join(flags)}.{ending}"
    if not out.exists():
        assert main(["export", str(run), "--format", kind, "--out", str(out), *flags]) == 0
    expected = lsdali.predict(run, mixed, top=3, decoder=decoder)
    found = lsdali.predict(out, mixed, top=3, decoder=decoder)
    for one, other in zip(found, expected, strict=True):
        assert (one.image, one.classes) == (other.image, other.classes)
        assert one.probabilities == pytest.approx(other.probabilities, abs=1e-5)
        assert (one.fault is None) == (other.fault is None)


def test_an_export_carries_how_images_are_read(run: Path, mixed: Path, tmp_path: Path) -> None:
    """A run that squeezes both sides and turns images exports that as well."""
    base = run.parent
    data = {
        "name": "folder",
        "root": str(base / "images"),
        "train": {"crop": "squared", "resize": 20, "size": 16},
        "eval": {"resize": 18, "size": 16, "sides": "both"},
        "mean": [0.3, 0.4, 0.5],
        "std": [0.2, 0.3, 0.4],
        "exif_orientation": True,
        "threads": 1,
    }
    lsdali.train(tiny({"name": "ce"}, base, tmp_path / "other", data=data, epochs=1))
    assert main(["export", str(tmp_path / "other")]) == 0
    expected = lsdali.predict(tmp_path / "other", mixed / "1.jpg", top=3)
    found = lsdali.predict(tmp_path / "other/checkpoints/best.safetensors", mixed / "1.jpg", top=3)
    assert found[0].classes == expected[0].classes
    assert found[0].probabilities == pytest.approx(expected[0].probabilities, abs=1e-7)


def test_files_that_are_no_exports(run: Path, mixed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(1)}, tmp_path / "theirs.safetensors")
    (tmp_path / "cut.onnx").write_bytes(b"cut")
    assert main(["export", str(run)]) == 0
    own = run / "checkpoints/best.safetensors"
    for arguments, sentence in (
        ([str(tmp_path / "theirs.safetensors")], "was not written by `lsdali export`"),
        ([str(own), "--weights", "ema"], "leave out --checkpoint and --weights"),
        *([] if missing("onnx") else [([str(tmp_path / "cut.onnx")], "cannot be read as onnx")]),
    ):
        capsys.readouterr()
        assert main(["predict", *arguments[:1], str(mixed / "1.jpg"), *arguments[1:]]) == 2
        told = capsys.readouterr().err
        assert told.startswith("error: ")
        assert sentence in told


def test_a_hub_folder_says_what_its_run_says(run: Path, mixed: Path, tmp_path: Path) -> None:
    base = run.parent
    lsdali.train(tiny({"name": "ce"}, base / "images", tmp_path / "theirs", model={"name": "resnet18"}, epochs=1))
    assert main(["export", str(tmp_path / "theirs"), "--to", "hub-folder", "--out", str(tmp_path / "hub")]) == 0
    pairs = zip(*(lsdali.predict(tmp_path / name, mixed, top=3) for name in ("hub", "theirs")), strict=True)
    for found, expected in pairs:
        assert (found.image, found.classes) == (expected.image, expected.classes)
        assert found.probabilities == pytest.approx(expected.probabilities, abs=1e-6)


@pytest.mark.parametrize(("interpolation", "antialias"), [("bicubic", True), ("bicubic", False), ("bilinear", False)])
def test_pillow_s_pixels_of_other_filters_are_nearly_dali_s(run: Path, interpolation: str, antialias: bool) -> None:
    how = {"interpolation": interpolation, "antialias": antialias}
    crop = CenterCrop.model_validate({"resize": 14, "size": 12, **how})
    data = Folder(root="/", train=RandomResizedCrop(size=12), eval=crop, mean=(0, 0, 0), std=(1, 1, 1))
    files = files_in([run.parent / "images/val"])
    ours, theirs = (next(decoded(files, data, 64, torch.device("cpu"), by)) for by in ("dali", "pillow"))
    assert ours[0] == theirs[0]
    assert ours[1] is not None
    assert theirs[1] is not None
    assert (255 * (ours[1] - theirs[1]).abs())[:, :, 1:-1, 1:-1].max() < 3
