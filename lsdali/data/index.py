"""Index: what a single scan found out about one split; cached on disk, memory-mapped by every process."""

import hashlib
import os
import secrets
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lsdali import dist
from lsdali.data.cache import cache_dir, new_folder
from lsdali.data.catalog import DataSet
from lsdali.data.listing import Listing, Split
from lsdali.data.order import Ints, stratified
from lsdali.data.probe import FAULTS, probe
from lsdali.errors import UserError

FORMAT = "1"  # of the cached files; raise it when they, or what probe() answers, change
THREADS, CHUNK = 16, 512


@dataclass(frozen=True, slots=True, eq=False)
class Index:
    """N samples. Bad files keep their numbers, so that a repaired file shifts no other sample."""

    root: Path
    paths: NDArray[np.uint8]  # [N, L] relative to root, NUL-padded, at least one NUL each
    labels: Ints  # [N]
    size: NDArray[np.int32]  # [N, 2] width, height in pixels; 0 where unknown
    status: NDArray[np.uint8]  # [N] place in FAULTS; 0 is good
    classes: tuple[str, ...]
    fingerprint: str  # sha256 of paths and labels

    def __len__(self) -> int:
        return len(self.labels)

    def path(self, i: int) -> str:
        """Absolute path of sample i."""
        return os.path.join(self.root, os.fsdecode(self.paths[i].tobytes().rstrip(b"\0")))

    def full_paths(self, i: Ints) -> NDArray[np.uint8]:
        """[n] -> [n, L'] absolute paths, NUL-padded."""
        root = np.frombuffer(os.fsencode(self.root) + b"/", np.uint8)
        return np.hstack([np.broadcast_to(root, (len(i), len(root))), self.paths[i]])

    def bad(self) -> Ints:
        """Numbers of the samples with a fault."""
        return np.flatnonzero(self.status)

    def faults(self) -> list[tuple[str, str]]:
        """Path and fault of every bad file."""
        return [(self.path(int(i)), FAULTS[self.status[i]]) for i in self.bad()]


def open_index(config: DataSet, split: Split) -> Index:
    """The index of one split; scanned by one process of each node, and only where the folders changed.

    Raises UserError for a wrong layout, and where the ranks see different files. Collective.
    """
    folder, problem = None, None
    if dist.local_rank() == 0 or not dist.active():
        try:
            folder = _cached(config, split)
        except UserError as error:
            problem = str(error)
    node = dist.rank() - dist.local_rank()
    answers = dist.gather_objects((node, folder, problem))
    if problems := [p for _, _, p in answers if p]:
        raise UserError(problems[0])
    index = _load(next(f for n, f, _ in answers if n == node and f))
    if split == "train" and config.limit is not None and config.limit < len(index):
        index = _subset(index, stratified(index.labels, config.limit))
    prints = dist.gather_objects(index.fingerprint)
    if other := [r for r, p in enumerate(prints) if p != prints[0]]:
        raise UserError(
            f"rank {other[0]} sees other {split} files or labels in {index.root} than rank 0; "
            "copy the same data to every machine"
        )
    return index


def _cached(config: DataSet, split: Split) -> Path:
    """The cache folder of a valid index; a new one is scanned where there is none."""
    for folder in _folders(config, split):
        if _fresh(folder):
            return folder
    return rescan(config, split, lambda listing: each_file(listing, probe).astype(np.int32))


def rescan(config: DataSet, split: Split, look: Callable[[Listing], NDArray[np.int32]]) -> Path:
    """Look at every file, now, and cache what comes out; the cache folder.

    `look` answers [N, 3] width, height, status. Raises UserError for a wrong layout.
    """
    stale = _folders(config, split)
    # A name that never comes back: other processes may still map the stale one.
    target = cache_dir() / "index" / f"{_key(config, split)}-{secrets.token_hex(4)}"
    _scan(config.listing(split), look, target)
    for folder in stale:
        shutil.rmtree(folder, ignore_errors=True)
    return target


def _key(config: DataSet, split: Split) -> str:
    root = os.path.realpath(Path(config.root).expanduser())
    words = (FORMAT, config.name, split, root, *config.layout())
    return hashlib.sha256("\0".join(words).encode(errors="surrogateescape")).hexdigest()[:16]


def _folders(config: DataSet, split: Split) -> list[Path]:
    return sorted((cache_dir() / "index").glob(f"{_key(config, split)}-*"))


def _fresh(folder: Path) -> bool:
    """Whether the watched folders are as they were, and the bad files still bad in the same way."""
    try:
        root = Path(str(np.load(folder / "root.npy")))
        watched = np.load(folder / "watched.npy")
        if not np.array_equal(_times(root, watched.tolist()), np.load(folder / "times.npy")):
            return False
        index = _load(folder)
        return all(probe(index.path(int(i)))[2] == index.status[i] for i in index.bad())
    except (OSError, ValueError, EOFError):
        return False


def _times(root: Path, watched: list[str]) -> Ints:
    """Modification times in ns; -1 for what is gone."""
    out = []
    for name in watched:
        try:
            out.append((root / name).stat().st_mtime_ns)
        except OSError:
            out.append(-1)
    return np.array(out, np.int64)


def _scan(listing: Listing, look: Callable[[Listing], NDArray[np.int32]], target: Path) -> None:
    times = _times(listing.root, list(listing.watched))
    measured = look(listing)
    with new_folder(target) as draft:
        arrays: dict[str, NDArray[Any]] = {
            "paths": listing.paths.view(np.uint8).reshape(len(listing.labels), -1),
            "labels": listing.labels,
            "size": measured[:, :2],
            "status": measured[:, 2].astype(np.uint8),
            "classes": np.array(listing.classes),
            "root": np.array(str(listing.root)),
            "watched": np.array(listing.watched),
            "times": times,
            "fingerprint": np.array(_fingerprint(listing.paths, listing.labels)),
        }
        for name, array in arrays.items():
            np.save(draft / f"{name}.npy", array)


def each_file(listing: Listing, look: Callable[[bytes], tuple[int, ...]]) -> Ints:
    """`look` at the path of every sample: [N, what it answers]. Threads hide the latency of disks and networks."""
    root = os.fsencode(listing.root) + b"/"

    def work(start: int) -> Ints:
        return np.array([look(root + path) for path in listing.paths[start : start + CHUNK].tolist()], np.int64)

    with ThreadPoolExecutor(THREADS) as pool:
        return np.concatenate(list(pool.map(work, range(0, len(listing.labels), CHUNK))))


def _fingerprint(paths: NDArray[np.bytes_], labels: Ints) -> str:
    digest = hashlib.sha256(np.ascontiguousarray(paths).view(np.uint8).data)
    digest.update(np.ascontiguousarray(labels).data)
    return digest.hexdigest()


def _load(folder: Path) -> Index:
    def array(name: str) -> Any:
        return np.load(folder / f"{name}.npy", mmap_mode="r")

    return Index(
        Path(str(np.load(folder / "root.npy"))),
        array("paths"),
        array("labels"),
        array("size"),
        array("status"),
        tuple(np.load(folder / "classes.npy").tolist()),
        str(np.load(folder / "fingerprint.npy")),
    )


def _subset(index: Index, chosen: Ints) -> Index:
    """The chosen samples under the numbers 0, 1, 2, ..."""
    digest = hashlib.sha256(index.fingerprint.encode() + chosen.tobytes()).hexdigest()
    return replace(
        index,
        paths=index.paths[chosen],
        labels=index.labels[chosen],
        size=index.size[chosen],
        status=index.status[chosen],
        fingerprint=digest,
    )
