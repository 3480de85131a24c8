"""Index: what a single scan found out about one split; cached on disk, memory-mapped by every process."""

import hashlib
import os
import secrets
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lsdali import dist
from lsdali.data.io.byte_range import ByteRange, ByteRanges, PendingBytes, is_url
from lsdali.data.io.cache import cache_dir, new_folder, on_each_node
from lsdali.data.io.header import FAULTS, GOOD, Header, read_header
from lsdali.data.io.remote import RemoteRanges, load_ranges
from lsdali.data.io.store import times
from lsdali.data.sampling.sampler import Ints, stratified
from lsdali.data.sets.catalog import DataSet
from lsdali.data.sets.listing import Listing, Split
from lsdali.data.sets.splits import Chosen, held_out, noisy, of_classes, whole
from lsdali.errors import UserError

SampleForm = Literal["paths", "encoded", "pixels"]
INDEX_FORMAT = "2"  # of the cached files; raise it when they, or what read_header() returns, change
THREADS, CHUNK = 16, 512


@dataclass(frozen=True, slots=True, eq=False)
class Index:
    """N samples. Bad files keep their numbers, so that a repaired file shifts no other sample."""

    root: Path | str  # a URL is text
    paths: NDArray[np.uint8]  # [N, L] relative to root, NUL-padded, at least one NUL each
    labels: Ints  # [N] in use
    size: NDArray[np.int32]  # [N, 2] width, height in pixels; 0 where unknown
    status: NDArray[np.uint8]  # [N] place in FAULTS; 0 is good
    classes: tuple[str, ...]
    fingerprint: str  # sha256 of paths, pixels that come as arrays, lengths of ranges, and the labels in use
    clean: Ints  # [N] labels before noise
    numbers: Ints  # [N] places in the whole set
    pixels: NDArray[np.uint8] | None = None  # [whole set, H, W, 1 or 3] where they are at hand; memory-mapped
    ranges: ByteRanges | None = None  # of samples that are parts of larger files; paths then only name them

    def __len__(self) -> int:
        return len(self.labels)

    def path(self, i: int) -> str:
        """Absolute path of sample i."""
        return os.path.join(self.root, os.fsdecode(self.paths[i].tobytes().rstrip(b"\0")))

    def byte_range(self, i: int) -> ByteRange:
        """Where the bytes of sample i lie."""
        return ByteRange(self.path(i)) if self.ranges is None else self.ranges.byte_range(i)

    @property
    def form(self) -> SampleForm:
        """What images() gives."""
        if self.pixels is not None:
            return "pixels"
        return "paths" if self.ranges is None else "encoded"

    def images(self, i: Ints) -> NDArray[np.uint8] | list[NDArray[np.uint8]] | PendingBytes:
        """[n] -> pixels [n, H, W, 3], or absolute paths [n, L'], NUL-padded, or each one's bytes, or their promise."""
        if self.pixels is not None:
            pixels = self.pixels[self.numbers[i]]
            return np.ascontiguousarray(np.broadcast_to(pixels, (*pixels.shape[:3], 3)))
        if self.ranges is not None:
            return self.ranges.read(i)
        root = np.frombuffer(os.fsencode(self.root) + b"/", np.uint8)
        return np.hstack([np.broadcast_to(root, (len(i), len(root))), self.paths[i]])

    def read_header(self, i: int) -> Header:
        """What read_header() returns of sample i now. Raises UserError where a store fails or has other files."""
        return self.ranges.read_header(i) if isinstance(self.ranges, RemoteRanges) else read_header(*self.byte_range(i))

    def bad(self) -> Ints:
        """Numbers of the samples with a fault."""
        return np.flatnonzero(self.status)

    def faults(self) -> list[tuple[str, str]]:
        """Path and fault of every bad file."""
        return [(self.path(int(i)), FAULTS[self.status[i]]) for i in self.bad()]


def open_index(config: DataSet, split: Split) -> Index:
    """The index of what the recipe uses of one split.

    Raises UserError for a wrong layout or choice, and where the ranks see different files. Collective.
    """
    return select(config, split, open_whole(config, split))


def open_whole(config: DataSet, split: Split) -> Index:
    """The index of a whole split; scanned by one process of each node, and only where the folders changed.

    Raises UserError for a wrong layout, and where the ranks see different files. Collective.
    """
    index = _load(on_each_node(lambda: _cached(config, source(config, split))))
    _refuse_different(index, split, dist.gather_objects(index.fingerprint))
    return index


def source(config: DataSet, split: Split) -> Split:
    """The split whose files are read: a held-out part comes from train."""
    return "train" if config.holdout else split


def select(config: DataSet, split: Split, index: Index) -> Index:
    """The samples and labels that the recipe uses of a whole split.

    Raises UserError for a choice that does not fit, and where the ranks see different files. Collective.
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


def _cached(config: DataSet, split: Split) -> Path:
    """The cache folder of a valid index; a new one is scanned where there is none."""
    for folder in _folders(config, split):
        if _up_to_date(folder):
            return folder
    return rescan(config, split, lambda listing: each_file(listing, read_header).astype(np.int32))


def rescan(config: DataSet, split: Split, look: Callable[[Listing], NDArray[np.int32]]) -> Path:
    """Look at every file, now, and cache what comes out; the cache folder.

    `look` answers [N, 3] width, height, status. Raises UserError for a wrong layout.
    """
    if is_url(config.root) and not config.stores:
        raise UserError(
            f"data.root is a URL, and data set {config.name} needs a folder; only shards are read from stores"
        )
    stale = _folders(config, split)
    # A name that never comes back: other processes may still map the stale one.
    target = cache_dir() / "index" / f"{_index_key(config, split)}-{secrets.token_hex(4)}"
    _scan(config.listing(split), look, target)
    for folder in stale:
        shutil.rmtree(folder, ignore_errors=True)
    return target


def _index_key(config: DataSet, split: Split) -> str:
    root = config.root if is_url(config.root) else os.path.realpath(Path(config.root).expanduser())
    words = (INDEX_FORMAT, config.name, split, root, *config.layout())
    return hashlib.sha256("\0".join(words).encode(errors="surrogateescape")).hexdigest()[:16]


def _folders(config: DataSet, split: Split) -> list[Path]:
    return sorted((cache_dir() / "index").glob(f"{_index_key(config, split)}-*"))


def _up_to_date(folder: Path) -> bool:
    """Whether the watched folders are as they were, and the bad files still bad in the same way."""
    try:
        root = _root(folder)
        watched = np.load(folder / "watched.npy")
        if not np.array_equal(times(root, watched.tolist()), np.load(folder / "times.npy")):
            return False
        index = _load(folder)
        if isinstance(index.ranges, RemoteRanges):  # what is watched tells of any change
            return True
        return all(read_header(*index.byte_range(int(i)))[2] == index.status[i] for i in index.bad())
    except (OSError, ValueError, EOFError):
        return False


def _root(folder: Path) -> Path | str:
    root = str(np.load(folder / "root.npy"))
    return root if is_url(root) else Path(root)


def _scan(listing: Listing, look: Callable[[Listing], NDArray[np.int32]], target: Path) -> None:
    before = times(listing.root, list(listing.watched))
    if listing.headers is not None:
        measured = listing.headers
    else:
        measured = look(listing) if listing.pixels is None else _measured(listing.pixels)
    with new_folder(target) as draft:
        arrays: dict[str, NDArray[Any]] = {
            "paths": listing.paths.view(np.uint8).reshape(len(listing.labels), -1),
            "labels": listing.labels,
            "size": measured[:, :2],
            "status": measured[:, 2].astype(np.uint8),
            "classes": np.array(listing.classes),
            "root": np.array(str(listing.root)),
            "watched": np.array(listing.watched),
            "times": before,
            "fingerprint": np.array(_fingerprint(listing)),
        }
        if listing.pixels is not None:
            arrays["pixels"] = listing.pixels
        if listing.ranges is not None:
            arrays |= listing.ranges.arrays()
        for name, array in arrays.items():
            np.save(draft / f"{name}.npy", array)


def each_file(listing: Listing, look: Callable[..., tuple[int, ...]]) -> Ints:
    """`look(path, start, length)` at the place of every sample: [N, what it answers].

    Threads hide the latency of disks and networks.
    """

    def work(start: int) -> Ints:
        stop = min(start + CHUNK, len(listing.labels))
        return np.array([look(*byte_range) for byte_range in listing.byte_ranges(start, stop)], np.int64)

    with ThreadPoolExecutor(THREADS) as pool:
        return np.concatenate(list(pool.map(work, range(0, len(listing.labels), CHUNK))))


def _measured(pixels: NDArray[np.uint8]) -> NDArray[np.int32]:
    """[N, H, W, C] -> [N, 3] width, height, status."""
    return np.tile(np.array([pixels.shape[2], pixels.shape[1], GOOD], np.int32), (len(pixels), 1))


def _fingerprint(listing: Listing) -> str:
    digest = hashlib.sha256(np.ascontiguousarray(listing.paths).view(np.uint8).data)
    digest.update(np.ascontiguousarray(listing.labels).data)
    if listing.pixels is not None:
        digest.update(np.ascontiguousarray(listing.pixels).data)
    if listing.ranges is not None:
        digest.update(np.ascontiguousarray(listing.ranges.spans[:, 2]).data)
    return digest.hexdigest()


def _load(folder: Path) -> Index:
    def array(name: str) -> Any:
        return np.load(folder / f"{name}.npy", mmap_mode="r")

    root, labels = _root(folder), array("labels")
    return Index(
        root=root,
        paths=array("paths"),
        labels=labels,
        size=array("size"),
        status=array("status"),
        classes=tuple(np.load(folder / "classes.npy").tolist()),
        fingerprint=str(np.load(folder / "fingerprint.npy")),
        clean=labels,
        numbers=np.arange(len(labels)),
        pixels=array("pixels") if (folder / "pixels.npy").is_file() else None,
        ranges=load_ranges(root, folder),
    )


def subset(index: Index, part: Chosen) -> Index:
    """The chosen samples under the numbers 0, 1, 2, ..., with their labels."""
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
