"""Catalog: settings are checked, digits are always the same, Tiny ImageNet comes in two layouts."""

import hashlib
import re
import shutil

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError
from sklearn.datasets import load_digits

from lsdali.data import DATASETS
from lsdali.data.index.index import open_index
from lsdali.data.sets.catalog import IMAGENET_COUNTS, TINY_COUNTS, Digits, ImageNet, PadCrop, TinyImageNet
from lsdali.data.sets.digits import bundled_digits
from lsdali.errors import UserError
from tests.harness import ROOT

PINNED_DIGITS = "eccaff83f21f55b0"


def test_registry_names_agree():
    assert {name: kind.model_fields["name"].default for name, kind in DATASETS.items()} == {n: n for n in DATASETS}


def test_settings_as_yaml_gives_them():
    config = ImageNet.model_validate(
        {
            "root": "/x",
            "train": {"crop": "random_resized", "size": 160, "scale": [0.35, 1]},
            "eval": {"resize": 232, "size": 224},
            "mean": [0.5, 0.5, 0.5],
        }
    )
    assert config.train.scale == (0.35, 1.0)
    assert config.mean == (0.5, 0.5, 0.5)
    assert isinstance(TinyImageNet.model_validate({"root": "/x", "train": {"crop": "pad", "size": 64}}).train, PadCrop)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"train": {"crop": "random_resized", "size": 0}}, "greater than or equal to 1"),
        ({"train": {"crop": "random_resized", "size": 32, "scale": [0.5, 0.1]}}, "must be two rising shares"),
        ({"train": {"crop": "random_resized", "size": 32, "ratio": [0, 1]}}, "must be two rising numbers"),
        ({"train": {"crop": "center", "size": 32}}, "does not match any of the expected tags"),
        ({"train": {"crop": "pad", "size": 32, "scale": [0.1, 1]}}, "Extra inputs"),
        ({"eval": {"resize": 31, "size": 32}}, "size 32 must not be larger than resize 31"),
        ({"std": [0.1, 0, 0.1]}, "greater than or equal to 0.000001"),
        ({"mean": [0.1, 0.1]}, "Field required"),
        ({"mean": ["0.1", 0.1, 0.1]}, "valid number"),
        ({"max_samples": 0}, "greater than or equal to 1"),
        ({"max_samples": "5"}, "valid integer"),
        ({"threads": -1}, "greater than or equal to 1"),
    ],
)
def test_settings_are_checked(settings, text):
    with pytest.raises(ValidationError, match=text):
        TinyImageNet.model_validate({"root": "/x", **settings})


def test_digits_are_always_the_same():
    train, val = open_index(Digits(), "train"), open_index(Digits(), "val")
    assert (len(train), len(val)) == (1437, 360)
    whole = np.bincount(load_digits().target)
    assert np.abs(np.bincount(val.labels) - 0.2 * whole).max() <= 1
    names = [train.path(i).rsplit("/", 1)[1] for i in range(len(train))]
    digest = hashlib.sha256(",".join(sorted(names)).encode() + train.labels.tobytes() + val.labels.tobytes())
    assert digest.hexdigest().startswith(PINNED_DIGITS)


def test_digits_keep_their_pixels():
    pixels, labels = load_digits(return_X_y=True)
    levels = []
    for split in ("train", "val"):
        index = open_index(Digits(), split)
        for i in range(0, len(index), 97):
            number = int(index.path(i).rsplit("/", 1)[1].removesuffix(".png"))
            with Image.open(index.path(i)) as image:
                image_levels = np.asarray(image)
            assert image_levels.shape == (8, 8)
            assert (image_levels == np.rint(pixels[number].reshape(8, 8) * 255 / 16)).all()
            assert index.labels[i] == labels[number]
        levels += [np.asarray(Image.open(index.path(i)), float) / 255 for i in range(len(index)) if split == "train"]
    assert np.allclose(Digits().mean, np.mean(levels), atol=5e-4)
    assert np.allclose(Digits().std, np.std(levels), atol=5e-4)


@pytest.fixture
def tiny(tmp_path, texture):
    root = tmp_path / "tiny"
    wnids = ["n03", "n01", "n02"]
    for w in wnids:
        folder = root / "train" / w / "images"
        folder.mkdir(parents=True)
        (folder.parent / f"{w}_boxes.txt").write_text("")
        for i in range(3):
            texture(64, 64, i).save(folder / f"{w}_{i}.JPEG")
    images = root / "val/images"
    images.mkdir(parents=True)
    lines = []
    for i in range(6):
        texture(64, 64, i).save(images / f"val_{i}.JPEG")
        lines.append(f"val_{i}.JPEG\t{wnids[i % 3]}\t0\t0\t62\t62\n")
    (root / "val/val_annotations.txt").write_text("".join(lines))
    (root / "wnids.txt").write_text("\n".join(wnids) + "\n")
    return root


def resort(root):
    for line in (root / "val/val_annotations.txt").read_text().splitlines():
        name, wnid = line.split("\t")[:2]
        (root / "val" / wnid).mkdir(exist_ok=True)
        (root / "val/images" / name).rename(root / "val" / wnid / name)
    (root / "val/images").rmdir()


def test_tiny_imagenet_in_both_layouts(tiny):
    config = TinyImageNet(root=str(tiny))

    def content(split):
        index = open_index(config, split)
        assert index.classes == ("n01", "n02", "n03")
        return [(index.path(i).rsplit("/", 1)[1], int(index.labels[i])) for i in range(len(index))]

    assert content("train") == [(f"n0{c + 1}_{i}.JPEG", c) for c in range(3) for i in range(3)]
    official = content("val")
    assert official == [(f"val_{i}.JPEG", c) for c, i in [(0, 1), (0, 4), (1, 2), (1, 5), (2, 0), (2, 3)]]
    resort(tiny)
    assert content("val") == official


def test_tiny_imagenet_sees_changed_annotations(tiny):
    config = TinyImageNet(root=str(tiny))
    before = open_index(config, "val").labels.tolist()
    file = tiny / "val/val_annotations.txt"
    file.write_text(file.read_text().replace("n01", "n03"))
    assert open_index(config, "val").labels.tolist() == [1, 1, 2, 2, 2, 2] != before


def test_tiny_imagenet_refusals(tiny):
    def refusal():
        with pytest.raises(UserError) as caught:
            open_index(TinyImageNet(root=str(tiny)), "val")
        return str(caught.value)

    file = tiny / "val/val_annotations.txt"
    lines = file.read_text()
    file.write_text(lines.replace("n01", "n09"))
    assert refusal() == f"{file} names classes that {tiny}/train lacks: n09; unpack the data again"
    file.write_text("".join(lines.splitlines(keepends=True)[:-1]))
    assert refusal() == f"{file} does not name the class of val_5.JPEG; every image in val/images needs a line"
    file.write_bytes(b"\xff\xd8 no text\n" + lines.encode())
    assert refusal() == f"{file}, line 1: expected a file name, a tab and a class; unpack the data again"
    file.unlink()
    assert refusal() == f"{tiny}/val/images needs {file}, which says the class of each image; unpack the data again"
    shutil.rmtree(tiny / "train/n02")
    assert refusal() == f"{tiny}/wnids.txt lists classes that {tiny}/train lacks: n02; unpack the data again"


def test_an_annotated_file_that_is_missing_is_a_fault(tiny):
    (tiny / "val/images/val_2.JPEG").unlink()
    index = open_index(TinyImageNet(root=str(tiny)), "val")
    assert index.faults() == [(f"{tiny}/val/images/val_2.JPEG", "missing")]


def test_the_table_of_data_sets_has_the_counts_that_are_checked():
    lines = (ROOT / "benchmarks/datasets.md").read_text().splitlines()
    rows = {cells[1].strip(" `"): cells for cells in (line.split("|") for line in lines) if len(cells) == 8}
    assert rows.keys() - {"name", "---"} <= DATASETS.keys()
    counts = {
        "imagenet": IMAGENET_COUNTS.images,
        "tinyimagenet": TINY_COUNTS.images,
        **{k: d.samples for k, d in DATASETS.items() if hasattr(d, "samples")},
    }
    for name, samples in ((n, s) for n, s in counts.items() if n in rows):
        found = {int(n.replace(",", "")) for n in re.findall(r"[0-9][0-9,]+", f"{rows[name][3]} {rows[name][4]}")}
        assert found == set(samples.values()), name


def test_digits_are_those_of_scikit_learn() -> None:
    pixels, labels = bundled_digits()
    expected, classes = load_digits(return_X_y=True)
    assert np.array_equal(pixels.reshape(-1, 64), expected)
    assert np.array_equal(labels, classes)
