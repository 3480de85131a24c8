"""Suggest what to write in a recipe if folders have other names or another layout."""

import os
from pathlib import Path

from lsdali.data.io.image_formats import is_image
from lsdali.data.sets.walk import is_hidden

HOLD_OUT = "data.holdout.fraction=0.2"
OTHER_NAMES = {
    "train_dir": ("train", "training", "trn", "train_set", "trainset"),
    "val_dir": ("val", "valid", "validation", "test", "testing", "eval", "dev", "val_set", "valset"),
}
"""How people call the folders of the two splits, in lower case."""
_SEEN = 1000  # entries of a folder that are looked at


def suggest(base: Path, key: str) -> str:
    """Return `: data.key=...` for what lies in `base` instead of the folder that the key names; empty for nothing."""
    folders = [name for name, is_folder in _entries(base) if is_folder]
    for other in OTHER_NAMES[key]:
        for name in folders:
            if name.lower() == other:
                return f": for {name}/ write data.{key}={name}"
    if key == "train_dir" and any(name in ("val", "validation", "test") for name in map(str.lower, folders)):
        return ": to evaluate only, write data.train_dir=null"
    if key == "val_dir":
        return f": without validation images, hold out a part of the training images with {HOLD_OUT}"
    classes = [name for name in folders if _holds_images(base / name)]
    if classes:
        shown = ", ".join(classes[:3]) + (" ..." if len(classes) > 3 else "")
        return f": for class folders without a split ({shown}) write data.train_dir=. {HOLD_OUT}"
    if inner := [name for name in folders if _holds_training(base / name)]:
        return f": write data.root={base / inner[0]}"
    if _holds_images(base):
        return ": images without class folders need lists of path and label: data.name=list"
    return ""


def _holds_images(folder: Path) -> bool:
    return any(is_image(name) for name, is_folder in _entries(folder) if not is_folder)


def _holds_training(folder: Path) -> bool:
    return any(name.lower() in OTHER_NAMES["train_dir"] for name, is_folder in _entries(folder) if is_folder)


def _entries(folder: Path) -> list[tuple[str, bool]]:
    """Return names of what lies in a folder, and whether each is a folder; sorted, none that is hidden."""
    try:
        with os.scandir(folder) as found:
            seen = [(entry.name, entry.is_dir()) for entry, _ in zip(found, range(_SEEN))]
    except OSError:
        return []
    return sorted((name, is_folder) for name, is_folder in seen if not is_hidden(os.fsencode(name)))
