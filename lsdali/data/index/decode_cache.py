"""Image files decoded once into one uint8 array on disk, memory-mapped by every process of a node."""

import hashlib
import io
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lsdali import dist
from lsdali.data.index.index import subset
from lsdali.data.index.stored import Log
from lsdali.data.io.byte_range import ByteRange, Memory
from lsdali.data.io.cache import alone, cache_dir, damage, discard, new_folder, on_each_node, seal
from lsdali.data.io.remote import RemoteRanges
from lsdali.data.sets import splits
from lsdali.data.sets.sample_index import Index
from lsdali.disk import free
from lsdali.errors import UserError

ARRAY_FORMAT = "2"  # of the cached array; raise it when its content changes
DECODE_THREADS, DECODE_CHUNK = 4, 256


class Unlike(Exception):
    """An image whose pixels PIL and DALI might not read alike, or that cannot be read."""


def one_size(index: Index) -> tuple[int, int] | None:
    """Return width and height of every image; None if they differ or files are bad."""
    first = index.size[0]
    if len(index.bad()) or not (np.asarray(index.size) == first).all():
        return None
    return int(first[0]), int(first[1])


def decode(index: Index, whole: Index, log: Log) -> tuple[Index, str]:
    """Return the samples of `index`, a part of the split `whole`, with `pixels` and an empty text; or why without.

    Collective.

    The whole split is decoded if at least half of it is in use, so that other parts of it find it done. The images
    must have one size. Gray and RGB images only: there PIL and DALI agree to the bit. `log` is told of a cached array
    that is not what was written.
    """
    folder = on_each_node(lambda: _decoded(_worth_decoding(index, whole), log))
    why = (folder / "why").read_text(errors="surrogateescape") if (folder / "why").is_file() else ""
    if reasons := [r for r in dist.gather_objects(why) if r]:
        return index, reasons[0]
    pixels = np.load(folder / "pixels.npy", mmap_mode="r")
    numbers = index.numbers if len(pixels) == len(whole) else np.arange(len(pixels))
    return replace(index, pixels=pixels, numbers=numbers), ""


def _worth_decoding(index: Index, whole: Index) -> Index:
    """The whole split if much of it is needed or it is there already, or else the samples of `index`."""
    worth = 2 * len(index) >= len(whole) or os.path.lexists(cache_dir() / "decoded" / _array_key(whole))
    if worth and one_size(whole) == one_size(index):
        return whole
    labels = np.asarray(whole.labels)  # those in use may be noisy, and pixels are not
    return subset(whole, splits.whole(labels, whole.classes).at(index.numbers))


def _decoded(index: Index, log: Log) -> Path:
    """The folder with the array, or with the reason for none; made by one process at a time, and once."""
    key = _array_key(index)
    target = cache_dir() / "decoded" / key
    with alone(f"decoded-{key}", log):
        if os.path.lexists(target):
            if not (why := damage(target, key)):
                return target
            log(f"the decoded images in {target} are {why}; they are decoded anew")
            discard(target)
        try:
            with new_folder(target) as draft:
                _write_pixels(index, draft / "pixels.npy")
                seal(draft, key)
        except Unlike as error:
            with new_folder(target) as draft:
                (draft / "why").write_text(str(error), errors="surrogateescape")
                seal(draft, key)
    return target


def _array_key(index: Index) -> str:
    """Changes with the paths, and with the size or the time of any file."""
    root = index.root if isinstance(index.root, str) else os.path.realpath(index.root)
    words = (ARRAY_FORMAT, root, index.fingerprint, index.stamp)
    digest = hashlib.sha256("\0".join(words).encode(errors="surrogateescape"))
    if isinstance(index.ranges, RemoteRanges):
        digest.update(index.ranges.stamps[index.ranges.spans[:, 0]].tobytes())
    elif index.ranges is not None:
        digest.update(np.array([_stat(path) for path in index.ranges.paths()], np.int64).tobytes())
    return digest.hexdigest()[:32]


def _stat(path: bytes) -> tuple[int, int]:
    try:
        found = os.stat(path)
    except OSError:
        return 0, 0
    return found.st_size, found.st_mtime_ns


def _write_pixels(index: Index, file: Path) -> None:
    width, height = int(index.size[0, 0]), int(index.size[0, 1])
    shape = (len(index), height, width, 3)

    def work(start: int) -> None:
        rows = np.arange(start, min(start + DECODE_CHUNK, len(index)))
        remote = index.ranges.fetch(rows) if isinstance(index.ranges, RemoteRanges) else None
        for k, i in enumerate(rows.tolist()):
            byte_range = index.byte_range(i) if remote is None else Memory(remote[k].tobytes())
            out[i] = _read(index.path(i), byte_range, (width, height))

    try:
        out = np.lib.format.open_memmap(file, mode="w+", dtype=np.uint8, shape=shape)
        with file.open("r+b") as opened:  # else a page without room on the disk would kill the process
            os.posix_fallocate(opened.fileno(), 0, os.fstat(opened.fileno()).st_size)
        with ThreadPoolExecutor(DECODE_THREADS) as pool:
            for _ in pool.map(work, range(0, len(index), DECODE_CHUNK)):
                pass
        out.flush()
    except OSError as error:
        raise UserError(
            f"the decoded images cannot be written to {file.parent.parent}: {error.strerror or error} "
            f"({free(file.parent)} free there); set LSDALI_CACHE to a folder with room, or data.resident: never"
        ) from error


def _read(path: str, byte_range: ByteRange | Memory, size: tuple[int, int]) -> NDArray[np.uint8]:
    """[H, W, 3]."""
    try:
        with Image.open(io.BytesIO(byte_range.content())) as image:
            if image.mode not in ("RGB", "L"):
                raise Unlike(f"{path} is neither gray nor RGB but {image.mode}")
            pixels: NDArray[np.uint8] = np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError) as error:  # what PIL raises for damaged files
        raise Unlike(f"{path} cannot be decoded: {error}") from None
    if pixels.shape[1::-1] != size:
        raise Unlike(f"{path} has another size than at the scan")
    return pixels
