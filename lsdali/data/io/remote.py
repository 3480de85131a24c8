"""Samples in the files of a store: their ranges fetched by a few threads, those that lie close together at once."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lsdali.data.io.byte_range import ByteRanges, Bytes, Memory, PendingBytes
from lsdali.data.io.header import HEAD, Header, parse_header
from lsdali.data.io.quirks import UPRIGHT, traits, turned
from lsdali.data.io.store import Fault, open_store
from lsdali.data.io.threads import in_thread
from lsdali.errors import UserError

GAP, BLOCK = 16 << 10, 1 << 20  # ranges of one file that lie this close are one request, up to this length, in bytes


@dataclass(frozen=True, slots=True, eq=False)
class RemoteRanges(ByteRanges):
    """Samples in the files of a store."""

    stamps: NDArray[np.int64] = field(kw_only=True)  # [S, 2] of Store.stamp, when the files were indexed

    def at(self, rows: NDArray[np.int64]) -> "RemoteRanges":
        return replace(self, spans=self.spans[rows])

    def read(self, rows: NDArray[np.int64]) -> PendingBytes:
        """Begin to fetch the bytes of each."""
        return PendingBytes(in_thread(lambda: self.fetch(rows)), int(self.spans[rows, 2].sum()))

    def fetch(self, rows: NDArray[np.int64]) -> list[Bytes]:
        """Return the bytes of each, all of them. Raises UserError for a store that fails or a file that has changed."""
        spans = self.spans[rows].tolist()
        blocks = close_together(spans)
        try:
            answers = open_store(str(self.root)).fetch(
                [(self._name(file), start, stop - start) for file, start, stop, _ in blocks]
            )
        except Fault:
            self.require_unchanged(rows)
            raise
        out = [np.empty(0, np.uint8)] * len(spans)
        for (_, first, _, inside), answer in zip(blocks, answers, strict=True):
            for k in inside:
                _, start, length = spans[k]
                out[k] = np.frombuffer(answer, np.uint8, length, start - first)
        return out

    def read_header(self, i: int, *, upright: bool = False) -> Header:
        """Return what the bytes of sample i say now, `upright` after its EXIF orientation.

        Raises UserError as fetch().
        """
        self.require_unchanged(np.array([i]))
        data = Memory(self.fetch(np.array([i]))[0].tobytes())
        head = data.read(HEAD, 0)
        return turned(parse_header(data, head), traits(data, head)[0] if upright else UPRIGHT)

    def arrays(self) -> dict[str, NDArray[Any]]:
        return {"files": self.files, "spans": self.spans, "stamps": self.stamps}

    def require_unchanged(self, rows: NDArray[np.int64]) -> None:
        """Raise UserError if a file of these samples is not the one that was indexed."""
        store = open_store(str(self.root))
        files = sorted({file for file, _, _ in self.spans[rows].tolist()})
        for file, now in zip(files, store.stamps([self._name(file) for file in files]), strict=True):
            then = tuple(self.stamps[file].tolist())
            if now != then:
                size = "is gone" if now is None else f"has {now[0]:,} bytes"
                what = size if now is None or now[0] != then[0] else "has other content"
                raise UserError(
                    f"{store / self._name(file)} {what}; it had {then[0]:,} bytes when it was indexed: "
                    "put it back, or begin a new run"
                )

    def _name(self, file: int) -> str:
        return bytes(self.files[file]).decode(errors="surrogateescape")


def close_together(spans: Sequence[Sequence[int]]) -> list[tuple[int, int, int, list[int]]]:
    """Merge (file, start, length) of samples into requests (file, start, stop, which samples), without empty ones."""
    out: list[tuple[int, int, int, list[int]]] = []
    for k in sorted(range(len(spans)), key=lambda k: tuple(spans[k])):
        file, start, length = spans[k]
        if not length:
            continue
        if out:
            last, first, stop, inside = out[-1]
            end = max(stop, start + length)
            if file == last and start - stop <= GAP and (start < stop or end - first <= BLOCK):
                out[-1] = last, first, end, [*inside, k]
                continue
        out.append((file, start, start + length, [k]))
    return out


def load_ranges(root: Path | str, folder: Path) -> ByteRanges | None:
    """Return what `arrays()` gave, from folder/<name>.npy, memory-mapped; None if there are none."""
    if not (folder / "spans.npy").is_file():
        return None
    files, spans = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("files", "spans"))
    if isinstance(root, Path):
        return ByteRanges(root, files, spans)
    return RemoteRanges(root, files, spans, stamps=np.load(folder / "stamps.npy"))
