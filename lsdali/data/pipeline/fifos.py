"""FIFOs in place of images: a reader of one waits for a writer for ever, so it gets one that writes nothing.

A FIFO that is there at the scan is left out. This is for one that takes a file's place in mid-run, where the decoder
opens files by path. Looking at each file before would cost a call of the system for every image, so nothing is looked
at until a batch is late.
"""

import os
import stat
import time
import weakref
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import Event, Thread

import numpy as np
from numpy.typing import NDArray

LATE, FIFO_LOOK = 5.0, 1.0  # seconds until a batch is late, and between two looks at its files


class FifoGuard:
    """Watches batches whose files are read by path, by a thread that sleeps while they are in time."""

    def __init__(self, batches: int) -> None:
        """`batches`: the most that are read at a time."""
        self._paths: deque[NDArray[np.uint8]] = deque(maxlen=batches)
        self._since: float | None = None
        self._done = Event()
        self._thread: Thread | None = None
        weakref.finalize(self, self._done.set)

    def reading(self, paths: NDArray[np.uint8]) -> None:
        """Remember the absolute paths [n, L], with NULs, of a batch that is read from now on."""
        self._paths.append(paths)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Watch the files for as long as this lasts."""
        if self._thread is None:
            self._thread = Thread(target=_watch, args=(weakref.ref(self), self._done), daemon=True)
            self._thread.start()
        self._since = time.monotonic()
        try:
            yield
        finally:
            self._since = None

    def look(self) -> None:
        """Free the readers of FIFOs, if the present batch is late."""
        since = self._since
        if since is None or time.monotonic() - since < LATE:
            return
        for paths in list(self._paths):
            for row in paths:
                _free(bytes(row).rstrip(b"\0"))


def _watch(guard: "weakref.ref[FifoGuard]", done: Event) -> None:
    while not done.wait(FIFO_LOOK):
        watched = guard()
        if watched is None:
            return
        watched.look()
        del watched


def _free(path: bytes) -> None:
    """Let a reader that waits at this FIFO find it empty."""
    with suppress(OSError):
        if stat.S_ISFIFO(os.stat(path).st_mode):
            os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC))
