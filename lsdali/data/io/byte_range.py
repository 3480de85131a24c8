"""ByteRange: where the encoded bytes of a sample lie: a whole file, or a range of a larger one."""

import os
import re
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from lsdali.data.io.threads import in_thread

Bytes = NDArray[np.uint8]
READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK  # a FIFO would wait for a writer
T = TypeVar("T")
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
        """Return every byte; fewer if the file ends before. Raises OSError."""
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
    """The bytes of some samples, on their way from shards or a store."""

    future: "Future[list[Bytes]]"
    size: int  # bytes of all

    def result(self) -> list[Bytes]:
        """Return the bytes. Raises UserError if they did not come."""
        return self.future.result()

    def then(self, work: "Callable[[list[Bytes]], T]") -> "Future[T]":
        """Return what becomes of the bytes; the thread that has read them does the work."""
        made: Future[T] = Future()

        def go_on(read: "Future[list[Bytes]]") -> None:
            try:
                made.set_result(work(read.result()))
            except BaseException as error:
                made.set_exception(error)

        self.future.add_done_callback(go_on)
        return made


class OpenRange(NamedTuple):
    """A range of an open file, read as if it were a file of its own."""

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


class _Open:
    """A file that closes when nobody uses it any more: a call of its methods keeps it open."""

    def __init__(self, path: bytes) -> None:
        self._handle = os.open(path, READ)

    def __del__(self) -> None:
        if hasattr(self, "_handle"):
            os.close(self._handle)

    def announce(self, start: int, length: int) -> None:
        os.posix_fadvise(self._handle, start, length, os.POSIX_FADV_WILLNEED)

    def read_into(self, out: Bytes, start: int) -> int:
        """Return how many bytes from `start` on are there, up to the length of `out`."""
        return os.preadv(self._handle, [out.data], start)


class _Opened:
    """Files by their number, for several threads; the one opened first is given up for a new one."""

    def __init__(self) -> None:
        self._files: dict[int, _Open] = {}
        self._lock = Lock()

    def __call__(self, number: int, path: Callable[[int], bytes]) -> _Open:
        with self._lock:
            found = self._files.get(number)
            if found is None:
                if len(self._files) >= OPEN_FILES:
                    self._files.pop(next(iter(self._files)))
                found = self._files[number] = _Open(path(number))
            return found


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

    def read(self, rows: NDArray[np.int64]) -> PendingBytes:
        """Begin to read the bytes of each, in a thread."""
        return PendingBytes(in_thread(lambda: self.fetch(rows)), int(self.spans[rows, 2].sum()))

    def fetch(self, rows: NDArray[np.int64]) -> list[Bytes]:
        """Return the bytes of each; what cannot be read is short or empty, and left to the decoder to complain about.

        Read, not mapped: a mapped file that shrinks meanwhile kills the process (SIGBUS).
        """
        spans = self.spans[rows].tolist()
        for span in spans:
            self._announce(*span)
        room, out, at = np.empty(sum(length for _, _, length in spans), np.uint8), [], 0
        for file, start, length in spans:
            out.append(self._read(file, start, room[at : at + length]))
            at += length
        return out

    def _path(self, file: int) -> bytes:
        return os.path.join(os.fsencode(self.root), bytes(self.files[file]))

    def _announce(self, file: int, start: int, length: int) -> None:
        """Let the system fetch it while others are read: a disk or network then has a batch's requests at once."""
        with suppress(OSError):
            self._opened(file, self._path).announce(start, length)

    def _read(self, file: int, start: int, out: Bytes) -> Bytes:
        try:
            return out[: self._opened(file, self._path).read_into(out, start)]
        except OSError:
            return out[:0]
