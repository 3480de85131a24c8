"""Tar shards: the same batches as from single files, bad members replaced and named, wrong shards refused."""

import gc
import io
import os
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lsdali import scan
from lsdali.clock import PerEpoch
from lsdali.data.index.index import open_index
from lsdali.data.index.scan_split import SIZE, examine
from lsdali.data.io import byte_range as byte_range
from lsdali.data.io.header import FAULTS, read_header
from lsdali.data.pipeline.loader import EvalLoader, TrainLoader
from lsdali.data.pipeline.loaders import open_dataset, train_loader
from lsdali.data.pipeline.options import LoaderOptions
from lsdali.data.sets import shards as shards_module
from lsdali.data.sets.catalog import CenterCrop, PadCrop, RandomResizedCrop
from lsdali.data.sets.shards import Shards
from lsdali.errors import UserError
from lsdali.pack import main as pack
from tests.data.plain import PLAIN

CPU = torch.device("cpu")
JPEG = (
    b"\xff\xd8\xff\xe0\x00\x10JFIF" + bytes(10) + b"\xff\xc0\x00\x11\x08\x00\x20\x00\x30\x03" + bytes(9) + b"\xff\xda"
)


def packed(root, **more):
    """The settings of conftest's `plain`, for shards."""
    return Shards(root=str(root), **(PLAIN | more))


@pytest.fixture
def both(tree, tmp_path):
    """(as `tree`) -> a class folder, and the same files in several shards."""

    def make(**more):
        root, out = tree(**more), tmp_path / "shards"
        assert pack([str(root), str(out), "--shard-bytes", "20000"]) == 0
        assert len(list(out.glob("train/*.tar"))) > 2
        return root, out

    return make


def loader(config, index=None, lines=None, batch=8):
    index = open_index(config, "train") if index is None else index
    log = [].append if lines is None else lines.append
    return TrainLoader(index, config, LoaderOptions(PerEpoch(batch), 3, CPU, log=log))


def same(ours, theirs) -> bool:
    fields = ("images", "labels", "index", "valid")
    ours, theirs = list(ours), list(theirs)
    return len(ours) == len(theirs) > 0 and all(
        torch.equal(getattr(a, f), getattr(b, f)) for a, b in zip(ours, theirs) for f in fields
    )


def tar(file: Path, *members, **more):
    """Members are (name, content)."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w", **more) as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


@pytest.mark.parametrize("crop", [RandomResizedCrop(size=32), PadCrop(size=40)])
def test_batches_are_those_of_the_files_to_the_bit(both, plain, crop, monkeypatch, as_rank):
    monkeypatch.setattr(byte_range, "OPEN_FILES", 2)  # fewer than there are shards
    root, out = both()
    files, shards = plain(root, train=crop), packed(out, train=crop)
    a, b = loader(files), loader(shards)
    assert a.index.classes == b.index.classes
    for epoch in range(2):
        start = epoch * a.steps_per_epoch.first
        assert same(b.epoch(start), a.epoch(start))
    whole = list(a.epoch(0))
    assert same(b.epoch(1), whole[1:])  # a jump back
    for rank in range(2):
        as_rank(rank, 2)
        parts = [x.part(4 * rank, 4 * rank + 4) for x in whole]
        assert same(loader(shards).epoch(0), parts)
    as_rank(0, 1)
    x, y = (EvalLoader(open_index(c, "val"), c, batch=3, device=CPU, half=False) for c in (files, shards))
    assert same(y, x)


def test_images_of_one_size_are_held_with_the_same_bits(tmp_path, texture):
    for k in range(3):
        pair = []
        for i in range(2):
            file = io.BytesIO()
            texture(20, 20, 2 * k + i).save(file, "png")
            pair += [(f"{i}.png", file.getvalue()), (f"{i}.cls", b"%d" % k)]
        tar(tmp_path / f"train/{k}.tar", *pair)
    tar(tmp_path / "val/0.tar", *pair)
    streams = []
    for resident in ("always", "never"):
        config = packed(tmp_path, train=PadCrop(size=20), eval=CenterCrop(resize=20, size=20), resident=resident)
        index = open_dataset(config, "train", log=lambda line: None)
        assert (index.pixels is not None) == (resident == "always")
        streams.append(list(train_loader(index, config, LoaderOptions(PerEpoch(6), 0, CPU)).epoch(0)))
    assert same(*streams)


def hurt(folder: Path):
    """Files that are bad in four ways; number -> fault."""
    whole = (folder / "001.jpg").read_bytes()
    (folder / "001.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "003.jpg").write_bytes(b"")
    (folder / "005.jpg").write_text("<html>404</html>")
    (folder / "007.jpg").write_bytes(b"GIF89a" + bytes(500))
    return {1: "truncated", 3: "empty", 5: "text or HTML", 7: "GIF is not supported"}


def test_bad_members_are_replaced_and_named(tree, tmp_path, plain, monkeypatch):
    root, out = tree(), tmp_path / "shards"
    faults = hurt(root / "train/ant")
    pack([str(root), str(out), "--shard-bytes", "20000"])
    lines: list[str] = []
    ours = loader(packed(out), lines=lines)
    assert same(ours.epoch(0), loader(plain(root)).epoch(0))
    assert sorted(line.split("/train/")[1] for line in lines) == [
        f"00000{ours.index.path(i).split('.tar')[0][-1]}.tar:{i:08d}.jpg ({fault}); a stand-in is used"
        for i, fault in faults.items()
    ]
    assert all(f":{i:08d}.jpg" in ours.index.path(i) for i in range(24))
    assert scan.main([str(out), "--full"]) == 1
    monkeypatch.setattr(shards_module, "walk", lambda *a: pytest.fail("walked again"))
    with pytest.raises(
        UserError, match=r"4 training files are bad, .* max_bad_files = 3: .*0.tar:00000001.jpg \(truncated"
    ):
        loader(packed(out, max_bad_files=3))


def test_shards_that_change_in_mid_run(both, plain):
    """Zeros in place of one member's bytes; then a shard that shrinks; then one that goes away."""
    root, out = both()
    config, lines = packed(out), []
    ours, theirs = loader(config, lines=lines), loader(plain(root))
    steps = ours.steps_per_epoch.first
    assert same(ours.epoch(0), theirs.epoch(0))
    ours.close()  # else the next batches were read before
    path, start, length = ours.index.byte_range(4)
    with open(path, "r+b") as file:
        file.seek(start + 30)
        file.write(bytes(length - 30))
    seen = torch.cat([b.index for b in ours.epoch(steps)]).tolist()
    assert lines == [f"bad file: {ours.index.path(4)} (damaged header); a stand-in is used"]
    assert (len(seen), 4 in seen, seen.count(5)) == (24, False, 2)
    last, first_of_last, length = ours.index.byte_range(23)
    inside = [i for i in range(24) if ours.index.byte_range(i).path == last]
    ours.close()
    os.truncate(last, first_of_last + length // 2)
    list(ours.epoch(2 * steps))
    assert lines[1:] == [f"bad file: {ours.index.path(23)} (truncated); a stand-in is used"]
    ours.close()
    os.truncate(last, 0)
    list(ours.epoch(3 * steps))
    assert sorted(lines[2:]) == [
        f"bad file: {ours.index.path(i)} (empty); a stand-in is used" for i in inside if i != 23
    ]
    ours.close()
    val = open_index(config, "val")
    Path(os.fsdecode(val.byte_range(0).path)).unlink()
    with pytest.raises(UserError, match=r"validation data has bad files.*/val/000000.tar:00000000.jpg \(missing\)"):
        list(EvalLoader(val, config, batch=4, device=CPU, half=False))


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_pair_by_the_first_dot_of_their_basename(tmp_path, form):
    deep = "d.ir/" + "x" * (90 if form == tarfile.USTAR_FORMAT else 300) + ("" if form == tarfile.USTAR_FORMAT else "ü")
    tar(
        tmp_path / "train/a.tar",
        ("0.cls", b"1\n"),
        ("0.JPG", JPEG),
        ("0.json", b"{}"),
        ("0.seg.png", b"a mask, not the image"),
        ("._0.jpg", b"a Mac's shadow"),
        (f"{deep}.cls", b"0"),
        (f"{deep}.jpeg", JPEG[:40]),
        format=form,
    )
    tar(tmp_path / "val/a.tar", *GOOD)
    index = open_index(packed(tmp_path), "train")
    base = f"{tmp_path}/train/a.tar"
    assert [index.path(i) for i in range(len(index))] == [f"{base}:0.JPG", f"{base}:{deep}.jpeg"]
    assert index.labels.tolist() == [1, 0]
    assert [index.byte_range(i).content() for i in range(2)] == [JPEG, JPEG[:40]]


def test_classes_are_as_many_as_training_has_or_as_the_list_names(tmp_path):
    def classes(split="val"):
        return open_index(packed(tmp_path), split).classes

    for split, label in (("train", b"1"), ("val", b"0")):
        tar(tmp_path / f"{split}/a.tar", ("0.png", JPEG), ("0.cls", label))
    assert classes() == classes("train") == ("0", "1")
    tar(tmp_path / "train/a.tar", ("0.png", JPEG), ("0.cls", b"2"))  # changes no folder
    assert classes() == ("0", "1", "2")
    (tmp_path / "classes.txt").write_text("ant\nbee\ncow\n")
    assert classes() == classes("train") == ("ant", "bee", "cow")
    (tmp_path / "classes.txt").write_text("ant\nbee\ncow\ndog\n")
    assert classes() == ("ant", "bee", "cow", "dog")


@pytest.mark.parametrize("suffix", ["jpg", "png", "bmp", "webp", "ppm"])
def test_a_range_is_probed_like_a_file(tmp_path, texture, suffix):
    file = tmp_path / f"image.{suffix}"
    texture(60, 45).save(file)
    data = file.read_bytes()
    for part in (data, data[: len(data) * 2 // 3], data[:20]):
        file.write_bytes(part)
        alone = read_header(file), examine(bytes(file))[:SIZE]
        file.write_bytes(data + part + data)
        span = (bytes(file), len(data), len(part))
        assert (read_header(*span), examine(*span)[:SIZE]) == alone
    file.write_bytes(data + data[:-100])  # the larger file ends within the range
    assert FAULTS[read_header(file, len(data), len(data))[2]] == "truncated"


def test_the_index_is_kept_until_a_shard_changes(both, monkeypatch):
    _, out = both()
    config = packed(out)
    walks = []
    real = shards_module.walk
    monkeypatch.setattr(shards_module, "walk", lambda *a: (walks.append(a[1]), real(*a))[1])
    first, again = open_index(config, "train"), open_index(config, "train")
    assert len(walks) == len(list(out.glob("train/*.tar")))
    assert first.fingerprint == again.fingerprint
    half = open_index(config.model_copy(update={"max_samples": 6}), "train")
    assert [half.byte_range(k) for k in range(6)] == [first.byte_range(int(n)) for n in half.numbers]
    (out / "train/000001.tar").unlink()
    assert len(open_index(config, "train")) < len(first)
    before = first.byte_range(0).content()
    tar(out / "train/000000.tar", ("00000000.jpg", before), ("00000000.cls", b"0"))
    one = open_index(config, "train").fingerprint
    tar(out / "train/000000.tar", ("00000000.jpg", before + b"\0"), ("00000000.cls", b"0"))
    assert open_index(config, "train").fingerprint != one


GOOD = (("0.jpg", JPEG), ("0.cls", b"0"), ("1.jpg", JPEG), ("1.cls", b"1"))
WRONG = {
    "has images without a label .cls: 2; every sample needs both": (*GOOD, ("2.jpg", JPEG)),
    "has labels without an image: 2; every sample needs both": (*GOOD, ("2.cls", b"0")),
    "has two images with the key 1; every sample needs a key of its own": (*GOOD, ("1.png", JPEG)),
    "has two labels with the key 1; every sample needs a key of its own": (*GOOD, ("1.cls", b"1")),
    ":2.cls holds b'cat'; expected a class number as text, 0 to 999999": (*GOOD, ("2.jpg", JPEG), ("2.cls", b"cat")),
    ":2.cls holds b'-1'; expected a class number as text, 0 to 999999": (*GOOD, ("2.jpg", JPEG), ("2.cls", b"-1")),
    ":2.jpg has the label 7; classes.txt has 2 classes, counted from 0": (*GOOD, ("2.jpg", JPEG), ("2.cls", b"7")),
    "holds no image; expected members <key>.jpg and <key>.cls": (("readme.txt", b"soon"),),
}


def refusal(root, split="train", **more) -> str:
    with pytest.raises(UserError) as caught:
        open_index(packed(root, **more), split)
    return str(caught.value)


@pytest.mark.parametrize("sentence", WRONG)
def test_wrong_members_are_refused(tmp_path, sentence):
    (tmp_path / "classes.txt").write_text("ant\nbee\n")
    tar(tmp_path / "train/a.tar", *WRONG[sentence])
    tar(tmp_path / "val/a.tar", *GOOD)
    assert refusal(tmp_path) in (f"{tmp_path}/train/a.tar {sentence}", f"{tmp_path}/train/a.tar{sentence}")


def test_archives_that_are_not_whole_are_refused(tmp_path):
    file = tmp_path / "train/a.tar"
    tar(file, *GOOD)
    tar(tmp_path / "val/a.tar", *GOOD)
    whole = file.read_bytes()
    assert len(open_index(packed(tmp_path), "train")) == 2
    block = tarfile.BLOCKSIZE
    broken = {size: whole[:size] for size in (0, 100, block, block + 20, 2 * block, 2 * block + 100, 8 * block)}
    broken[-1] = whole[: 4 * block] + b"\1" * block + whole[5 * block :]  # tarfile takes this header for the end
    broken[-2] = os.urandom(5000)
    for content in broken.values():
        file.write_bytes(content)
        text = refusal(tmp_path)
        assert text.startswith(f"{file} is no whole tar file (")
        assert text.endswith("); get or pack it again")
    tar(file, *GOOD)
    with tarfile.open(file, "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("x"))
    assert refusal(tmp_path) == f"{file} is compressed; samples are read at any place: decompress it"


def test_wrong_folders_are_refused(tmp_path):
    assert refusal(tmp_path) == f"data root {tmp_path} has no file train/*.tar; expected tar files, not compressed"
    tar(tmp_path / "train/a.tar", *GOOD)
    assert len(open_index(packed(tmp_path, holdout={"fraction": 0.5}), "val")) == 1
    assert "has no file val/*.tar" in refusal(tmp_path)
    tar(tmp_path / "val/a.tar", ("0.jpg", JPEG), ("0.cls", b"2"))
    assert refusal(tmp_path, "val") == (
        f"{tmp_path}/val/a.tar:0.jpg has the label 2; train has 2 classes, counted from 0"
    )
    assert refusal(tmp_path, val_shards="*/a.tar") == (
        f"{tmp_path}/train/a.tar: a shard of both train and val; validate on other data"
    )
    assert "'/x/*.tar' is no pattern of files below data root" in refusal(tmp_path, val_shards="/x/*.tar")
    for text, sentence in (
        ("a\n\nb\n", "classes.txt, line 2 is empty; expected the name of class 1"),
        ("a\na\n", "classes.txt names a class twice: a"),
    ):
        (tmp_path / "classes.txt").write_text(text)
        assert refusal(tmp_path) == f"{tmp_path}/{sentence}"
    (tmp_path / "train/b.tar.zst").write_bytes(b"")
    assert refusal(tmp_path) == (
        f"{tmp_path} has compressed shards: b.tar.zst; samples are read at any place: decompress them"
    )


def test_packing_is_repeatable_and_the_scan_reads_shards(both, tmp_path, capsys):
    root, out = both()
    again = tmp_path / "again"
    assert pack([str(root), str(again), "--shard-bytes", "20000"]) == 0
    files = sorted(p.relative_to(out) for p in out.rglob("*.*"))
    assert files == sorted(p.relative_to(again) for p in again.rglob("*.*"))
    assert all((out / f).read_bytes() == (again / f).read_bytes() for f in files)
    assert np.loadtxt(out / "classes.txt", str).tolist() == ["ant", "bee"]
    capsys.readouterr()
    assert pack([str(root), str(out)]) == 2
    assert capsys.readouterr().err == f"error: {out} is not empty; name a new folder\n"
    assert scan.main([str(out), "--full", "--html", str(tmp_path / "page.html")]) == 0
    said = capsys.readouterr().out
    assert "as data set shards" in said
    assert "train: 24 files in 2 classes" in said
    assert (tmp_path / "page.html").read_text().count("data:image/jpeg;base64,") == 2


def test_bytes_that_dali_reads_from_our_memory_stay_there(both, plain):
    """Memory is used anew as soon as it is free."""
    root, out = both()
    ours, theirs = loader(packed(out), batch=4), loader(plain(root), batch=4)
    for epoch in range(8):
        first = epoch * ours.steps_per_epoch.first
        batches = []
        for batch in ours.epoch(first):
            batches.append(batch)
            np.full(20_000, 255, np.uint8)
            gc.collect()
        assert same(batches, theirs.epoch(first))


def test_files_stay_open_while_a_thread_reads_them(tmp_path, monkeypatch):
    monkeypatch.setattr(byte_range, "OPEN_FILES", 2)
    for n in range(6):
        (tmp_path / f"{n}").write_bytes(bytes([n]) * 50)
    ranges = byte_range.ByteRanges(
        tmp_path, np.array([b"%d\0" % n for n in range(6)], "S2"), np.array([[n % 6, n, 10] for n in range(30)])
    )
    pending = [ranges.read(np.arange(30)) for _ in range(20)]
    for answer in pending:
        assert [(part.tolist(), len(part)) for part in answer.result()] == [([n % 6] * 10, 10) for n in range(30)]
    assert len(ranges._opened._files) == 2


def test_a_file_given_up_stays_open_for_its_reader(tmp_path, monkeypatch):
    """Its number must not go to the next file while a thread is about to read."""
    monkeypatch.setattr(byte_range, "OPEN_FILES", 1)
    for n in range(2):
        (tmp_path / f"{n}").write_bytes(bytes([n]) * 10)
    ranges = byte_range.ByteRanges(tmp_path, np.array([b"0", b"1"]), np.array([[0, 0, 10], [1, 0, 10]]))
    really = os.preadv

    def after_another_thread(*args):
        ranges._opened(1, ranges._path)
        return really(*args)

    monkeypatch.setattr(os, "preadv", after_another_thread)
    assert ranges.fetch(np.array([0]))[0].tolist() == [0] * 10


def test_large_images_are_packed_smaller(tmp_path, texture, capsys):
    """Sizes, pixels against Pillow's own way, bytes of small ones and of files that are no images, and what is told."""
    root = tmp_path / "files"
    sizes = {"a.jpg": (90, 60), "b.jpg": (40, 30), "c.png": (33, 120), "d.jpg": (50, 50)}
    for split in ("train", "val"):
        for name, (width, height) in sizes.items():
            file = root / split / "one" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            texture(width, height).save(file, quality=95)
        (root / split / "one" / "e.jpg").write_bytes(b"no image")
        (root / split / "two").mkdir()
        shutil.copy(root / split / "one/b.jpg", root / split / "two/f.jpg")
    assert pack([str(root), str(tmp_path / "out"), "--max-side", "50", "--quality", "80"]) == 0
    assert "4 of 12 images were made smaller, to 50 px on the longer side, as JPEGs of quality 80: " in (
        capsys.readouterr().out
    )
    with tarfile.open(tmp_path / "out/train/000000.tar") as tar:
        found = [tar.extractfile(m).read() for m in tar.getmembers() if not m.name.endswith("cls")]
    for name, content in zip(sorted(sizes), found, strict=False):
        original = (root / "train/one" / name).read_bytes()
        width, height = sizes[name]
        if max(width, height) <= 50:
            assert content == original
            continue
        small = Image.open(io.BytesIO(content))
        assert small.format == "JPEG"
        assert small.size == {"a.jpg": (50, 33), "c.png": (14, 50)}[name]
        again = io.BytesIO()
        Image.open(io.BytesIO(original)).resize(small.size, Image.Resampling.LANCZOS).save(again, "JPEG", quality=80)
        assert np.array_equal(np.asarray(small), np.asarray(Image.open(again)))
    assert found[4] == b"no image"


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--quality", "90"], "give --max-side too"),
        (["--max-side", "0"], "--max-side 0: give a number of pixels"),
        (["--max-side", "9", "--quality", "101"], "--quality 101: give 1 to 100"),
    ],
)
def test_wrong_sizes_of_packed_images_are_refused(options, sentence, tmp_path, capsys):
    assert pack([str(tmp_path), str(tmp_path / "out"), *options]) == 2
    assert sentence in capsys.readouterr().err
