"""Data sets whose lists say which file belongs to which class: their base, iNaturalist, and your own lists."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Literal

from lsdali.config import PathText
from lsdali.data.io.download import Download, obtain
from lsdali.data.sets.catalog import CenterCrop, Files, RandomResizedCrop, TrainCrop
from lsdali.data.sets.list_lines import lines, read_rows
from lsdali.data.sets.listing import Split, class_names, collect, few, from_pairs, require_root
from lsdali.data.sets.sample_index import Index
from lsdali.errors import UserError

Pairs = list[tuple[str, int]]  # path relative to root, label
SplitFiles = tuple[Pairs, Sequence[str], Sequence[str]]  # of a split; class names; the list files that were read


class Listed(Files):
    """Files that official lists name, one for training and one for testing."""

    train: TrainCrop = RandomResizedCrop(size=224)
    eval: CenterCrop = CenterCrop(resize=256, size=224)

    source: ClassVar[Download]
    samples: ClassVar[Mapping[str, int]]
    count: ClassVar[int]  # classes

    def listing(self, split: Split) -> Index:
        base, kind = self.base()
        pairs, names, sources = self.pairs(base, kind, split)
        images, classes = self.expected(split)
        if (len(pairs), len(names)) != (images, classes):
            raise UserError(
                f"{base} lists {len(pairs)} {split} images of {len(names)} classes; {self.name} has {images} of "
                f"{classes}: get the lists again; {self.part(split)}"
            )
        if strange := [label for _, label in pairs if not 0 <= label < classes]:
            raise UserError(f"{base} has the label {strange[0]}, counted from 0; {self.name} has {classes} classes")
        return from_pairs(base, pairs, names, sources)

    def base(self) -> tuple[Path, str]:
        return obtain(self.root, self.source, download=False)

    def part(self, split: Split) -> str:
        """Return how to use a part of the data set."""
        return (
            "for a part of it keep them whole and give data.classes or data.max_samples, or write lists of your own "
            "and use data.name=list"
        )

    def expected(self, split: Split) -> tuple[int, int]:
        """Return images of the split, and classes."""
        return self.samples[split], self.count

    def pairs(self, base: Path, kind: str, split: Split) -> SplitFiles:
        """Return paths below base with labels from 0; `kind` is the layout that was found."""
        raise NotImplementedError


class INat21(Listed):
    """iNaturalist 2021 (Van Horn et al., 2021): 10,000 species, with its lists or as torchvision unpacks it."""

    name: Literal["inat21"] = "inat21"
    download: bool = False
    """Fetch the images with torchvision, which knows their checksums, if root does not exist yet."""
    subset: Literal["train", "train_mini"] = "train_mini"
    """Which training set: all 2,686,843 images, or the 50 of each species."""
    samples: ClassVar[Mapping[str, int]] = {"train": 2_686_843, "train_mini": 500_000, "val": 100_000}
    count: ClassVar[int] = 10_000

    def expected(self, split: Split) -> tuple[int, int]:
        return self.samples[self.subset if split == "train" else split], self.count

    def layout(self) -> tuple[str, ...]:
        return (self.subset,)

    def part(self, split: Split) -> str:
        dirs: tuple[str, str] = (self.subset, "val")
        if not (Path(self.root) / self.subset).is_dir():
            dirs = (VERSIONS[self.subset], VERSIONS["val"])
        return (
            "for a part of it keep the whole and give data.classes or data.max_samples, or use its folders as they "
            f"are: data.name=folder data.train_dir={dirs[0]} data.val_dir={dirs[1]}"
        )

    def base(self) -> tuple[Path, str]:
        parts = (self.subset,) if self.holdout else (self.subset, "val")
        folders = [VERSIONS[part] for part in parts]
        layouts = {
            "json": (".", tuple(name for part in parts for name in (f"{part}.json", part))),
            "folders": (".", tuple(folders)),
        }
        calls = tuple({"version": folder} for folder in folders)
        source = Download("INaturalist", layouts, "https://github.com/visipedia/inat_comp", calls)
        return obtain(self.root, source, download=self.download)

    def pairs(self, base: Path, kind: str, split: Split) -> SplitFiles:
        part = self.subset if split == "train" else "val"
        return species_lists(base, f"{part}.json") if kind == "json" else species_folders(base, VERSIONS[part])


VERSIONS = {"train": "2021_train", "train_mini": "2021_train_mini", "val": "2021_valid"}
"""torchvision's names of the parts of iNaturalist 2021."""


def species_lists(base: Path, file: str) -> SplitFiles:
    """Return what an official list of iNaturalist holds; labels follow the numbers of the species."""
    try:
        content = json.loads((base / file).read_bytes())
        names = {int(c["id"]): str(c["name"]) for c in content["categories"]}
        paths = {int(i["id"]): str(i["file_name"]) for i in content["images"]}
        number = {c: k for k, c in enumerate(sorted(names))}
        pairs = [(paths[int(a["image_id"])], number[int(a["category_id"])]) for a in content["annotations"]]
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise UserError(
            f"{base / file} is no list of iNaturalist ({error!r}): expected categories (id, name), images "
            "(id, file_name) and annotations (image_id, category_id)"
        ) from None
    return pairs, [names[c] for c in sorted(names)], (file,)


def species_folders(base: Path, folder: str) -> SplitFiles:
    """List the images of a folder for each species, `00042_Animalia_Arthropoda_..._Apis_mellifera`.

    Labels and names are those of the lists.
    """
    species = [name.split("_", 7) for name in class_names(base, folder)]
    if strange := ["_".join(words) for words in species if len(words) < 8]:
        raise UserError(
            f"{base / folder} holds {few(strange)}; a folder of iNaturalist is named number_kingdom_phylum_class_order_"
            "family_genus_species"
        )
    names = tuple(" ".join(words[6:]).replace("_", " ") for words in species)
    found = collect(base, folder, {"_".join(words): k for k, words in enumerate(species)}, names)
    return [(os.fsdecode(p), int(k)) for p, k in zip(found.paths, found.labels, strict=True)], names, (folder,)


class ImageList(Files):
    """Any images that two text files list, one `path label` per line, or `path;label`, `path,label`, or with a tab.

    Paths may contain spaces, and so may labels if the separator is not a space. Labels are numbers from 0, or else
    names, numbered in their sorted order; the training list has every class.
    """

    name: Literal["list"] = "list"
    train_list: PathText | None = "train.txt"
    """The list of training images, relative to root; null: there is none, to evaluate only."""
    val_list: PathText = "val.txt"
    """The list of validation images, relative to root."""
    train: TrainCrop = RandomResizedCrop(size=224)
    eval: CenterCrop = CenterCrop(resize=256, size=224)
    images: PathText = "."
    """The folder that the paths start from, relative to root."""

    def trainable(self) -> bool:
        return self.train_list is not None

    def layout(self) -> tuple[str, ...]:
        return (self.train_list or "", "" if self.holdout else self.val_list, self.images)

    def listing(self, split: Split) -> Index:
        base = require_root(self.root, f"{self.train_list or ''} {self.val_list}, lines of: path label".strip())
        if self.train_list is None and split == "train":
            raise UserError("data.train_list is null, so there is nothing to train on: name a list of training images")
        train = self._rows(base, self.train_list or self.val_list)
        used = {label for _, label in train}
        numbers = all(label.isdecimal() for label in used)
        names = [str(k) for k in range(max(map(int, used)) + 1)] if numbers else sorted(used)
        number = {name: k for k, name in enumerate(names)}
        rows = train
        lists = tuple(name for name in (self.train_list, None if self.holdout else self.val_list) if name is not None)
        if self.holdout is None and self.train_list is not None:
            val = self._rows(base, self.val_list)
            self._refuse(base, self.train_list, train, val)
            rows = train if split == "train" else val
        pairs = [(path, number[label]) for path, label in rows]
        return from_pairs(base, pairs, names, lists)

    def _rows(self, base: Path, file: str) -> list[tuple[str, str]]:
        below = "" if self.images == "." else f"{self.images}/"
        return [(f"{below}{path}", label) for path, label in read_rows(base / file, base / self.images)]

    def _refuse(self, base: Path, train_list: str, train: list[tuple[str, str]], val: list[tuple[str, str]]) -> None:
        known = {label for _, label in train}
        if foreign := sorted({label for _, label in val} - known):
            raise UserError(f"{base / self.val_list} has labels that {train_list} lacks: {few(foreign)}")
        if shared := sorted({path for path, _ in val} & {path for path, _ in train}):
            raise UserError(
                f"{few(shared)}: in both {base / train_list} and {base / self.val_list}; validate on other images"
            )


def words(file: Path) -> list[tuple[str, str]]:
    """Return the first word of every line, and the rest of it."""
    rows = [line.strip().partition(" ") for line in lines(file)]
    if bad := [k for k, (_, _, rest) in enumerate(rows, 1) if not rest]:
        raise UserError(f"{file}: entry {bad[0]} has one word; expected two")
    return [(first, rest.strip()) for first, _, rest in rows]
