"""Fine-grained data sets with lists of their own: CUB, Cars, Aircraft, Flowers, Dogs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from lsdali.data.io.download import Download, obtain
from lsdali.data.io.formats import read_mat
from lsdali.data.sets.catalog import DataSet
from lsdali.data.sets.list_lines import lines
from lsdali.data.sets.listing import Split, few
from lsdali.data.sets.lists import ImageList, INat21, Listed, SplitFiles, words
from lsdali.errors import UserError


class Cub(Listed):
    """CUB-200-2011 (Wah et al., 2011): 200 species of birds."""

    name: Literal["cub"] = "cub"
    source: ClassVar[Download] = Download(
        None,
        {
            "lists": (
                "CUB_200_2011",
                ("images.txt", "image_class_labels.txt", "train_test_split.txt", "classes.txt", "images"),
            )
        },
        "https://data.caltech.edu/records/65de6-vp158",
    )
    samples: ClassVar[Mapping[str, int]] = {"train": 5_994, "val": 5_794}
    count: ClassVar[int] = 200

    def pairs(self, base: Path, kind: str, split: Split) -> SplitFiles:
        files = ("images.txt", "image_class_labels.txt", "train_test_split.txt", "classes.txt")
        paths, labels, training, classes = (dict(words(base / file)) for file in files)
        numbers = {c: k for k, c in enumerate(sorted(classes, key=int))}
        wanted = "1" if split == "train" else "0"
        try:
            pairs = [(f"images/{paths[i]}", numbers[labels[i]]) for i, flag in training.items() if flag == wanted]
        except KeyError as error:
            raise UserError(f"the lists in {base} do not fit together: no entry {error}; get them again") from None
        return pairs, [classes[c] for c in numbers], files


class Cars(Listed):
    """Stanford Cars (Krause et al., 2013): 196 makes and models."""

    name: Literal["cars"] = "cars"
    source: ClassVar[Download] = Download(
        None,
        {
            "one": (".", ("cars_annos.mat", "car_ims")),
            "devkit": (
                ".",
                (
                    *("devkit/cars_meta.mat", "devkit/cars_train_annos.mat", "cars_test_annos_withlabels.mat"),
                    *("cars_train", "cars_test"),
                ),
            ),
        },
        "https://www.kaggle.com/datasets/rickyyyyyyy/torchvision-stanford-cars",
    )
    samples: ClassVar[Mapping[str, int]] = {"train": 8_144, "val": 8_041}
    count: ClassVar[int] = 196

    def pairs(self, base: Path, kind: str, split: Split) -> SplitFiles:
        if kind == "one":
            content = read_mat(base / "cars_annos.mat", ("annotations", "class_names"))
            rows = content["annotations"].ravel()
            wanted = int(split == "val")
            pairs = [
                (text_of(r["relative_im_path"]), number_of(r["class"]) - 1)
                for r in rows
                if number_of(r["test"]) == wanted
            ]
            return pairs, [text_of(n) for n in content["class_names"].ravel()], ("cars_annos.mat",)
        file, folder = {
            "train": ("devkit/cars_train_annos.mat", "cars_train"),
            "val": ("cars_test_annos_withlabels.mat", "cars_test"),
        }[split]
        names = [text_of(n) for n in read_mat(base / "devkit/cars_meta.mat", ("class_names",))["class_names"].ravel()]
        rows = read_mat(base / file, ("annotations",))["annotations"].ravel()
        pairs = [(f"{folder}/{text_of(r['fname'])}", number_of(r["class"]) - 1) for r in rows]
        return pairs, names, (file, "devkit/cars_meta.mat")


class Aircraft(Listed):
    """FGVC-Aircraft (Maji et al., 2013): trained on trainval, validated on test."""

    name: Literal["aircraft"] = "aircraft"
    download: bool = False
    """Fetch the files with torchvision, which knows their checksums, if root does not exist yet."""
    level: Literal["variant", "family", "manufacturer", "merged"] = "variant"
    """The classes: 100 variants, 70 families, 30 manufacturers, or 90 as in the OLS paper (Zhang et al. 2021), where
    variants whose names have the same first word are one class."""
    source: ClassVar[Download] = Download(
        "FGVCAircraft",
        {
            "lists": (
                "fgvc-aircraft-2013b/data",
                (
                    *("images", "variants.txt", "families.txt", "manufacturers.txt"),
                    *(
                        f"images_{k}_{part}.txt"
                        for k in ("variant", "family", "manufacturer")
                        for part in ("trainval", "test")
                    ),
                ),
            )
        },
        "https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft",
    )
    samples: ClassVar[Mapping[str, int]] = {"train": 6_667, "val": 3_333}
    counts: ClassVar[Mapping[str, int]] = {"variant": 100, "family": 70, "manufacturer": 30, "merged": 90}

    def expected(self, split: Split) -> tuple[int, int]:
        return self.samples[split], self.counts[self.level]

    def layout(self) -> tuple[str, ...]:
        return (self.level,)

    def base(self) -> tuple[Path, str]:
        return obtain(self.root, self.source, download=self.download)

    def pairs(self, base: Path, kind: str, split: Split) -> SplitFiles:
        level = "variant" if self.level == "merged" else self.level
        plural = {"variant": "variants.txt", "family": "families.txt", "manufacturer": "manufacturers.txt"}[level]
        names = [line.strip() for line in lines(base / plural)]
        file = f"images_{level}_{'trainval' if split == 'train' else 'test'}.txt"
        number_of = {name: k for k, name in enumerate(names)}
        if self.level == "merged":
            names, number_of = merged(names)
        rows = words(base / file)
        if foreign := sorted({name for _, name in rows if name not in number_of}):
            raise UserError(f"{base / file} names classes that {base / plural} lacks: {few(foreign)}")
        return [(f"images/{i}.jpg", number_of[name]) for i, name in rows], names, (file, plural)


def merged(names: Sequence[str]) -> tuple[list[str], dict[str, int]]:
    """Merge names with the same first word: return the classes, and the class of each name, in their order."""
    first = [name.split()[0] for name in names]
    order = list(dict.fromkeys(first))
    number_of = {name: order.index(word) for name, word in zip(names, first, strict=True)}
    alone = {word: name for word, name in zip(first, names, strict=True) if first.count(word) == 1}
    return [alone.get(word, word) for word in order], number_of


class Flowers(Listed):
    """Oxford Flowers-102 (Nilsback and Zisserman, 2008); classes are named by their numbers, 1 to 102."""

    name: Literal["flowers"] = "flowers"
    download: bool = False
    """Fetch the files with torchvision, which knows their checksums, if root does not exist yet."""
    training: Literal["train", "trainval"] = "trainval"
    """Train on the 1,020 training images, or on the 1,020 of the official validation too; validated on test."""
    source: ClassVar[Download] = Download(
        "Flowers102",
        {"mat": ("flowers-102", ("jpg", "setid.mat", "imagelabels.mat"))},
        "https://www.robots.ox.ac.uk/~vgg/data/flowers/102",
    )
    samples: ClassVar[Mapping[str, int]] = {"train": 1_020, "trainval": 2_040, "val": 6_149}
    count: ClassVar[int] = 102

    def layout(self) -> tuple[str, ...]:
        return (self.training,)

    def base(self) -> tuple[Path, str]:
        return obtain(self.root, self.source, download=self.download)

    def expected(self, split: Split) -> tuple[int, int]:
        return self.samples[self.training if split == "train" else split], self.count

    def pairs(self, base: Path, kind: str, split: Split) -> SplitFiles:
        labels = read_mat(base / "imagelabels.mat", ("labels",))["labels"].ravel().astype(int)
        parts = ["tstid"] if split == "val" else ["trnid", "valid"][: 1 + (self.training == "trainval")]
        sets = read_mat(base / "setid.mat", parts)
        numbers = np.concatenate([sets[part].ravel().astype(int) for part in parts])
        if numbers.min(initial=1) < 1 or numbers.max(initial=0) > len(labels):
            raise UserError(f"{base}/setid.mat names images that imagelabels.mat lacks; get both again")
        pairs = [(f"jpg/image_{i:05d}.jpg", int(labels[i - 1]) - 1) for i in numbers.tolist()]
        return pairs, [str(k + 1) for k in range(self.count)], ("setid.mat", "imagelabels.mat")


class Dogs(Listed):
    """Stanford Dogs (Khosla et al., 2011): 120 breeds."""

    name: Literal["dogs"] = "dogs"
    source: ClassVar[Download] = Download(
        None,
        {"mat": (".", ("Images", "train_list.mat", "test_list.mat"))},
        "http://vision.stanford.edu/aditya86/ImageNetDogs",
    )
    samples: ClassVar[Mapping[str, int]] = {"train": 12_000, "val": 8_580}
    count: ClassVar[int] = 120

    def pairs(self, base: Path, kind: str, split: Split) -> SplitFiles:
        file = {"train": "train_list.mat", "val": "test_list.mat"}[split]
        content = read_mat(base / file, ("file_list", "labels"))
        paths = [text_of(path) for path in content["file_list"].ravel()]
        labels = (content["labels"].ravel().astype(int) - 1).tolist()
        breeds = {label: path.split("/")[0].partition("-")[2] for path, label in zip(paths, labels, strict=True)}
        pairs = [(f"Images/{path}", label) for path, label in zip(paths, labels, strict=True)]
        return pairs, [breeds[k] for k in sorted(breeds)], (file,)


def text_of(cell: Any) -> str:
    """Return the text in a cell of MATLAB's, however deep."""
    return text_of(cell.ravel()[0]) if isinstance(cell, np.ndarray) else str(cell)


def number_of(cell: Any) -> int:
    """Return the number in a cell of MATLAB's, however deep."""
    return int(text_of(cell))


DATA_SETS: dict[str, type[DataSet]] = {
    "list": ImageList,
    "inat21": INat21,
    "cub": Cub,
    "cars": Cars,
    "aircraft": Aircraft,
    "flowers": Flowers,
    "dogs": Dogs,
}
