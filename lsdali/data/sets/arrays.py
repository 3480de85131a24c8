"""Data sets that come as arrays: CIFAR, MNIST, FashionMNIST, SVHN.

Every file is read by formats.py, and nothing that one holds is executed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from lsdali.data.io.byte_range import Bytes
from lsdali.data.io.download import Download, obtain
from lsdali.data.io.formats import read_idx, read_mat, read_pickle
from lsdali.data.sets.catalog import CenterCrop, Channels, DataSet, PadCrop, Spreads, TrainCrop
from lsdali.data.sets.listing import Split
from lsdali.data.sets.sample_index import Index
from lsdali.errors import UserError

SplitArrays = tuple[Bytes, NDArray[np.int64], Sequence[str], tuple[str, ...]]  # pixels, labels, class names, files
_DIGITS = tuple("0123456789")


class Arrays(DataSet):
    """Images of one size in one array."""

    download: bool = False
    """Fetch the files with torchvision, which knows their checksums, if root does not exist yet."""
    train: TrainCrop = PadCrop(size=32)
    eval: CenterCrop = CenterCrop(resize=32, size=32)

    source: ClassVar[Download]
    samples: ClassVar[Mapping[Split, int]]

    def listing(self, split: Split) -> Index:
        base, kind = obtain(self.root, self.origin(), download=self.download)
        pixels, labels, names, files = self.read(base, kind, split)
        where = ", ".join(str(base / f) for f in files)
        expected = self.expected(split)
        if not len(pixels) == len(labels) == expected:
            raise UserError(
                f"{where} holds {len(pixels)} images and {len(labels)} labels; {self.name} has "
                f"{expected} of each in {split}: get the data again; for a part of it keep it whole "
                "and give data.classes or data.max_samples, or write images into class folders and use data.name=folder"
            )
        if len(labels) and not 0 <= labels.min() <= labels.max() < len(names):
            raise UserError(f"{where} has the label {labels.max()}; {self.name} has {len(names)} classes")
        paths = np.char.encode(np.char.add(f"{files[0]}#", np.arange(len(labels)).astype(str)))
        return Index(base, paths.astype(f"S{paths.itemsize + 1}"), labels, tuple(names), files, pixels)

    def origin(self) -> Download:
        """Return where the files come from."""
        return self.source

    def expected(self, split: Split) -> int:
        """Return images of the split."""
        return self.samples[split]

    def read(self, base: Path, kind: str, split: Split) -> SplitArrays:
        """Return [N, H, W, C], [N], class names, and the files that were read; `kind` is the layout that was found."""
        raise NotImplementedError


class Cifar10(Arrays):
    """CIFAR-10 (Krizhevsky, 2009): 60,000 colour images of 32x32 pixels."""

    name: Literal["cifar10"] = "cifar10"
    mean: Channels = (0.4914, 0.4822, 0.4465)
    std: Spreads = (0.2023, 0.1994, 0.2010)
    source: ClassVar[Download] = Download(
        "CIFAR10",
        {
            "python": (
                "cifar-10-batches-py",
                (*(f"data_batch_{k}" for k in range(1, 6)), "test_batch", "batches.meta"),
            ),
            "binary": (
                "cifar-10-batches-bin",
                (*(f"data_batch_{k}.bin" for k in range(1, 6)), "test_batch.bin", "batches.meta.txt"),
            ),
        },
        "https://www.cs.toronto.edu/~kriz/cifar.html",
    )
    samples: ClassVar[Mapping[Split, int]] = {"train": 50_000, "val": 10_000}

    def read(self, base: Path, kind: str, split: Split) -> SplitArrays:
        end = ".bin" if kind == "binary" else ""
        files = tuple(f"data_batch_{k}{end}" for k in range(1, 6)) if split == "train" else (f"test_batch{end}",)
        return _cifar(base, kind, files, ("batches.meta", "label_names", "labels"), coarse=0)


class Cifar100(Arrays):
    """CIFAR-100 (Krizhevsky, 2009): 60,000 colour images of 32x32 pixels; the fine labels."""

    name: Literal["cifar100"] = "cifar100"
    mean: Channels = (0.4914, 0.4822, 0.4465)
    std: Spreads = (0.2023, 0.1994, 0.2010)
    source: ClassVar[Download] = Download(
        "CIFAR100",
        {
            "python": ("cifar-100-python", ("train", "test", "meta")),
            "binary": ("cifar-100-binary", ("train.bin", "test.bin", "fine_label_names.txt")),
        },
        "https://www.cs.toronto.edu/~kriz/cifar.html",
    )
    samples: ClassVar[Mapping[Split, int]] = {"train": 50_000, "val": 10_000}

    def read(self, base: Path, kind: str, split: Split) -> SplitArrays:
        file = {"train": "train", "val": "test"}[split] + (".bin" if kind == "binary" else "")
        return _cifar(base, kind, (file,), ("meta", "fine_label_names", "fine_labels"), coarse=1)


def _idx(name: str) -> Download:
    files = [f"{part}-{what}" for part in ("train", "t10k") for what in ("images-idx3-ubyte", "labels-idx1-ubyte")]
    where = {
        "MNIST": "https://huggingface.co/datasets/ylecun/mnist",
        "FashionMNIST": "https://github.com/zalandoresearch/fashion-mnist",
    }
    return Download(
        name,
        {"idx": (f"{name}/raw", tuple(files)), "gzip": (f"{name}/raw", tuple(f"{file}.gz" for file in files))},
        where[name],
    )


class Idx(Arrays):
    """70,000 gray images of 28x28 pixels in LeCun's format."""

    samples: ClassVar[Mapping[Split, int]] = {"train": 60_000, "val": 10_000}
    names: ClassVar[Sequence[str]]

    def read(self, base: Path, kind: str, split: Split) -> SplitArrays:
        part, end = {"train": "train", "val": "t10k"}[split], ".gz" if kind == "gzip" else ""
        files: tuple[str, ...] = (f"{part}-images-idx3-ubyte{end}", f"{part}-labels-idx1-ubyte{end}")
        pixels, labels = (read_idx(base / file) for file in files)
        if pixels.ndim != 3 or labels.ndim != 1:
            raise UserError(f"{base / files[0]} and {base / files[1]} must hold images and labels; get the data again")
        return pixels[..., None], labels.astype(np.int64), self.names, files


class Mnist(Idx):
    """MNIST (LeCun et al., 1998): handwritten digits."""

    name: Literal["mnist"] = "mnist"
    train: TrainCrop = PadCrop(size=28, pad=2, flip=0.0)
    eval: CenterCrop = CenterCrop(resize=28, size=28)
    mean: Channels = (0.1307, 0.1307, 0.1307)
    std: Spreads = (0.3081, 0.3081, 0.3081)
    source: ClassVar[Download] = _idx("MNIST")
    names: ClassVar[Sequence[str]] = _DIGITS


class FashionMnist(Idx):
    """FashionMNIST (Xiao et al., 2017): pictures of clothes."""

    name: Literal["fashionmnist"] = "fashionmnist"
    train: TrainCrop = PadCrop(size=28, pad=2)
    eval: CenterCrop = CenterCrop(resize=28, size=28)
    mean: Channels = (0.2860, 0.2860, 0.2860)
    std: Spreads = (0.3530, 0.3530, 0.3530)
    source: ClassVar[Download] = _idx("FashionMNIST")
    names: ClassVar[Sequence[str]] = (
        *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
        *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
    )


class Svhn(Arrays):
    """SVHN (Netzer et al., 2011), cropped digits: 99,289 colour images of 32x32 pixels, and 531,131 easier ones."""

    name: Literal["svhn"] = "svhn"
    train: TrainCrop = PadCrop(size=32, flip=0.0)
    mean: Channels = (0.4377, 0.4438, 0.4728)
    std: Spreads = (0.1980, 0.2010, 0.1970)
    source: ClassVar[Download] = Download(
        "SVHN",
        {"mat": (".", ("train_32x32.mat", "test_32x32.mat"))},
        "http://ufldl.stanford.edu/housenumbers",
        ({"split": "train"}, {"split": "test"}),
    )
    training: Literal["train", "train+extra"] = "train"
    """Train on the training images, or on the extra ones too (extra_32x32.mat): 604,388 images."""
    samples: ClassVar[Mapping[Split, int]] = {"train": 73_257, "val": 26_032}
    extra: ClassVar[int] = 531_131

    def layout(self) -> tuple[str, ...]:
        return (self.training,) if self.training != "train" else ()

    def origin(self) -> Download:
        if self.training == "train":
            return self.source
        files = ("train_32x32.mat", "test_32x32.mat", "extra_32x32.mat")
        calls = tuple({"split": part} for part in ("train", "test", "extra"))
        return replace(self.source, layouts={"mat": (".", files)}, calls=calls)

    def expected(self, split: Split) -> int:
        more = self.extra if split == "train" and self.training == "train+extra" else 0
        return self.samples[split] + more

    def read(self, base: Path, kind: str, split: Split) -> SplitArrays:
        files: tuple[str, ...] = (f"{'test' if split == 'val' else 'train'}_32x32.mat",)
        if split == "train" and self.training == "train+extra":
            files = (*files, "extra_32x32.mat")
        parts = [read_mat(base / file, ("X", "y")) for file in files]
        labels = np.concatenate([part["y"].astype(np.int64).ravel() for part in parts]) % 10  # 0 has the label 10
        pixels = np.concatenate([part["X"].transpose(3, 0, 1, 2) for part in parts])
        return np.ascontiguousarray(pixels), labels, _DIGITS, files


def _cifar(base: Path, kind: str, files: tuple[str, ...], keys: tuple[str, str, str], *, coarse: int) -> SplitArrays:
    """CIFAR's two formats; `coarse` counts the label bytes before the one that is read."""
    meta, names_key, labels_key = keys
    if kind == "binary":
        text = base / ("fine_label_names.txt" if coarse else "batches.meta.txt")
        rows = np.concatenate([_records(base / file, 3073 + coarse) for file in files])
        labels, flat = rows[:, coarse].astype(np.int64), rows[:, coarse + 1 :]
        names = text.read_text().split()
    else:
        parts = [read_pickle(base / file) for file in files]
        flat = np.concatenate([np.asarray(part["data"], np.uint8).reshape(-1, 3072) for part in parts])
        labels = np.concatenate([np.asarray(part[labels_key], np.int64) for part in parts])
        names = [
            name.decode() if isinstance(name, bytes) else str(name) for name in read_pickle(base / meta)[names_key]
        ]
    return np.ascontiguousarray(flat.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)), labels, names, files


def _records(file: Path, length: int) -> Bytes:
    content = np.fromfile(file, np.uint8)
    if len(content) % length:
        raise UserError(f"{file} has {len(content)} bytes, no multiple of {length}: it is cut; get the data again")
    return content.reshape(-1, length)


DATA_SETS: dict[str, type[DataSet]] = {
    "cifar10": Cifar10,
    "cifar100": Cifar100,
    "mnist": Mnist,
    "fashionmnist": FashionMnist,
    "svhn": Svhn,
}
