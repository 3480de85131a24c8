"""Data that comes as arrays: small files in the official formats, read back sample by sample."""

import gzip
import os
import pickle
import struct
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat
from torchvision import datasets

from lsdali.clock import PerEpoch
from lsdali.data import DATASETS
from lsdali.data.index.index import open_index
from lsdali.data.pipeline.loader import EvalLoader, TrainLoader
from lsdali.data.pipeline.loaders import eval_loader, open_dataset, train_loader
from lsdali.data.pipeline.options import LoaderOptions
from lsdali.data.pipeline.resident import ResidentEval
from lsdali.data.sampling.augment.erasing import RandomErasing
from lsdali.data.sampling.augment.photometric import ColorJitter
from lsdali.data.sampling.augment.policies import RandAugment
from lsdali.data.sets.arrays import Arrays
from lsdali.data.sets.catalog import CenterCrop, PadCrop, RandomResizedCrop
from lsdali.errors import UserError
from tests.harness import make_images

CPU = torch.device("cpu")
FASHION = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
COUNTS = {"train": 20, "val": 6}


OFFICIAL = {k: dict(kind.samples) for k, kind in DATASETS.items() if issubclass(kind, Arrays)}


def test_official_counts():
    small = {"train": 60_000, "val": 10_000}
    cifar = {"train": 50_000, "val": 10_000}
    svhn = {"train": 73_257, "val": 26_032}
    assert {"cifar10": cifar, "cifar100": cifar, "mnist": small, "fashionmnist": small, "svhn": svhn} == OFFICIAL


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    for kind in DATASETS.values():
        if issubclass(kind, Arrays):
            monkeypatch.setattr(kind, "samples", COUNTS)


def content(classes, channels=3, side=32):
    """split -> (pixels [N, H, W, C], labels [N])."""
    rng = np.random.default_rng(classes)
    return {
        split: (rng.integers(0, 256, (n, side, side, channels), np.uint8), rng.integers(0, classes, n))
        for split, n in COUNTS.items()
    }


def planes(pixels):
    """[N, H, W, C] -> [N, C H W] as CIFAR has it."""
    return pixels.transpose(0, 3, 1, 2).reshape(len(pixels), -1)


def dump(file, value, protocol=4):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(pickle.dumps(value, protocol))


def write_cifar10(root):
    data = content(10)
    folder = root / "cifar-10-batches-py"
    for k in range(5):
        x, y = (part[4 * k : 4 * k + 4] for part in data["train"])
        dump(folder / f"data_batch_{k + 1}", {b"data": planes(x), b"labels": y.tolist()})
    x, y = data["val"]
    dump(folder / "test_batch", {b"data": planes(x), b"labels": y.tolist()})
    dump(folder / "batches.meta", {b"label_names": [f"c{k}".encode() for k in range(10)]})
    return data, tuple(f"c{k}" for k in range(10))


def write_cifar10_binary(root):
    data = content(10)
    folder = root / "cifar-10-batches-bin"
    folder.mkdir(parents=True)
    rows = {split: np.hstack([y[:, None].astype(np.uint8), planes(x)]) for split, (x, y) in data.items()}
    for k in range(5):
        rows["train"][4 * k : 4 * k + 4].tofile(folder / f"data_batch_{k + 1}.bin")
    rows["val"].tofile(folder / "test_batch.bin")
    (folder / "batches.meta.txt").write_text("\n".join(f"c{k}" for k in range(10)) + "\n\n")
    return data, tuple(f"c{k}" for k in range(10))


def write_cifar100(root):
    data = content(100)
    folder = root / "cifar-100-python"
    for split, name in (("train", "train"), ("val", "test")):
        x, y = data[split]
        dump(folder / name, {b"data": planes(x), b"fine_labels": y.tolist(), b"coarse_labels": [0] * len(y)})
    dump(folder / "meta", {b"fine_label_names": [f"f{k}".encode() for k in range(100)], b"coarse_label_names": []})
    return data, tuple(f"f{k}" for k in range(100))


def write_cifar100_binary(root):
    data = content(100)
    folder = root / "cifar-100-binary"
    folder.mkdir(parents=True)
    for split, name in (("train", "train.bin"), ("val", "test.bin")):
        x, y = data[split]
        np.hstack([np.full((len(y), 1), 7, np.uint8), y[:, None].astype(np.uint8), planes(x)]).tofile(folder / name)
    (folder / "fine_label_names.txt").write_text("".join(f"f{k}\n" for k in range(100)))
    return data, tuple(f"f{k}" for k in range(100))


def idx(array):
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


def write_idx(folder, zipped=False):
    data = content(10, channels=1, side=28)
    folder.mkdir(parents=True)
    for split, part in (("train", "train"), ("val", "t10k")):
        x, y = data[split]
        for name, array in ((f"{part}-images-idx3-ubyte", x[..., 0]), (f"{part}-labels-idx1-ubyte", y)):
            (folder / (name + ".gz" * zipped)).write_bytes(gzip.compress(idx(array)) if zipped else idx(array))
    return data


def write_svhn(root):
    data = content(10)
    root.mkdir(parents=True)
    for split, name in (("train", "train_32x32.mat"), ("val", "test_32x32.mat")):
        x, y = data[split]
        savemat(root / name, {"X": x.transpose(1, 2, 3, 0), "y": np.where(y == 0, 10, y).astype(np.uint8)[:, None]})
    return data, tuple("0123456789")


WRITERS = {
    "cifar10": write_cifar10,
    "cifar10 binary": write_cifar10_binary,
    "cifar100": write_cifar100,
    "cifar100 binary": write_cifar100_binary,
    "mnist": lambda root: (write_idx(root / "MNIST/raw"), tuple("0123456789")),
    "fashionmnist": lambda root: (write_idx(root / "FashionMNIST/raw", zipped=True), FASHION),
    "fashionmnist flat": lambda root: (write_idx(root), FASHION),
    "svhn": write_svhn,
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_gives_pixels_labels_and_names(tmp_path, name):
    data, names = WRITERS[name](tmp_path / "data")
    config = DATASETS[name.split()[0]].model_validate(
        {"root": str(tmp_path / "data"), "mean": [0, 0, 0], "std": [1, 1, 1]}
    )
    for split, (pixels, labels) in data.items():
        index = open_dataset(config, split)
        assert index.classes == names
        assert index.labels.tolist() == labels.tolist()
        assert np.array_equal(index.pixels, pixels)
        assert len(index) == COUNTS[split] == len({index.path(i) for i in range(len(index))})
    loader = eval_loader(index, config, batch=4, device=CPU, half=False)
    images = torch.cat([b.images[b.valid] for b in loader])
    expected = torch.from_numpy(pixels).permute(0, 3, 1, 2).expand(-1, 3, -1, -1)
    assert torch.equal((images * 255).round().byte(), expected)
    trainer = train_loader(open_dataset(config, "train"), config, LoaderOptions(PerEpoch(5), 0, CPU))
    batches = list(trainer.epoch(0))
    assert sorted(i for b in batches for i in b.index.tolist()) == list(range(20))
    assert all(b.images.shape == (5, 3, config.train.size, config.train.size) for b in batches)


@pytest.mark.parametrize(
    "crop",
    [
        PadCrop(size=32, augment=[RandAugment(), RandomErasing(probability=0.5)]),
        RandomResizedCrop(size=24, augment=[ColorJitter()], repeats=2),
    ],
    ids=["padded", "resized"],
)
def test_what_needs_dali_gives_the_bits_of_files(tmp_path, plain, crop):
    """Arrays that are augmented or resized, against the same images as PNG files."""
    config = plain(make_images(tmp_path / "images", size=32), train=crop, eval=CenterCrop(resize=40, size=36))
    for split in ("train", "val"):
        files = open_index(config, split)
        pixels = np.stack([np.asarray(Image.open(files.path(i))) for i in range(len(files))])
        ours, theirs = (list(loader_of(i, config, split)) for i in (replace(files, pixels=pixels), files))
        assert len(ours) == len(theirs) > 1
        for a, b in zip(ours, theirs, strict=True):
            assert torch.equal(a.images, b.images)
            assert torch.equal(a.index, b.index)
            assert torch.equal(a.labels, b.labels)


def loader_of(index, config, split):
    if split == "val":
        return EvalLoader(index, config, batch=4, device=CPU, half=False)
    return TrainLoader(index, config, LoaderOptions(PerEpoch(4), 3, CPU)).epoch(7)


def test_a_recipe_may_augment_and_resize_arrays(tmp_path):
    write_idx(tmp_path / "data")
    resized = {"train": {"crop": "random_resized", "size": 40}, "eval": {"resize": 48, "size": 40}}
    augmented = {"train": {"crop": "pad", "size": 28, "augment": [{"name": "rotation"}]}}
    for tree, side, road in ((resized, 40, EvalLoader), (augmented, 28, ResidentEval)):
        said: list[str] = []
        config = DATASETS["mnist"].model_validate({"root": str(tmp_path / "data"), **tree})
        index = open_dataset(config, "train", said.append)
        loader = train_loader(index, config, LoaderOptions(PerEpoch(5), 0, CPU, log=said.append))
        assert isinstance(loader, TrainLoader)
        assert said[0].startswith("train images go through DALI: data.train.")
        seen = list(loader.epoch(0))
        assert sorted(i for b in seen for i in b.index.tolist()) == list(range(20))
        assert all(b.images.shape == (5, 3, side, side) for b in seen)
        level = 1.01 / 255 / config.std[0]  # gray stays gray but for DALI's rounding
        assert all((b.images[:, 0] - b.images[:, 2]).abs().max() < level for b in seen)
        assert isinstance(eval_loader(open_dataset(config, "val"), config, batch=4, device=CPU, half=False), road)


def test_crops_are_torchvisions(tmp_path):
    """Every crop of a padded image, flipped or not, is one of RandomCrop's, and all places occur."""
    data, _ = WRITERS["cifar10"](tmp_path)
    config = DATASETS["cifar10"].model_validate({"root": str(tmp_path), "mean": [0, 0, 0], "std": [1, 1, 1]})
    index = open_dataset(config, "train")
    loader = train_loader(index, config, LoaderOptions(PerEpoch(20), 0, CPU))
    padded = np.pad(data["train"][0], ((0, 0), (4, 4), (4, 4), (0, 0)))
    seen = set()
    for epoch in range(20):
        batch = next(loader.epoch(epoch))
        pixels = (batch.images * 255).round().byte().permute(0, 2, 3, 1).numpy()
        for i, image in zip(batch.index.tolist(), pixels):
            found = [
                (y, x, flip)
                for y in range(9)
                for x in range(9)
                for flip in (1, -1)
                if np.array_equal(padded[i, y : y + 32, x : x + 32][:, ::flip], image)
            ]
            assert len(found) == 1
            seen.add(found[0])
    assert {y for y, _, _ in seen} == {x for _, x, _ in seen} == set(range(9))
    assert {flip for _, _, flip in seen} == {1, -1}


def refusal(name, root, **more):
    with pytest.raises(UserError) as caught:
        open_index(DATASETS[name].model_validate({"root": str(root), **more}), "train")
    return str(caught.value)


def python2_pickle(pixels, labels):
    """The opcodes that Python 2 wrote in 2009: text as byte strings, NumPy's old module name."""

    def array(x):
        head = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01"
        shape = b"".join(b"J" + struct.pack("<i", n) for n in x.shape) + b"\x86"
        kind = b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNN" + 2 * (b"J" + struct.pack("<i", -1)) + b"K\x00tb"
        return head + shape + kind + b"\x89T" + struct.pack("<i", x.size) + x.tobytes() + b"tb"

    numbers = b"](" + b"".join(b"K" + bytes([n]) for n in labels) + b"e"
    return b"\x80\x02}(U\x04data" + array(pixels) + b"U\x0bfine_labels" + numbers + b"u."


def test_a_pickle_of_python_2_is_read(tmp_path):
    data, _ = write_cifar100(tmp_path)
    x, y = data["train"]
    (tmp_path / "cifar-100-python/train").write_bytes(python2_pickle(planes(x), y.tolist()))
    index = open_index(DATASETS["cifar100"].model_validate({"root": str(tmp_path)}), "train")
    assert np.array_equal(index.pixels, x)
    assert index.labels.tolist() == y.tolist()


@pytest.mark.parametrize("protocol", range(6))
def test_a_pickle_that_python_3_has_written_again_is_read(tmp_path, protocol):
    """Older protocols know no bytes; some people keep labels as NumPy's numbers."""
    data, names = write_cifar10(tmp_path)
    folder = tmp_path / "cifar-10-batches-py"
    for k in range(5):
        x, y = (part[4 * k : 4 * k + 4] for part in data["train"])
        content = {b"data": planes(x), b"labels": list(y), b"filenames": [b"a.png"] * 4, b"batch_label": b""}
        dump(folder / f"data_batch_{k + 1}", content, protocol)
    dump(folder / "batches.meta", {"label_names": list(names)}, protocol)
    index = open_index(DATASETS["cifar10"].model_validate({"root": str(tmp_path)}), "train")
    assert np.array_equal(index.pixels, data["train"][0])
    assert index.labels.tolist() == data["train"][1].tolist()
    assert index.classes == names


def test_svhn_with_its_extra_part(tmp_path, monkeypatch):
    data, _ = write_svhn(tmp_path / "svhn")
    config = {"root": str(tmp_path / "svhn"), "training": "train+extra"}
    monkeypatch.setattr(DATASETS["svhn"], "extra", 3)
    assert "lacks extra_32x32.mat" in refusal("svhn", tmp_path / "svhn", training="train+extra")
    more = np.arange(3 * 32 * 32 * 3).reshape(3, 32, 32, 3).astype(np.uint8)
    labels = np.array([[10], [1], [7]], np.uint8)
    savemat(tmp_path / "svhn/extra_32x32.mat", {"X": more.transpose(1, 2, 3, 0), "y": labels})
    train, val = (open_index(DATASETS["svhn"].model_validate(config), split) for split in ("train", "val"))
    assert np.array_equal(train.pixels, np.concatenate([data["train"][0], more]))
    assert train.labels.tolist() == [*data["train"][1].tolist(), 0, 1, 7]
    assert np.array_equal(val.pixels, data["val"][0])
    assert len(open_index(DATASETS["svhn"].model_validate({"root": config["root"]}), "train")) == COUNTS["train"]


def test_a_pickle_runs_nothing(tmp_path):
    write_cifar100(tmp_path)

    class Bomb:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path}/ran",)

    for protocol in (3, 4):
        dump(tmp_path / "cifar-100-python/train", {b"data": Bomb()}, protocol)
        assert "is no CIFAR file (it holds a posix.system, which CIFAR does not have)" in refusal("cifar100", tmp_path)
    assert not (tmp_path / "ran").exists()
    (tmp_path / "cifar-100-python/train").write_bytes(b"\x80\x04junk")
    assert "is no CIFAR file" in refusal("cifar100", tmp_path)


def test_wrong_counts_and_cut_files_are_named(tmp_path, monkeypatch):
    write_cifar100_binary(tmp_path / "a")
    file = tmp_path / "a/cifar-100-binary/train.bin"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    assert refusal("cifar100", tmp_path / "a") == (
        f"{file} has {20 * 3074 - 1} bytes, no multiple of 3074: it is cut; get the data again"
    )
    file.write_bytes(whole[:-3074])
    assert refusal("cifar100", tmp_path / "a") == (
        f"{file} holds 19 images and 19 labels; cifar100 has 20 of each in train: get the data again; for a part of "
        "it keep it whole and give data.classes or data.max_samples, or write images into class folders and use "
        "data.name=folder"
    )
    write_idx(tmp_path / "b")
    file = tmp_path / "b/train-images-idx3-ubyte"
    file.write_bytes(file.read_bytes()[:-5])
    assert "is no whole idx file (its head tells of (20, 28, 28) bytes, 15675 follow)" in refusal(
        "mnist", tmp_path / "b"
    )
    write_svhn(tmp_path / "c")
    (tmp_path / "c/train_32x32.mat").write_bytes(b"<html>")
    assert "is no MATLAB file with X and y" in refusal("svhn", tmp_path / "c")


def test_a_missing_layout_is_described(tmp_path):
    assert refusal("cifar100", tmp_path) == (
        f"data root {tmp_path} does not hold the data; expected cifar-100-python/ with train, test, meta, or "
        "cifar-100-binary/ with train.bin, test.bin, fine_label_names.txt; set data.download: true with a root that "
        "does not exist yet, or get it from https://www.cs.toronto.edu/~kriz/cifar.html"
    )
    write_cifar100(tmp_path)
    (tmp_path / "cifar-100-python/meta").unlink()
    assert f"{tmp_path}/cifar-100-python lacks meta; expected" in refusal("cifar100", tmp_path)


def test_changed_files_are_read_again_and_change_the_fingerprint(tmp_path):
    config = DATASETS["cifar100"].model_validate({"root": str(tmp_path)})
    write_cifar100(tmp_path)
    before = open_index(config, "train")
    x, y = content(100)["train"]
    x[3, 0, 0, 0] ^= 1
    dump(tmp_path / "cifar-100-python/train", {b"data": planes(x), b"fine_labels": y.tolist()})
    after = open_index(config, "train")
    assert after.fingerprint != before.fingerprint
    assert np.argwhere(np.asarray(after.pixels) != before.pixels).tolist() == [[3, 0, 0, 0]]


def test_download_once_and_whole(tmp_path, monkeypatch):
    calls = []

    class Fake:
        def __init__(self, root, download):
            assert download
            calls.append(root)
            write_cifar100(type(tmp_path)(root))

    root = tmp_path / "new/cifar"
    assert "does not hold the data" in refusal("cifar100", root)
    monkeypatch.setattr(datasets, "CIFAR100", Fake)
    config = DATASETS["cifar100"].model_validate({"root": str(root), "download": True})
    assert len(open_index(config, "train")) == 20
    assert len(open_index(config, "val")) == 6
    assert len(calls) == 1
    assert calls[0] != str(root)
    assert [p.name for p in root.parent.iterdir()] == ["cifar"]

    class Broken:
        def __init__(self, root, download):
            write_cifar100(type(tmp_path)(root))
            raise RuntimeError("File not found or corrupted.")

    monkeypatch.setattr(datasets, "CIFAR100", Broken)
    assert refusal("cifar100", tmp_path / "other", download=True) == (
        "data.download: CIFAR100 could not be fetched (File not found or corrupted.); get it from "
        f"https://www.cs.toronto.edu/~kriz/cifar.html into {tmp_path}/other"
    )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["new"]
