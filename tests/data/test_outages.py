"""Files that go away or change: a short outage is waited for, a long one stops the run, a change is told."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from lsdali.clock import PerEpoch
from lsdali.data.index import decode_cache
from lsdali.data.index.decode_cache import decode
from lsdali.data.index.index import open_index, open_whole
from lsdali.data.io import cache
from lsdali.data.pipeline import outage
from lsdali.data.pipeline.loader import TrainLoader
from lsdali.data.pipeline.loaders import open_dataset
from lsdali.data.pipeline.options import LoaderOptions
from lsdali.data.sets.catalog import DataSet
from lsdali.data.sets.sample_index import Index
from lsdali.errors import UserError
from tests.data.conftest import Plain, Texture, Tree


def train_loader(config: DataSet, index: Index, lines: list[str]) -> TrainLoader:
    return TrainLoader(index, config, LoaderOptions(PerEpoch(4), 0, torch.device("cpu"), log=lines.append))


@pytest.mark.parametrize("part", ["", "train", "train/ant"])
def test_a_folder_that_comes_back_changes_nothing(
    tree: Tree, plain: Plain, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    root = tree(each=8)
    config, lines = plain(root), list[str]()
    index = open_index(config, "train")
    before = [batch.images.clone() for batch in train_loader(config, index, []).epoch(0)]
    folder, away = root / part, root.parent / "away"
    folder.rename(away)
    monkeypatch.setattr(outage.time, "sleep", lambda seconds: away.rename(folder))
    after = [batch.images.clone() for batch in train_loader(config, index, lines).epoch(0)]
    assert len(before) == len(after) == 4
    assert all(map(torch.equal, before, after))
    assert lines[0] == (
        f"folder {folder} is gone: No such file or directory; waiting for it, 30 s at most (data.wait_seconds)"
    )
    assert len(lines) == 2
    assert lines[1].startswith("it is back after ")


def test_a_class_folder_that_stays_away_stops_the_run_by_name(tree: Tree, plain: Plain) -> None:
    root = tree(each=8)
    config = plain(root, wait_seconds=0)
    loader = train_loader(config, open_index(config, "train"), [])
    (root / "train/ant").rename(root / "ant")
    with pytest.raises(UserError) as caught:
        list(loader.epoch(0))
    assert str(caught.value) == (
        f"folder {root}/train/ant is gone: No such file or directory; "
        "bring it back, and the same command goes on from the last checkpoint"
    )


@pytest.mark.parametrize(
    ("given", "samples", "most"), [(0.01, 1000, 10), (0.01, 12, 1), (0.01, 0, 1), (7, 12, 7), (0, 12, 0)]
)
def test_bad_files_are_allowed_by_number_or_part(
    tmp_path: Path, plain: Plain, given: float, samples: int, most: int
) -> None:
    assert plain(tmp_path, max_bad_files=given).bad_files_allowed(samples) == most


def test_the_default_is_one_in_a_hundred_and_at_least_one(tree: Tree, plain: Plain) -> None:
    root = tree(each=8)
    config = plain(root)
    config = config.model_copy(update={"max_bad_files": type(config).model_fields["max_bad_files"].default})
    (root / "train/ant/001.jpg").write_bytes(b"")
    train_loader(config, open_index(config, "train"), []).close()
    (root / "train/ant/002.jpg").write_bytes(b"")
    with pytest.raises(UserError, match=r"2 .* = 0\.01 of 16 files, which is 1: .*/ant/001.jpg \(empty\)"):
        train_loader(config, open_index(config, "train"), [])


def test_a_run_goes_on_after_a_file_is_deleted(tree: Tree, plain: Plain, texture: Texture) -> None:
    root = tree(each=8)
    config = plain(root)
    begun = open_dataset(config, "train").fingerprint
    (root / "train/ant/003.jpg").unlink()
    index = open_dataset(config, "train", begun=begun)
    assert index.fingerprint == begun
    assert index.faults() == [(f"{root}/train/ant/003.jpg", "missing")]
    assert len(open_dataset(config, "train")) == 15  # a new run has it not
    texture(20, 20).save(root / "train/ant/new.jpg")
    assert open_dataset(config, "train", begun=begun).fingerprint != begun  # other data: refused by the caller


def test_a_run_goes_on_after_files_are_deleted_one_after_another(tree: Tree, plain: Plain) -> None:
    """Between starts, each of which makes a new index, of which few are kept."""
    root = tree(each=12)
    config = plain(root)
    begun = open_dataset(config, "train").fingerprint
    for number in range(6):
        (root / f"train/ant/{number:03d}.jpg").unlink()
        index = open_dataset(config, "train", begun=begun)
        assert index.fingerprint == begun
        assert len(index.faults()) == number + 1
    assert len(list((cache.cache_dir() / "index").iterdir())) == 3


def test_changed_pixels_are_noticed(tree: Tree, plain: Plain, texture: Texture) -> None:
    root = tree(each=2)
    config, lines = plain(root), list[str]()
    open_whole(config, "train", lines.append)
    file = root / "train/ant/001.jpg"
    texture(90, 70).save(file)
    index = open_whole(config, "train", lines.append)
    assert tuple(index.size[1]) == (90, 70)
    assert lines == ["train files have changed since they were last scanned: 1 changed: train/ant/001.jpg"]
    open_whole(config, "train", lines.append)
    assert len(lines) == 1


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize(
    ("hurt", "said"),
    [
        (flip, "damaged: {} has other content than was written"),
        (Path.unlink, "not whole: {} is missing"),
        (lambda file: os.truncate(file, 0), "damaged: {} has other content than was written"),
    ],
)
def test_a_damaged_index_is_named_and_made_anew(
    tree: Tree, plain: Plain, hurt: Callable[[Path], None], said: str
) -> None:
    config, lines = plain(tree(each=2)), list[str]()
    good = open_whole(config, "train", lines.append)
    labels = good.labels.tolist()
    (folder,) = (cache.cache_dir() / "index").iterdir()
    hurt(folder / "labels.npy")
    new = open_whole(config, "train", lines.append)
    assert lines == [f"the cached index {folder} is {said.format('labels.npy')}; it is made anew"]
    assert (new.labels.tolist(), new.fingerprint) == (labels, good.fingerprint)


def test_damaged_decoded_images_are_named_and_made_anew(tree: Tree, plain: Plain, texture: Texture) -> None:
    root = tree(each=2)
    for k, file in enumerate(sorted(root.glob("*/*/*.jpg"))):
        texture(20, 20, k).save(file)
    index, lines = open_whole(plain(root), "train"), list[str]()
    first = np.array(decode(index, index, lines.append)[0].pixels)
    (folder,) = (cache.cache_dir() / "decoded").iterdir()
    flip(folder / "pixels.npy")
    again = decode(index, index, lines.append)[0].pixels
    assert again is not None
    assert np.array_equal(first, again)
    assert lines == [
        f"the decoded images in {folder} are damaged: pixels.npy has other content than was written; "
        "they are decoded anew"
    ]
    assert decode_cache.one_size(index) == (20, 20)


def test_all_is_synced_before_the_folder_gets_its_name(
    tree: Tree, plain: Plain, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    sync, rename = cache.sync, Path.rename
    monkeypatch.setattr(cache, "sync", lambda path: (done.append(path.name), sync(path))[1])
    monkeypatch.setattr(Path, "rename", lambda path, to: (done.append("rename"), rename(path, to))[1])
    open_index(plain(tree(each=2)), "train")
    (folder,) = (cache.cache_dir() / "index").iterdir()
    before, after = done[: done.index("rename")], done[done.index("rename") + 1 :]
    assert set(before[:-1]) == {file.name for file in folder.iterdir()}
    assert after == ["index"]
