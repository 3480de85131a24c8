"""Walk a folder: images are data, known by their endings; all other files are counted and reported."""

import os
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from lsdali.data.io.header import SystemFault
from lsdali.data.io.image_formats import EXTENSIONS
from lsdali.errors import UserError

HIDDEN, LOOPS, SPECIAL = "hidden or system files", "links to a folder above", "no regular files (FIFO, socket, device)"
OUTSIDE, ENDINGS = "images outside class folders", "other endings"
# What Windows, macOS, Synology, Python and file systems leave in folders; in lower case.
_SYSTEM = {
    *(b"thumbs.db", b"ehthumbs.db", b"desktop.ini", b"$recycle.bin", b"system volume information"),
    *(b"__macosx", b"icon\r", b"@eadir", b"#recycle", b"#snapshot", b"__pycache__", b"lost+found"),
}
NAMES_KEPT = 20  # names that are kept of each kind
_MOST_ENDINGS, _LONGEST_ENDING = 50, 12


def is_hidden(name: bytes) -> bool:
    """Return whether a file or folder of this name is never data: hidden, or left there by a system."""
    return name.startswith(b".") or name.lower() in _SYSTEM


@dataclass
class LeftOut:
    """Files among the images that are not data: the number of each kind, and the first few paths."""

    counts: Counter[str] = field(default_factory=Counter)
    endings: Counter[str] = field(default_factory=Counter)
    names: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    text: str | None = None  # what an earlier scan described; only that is kept in the cache

    def add(self, kind: str, path: bytes) -> None:
        self.counts[kind] += 1
        if len(self.names[kind]) < NAMES_KEPT:
            self.names[kind].append(os.fsdecode(path))

    def add_file(self, path: bytes) -> None:
        """Count a file whose ending is none of an image."""
        _, dot, end = path.rpartition(b"/")[2].rpartition(b".")
        ending = os.fsdecode(dot + end).lower() if dot and len(end) < _LONGEST_ENDING else "none"
        known = ending in self.endings or len(self.endings) < _MOST_ENDINGS
        self.endings[ending if known else "more"] += 1
        self.add(ENDINGS, path)

    def summary(self) -> dict[str, Any]:
        """Return counts, endings and names as plain values."""
        return {kind: {"count": n, "first": self.names[kind]} for kind, n in sorted(self.counts.items())} | (
            {"endings": dict(self.endings.most_common())} if self.endings else {}
        )

    def describe(self) -> str:
        """Return the counts in one line; empty if nothing was left out."""
        if self.text is not None:
            return self.text
        ends = ", ".join(f"{end} {n:,}" for end, n in self.endings.most_common(5))
        parts = [f"{kind}: {n:,}{f' ({ends})' if kind == ENDINGS else ''}" for kind, n in sorted(self.counts.items())]
        return "; ".join(parts)


Identity = tuple[int, int]  # device and inode of a folder


class Walk:
    """A walk below `base`, whose results are relative to it. Links are followed, except links to a folder above."""

    def __init__(self, base: bytes, left: LeftOut) -> None:
        self._base, self._left = base, left

    def images(self, folder: bytes) -> list[tuple[bytes, list[bytes]]]:
        """Return base/folder and every folder below it, in the order of their paths, with the images in each, by name.

        Raises UserError if a folder cannot be read.
        """
        start = os.path.join(self._base, folder)
        try:
            above = frozenset(_parents(os.path.dirname(start)))
            return sorted(self._below(folder, above))
        except OSError as error:
            raise SystemFault(error, error.filename or start) from error

    def folders(self, folder: bytes) -> list[bytes]:
        """Return the names of the folders in base/folder, sorted; hidden ones are left out."""
        here = os.path.join(self._base, folder)
        above = frozenset(_parents(here))
        names = []
        for entry in _raw_entries(here):
            path = os.path.join(folder, entry.name)
            if is_hidden(entry.name):
                self._left.add(HIDDEN, path)
            elif not entry.is_dir():
                self._outside(entry, path)
            elif entry.is_symlink() and _identity(entry.path) in above:
                self._left.add(LOOPS, path)
            else:
                names.append(entry.name)
        return sorted(names)

    def _outside(self, entry: os.DirEntry[bytes], path: bytes) -> None:
        """Count what lies beside the class folders."""
        if not (entry.is_file(follow_symlinks=False) or _is_linked_file(entry)):
            self._left.add(SPECIAL, path)
        elif entry.name.lower().endswith(EXTENSIONS):
            self._left.add(OUTSIDE, path)
        else:
            self._left.add_file(path)

    def _below(self, folder: bytes, above: frozenset[Identity]) -> Iterator[tuple[bytes, list[bytes]]]:
        here = os.path.join(self._base, folder)
        inside = above | {_identity(here)}
        names: list[bytes] = []
        for entry in _raw_entries(here):
            name = entry.name
            if is_hidden(name):
                self._left.add(HIDDEN, folder + b"/" + name)
            elif entry.is_file(follow_symlinks=False) or _is_linked_file(entry):
                if name.lower().endswith(EXTENSIONS):
                    names.append(name)
                else:
                    self._left.add_file(folder + b"/" + name)
            elif not entry.is_dir():
                self._left.add(SPECIAL, folder + b"/" + name)
            elif entry.is_symlink() and _identity(entry.path) in inside:
                self._left.add(LOOPS, folder + b"/" + name)
            else:
                yield from self._below(folder + b"/" + name, inside)
        yield folder, sorted(names)


def _raw_entries(folder: bytes) -> list[os.DirEntry[bytes]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        raise UserError(f"folder {os.fsdecode(folder)} cannot be read: {error.strerror}") from error


def _is_linked_file(entry: os.DirEntry[bytes]) -> bool:
    """Return whether it is a link to a regular file, or to what is not there, which is a missing image."""
    if not entry.is_symlink():
        return False
    try:
        return entry.is_file() or not os.path.exists(entry.path)
    except OSError:  # a link to itself
        return True


def _identity(folder: bytes) -> Identity:
    found = os.stat(folder)
    return found.st_dev, found.st_ino


def _parents(folder: bytes) -> Iterator[Identity]:
    """Yield the identity of a folder and of all above it."""
    folder = os.path.realpath(folder)
    while True:
        yield _identity(folder)
        if folder == os.path.dirname(folder):
            return
        folder = os.path.dirname(folder)
