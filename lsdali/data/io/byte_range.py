"""ByteRange: where the encoded bytes of a sample lie: a whole file, or a range of a larger one."""

import os
import re
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK  # a FIFO would wait for a writer
OPEN_FILES = 256  # files that stay open between reads: processes are often allowed 1,024


def is_url(root: str | Path) -> bool:
    """Return whether it names a store, as https://host/folder does, and not a folder of this machine."""
    return isinstance(root, str) and re.match(r"[A-Za-z][A-Za-z0-9+.-]+(://|::)", root) is not None


class ByteRange(NamedTuple):
    """`length` bytes from `start` on; None: to the end."""

    path: str | bytes
    start: int = 0
    length: int | None = None

    def content(self) -> bytes:
        """Return every byte; fewer where the file ends before. Raises OSError."""
        with os.fdopen(os.open(self.path, READ), "rb") as file:
            file.seek(self.start)
            return file.read(-1 if self.length is None else self.length)


class Readable(Protocol):
    """The bytes of one sample."""

    @property
    def size(self) -> int: ...

    def read(self, count: int, at: int) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes that are at hand, read as if they were a file."""

    data: bytes

    @property
    def size(self) -> int:
        return len(self.data)

    def read(self, count: int, at: int) -> bytes:
        return self.data[at : at + count]

    def content(self) -> bytes:
        return self.data


@dataclass(frozen=True, slots=True, eq=False)
class PendingBytes:
    """The bytes of some samples, on their way from a store."""

    future: "Future[list[Bytes]]"
    size: int  # bytes of all

    def result(self) -> list[Bytes]:
        """Return the bytes. Raises UserError if they did not come."""
        return self.future.result()


class OpenRange(NamedTuple):
    """A place in an open file, read as if it were a file of its own."""

    file: int
    start: int
    size: int  # bytes that are there

    @classmethod
    def of(cls, file: int, there: int, start: int = 0, length: int | None = None) -> "OpenRange":
        """Return `length` bytes from `start` on of a file with `there` bytes; None: to its end."""
        if length is None and not start:
            return cls(file, 0, there)
        left = max(there - start, 0)
        return cls(file, start, left if length is None else min(left, length))

    def read(self, count: int, at: int) -> bytes:
        return os.pread(self.file, max(min(count, self.size - at), 0), self.start + at)


class _Opened:
    """Files by their path; the one opened first is closed for a new one."""

    def __init__(self) -> None:
        self._files: dict[bytes, int] = {}

    def __call__(self, path: bytes) -> int:
        if path not in self._files:
            if len(self._files) >= OPEN_FILES:
                os.close(self._files.pop(next(iter(self._files))))
            self._files[path] = os.open(path, READ)
        return self._files[path]

    def __del__(self) -> None:
        for file in self._files.values():
            os.close(file)


@dataclass(frozen=True, slots=True, eq=False)
class ByteRanges:
    """Where the bytes of N samples lie in S larger files."""

    root: Path | str  # a URL is text
    files: NDArray[np.bytes_]  # [S] relative to root
    spans: NDArray[np.int64]  # [N, 3] number of the file, first byte, bytes
    _opened: _Opened = field(default_factory=_Opened)

    def byte_range(self, i: int) -> ByteRange:
        file, start, length = self.spans[i].tolist()
        return ByteRange(self._path(file), start, length)

    def paths(self) -> list[bytes]:
        """Return [S] absolute paths of the files."""
        return [self._path(file) for file in range(len(self.files))]

    def at(self, rows: NDArray[np.int64]) -> "ByteRanges":
        """Return the samples `rows`."""
        return ByteRanges(self.root, self.files, self.spans[rows], self._opened)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return what to save of it, beside the root."""
        return {"files": self.files, "spans": self.spans}

    def read(self, rows: NDArray[np.int64]) -> list[Bytes] | PendingBytes:
        """Return the bytes of each; what cannot be read is short or empty, and left to the decoder to complain about.

        Read, not mapped: a mapped file that shrinks meanwhile kills the process (SIGBUS).
        """
        spans = [(self._path(file), start, length) for file, start, length in self.spans[rows].tolist()]
        for span in spans:
            self._announce(*span)
        return [self._read(*span) for span in spans]

    def _path(self, file: int) -> bytes:
        return os.path.join(os.fsencode(self.root), bytes(self.files[file]))

    def _announce(self, path: bytes, start: int, length: int) -> None:
        """Let the system fetch it while others are read: a disk or network then has a batch's requests at once."""
        with suppress(OSError):
            os.posix_fadvise(self._opened(path), start, length, os.POSIX_FADV_WILLNEED)

    def _read(self, path: bytes, start: int, length: int) -> Bytes:
        out = np.empty(length, np.uint8)
        try:
            return out[: os.preadv(self._opened(path), [out.data], start)]
        except OSError:
            return out[:0]
