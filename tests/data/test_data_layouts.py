"""What is said of folders that are called or arranged otherwise, and that what it says works."""

from pathlib import Path

import pytest

from lsdali.data.index.index import open_index
from lsdali.data.sets.catalog import Folder
from lsdali.errors import UserError
from lsdali.recipe.parse import apply_override
from tests.data.conftest import Tree

IMAGES = {"train": {"crop": "pad", "size": 32}, "eval": {"resize": 32, "size": 32}}


def said_of(root: Path, **keys: str) -> str:
    with pytest.raises(UserError) as caught:
        open_index(Folder.model_validate({"name": "folder", "root": str(root), **IMAGES, **keys}), "train")
    return str(caught.value).partition(" in it")[2]


def follow(root: Path, *overrides: str) -> tuple[int, int]:
    """Return the numbers of training and validation images with these overrides."""
    tree = {"data": {"name": "folder", "root": str(root), **IMAGES}}
    for override in overrides:
        apply_override(tree, override)
    config = Folder.model_validate(tree["data"])
    return len(open_index(config, "train")), len(open_index(config, "val"))


def test_class_folders_without_a_split(tree: Tree) -> None:
    root = tree(each=10) / "train"
    way = ["data.train_dir=.", "data.holdout.fraction=0.2"]
    assert said_of(root) == f": for class folders without a split (ant, bee) write {' '.join(way)}"
    assert follow(root, *way) == (16, 4)


@pytest.mark.parametrize("name", ["valid", "Validation", "test"])
def test_other_names_of_the_validation_folder(tree: Tree, name: str) -> None:
    root = tree()
    (root / "val").rename(root / name)
    assert said_of(root) == f": for {name}/ write data.val_dir={name}"
    assert follow(root, f"data.val_dir={name}") == (24, 8)


def test_other_names_of_the_training_folder(tree: Tree) -> None:
    root = tree()
    (root / "train").rename(root / "Training")
    assert said_of(root) == ": for Training/ write data.train_dir=Training"
    assert follow(root, "data.train_dir=Training") == (24, 8)


def test_no_validation_at_all(tree: Tree) -> None:
    root = tree(each=10)
    (root / "val").rename(root.parent / "elsewhere")
    way = "data.holdout.fraction=0.2"
    assert said_of(root) == f": without validation images, hold out a part of the training images with {way}"
    assert follow(root, way) == (16, 4)


def test_one_folder_too_high(tree: Tree) -> None:
    root = tree()
    assert said_of(root.parent) == f": write data.root={root}"


def test_images_without_folders(tree: Tree) -> None:
    root = tree()
    assert said_of(root / "train/ant") == ": images without class folders need lists of path and label: data.name=list"


def test_nothing_that_is_known(tmp_path: Path) -> None:
    (tmp_path / "papers").mkdir()
    assert said_of(tmp_path) == ""
