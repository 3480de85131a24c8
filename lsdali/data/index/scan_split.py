"""Scan the files of one split: what they hold and which are bad, before a run meets them.

The header scan reads at most 4 KB at a file's start and 1 KB at its end; only files that agree in length
and in a checksum of their start are read whole, to find copies.
"""

import hashlib
import io
import os
import struct
import zlib
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lsdali.data.index.index import each_file, rescan
from lsdali.data.io.byte_range import ByteRange, OpenRange
from lsdali.data.io.header import FAULTS, GOOD, HEAD, absent, parse_header
from lsdali.data.sets.catalog import DataSet
from lsdali.data.sets.listing import Listing, Split
from lsdali.errors import UserError

FORMATS = ("unknown", "JPEG", "PNG", "BMP", "WebP", "PNM", "TIFF", "GIF")
_MAGIC: tuple[tuple[bytes, int], ...] = (
    (b"\xff\xd8", 1),
    (b"\x89PNG", 2),
    (b"BM", 3),
    (b"RIFF", 4),
    (b"P5", 5),
    (b"P6", 5),
    (b"II*\0", 6),
    (b"MM\0*", 6),
    (b"GIF8", 7),
)
_ENDINGS = {b"jpg": 1, b"jpeg": 1, b"png": 2, b"bmp": 3, b"webp": 4, b"pgm": 5, b"ppm": 5, b"tif": 6, b"tiff": 6}

WIDTH, HEIGHT, STATUS, FORMAT, TURN, LENGTH, CHECK = range(7)  # columns of facts
Facts = tuple[int, int, int, int, int, int, int]


@dataclass(frozen=True, slots=True, eq=False)
class SplitScan:
    """One split: a row of facts for each of its N files."""

    listing: Listing
    facts: NDArray[np.int64]  # [N, 7] width, height, place in FAULTS and in FORMATS, EXIF orientation, bytes, checksum

    def path(self, i: int) -> bytes:
        """Absolute path of file i."""
        return self.listing.path(i)

    def byte_range(self, i: int) -> ByteRange:
        """Where its bytes lie."""
        return self.listing.byte_range(i)

    def class_of(self, i: int) -> str:
        return self.listing.classes[int(self.listing.labels[i])]

    def misnamed(self) -> NDArray[np.int64]:
        """Good files whose ending names another format: PIL and DALI do not mind, other tools may."""
        ending = np.array([_ENDINGS.get(p.rpartition(b".")[2].lower(), 0) for p in self.listing.paths.tolist()])
        return np.flatnonzero((self.facts[:, STATUS] == GOOD) & (self.facts[:, FORMAT] != ending))


def scan_split(config: DataSet, split: Split) -> SplitScan:
    """Look at the header and the end of every file, and renew the cached index with what is found.

    Raises UserError for a wrong layout.
    """
    found: list[SplitScan] = []

    def look(listing: Listing) -> NDArray[np.int32]:
        facts = each_file(listing, examine)
        found.append(SplitScan(listing, facts))
        return facts[:, : STATUS + 1].astype(np.int32)

    rescan(config, split, look)
    return found[0]


def examine(path: str | bytes, start: int = 0, size: int | None = None) -> Facts:
    """What the first and last bytes of a file, or of a range of it, say. Never raises for a bad file."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        return 0, 0, absent(error), 0, 0, 0, 0
    try:
        span = OpenRange(file, start, size)
        head = span.read(HEAD, 0)
        length = len(head) if len(head) < HEAD else span.size
        kind = next((k for magic, k in _MAGIC if head.startswith(magic)), 0)
        return *parse_header(span, head), kind, orientation(head), length, zlib.crc32(head)
    except OSError:
        return 0, 0, FAULTS.index("not readable"), 0, 0, 0, 0
    finally:
        os.close(file)


def orientation(head: bytes) -> int:
    """EXIF orientation, 1 to 8, in the first bytes of a JPEG file; 1 (upright) where there is none."""
    found = head.find(b"Exif\0\0", 0, 256)
    if found < 0:
        return 1
    table = head[found + 6 :]
    order = "<" if table[:2] == b"II" else ">"
    try:
        (start,) = struct.unpack_from(order + "I", table, 4)
        (count,) = struct.unpack_from(order + "H", table, start)
        for k in range(count):
            tag, _, _, value = struct.unpack_from(order + "HHIH", table, start + 2 + 12 * k)
            if tag == 0x0112:
                return int(value) if 1 <= value <= 8 else 1
    except struct.error:
        pass
    return 1


def bad(part: SplitScan) -> list[dict[str, str]]:
    """Path, class and fault of every bad file."""
    rows = np.flatnonzero(part.facts[:, STATUS] != GOOD)
    return [_named(part, int(i)) | {"fault": FAULTS[part.facts[i, STATUS]]} for i in rows]


def copies(parts: dict[Split, SplitScan]) -> list[list[dict[str, str]]]:
    """Groups of good files with the same bytes, over all splits: path, class and split of each."""
    alike: dict[tuple[int, int], list[tuple[Split, int]]] = defaultdict(list)
    for split, part in parts.items():
        for i in np.flatnonzero(part.facts[:, STATUS] == GOOD).tolist():
            alike[int(part.facts[i, LENGTH]), int(part.facts[i, CHECK])].append((split, i))
    same: dict[bytes, list[dict[str, str]]] = defaultdict(list)
    for group in (g for g in alike.values() if len(g) > 1):
        for split, i in group:
            same[_digest(parts[split].byte_range(i))].append(_named(parts[split], i) | {"split": split})
    return [group for group in same.values() if len(group) > 1]


def _named(part: SplitScan, i: int) -> dict[str, str]:
    return {"path": os.fsdecode(part.path(i)), "class": part.class_of(i)}


def _digest(byte_range: ByteRange) -> bytes:
    try:
        return hashlib.blake2b(byte_range.content()).digest()
    except OSError:
        return os.urandom(64)  # gone meanwhile: a copy of nothing


# ---- every byte


def corrupt(part: SplitScan) -> list[dict[str, str]]:
    """Decode every file whose header is good: path, class and fault of those that fail or that libjpeg warns of.

    The training decoders accept a damaged body without a word. Raises UserError where simplejpeg is not installed.
    """
    try:
        import simplejpeg
    except ImportError:
        raise UserError("a full scan needs the package simplejpeg: pip install simplejpeg") from None

    faults: dict[ByteRange, str] = {}

    def look(*byte_range: Any) -> tuple[int]:
        if said := _decode(ByteRange(*byte_range), simplejpeg):
            faults[ByteRange(*byte_range)] = said
        return (bool(said),)

    damaged = each_file(part.listing, look)[:, 0] > 0
    good = part.facts[:, STATUS] == GOOD
    return [_named(part, int(i)) | {"fault": faults[part.byte_range(int(i))]} for i in np.flatnonzero(damaged & good)]


def _decode(byte_range: ByteRange, simplejpeg: Any) -> str:
    """What is wrong with the body; empty where nothing is."""
    from PIL import Image

    try:
        data = byte_range.content()
        if data.startswith(b"\xff\xd8"):
            space = "CMYK" if _components(data) == 4 else "RGB"
            simplejpeg.decode_jpeg(data, colorspace=space, strict=True)
        else:
            with Image.open(io.BytesIO(data)) as image:
                image.load()
    except Exception as error:
        return f"the body is damaged: {' '.join(str(error).split())}"
    return ""


def _components(data: bytes) -> int:
    """Colour components of a JPEG file; 0 where its segments end early."""
    at = 2
    while at + 9 < len(data):
        marker = data[at + 1]
        if marker == 0xFF:
            at += 1
            continue
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return data[at + 9]
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return 0
