"""Small files that are written whole or not at all, and what a full disk means: one sentence that names the place."""

import os
from io import FileIO
from pathlib import Path

from lsdali.errors import UserError, first_line


def refused(path: Path, error: OSError, then: str) -> str:
    """Return why a file cannot be written, what is free there, and what happens then."""
    return f"cannot write {path}: {error.strerror or first_line(error)} ({free(path)} free there); {then}"


def free(path: Path) -> str:
    """Return the room on the disk of a file that exists or is to be made, in words."""
    there = next((above for above in (path, *path.parents) if above.exists()), Path("/"))
    found = os.statvfs(there)
    return in_words(found.f_bavail * found.f_frsize)


def in_words(size: float) -> str:
    """Return a number of bytes in a fitting unit."""
    for unit in ("bytes", "KB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"


def write_whole(path: Path, text: str) -> None:
    """Write a file under another name, then give it its own, so that readers never meet half of it.

    Raises:
        UserError: the disk is full, or the place cannot be written; what was there before stays.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        part.write_text(text, encoding="utf-8")
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise UserError(refused(path, error, "make room, and the same command goes on")) from error


class Appended:
    """A file that grows by whole records: one that finds no room leaves nothing of itself behind."""

    def __init__(self, path: Path) -> None:
        self._file = FileIO(path, "a+")

    def append(self, record: bytes) -> None:
        """Write a record to the end. Raises OSError."""
        size = os.fstat(self._file.fileno()).st_size
        left = memoryview(record)
        try:
            while left:
                left = left[self._file.write(left) :]
        except OSError:
            os.ftruncate(self._file.fileno(), size)
            raise

    def cut_half_line(self) -> None:
        """Remove what stands behind the last end of line: a killed process may have left half a line."""
        self._file.seek(0)
        content = self._file.read()
        self._file.truncate(content.rfind(b"\n") + 1)

    def close(self) -> None:
        self._file.close()
