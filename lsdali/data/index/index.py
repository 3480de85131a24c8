"""Open the index of a split, cached on disk and memory-mapped by every process, and choose what a recipe uses."""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from lsdali import dist
from lsdali.data.index import stored
from lsdali.data.index.stored import Log
from lsdali.data.io.cache import on_each_node
from lsdali.data.io.header import GOOD, MISSING, TOO_MANY
from lsdali.data.io.remote import load_ranges
from lsdali.data.sampling.sampler import stratified
from lsdali.data.sets.catalog import DataSet
from lsdali.data.sets.listing import Split
from lsdali.data.sets.sample_index import Index
from lsdali.data.sets.splits import Chosen, held_out, noisy, of_classes, whole
from lsdali.data.sets.walk import LeftOut
from lsdali.errors import UserError


def open_index(config: DataSet, split: Split) -> Index:
    """Return the index of what the recipe uses of one split.

    Raises UserError for a wrong layout or choice, and if the ranks see different files. Collective.
    """
    return select(config, split, open_whole(config, split))


def open_whole(config: DataSet, split: Split, log: Log = print) -> Index:
    """Return the index of a whole split.

    One process of each node scans it, and only if files have changed, which it tells `log`.

    Raises UserError for a wrong layout, and if the ranks see different files. Collective.
    """
    index = _load(config, on_each_node(lambda: stored.current_folder(config, source(config, split), log)))
    _refuse_different(index, split, dist.gather_objects(index.fingerprint))
    return index


def as_begun(config: DataSet, split: Split, index: Index, fingerprint: str) -> Index:
    """Return the whole split as it was when a run began whose training set has the fingerprint.

    Files that are gone since are marked as missing.

    So a run goes on in its own order after a file is gone. The index stays if no such one is cached, or if there
    are files now that were not there then. Collective.
    """
    begun = None
    if split == "train" or config.holdout:
        begun = next(_like(config, split, index, fingerprint), None)
    answers = dist.gather_objects(None if begun is None else begun.fingerprint)
    return index if begun is None or len(set(answers)) > 1 else begun


def _like(config: DataSet, split: Split, index: Index, fingerprint: str) -> Iterator[Index]:
    if _train_print(config, index) == fingerprint:
        yield index
    for folder in stored.folders(config, source(config, split)):
        if not stored.intact(config, source(config, split), folder):
            continue
        before = _load(config, folder)
        missing = stored.gone(before.paths, index.paths)
        if missing is not None and _train_print(config, before) == fingerprint:
            stored.keep_longer(folder)
            yield replace(before, status=np.where(missing, MISSING, before.status).astype(np.uint8))


def _train_print(config: DataSet, index: Index) -> str:
    try:
        return subset(index, _choose(config, "train", index)).fingerprint
    except UserError:
        return ""


def source(config: DataSet, split: Split) -> Split:
    """Return the split whose files are read: a held-out part comes from train."""
    return "train" if config.holdout else split


def select(config: DataSet, split: Split, index: Index) -> Index:
    """Return the samples and labels that the recipe uses of a whole split.

    Raises UserError for a choice that does not fit, and if the ranks see different files. Collective.
    """
    problem = ""
    try:
        index = subset(index, _choose(config, split, index))
    except UserError as error:
        problem = str(error)
    answers = dist.gather_objects((index.fingerprint, problem))
    if problems := [p for _, p in answers if p]:
        raise UserError(problems[0])
    _refuse_different(index, split, [p for p, _ in answers])
    return index


def _refuse_different(index: Index, split: Split, prints: list[str]) -> None:
    if other := [r for r, p in enumerate(prints) if p != prints[0]]:
        raise UserError(
            f"rank {other[0]} sees other {split} files or labels in {index.root} than rank 0; "
            "copy the same data to every machine"
        )


def _choose(config: DataSet, split: Split, index: Index) -> Chosen:
    part = whole(np.asarray(index.labels), index.classes)
    if config.classes is not None:
        part = of_classes(part, config.classes)
    if config.holdout is not None:
        part = held_out(part, split, config.holdout)
    if split == "train" and config.max_samples is not None and config.max_samples < len(part.labels):
        part = part.at(stratified(part.labels, config.max_samples))
    if split == "train" and config.noise is not None:
        part = noisy(part, config.noise, config.noise_seed)
    return part


def _load(config: DataSet, folder: Path) -> Index:
    def array(name: str) -> Any:
        return np.load(folder / f"{name}.npy", mmap_mode="r")

    root = as_written(config, stored.root_of(folder))
    labels, size, status = array("labels"), array("size"), array("status")
    many = (status == GOOD) & (size[:, 0].astype(np.int64) * size[:, 1] > config.max_pixels)
    stamps = folder / "changed.npy"
    return Index(
        root=root,
        paths=stored.paths_of(folder),
        labels=labels,
        size=size,
        status=np.where(many, TOO_MANY, status).astype(np.uint8) if many.any() else status,
        classes=tuple(np.load(folder / "classes.npy").tolist()),
        fingerprint=str(np.load(folder / "fingerprint.npy")),
        pixels=array("pixels") if (folder / "pixels.npy").is_file() else None,
        ranges=load_ranges(root, folder),
        upright=config.exif_orientation,
        left_out=LeftOut(text=str(np.load(folder / "left_out.npy"))),
        stamp=hashlib.sha256(stamps.read_bytes()).hexdigest() if stamps.is_file() else "",
    )


def as_written(config: DataSet, root: Path | str) -> Path | str:
    """Return the root of an index, spelled as the recipe spells its data.

    The index may have been made under another name.
    """
    if isinstance(root, str):
        return root
    given = Path(config.root).expanduser()
    try:
        below = os.path.relpath(root.resolve(), given.resolve())
    except (OSError, ValueError):
        return root
    if below.startswith(".."):
        return root
    return given if below == "." else given / below


def subset(index: Index, part: Chosen) -> Index:
    """Return the chosen samples under the numbers 0, 1, 2, ..., with their labels."""
    if len(part.numbers) == len(index) and np.array_equal(part.labels, index.labels) and part.classes == index.classes:
        return index
    rows = part.numbers
    digest = hashlib.sha256(index.fingerprint.encode() + rows.tobytes() + part.labels.tobytes())
    return replace(
        index,
        paths=index.paths[rows],
        labels=part.labels,
        size=index.size[rows],
        status=index.status[rows],
        classes=part.classes,
        fingerprint=digest.hexdigest(),
        clean=part.clean,
        numbers=rows,
        ranges=None if index.ranges is None else index.ranges.at(rows),
    )
