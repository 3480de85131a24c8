"""Tiny ImageNet's own layout: a flat val folder with an annotation file."""

import os
from pathlib import Path

import numpy as np

from lsdali.data.sets.list_lines import lines
from lsdali.data.sets.listing import (
    Split,
    class_names,
    collect,
    few,
    join_paths,
    list_folders,
    require_apart,
    require_root,
)
from lsdali.data.sets.sample_index import Index
from lsdali.data.sets.walk import is_hidden
from lsdali.errors import UserError

ANNOTATIONS = "val/val_annotations.txt"


def list_tiny(root: str, split: Split) -> Index:
    """List train/<wnid>/**; val/images with val/val_annotations.txt, or val/<wnid>/**; classes are sorted wnids.

    Raises UserError if folders, annotations and wnids.txt do not fit together.
    """
    base = require_root(root, f"train/<wnid>/images, val/images, {ANNOTATIONS} and wnids.txt")
    require_apart(base, "train", "val")
    classes = class_names(base, "train")
    _check_wnids(base, classes)
    if split == "train":
        return collect(base, "train", {name: k for k, name in enumerate(classes)}, classes)
    if (base / "val/images").is_dir():
        return _annotated(base, classes)
    return list_folders(root, "train", "val", "val")


def _check_wnids(base: Path, classes: tuple[str, ...]) -> None:
    names = base / "wnids.txt"
    if not names.is_file():
        return
    if lacking := sorted({line.strip() for line in lines(names)} - set(classes)):
        raise UserError(f"{names} lists classes that {base / 'train'} lacks: {few(lacking)}; unpack the data again")


def _annotated(base: Path, classes: tuple[str, ...]) -> Index:
    file = base / ANNOTATIONS
    if not file.is_file():
        raise UserError(
            f"{base / 'val/images'} needs {file}, which says the class of each image; unpack the data again"
        )
    number = {name: k for k, name in enumerate(classes)}
    cells = [line.split("\t") for line in lines(file)]
    if bad := [k for k, row in enumerate(cells, 1) if len(row) < 2]:
        raise UserError(f"{file}, line {bad[0]}: expected a file name, a tab and a class; unpack the data again")
    rows = sorted((row[1], row[0]) for row in cells)
    if foreign := sorted({wnid for wnid, _ in rows} - set(classes)):
        raise UserError(f"{file} names classes that {base / 'train'} lacks: {few(foreign)}; unpack the data again")
    inside = (p.name for p in (base / "val/images").iterdir() if not is_hidden(os.fsencode(p.name)))
    lone = sorted({*inside} - {name for _, name in rows})
    if lone:
        raise UserError(f"{file} does not name the class of {few(lone)}; every image in val/images needs a line")
    if not rows:
        raise UserError(f"{file} is empty; expected one line for each image")
    paths = np.array([os.fsencode(f"val/images/{name}") for _, name in rows])
    labels = np.array([number[wnid] for wnid, _ in rows], np.int64)
    return Index(base, join_paths([paths]), labels, classes, ("val/images", ANNOTATIONS, "train"))
