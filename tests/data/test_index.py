"""Index: order of ImageFolder, faults, cache, refusals."""

import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torchvision
from PIL import Image

from lsdali.data.index import stored
from lsdali.data.index.index import open_index
from lsdali.data.io.header import FAULTS, GOOD, read_header
from lsdali.data.sets.sample_index import Index
from lsdali.errors import UserError


def paths(index):
    return [index.path(i) for i in range(len(index))]


def refusal(config, split="train") -> str:
    with pytest.raises(UserError) as caught:
        open_index(config, split)
    return str(caught.value)


def test_same_samples_as_image_folder(tree, plain, texture):
    root = tree(classes=("ant", "Bee", "bee eater", "çedilla"))
    deep = root / "train/ant/deep/er"
    deep.mkdir(parents=True)
    for name in ("Z.JPG", "a b.png", "ü.bmp"):
        texture(20, 10).save(deep / name)
    (deep / "notes.txt").write_text("no image")
    shutil.copytree(deep, root / "train/ant/deep-er")
    outside = root.parent / "elsewhere"
    shutil.copytree(deep, outside)
    (root / "train/Bee/linked").symlink_to(outside)
    index = open_index(plain(root), "train")
    theirs = torchvision.datasets.ImageFolder(str(root / "train"))
    assert list(zip(paths(index), index.labels.tolist())) == theirs.samples
    assert list(index.classes) == theirs.classes
    assert (index.status == GOOD).all()
    for i, path in enumerate(paths(index)):
        with Image.open(path) as image:
            assert image.size == tuple(index.size[i].tolist())


def test_val_takes_its_numbers_from_train(tree, plain):
    root = tree(classes=("a", "b", "c"))
    shutil.rmtree(root / "val/b")
    index = open_index(plain(root), "val")
    assert index.labels.tolist() == [0] * 4 + [2] * 4
    assert index.classes == ("a", "b", "c")


def test_cache_is_used_until_a_folder_changes(tree, plain, texture, monkeypatch):
    root = tree()
    config = plain(root)
    scans = []
    real = stored._scan
    monkeypatch.setattr(stored, "_scan", lambda *a: (scans.append(1), real(*a)))
    first, again = open_index(config, "train"), open_index(config, "train")
    assert len(scans) == 1
    assert paths(first) == paths(again)
    assert first.fingerprint == again.fingerprint
    assert isinstance(again.paths, np.memmap)
    open_index(config, "val")
    assert len(scans) == 2
    texture(30, 30).save(root / "train/ant/zzz.jpg")
    changed = open_index(config, "train")
    assert len(scans) == 3
    assert len(changed) == len(first) + 1
    assert changed.fingerprint != first.fingerprint
    assert paths(first)[-1].endswith("bee/011.jpg")  # the old map still reads
    (root / "train/cow").mkdir()
    texture(30, 30).save(root / "train/cow/1.jpg")
    assert open_index(config, "train").classes == ("ant", "bee", "cow")
    texture(30, 30).save(root / "train/cow/2.jpg")
    open_index(config, "train")
    folders = list(Path(os.environ["LSDALI_CACHE"], "index").iterdir())
    assert len(folders) == 2 + stored.EARLIER  # older ones are gone, and no draft is left


def test_a_new_class_in_train_renumbers_val(tree, plain, texture):
    root = tree()
    assert open_index(plain(root), "val").labels.tolist() == [0] * 4 + [1] * 4
    (root / "train/aardvark").mkdir()
    texture(30, 30).save(root / "train/aardvark/1.jpg")
    assert open_index(plain(root), "val").labels.tolist() == [1] * 4 + [2] * 4


def test_a_folder_that_cannot_be_read_is_no_empty_folder(tree, plain, monkeypatch):
    root = tree()
    (root / "train/ant/deep").mkdir()
    real = os.scandir

    def scandir(path):
        if os.fsdecode(path).endswith("deep"):
            raise PermissionError(13, "Permission denied", path)
        return real(path)

    with monkeypatch.context() as patch:  # pytest itself reads folders when it removes them
        patch.setattr(os, "scandir", scandir)
        assert refusal(plain(root)) == f"folder {root}/train/ant/deep cannot be read: Permission denied"


def test_a_repaired_file_is_seen(tree, plain, texture):
    root = tree()
    file = root / "train/ant/003.jpg"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    config = plain(root)
    assert open_index(config, "train").faults() == [(str(file), "truncated")]
    file.write_bytes(whole)
    assert open_index(config, "train").faults() == []


def test_a_damaged_cache_is_scanned_again(tree, plain):
    config = plain(tree())
    before = open_index(config, "train")
    for file in Path(os.environ["LSDALI_CACHE"], "index").glob("*/labels.npy"):
        file.write_bytes(b"")
    assert open_index(config, "train").fingerprint == before.fingerprint


def test_limit_keeps_classes_and_renumbers(tree, plain):
    root = tree(each=10)
    everything = open_index(plain(root), "train")
    some = open_index(plain(root, max_samples=6), "train")
    assert some.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert set(paths(some)) < set(paths(everything))
    assert paths(some) == paths(open_index(plain(root, max_samples=6), "train"))
    assert (
        len({everything.fingerprint, some.fingerprint, open_index(plain(root, max_samples=7), "train").fingerprint})
        == 3
    )
    assert open_index(plain(root, max_samples=99), "train").fingerprint == everything.fingerprint
    assert len(open_index(plain(root, max_samples=6), "val")) == 8


def test_refuses_a_wrong_root(tmp_path, plain):
    assert refusal(plain(tmp_path / "no")) == (
        f"data root {tmp_path}/no is no folder; expected a folder with train/<class>/<images> and val/<class>/<images>"
    )
    (tmp_path / "train").mkdir()
    assert refusal(plain(tmp_path)) == (
        f"data root {tmp_path} has no folder val; expected train and val in it: without validation images, hold out a "
        "part of the training images with data.holdout.fraction=0.2"
    )
    (tmp_path / "val").mkdir()
    assert refusal(plain(tmp_path)) == (f"{tmp_path}/train holds no class folder; expected train/<class>/<images>")


def test_refuses_an_empty_class(tree, plain):
    root = tree()
    (root / "train/cow").mkdir()
    (root / "train/cow/readme.txt").write_text("soon")
    assert (
        refusal(plain(root))
        == f"class folder {root}/train/cow holds no image, but files with other endings (.txt); fill or remove it"
    )


def test_refuses_foreign_classes_in_val(tree, plain):
    root = tree()
    (root / "val/bee").rename(root / "val/wasp")
    assert refusal(plain(root), "val") == (
        f"val folder {root}/val has classes that train lacks: wasp; use the same class names"
    )


def test_refuses_train_as_val(tree, plain):
    root = tree()
    same = "are the same folder; validate on other data"
    assert refusal(plain(root, val_dir="train")) == f"train folder {root}/train and val folder {root}/train {same}"
    (root / "link").symlink_to(root / "train")
    assert refusal(plain(root, val_dir="link"), "val") == (
        f"train folder {root}/train and val folder {root}/link {same}"
    )
    assert "lie in each other" in refusal(plain(root, val_dir="train/ant"))
    shutil.rmtree(root / "val/ant")
    (root / "val/ant").symlink_to(root / "train/ant")
    assert refusal(plain(root), "val") == (
        f"class folder {root}/val/ant is the same folder as {root}/train/ant; validate on other data"
    )


def test_a_cached_val_is_checked_again_when_it_becomes_train(tree, plain):
    root = tree()
    open_index(plain(root), "val")
    shutil.rmtree(root / "val")
    (root / "val").symlink_to("train")
    assert "are the same folder" in refusal(plain(root), "val")


def test_refuses_a_cache_that_cannot_be_written(tree, plain, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LSDALI_CACHE", str(tmp_path / "file"))
    assert re.fullmatch(
        rf"the cache folder {tmp_path}/file/index cannot be written \(Not a directory, [\d.]+ \w+ free there\); "
        "make room, or set LSDALI_CACHE to a folder that can",
        refusal(plain(tree())),
    )


def damaged(whole: bytes) -> dict[str, tuple[bytes, str]]:
    return {
        "half.jpg": (whole[: len(whole) // 2], "truncated"),
        "header.jpg": (whole[:100], "truncated"),
        "byte.jpg": (whole[:1], "unknown format"),
        "empty.jpg": (b"", "empty"),
        "page.jpg": (b"<!DOCTYPE html><html>404</html>", "text or HTML"),
        "text.jpg": (b"not found\n", "text or HTML"),
        "gif.jpg": (b"GIF89a" + bytes(100), "GIF is not supported"),
        "zeros.jpg": (bytes(5000), "unknown format"),
        "hole.jpg": (whole[:20] + bytes(50) + whole[70:], "damaged header"),
    }


def test_probe_names_faults(tmp_path, texture):
    texture(120, 90).save(tmp_path / "whole.jpg", quality=95)
    whole = (tmp_path / "whole.jpg").read_bytes()
    for name, (data, fault) in damaged(whole).items():
        (tmp_path / name).write_bytes(data)
        assert FAULTS[read_header(tmp_path / name)[2]] == fault, name
    assert FAULTS[read_header(tmp_path / "absent.jpg")[2]] == "missing"
    assert FAULTS[read_header(tmp_path)[2]] == "no regular file"


@pytest.mark.parametrize(
    ("suffix", "mode"),
    [(s, "RGB") for s in ("jpg", "png", "bmp", "tif", "webp", "ppm")]
    + [("jpg", "L"), ("jpg", "CMYK"), ("png", "RGBA"), ("png", "P"), ("webp", "RGBA"), ("pgm", "L")],
)
def test_probe_measures_every_format(tmp_path, texture, suffix, mode):
    file = tmp_path / f"image.{suffix}"
    texture(123, 45).convert(mode).save(file)
    assert read_header(file) == (123, 45, GOOD)
    if suffix in ("jpg", "png", "webp", "ppm"):
        data = file.read_bytes()
        file.write_bytes(data[: len(data) * 2 // 3])
        assert FAULTS[read_header(file)[2]] == "truncated"


def test_probe_reads_past_thumbnails_and_junk(tmp_path, texture):
    file = tmp_path / "image.jpg"
    thumbnail = tmp_path / "thumbnail.jpg"
    texture(160, 120).save(thumbnail, quality=95)
    texture(640, 480).save(file, exif=b"Exif\0\0" + thumbnail.read_bytes(), progressive=True, quality=95)
    assert read_header(file) == (640, 480, GOOD)
    data = file.read_bytes()
    for junk in (b"\0" * 10, bytes(range(200)) * 100):
        file.write_bytes(data + junk)
        assert read_header(file) == (640, 480, GOOD)
    file.write_bytes(data[: len(data) // 2])  # the thumbnail's end marker must not count
    assert FAULTS[read_header(file)[2]] == "truncated"
    png = tmp_path / "image.png"
    texture(50, 40).save(png)
    png.write_bytes(png.read_bytes() + bytes(9000))
    assert read_header(png) == (50, 40, GOOD)
    lossless = tmp_path / "image.webp"
    texture(50, 40).save(lossless, lossless=True)
    assert read_header(lossless) == (50, 40, GOOD)


def test_an_index_as_listed_holds_every_sample_with_its_own_label() -> None:
    listed = Index(Path("/d"), np.array([b"a", b"bc"], "S3"), np.array([1, 0]), ("x", "y"))
    assert (listed.size.tolist(), listed.bad().tolist()) == ([[0, 0], [0, 0]], [])
    assert (listed.clean.tolist(), listed.numbers.tolist()) == ([1, 0], [0, 1])
    assert [bytes(row) for row in listed.images(np.array([1, 0]))] == [b"/d/bc\0", b"/d/a\0\0"]
    assert (listed.path(1), listed.byte_range(1)) == ("/d/bc", (b"/d/bc", 0, None))


def test_the_root_is_spelled_as_in_the_recipe(tree, plain, monkeypatch, tmp_path):
    root = tree()
    monkeypatch.chdir(tmp_path)
    assert open_index(plain(Path("images")), "train").path(0) == "images/train/ant/000.jpg"
    monkeypatch.chdir("/")
    assert open_index(plain(root), "train").path(0) == f"{root}/train/ant/000.jpg"
    assert len(list(Path(os.environ["LSDALI_CACHE"], "index").iterdir())) == 1  # one index for both
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"^data root nowhere is no folder"):
        open_index(plain(Path("nowhere")), "train")
    (root / "val/ant").rename(root / "val/axe")
    with pytest.raises(UserError, match=r"^val folder images/val has classes that train lacks: axe"):
        open_index(plain(Path("images")), "val")
