"""The index file beside a tar shard, `<shard>.json`, and a remote shard read from end to end if there is none.

    {"format": "lsdali shard 2", "shard_bytes": 20480, "samples": [
    ["00000000.jpg", 0, 512, 1234, 500, 375, "good", 1],
    ...
    ]}

A row is: member, class, first byte, bytes, width and height in pixels, what read_header() returns, EXIF orientation.
Format 1 of older versions ends before the orientation; it is read if images are not to be turned. One file per
shard: shards are copied, replaced and chosen one at a time, and an index that travels with its shard cannot speak of
others.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lsdali.data.io.byte_range import Memory
from lsdali.data.io.header import FAULTS, HEAD, Header, parse_header, read_header
from lsdali.data.io.quirks import UPRIGHT, orientation, traits
from lsdali.data.io.store import Store

ENDING, SHARD_INDEX_FORMAT, WITHOUT_TURNS = ".json", "lsdali shard 2", "lsdali shard 1"
HEADER_BYTES = 8 << 20  # bytes of a remote shard that are asked for at a time


@dataclass(frozen=True, slots=True)
class Shard:
    """The samples of one tar file, in its order."""

    name: str  # relative to the root
    members: list[str]  # names of the images
    labels: list[int]
    spans: list[tuple[int, int]]  # first byte and length of each image
    headers: list[Header] | None = None  # where that is known already
    turns: list[int] | None = None  # EXIF orientations, likewise


def write_index(file: Path, shard: Shard) -> None:
    """Write the index beside a local shard. Raises OSError."""
    rows = []
    for member, label, span in zip(shard.members, shard.labels, shard.spans, strict=True):
        width, height, status = read_header(os.fspath(file), *span)
        turn = orientation(os.fspath(file), *span)
        rows.append(json.dumps([member, label, *span, width, height, FAULTS[status], turn]))
    head = f'{{"format": "{SHARD_INDEX_FORMAT}", "shard_bytes": {file.stat().st_size}, "samples": [\n'
    Path(f"{file}{ENDING}").write_text(head + ",\n".join(rows) + "\n]}\n", encoding="utf-8")


def read_index(store: Store, name: str, size: int) -> Shard | None:
    """Return what the index file of a shard of `size` bytes says; None if there is none, or none to be trusted."""
    text = store.text(name + ENDING)
    try:
        content = json.loads(text or b"null")
        turned = content["format"] == SHARD_INDEX_FORMAT
        if content["shard_bytes"] != size or not (turned or content["format"] == WITHOUT_TURNS):
            return None
        members, labels, starts, lengths, widths, heights, faults, *turns = zip(*content["samples"], strict=True)
        numbers = np.array([labels, starts, lengths, widths, heights])
        whole = (
            numbers.dtype.kind == "i" and numbers.min() >= 0 and max(labels) < 10**6 and max(heights + widths) < 2**31
        )
        if not whole or (numbers[1] + numbers[2]).max() > size or not all(isinstance(m, str) for m in members):
            return None
        if len(turns) != turned or (turned and not {*turns[0]} <= {*range(UPRIGHT, 9)}):
            return None
        headers = list(zip(widths, heights, map(FAULTS.index, faults), strict=True))
    except (ValueError, TypeError, KeyError):
        return None
    spans = list(zip(starts, lengths, strict=True))
    return Shard(name, list(members), list(labels), spans, headers, list(turns[0]) if turned else None)


class RemoteFile:
    """A remote shard as a file that is read from its start to its end, CHUNK bytes a request. Raises UserError."""

    def __init__(self, store: Store, name: str, size: int) -> None:
        self._store, self._name, self._size = store, name, size
        self._base, self._chunk, self._at = 0, b"", 0

    def __str__(self) -> str:
        return self._store / self._name

    def pread(self, count: int, at: int) -> bytes:
        count = max(min(count, self._size - at), 0)
        if count and not self._base <= at <= at + count <= self._base + len(self._chunk):
            self._base, length = at, max(count, min(HEADER_BYTES, self._size - at))
            self._chunk = self._store.fetch([(self._name, at, length)])[0]
        return self._chunk[at - self._base : at - self._base + count]

    def read_header(self, start: int, length: int) -> tuple[Header, int]:
        """Return what read_header() returns of a part of the file, and its EXIF orientation."""
        data = Memory(self.pread(length, start))
        head = data.read(HEAD, 0)
        return parse_header(data, head), traits(data, head)[0]

    def read(self, count: int) -> bytes:
        data = self.pread(count, self._at)
        self._at += len(data)
        return data

    def seek(self, at: int, whence: int = os.SEEK_SET) -> int:
        self._at = at
        return at

    def tell(self) -> int:
        return self._at
