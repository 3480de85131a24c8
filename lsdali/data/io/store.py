"""Files in a remote store, read by ranges: HTTP, or any other that fsspec knows (s3://, gs://, memory:// ...).

What a store answers too late, in part or not at all is asked for again a few times; then the run stops. A fault of the
network is never taken for a bad file. No address with credentials is accepted, because recipes, logs and messages
repeat it, and what a library says is quoted without what may hold some.
"""

import asyncio
import hashlib
import re
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from lsdali.errors import UserError, first_line

T = TypeVar("T")
WAITS = (0.5, 1.5, 5.0)  # seconds before each further try
TIMEOUT = 120  # seconds for one try of one batch
CONNECTIONS = 16  # requests at a time of one call
LOOKUPS = 16  # questions about files at a time
# What tells one content from another, by the names that stores give it.
_IDENTITY = (
    "ETag",
    "etag",
    "Content-MD5",
    "md5Hash",
    "generation",
    "Last-Modified",
    "LastModified",
    "mtime",
    "created",
)
_GONE = (403, 404, 410)  # stores that may not be listed answer 403 for what is not there


class Fault(UserError):
    """A store gave no answer, or a wrong one, in every attempt."""


@dataclass(frozen=True, slots=True, eq=False)
class Store:
    """Files below one URL; `store / name` is how messages name one."""

    root: str
    fs: Any  # fsspec's file system
    base: str  # the root as the file system calls it

    def __truediv__(self, name: str) -> str:
        return f"{self.root}/{name}"

    def __str__(self) -> str:
        return self.root

    def fetch(self, ranges: Sequence[tuple[str, int, int]]) -> list[bytes]:
        """Return the bytes of each (name, start, length above 0), all of them. Raises UserError."""
        out: dict[int, bytes] = {}
        for wait in (*WAITS, None):
            todo = [k for k in range(len(ranges)) if k not in out]
            answers = dict(zip(todo, self._ask([ranges[k] for k in todo]), strict=True))
            for k, answer in answers.items():
                length = ranges[k][2]
                if isinstance(answer, bytes) and len(answer) > length:
                    raise _no_ranges(self / ranges[k][0])
                if isinstance(answer, bytes) and len(answer) == length:
                    out[k] = answer
            if len(out) == len(ranges):
                return [out[k] for k in range(len(ranges))]
            if wait is not None:
                time.sleep(wait)
        k = next(k for k in todo if k not in out)
        got = answers[k]
        why = f"{len(got):,} of {ranges[k][2]:,} bytes came" if isinstance(got, bytes) else _said(got)
        raise _fault(self / ranges[k][0], why)

    def _ask(self, ranges: Sequence[tuple[str, int, int]]) -> list[Any]:
        """Bytes or the exception for each."""
        more = {"batch_size": CONNECTIONS, "timeout": TIMEOUT} if self.fs.async_impl else {}
        paths, starts, stops = zip(*((f"{self.base}/{name}", at, at + length) for name, at, length in ranges))
        try:
            return list(self.fs.cat_ranges(list(paths), list(starts), list(stops), on_error="return", **more))
        except Exception as error:
            return [error] * len(ranges)

    def text(self, name: str) -> bytes | None:
        """Return a whole small file; None if there is none."""
        return self._tried(name, lambda path: bytes(self.fs.cat_file(path)))

    def stamp(self, name: str) -> tuple[int, int] | None:
        """Return size, and a number that changes with the content (or the files of a pattern) as the store tells it."""
        if has_magic(name):
            return 0, _number(self.glob(name))
        info = self._tried(name, self.fs.info)
        if info is None:
            return None
        if info.get("size") is None:
            raise UserError(f"{self / name}: the store does not say how long it is; use one that does (Content-Length)")
        return info["size"], _number([info["size"], *(info.get(key) for key in _IDENTITY)])

    def stamps(self, names: Sequence[str]) -> list[tuple[int, int] | None]:
        self.fs.invalidate_cache()
        with ThreadPoolExecutor(LOOKUPS) as pool:
            return list(pool.map(self.stamp, names))

    def glob(self, pattern: str) -> list[str]:
        """Return names that match. Raises UserError if nothing does, or nothing can be listed."""
        found = self._tried(pattern, lambda path: sorted(self.fs.glob(path)))
        if not found:
            raise UserError(
                f"{self / pattern} matches nothing; many stores, HTTP ones above all, cannot be listed: "
                "name every shard, as in train/{000000..000063}.tar"
            )
        return [path.removeprefix(f"{self.base}/") for path in found]

    def require_ranges(self, name: str) -> None:
        """Raise UserError if a request for a few bytes of `name` would bring all of them."""

        def look(path: str) -> bool:
            try:
                with self.fs.open(path, "rb", cache_type="none") as file:
                    file.seek(1)
                    return len(file.read(1)) == 1
            except ValueError:  # what fsspec says of a whole body
                raise _no_ranges(self / name) from None

        self._tried(name, look)

    def _tried(self, name: str, call: Callable[[str], T]) -> T | None:
        """What `call(path)` answers; None for what is not there. Raises UserError."""
        why = ""
        for wait in (*WAITS, None):
            try:
                return call(f"{self.base}/{name}")
            except UserError:
                raise
            except Exception as error:
                if _gone(error):
                    return None
                why = _said(error)
            if wait is not None:
                time.sleep(wait)
        raise _fault(self / name, why)


def times(root: Path | str, watched: Sequence[str]) -> NDArray[np.int64]:
    """Return modification times in ns, or a number for what a store says of the content; -1 for what is gone."""
    if isinstance(root, str):
        return np.array([-1 if stamp is None else stamp[1] for stamp in open_store(root).stamps(watched)], np.int64)
    out = []
    for name in watched:
        try:
            out.append((root / name).stat().st_mtime_ns)
        except OSError:
            out.append(-1)
    return np.array(out, np.int64)


@cache
def open_store(root: str) -> Store:
    """Open a store.

    Raises UserError for an address that holds credentials, an unknown kind, or a package that is not installed.
    """
    parts = urlsplit(root)
    kind = root.partition(":")[0]
    if parts.password is not None or "?" in root or (kind.startswith("http") and "@" in parts.netloc):
        raise UserError(
            f"data.root: the {kind} address holds a login or a query (?), which recipes and logs would repeat; "
            "leave it out and give credentials to fsspec, in ~/.config/fsspec/*.json or its FSSPEC_ variables"
        )
    try:
        import fsspec

        fs, base = fsspec.url_to_fs(root.rstrip("/"))
    except ImportError as error:
        raise UserError(
            f"data.root {root} needs a package that is not installed ({first_line(error)}): pip install lsdali[remote] "
            "for HTTP, what the text in brackets names for others"
        ) from None
    except ValueError as error:
        raise UserError(f"data.root {root} is no address that fsspec can read: {first_line(error)}") from None
    return Store(root.rstrip("/"), fs, base.rstrip("/"))


def has_magic(name: str) -> bool:
    """Return whether it is a pattern, not a name."""
    return any(c in name for c in "*?[")


def _gone(error: Exception) -> bool:
    """Whether there is no such file; fsspec says so of every fault over HTTP, with the true one as the cause."""
    cause = error.__cause__
    network = isinstance(cause, asyncio.TimeoutError) or type(cause).__module__.startswith("aiohttp")
    missing = isinstance(error, FileNotFoundError | PermissionError) and not network
    return missing or getattr(cause or error, "status", 0) in _GONE


def _said(error: Any) -> str:
    """A library's exception in a few words, without queries and logins: servers redirect to addresses that are keys."""
    error = getattr(error, "__cause__", None) or error
    if status := getattr(error, "status", 0):
        return f"HTTP status {status}"
    text = re.sub(r"\?\S*", "?...", re.sub(r"//[^/\s@]*@", "//", first_line(error)))
    return f"{type(error).__name__}: {text}"


def _fault(url: str, why: str) -> Fault:
    return Fault(
        f"{url} cannot be read, tried {1 + len(WAITS)} times ({why}); the same command goes on from there later"
    )


def _no_ranges(url: str) -> UserError:
    return UserError(
        f"{url}: the store answers a request for a few bytes with the whole file; use one that serves ranges"
    )


def _number(content: Any) -> int:
    return int.from_bytes(
        hashlib.blake2b(repr(content).encode(errors="surrogateescape"), digest_size=7).digest(), "big"
    )
