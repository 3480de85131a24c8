"""Scan the files of one split: what they hold and which are bad, before a run meets them.

The header scan reads at most 4 KB at a file's start and 1 KB at its end; only files that agree in length
and in a checksum of their start are read whole, to find copies.
"""

import hashlib
import io
import os
import zlib
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lsdali.data.index.stored import each_file, rescan
from lsdali.data.io.byte_range import READ, ByteRange, OpenRange
from lsdali.data.io.header import FAULTS, GOOD, HEAD, NO_FILE, TOO_MANY, fault_of, parse_header
from lsdali.data.io.image_formats import FORMAT_OF_ENDING, FORMAT_OF_START
from lsdali.data.io.quirks import ODDITIES, READ_ALIKE, UPRIGHT, traits
from lsdali.data.sets.catalog import DataSet
from lsdali.data.sets.listing import Split
from lsdali.data.sets.sample_index import Index
from lsdali.errors import UserError

WIDTH, HEIGHT, STATUS, FORMAT, TURN, LENGTH, CHECK, ODDITY, SIZE, CHANGED = range(10)  # columns of facts
Facts = tuple[int, int, int, int, int, int, int, int, int, int]


@dataclass(frozen=True, slots=True, eq=False)
class SplitScan:
    """One split: a row of facts for each of its N files."""

    index: Index
    # [N, 10] width, height, position in FAULTS and in FORMAT_NAMES, EXIF orientation, bytes, checksum of the start,
    # position in ODDITIES; bytes and time of change of the whole file
    facts: NDArray[np.int64]

    def path(self, i: int) -> str:
        """Return absolute path of file i."""
        return self.index.path(i)

    def byte_range(self, i: int) -> ByteRange:
        """Return where its bytes lie."""
        return self.index.byte_range(i)

    def class_of(self, i: int) -> str:
        return self.index.classes[int(self.index.labels[i])]

    def misnamed(self) -> NDArray[np.int64]:
        """Return good files whose ending names another format: PIL and DALI do not mind, other tools may."""
        ending = np.array([FORMAT_OF_ENDING.get(p.rpartition(b".")[2].lower(), 0) for p in self.index.paths.tolist()])
        return np.flatnonzero((self.facts[:, STATUS] == GOOD) & (self.facts[:, FORMAT] != ending))

    def odd(self) -> NDArray[np.int64]:
        """Return good files whose pixels DALI and Pillow read differently."""
        return np.flatnonzero((self.facts[:, STATUS] == GOOD) & (self.facts[:, ODDITY] != READ_ALIKE))


def scan_split(config: DataSet, split: Split) -> SplitScan:
    """Look at the header and the end of every file, and renew the cached index with what is found.

    Raises UserError for a wrong layout.
    """
    found: list[SplitScan] = []

    def look(index: Index) -> NDArray[np.int64]:
        facts = each_file(index, examine)
        measured = facts[:, [WIDTH, HEIGHT, STATUS, SIZE, CHANGED]]
        large = (facts[:, STATUS] == GOOD) & (facts[:, WIDTH] * facts[:, HEIGHT] > config.max_pixels)
        facts[large, STATUS] = TOO_MANY  # of this config, so that the index does not hold it
        found.append(SplitScan(index, facts))
        return measured

    rescan(config, split, look)
    return found[0]


def examine(path: str | bytes, start: int = 0, size: int | None = None) -> Facts:
    """Return what the first and last bytes of a file, or of a range of it, say. Never raises for a bad file.

    Raises UserError if the system fails.
    """
    try:
        file = os.open(path, READ)
        try:
            found = os.fstat(file)
            if found.st_mode & 0o170000 != 0o100000:
                return _unread(NO_FILE)
            span = OpenRange.of(file, found.st_size, start, size)
            head = os.pread(file, min(HEAD, span.size), start)
            turn, oddity = traits(span, head)
            header = parse_header(span, head)
            kind = FORMAT_OF_START.get(head[:2], 0)
            return *header, kind, turn, span.size, zlib.crc32(head), oddity, found.st_size, found.st_mtime_ns
        finally:
            os.close(file)
    except OSError as error:
        return _unread(fault_of(error, path))


def _unread(fault: int) -> Facts:
    return 0, 0, fault, 0, UPRIGHT, 0, 0, READ_ALIKE, 0, 0


def odd(part: SplitScan) -> list[dict[str, str]]:
    """Return path, class and kind of every good file whose pixels DALI and Pillow read differently."""
    return [_named(part, int(i)) | {"fault": ODDITIES[part.facts[i, ODDITY]]} for i in part.odd()]


def bad(part: SplitScan) -> list[dict[str, str]]:
    """Return path, class and fault of every bad file."""
    rows = np.flatnonzero(part.facts[:, STATUS] != GOOD)
    return [_named(part, int(i)) | {"fault": FAULTS[part.facts[i, STATUS]]} for i in rows]


def copies(parts: dict[Split, SplitScan]) -> list[list[dict[str, str]]]:
    """Return groups of good files with the same bytes, over all splits: path, class and split of each."""
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
    return {"path": part.path(i), "class": part.class_of(i)}


def _digest(byte_range: ByteRange) -> bytes:
    try:
        return hashlib.blake2b(byte_range.content()).digest()
    except OSError:
        return os.urandom(64)  # gone meanwhile: a copy of nothing


# ---- every byte


def corrupt(part: SplitScan) -> list[dict[str, str]]:
    """Decode every file whose header is good: path, class and fault of those that fail or that libjpeg warns of.

    The training decoders accept a damaged body without a word. Raises UserError if simplejpeg is not installed.
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

    damaged = each_file(part.index, look)[:, 0] > 0
    good = part.facts[:, STATUS] == GOOD
    return [_named(part, int(i)) | {"fault": faults[part.byte_range(int(i))]} for i in np.flatnonzero(damaged & good)]


def _decode(byte_range: ByteRange, simplejpeg: Any) -> str:
    """What is wrong with the body; empty if nothing is."""
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
    """Colour components of a JPEG file; 0 if its segments end early."""
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
