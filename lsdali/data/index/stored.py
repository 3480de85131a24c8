"""Indexes on disk: one folder of arrays for each split, sealed with checksums, valid while no file changes.

An index that no longer fits its files is made anew, and the changes are reported. The last few are kept, so that a run
that began with one of them can go on after a file is gone.
"""

import hashlib
import os
import resource
import secrets
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lsdali.data.io.byte_range import is_url
from lsdali.data.io.cache import alone, cache_dir, damage, discard, new_folder, seal
from lsdali.data.io.header import GOOD, SystemFault, absent, no_regular_file, read_stamped
from lsdali.data.io.quirks import read_upright
from lsdali.data.io.store import times
from lsdali.data.sampling.sampler import Ints
from lsdali.data.sets.catalog import DataSet
from lsdali.data.sets.listing import Split, few
from lsdali.data.sets.sample_index import Index
from lsdali.errors import UserError

INDEX_FORMAT = "4"  # of the cached files; raise it when they, or what read_header() returns, change
SCAN_THREADS, SCAN_CHUNK = 16, 512
FEW_WAITS = SCAN_CHUNK // 16  # for disks or networks, in a chunk of files that the system has at hand
EARLIER = 2  # indexes that are kept beside the newest, those that runs went on with last
LAST_USE = "used"  # a file of an index whose time says when
Log = Callable[[str], None]
Look = Callable[[Index], Ints]  # -> [N, 5] width, height, status, and of single files bytes and time of change


def current_folder(config: DataSet, split: Split, log: Log) -> Path:
    """Return the folder of a valid index; a new one is scanned if there is none, and `log` is told why.

    Raises UserError for a wrong layout.
    """
    with alone(f"index-{_key(config, split)}", log):
        before = next(iter(folders(config, split)), None)
        if before is not None and (why := damage(before, _key(config, split))):
            log(f"the cached index {before} is {why}; it is made anew")
            discard(before)
            before = None
        if before is not None and _up_to_date(before):
            return before
        folder = _scanned(config, split, lambda index: each_file(index, _reader(config)))
    if before is not None and (said := _changes(before, folder)):
        log(f"{split} files have changed since they were last scanned: {said}")
    return folder


def _reader(config: DataSet) -> Callable[..., tuple[int, ...]]:
    return read_upright if config.exif_orientation else read_stamped


def rescan(config: DataSet, split: Split, look: Look) -> Path:
    """Look at every file, now, and cache what comes out; return the folder. Raises UserError for a wrong layout."""
    with alone(f"index-{_key(config, split)}"):
        return _scanned(config, split, look)


def _scanned(config: DataSet, split: Split, look: Look) -> Path:
    if is_url(config.root) and not config.stores:
        raise UserError(
            f"data.root is a URL, and data set {config.name} needs a folder; only shards are read from stores"
        )
    before, key = folders(config, split), _key(config, split)
    # A name that never comes back: other processes may still map the stale one.
    target = cache_dir() / "index" / f"{key}-{secrets.token_hex(4)}"
    _scan(config.listing(split), look, target, key)
    for k, folder in enumerate(sorted(before, key=_last_used, reverse=True)):
        if k >= EARLIER or (folder / "pixels.npy").exists():
            discard(folder)
    return target


def _last_used(folder: Path) -> int:
    """Return when a run went on with an index, or else when it was made, in ns."""
    try:
        return (folder / LAST_USE).stat().st_mtime_ns
    except OSError:
        return folder.lstat().st_mtime_ns


def keep_longer(folder: Path) -> None:
    """Let an index that a run has gone on with stay while others are made."""
    with suppress(OSError):  # a cache that only others may write
        os.utime(folder / LAST_USE)


def _key(config: DataSet, split: Split) -> str:
    root = config.root if is_url(config.root) else os.path.realpath(Path(config.root).expanduser())
    turned = ("upright",) if config.exif_orientation else ()
    words = (INDEX_FORMAT, config.name, split, root, *config.layout(), *turned)
    return hashlib.sha256("\0".join(words).encode(errors="surrogateescape")).hexdigest()[:16]


def folders(config: DataSet, split: Split) -> list[Path]:
    """Return the folders of the indexes of a split, the newest first."""
    found = (cache_dir() / "index").glob(f"{_key(config, split)}-*")
    return sorted(found, key=lambda folder: folder.lstat().st_mtime_ns, reverse=True)


def intact(config: DataSet, split: Split, folder: Path) -> bool:
    """Return whether an index holds what was written."""
    return not damage(folder, _key(config, split))


def root_of(folder: Path) -> Path | str:
    root = str(np.load(folder / "root.npy"))
    return root if is_url(root) else Path(root)


def _up_to_date(folder: Path) -> bool:
    """Return whether the watched folders and the files are as they were."""
    root = root_of(folder)
    watched = np.load(folder / "watched.npy")
    if not np.array_equal(times(root, watched.tolist()), np.load(folder / "times.npy")):
        return False
    stamps = folder / "changed.npy"
    if isinstance(root, str) or not stamps.is_file():
        return True  # what is watched tells of any change
    return np.array_equal(_stamps(root, paths_of(folder)), np.load(stamps, mmap_mode="r"))


def paths_of(folder: Path) -> NDArray[np.bytes_]:
    rows = np.load(folder / "paths.npy", mmap_mode="r")
    names: NDArray[np.bytes_] = rows.view(f"S{rows.shape[1]}").ravel()
    return names


def _stamps(root: Path, paths: NDArray[np.bytes_]) -> Ints:
    """[N, 2] bytes and time of change of each file; 0 for what is gone or no file."""
    base = os.fsencode(root) + b"/"

    def work(start: int) -> Ints:
        return np.array([_stamp(base + path) for path in paths[start : start + SCAN_CHUNK].tolist()], np.int64)

    return _in_chunks(len(paths), work)


def _stamp(path: bytes) -> tuple[int, int]:
    try:
        found = os.stat(path)
    except OSError as error:
        if absent(error) or no_regular_file(error):
            return 0, 0
        raise SystemFault(error, path) from None
    return (found.st_size, found.st_mtime_ns) if found.st_mode & 0o170000 == 0o100000 else (0, 0)


def _changes(before: Path, after: Path) -> str:
    """Return which files are new, gone or changed, in one line; empty if none is."""
    if not ((before / "changed.npy").is_file() and (after / "changed.npy").is_file()):
        return ""
    old, new = paths_of(before), paths_of(after)
    shared, k, n = np.intersect1d(old, new, return_indices=True)
    differ = (np.load(before / "changed.npy")[k] != np.load(after / "changed.npy")[n]).any(1)
    parts = {"changed": shared[differ], "gone": np.setdiff1d(old, new), "new": np.setdiff1d(new, old)}
    said = [
        f"{len(names):,} {what}: {few(list(map(os.fsdecode, names)))}" for what, names in parts.items() if len(names)
    ]
    return "; ".join(said)


def _scan(index: Index, look: Look, target: Path, key: str) -> None:
    before = times(index.root, list(index.watched))
    if index.headers is not None:
        measured: NDArray[Any] = index.headers
    else:
        measured = look(index) if index.pixels is None else _measured(index.pixels)
    with new_folder(target) as draft:
        arrays: dict[str, NDArray[Any]] = {
            "paths": index.paths.view(np.uint8).reshape(len(index.labels), -1),
            "labels": index.labels,
            "size": measured[:, :2].astype(np.int32),
            "status": measured[:, 2].astype(np.uint8),
            "classes": np.array(index.classes),
            "root": np.array(index.root if isinstance(index.root, str) else os.path.abspath(index.root)),
            "watched": np.array(index.watched),
            "times": before,
            "fingerprint": np.array(_fingerprint(index)),
            "left_out": np.array(index.left_out.describe()),
        }
        if measured.shape[1] == 5 and index.ranges is None:
            arrays["changed"] = measured[:, 3:]
        if index.pixels is not None:
            arrays["pixels"] = index.pixels
        if index.ranges is not None:
            arrays |= index.ranges.arrays()
        for name, array in arrays.items():
            np.save(draft / f"{name}.npy", array)
        (draft / LAST_USE).touch()
        seal(draft, key)


def each_file(index: Index, look: Callable[..., tuple[int, ...]]) -> Ints:
    """Return `look(path, start, length)` at the position of every sample: [N, what it answers]."""
    base = os.fsencode(index.root) + b"/"

    def work(start: int) -> Ints:
        stop = min(start + SCAN_CHUNK, len(index.labels))
        if index.ranges is None:  # no ByteRange for each
            return np.array([look(base + path) for path in index.paths[start:stop].tolist()], np.int64)
        return np.array([look(*byte_range) for byte_range in map(index.byte_range, range(start, stop))], np.int64)

    return _in_chunks(len(index.labels), work)


def _in_chunks(count: int, work: Callable[[int], Ints]) -> Ints:
    """Return what `work(first)` answers for each chunk, one below the other.

    Threads hide the latency of disks and networks. If there is none to hide, because the system has the files at
    hand, they would only contend for the interpreter: one does the work until it has to wait.
    """
    starts, out = list(range(0, count, SCAN_CHUNK)), list[Ints]()
    while len(out) < len(starts):
        before = _waits()
        out.append(work(starts[len(out)]))
        if _waits() - before > FEW_WAITS:
            break
    with ThreadPoolExecutor(SCAN_THREADS) as pool:
        return np.concatenate([*out, *pool.map(work, starts[len(out) :])])


def _waits() -> int:
    """Return how often this thread has given up its core, as it does to wait for a disk or network."""
    return resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw


def _measured(pixels: NDArray[np.uint8]) -> NDArray[np.int32]:
    """[N, H, W, C] -> [N, 3] width, height, status."""
    return np.tile(np.array([pixels.shape[2], pixels.shape[1], GOOD], np.int32), (len(pixels), 1))


def _fingerprint(index: Index) -> str:
    digest = hashlib.sha256(np.ascontiguousarray(index.paths).view(np.uint8).data)
    digest.update(np.ascontiguousarray(index.labels).data)
    if index.pixels is not None:
        digest.update(np.ascontiguousarray(index.pixels).data)
    if index.ranges is not None:
        digest.update(np.ascontiguousarray(index.ranges.spans[:, 2]).data)
    return digest.hexdigest()


def gone(before: Sequence[bytes] | NDArray[np.bytes_], now: NDArray[np.bytes_]) -> NDArray[np.bool_] | None:
    """Return [n] which of the paths `before` are not there now; None if there is one now that was not there."""
    there = np.isin(before, now)
    return None if there.sum() < len(now) else ~there
