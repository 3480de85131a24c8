"""List which files a split has and which class each belongs to, in torchvision's ImageFolder order."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lsdali.data.sets.layouts import suggest
from lsdali.data.sets.sample_index import Index
from lsdali.data.sets.walk import LeftOut, Walk
from lsdali.errors import UserError

Split = Literal["train", "val"]


def list_folders(root: str, train_dir: str, val_dir: str | None, split: Split) -> Index:
    """List root/train_dir/<class>/** or root/val_dir/<class>/**; the classes are the folders of train_dir.

    val_dir None: there need be no such folder, and the split is train. Raises UserError for a missing, empty,
    shared or foreign folder.
    """
    if val_dir is None:
        base = require_root(root, f"{train_dir}/<class>/<images>")
        require_folder(base, train_dir, train_dir, "train_dir")
        classes = class_names(base, train_dir)
        return collect(base, train_dir, {name: k for k, name in enumerate(classes)}, classes)
    base = require_root(root, f"{train_dir}/<class>/<images> and {val_dir}/<class>/<images>")
    require_apart(base, train_dir, val_dir)
    classes = class_names(base, train_dir)
    folder, present = train_dir, classes
    if split == "val":
        folder, present = val_dir, class_names(base, val_dir)
        _refuse_foreign(base / val_dir, present, classes)
        _refuse_shared(base, train_dir, val_dir, present)
    number = {name: k for k, name in enumerate(classes)}
    listing = collect(base, folder, {name: number[name] for name in present}, classes)
    # A new class in train renumbers val as well.
    return replace(listing, watched=(train_dir, *listing.watched))


def list_alone(root: str, val_dir: str, split: Split) -> Index:
    """List root/val_dir/<class>/**, whose folders are the classes: images to evaluate on, without training images.

    Raises UserError for a missing or empty folder, and if training images are asked for.
    """
    if split == "train":
        raise UserError("data.train_dir is null, so there is nothing to train on: name the folder of training images")
    base = require_root(root, f"{val_dir}/<class>/<images>")
    require_folder(base, val_dir, val_dir, "val_dir")
    classes = class_names(base, val_dir)
    return collect(base, val_dir, {name: k for k, name in enumerate(classes)}, classes)


def collect(base: Path, folder: str, labels: dict[str, int], classes: tuple[str, ...]) -> Index:
    """Return the listing of base/folder/<class>/** for every class in `labels`, in its order.

    Raises UserError for a class without an image.
    """
    left = LeftOut()
    walk = Walk(os.fsencode(base), left)
    walk.folders(os.fsencode(folder))  # counts the hidden ones
    watched, parts, counts = [folder], [], []
    for name in labels:
        found = walk.images(os.fsencode(f"{folder}/{name}"))
        paths = [below + b"/" + image for below, images in found for image in images]
        if not paths:
            raise UserError(_empty(base / folder / name, left))
        watched += [os.fsdecode(below) for below, _ in found]
        parts.append(np.array(paths, np.bytes_))
        counts.append(len(paths))
    numbers = np.repeat(np.fromiter(labels.values(), np.int64), counts)
    return Index(base, join_paths(parts), numbers, classes, tuple(watched), left_out=left)


def _empty(folder: Path, left: LeftOut) -> str:
    """Return what to say of a class folder without an image."""
    endings = f", but files with other endings ({', '.join(left.endings)})" if left.endings else ""
    return f"class folder {folder} holds no image{endings}; fill or remove it"


def from_pairs(base: Path, pairs: Iterable[tuple[str, int]], classes: Sequence[str], sources: Sequence[str]) -> Index:
    """Return the listing of (path relative to base, label) pairs from the files `sources`.

    Sorted by label, then path.
    """
    rows = sorted((label, os.fsencode(path)) for path, label in pairs)
    labels = np.array([label for label, _ in rows], np.int64)
    parents = sorted({os.path.dirname(os.fsdecode(path)) or "." for _, path in rows})
    return Index(base, join_paths([np.array([p for _, p in rows])]), labels, tuple(classes), (*sources, *parents))


def join_paths(parts: Iterable[NDArray[np.bytes_]]) -> NDArray[np.bytes_]:
    """Return one array of paths, wide enough that a NUL ends the longest."""
    arrays = list(parts)
    width = max(a.itemsize for a in arrays) + 1
    out = np.zeros(sum(map(len, arrays)), f"S{width}")
    start = 0
    for array in arrays:
        out[start : start + len(array)] = array
        start += len(array)
    return out


def require_root(root: str, layout: str) -> Path:
    """Return the root as the recipe spells it. Raises UserError if it is no folder."""
    base = Path(root).expanduser()
    if not base.is_dir():
        raise UserError(f"data root {base} is no folder; expected a folder with {layout}")
    return base


def require_folder(base: Path, name: str, expected: str, key: str = "") -> None:
    """Raise UserError, with what to write for what lies there instead, if a folder is missing."""
    if not (base / name).is_dir():
        way = suggest(base, key) if key else ""
        raise UserError(f"data root {base} has no folder {name}; expected {expected} in it{way}")


def require_apart(base: Path, train_dir: str, val_dir: str) -> None:
    """Check that both folders are there, and that neither is, or lies in, the other."""
    for name, key in ((train_dir, "train_dir"), (val_dir, "val_dir")):
        require_folder(base, name, f"{train_dir} and {val_dir}", key)
    train, val = base / train_dir, base / val_dir
    if train.samefile(val):
        raise UserError(f"train folder {train} and val folder {val} are the same folder; validate on other data")
    inner = {train.resolve(), val.resolve()}
    if Path(os.path.commonpath(inner)) in inner:
        raise UserError(f"train folder {train} and val folder {val} lie in each other; keep them side by side")


def class_names(base: Path, folder: str) -> tuple[str, ...]:
    """Return the names of the class folders, sorted. Raises UserError if there is none."""
    names = [os.fsdecode(name) for name in Walk(os.fsencode(base), LeftOut()).folders(os.fsencode(folder))]
    if not names:
        raise UserError(f"{base / folder} holds no class folder; expected {folder}/<class>/<images>")
    return tuple(sorted(names))


def few(names: Sequence[Any], limit: int = 5) -> str:
    """Return the first names, and how many more there are."""
    shown = ", ".join(str(n) for n in names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"


def _refuse_foreign(val: Path, present: Sequence[str], classes: Sequence[str]) -> None:
    known = set(classes)
    if foreign := [name for name in present if name not in known]:
        raise UserError(f"val folder {val} has classes that train lacks: {few(foreign)}; use the same class names")


def _refuse_shared(base: Path, train_dir: str, val_dir: str, present: Sequence[str]) -> None:
    for name in present:
        if (base / train_dir / name).samefile(base / val_dir / name):
            raise UserError(
                f"class folder {base / val_dir / name} is the same folder as {base / train_dir / name}; "
                "validate on other data"
            )
