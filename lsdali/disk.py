"""Write small files atomically; report a full disk in one sentence that names the place."""

import errno
import os
import stat
from io import FileIO
from pathlib import Path

from lsdali.errors import UserError, first_line

READ = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC  # a FIFO without a writer answers at once
NO_LINK = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


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
    refuse_other(path)
    part = path.with_name(f".{path.name}.part")
    try:
        part.unlink(missing_ok=True)
        with part.open("x", encoding="utf-8") as file:
            file.write(text)
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise UserError(refused(path, error, "make room, and the same command goes on")) from error


def refuse_other(path: Path, *, folder: bool = False) -> None:
    """Raise UserError if `path` is there and is no plain file, or no plain folder."""
    try:
        found = path.lstat()
    except OSError:
        return
    if stat.S_ISLNK(found.st_mode):
        raise UserError(f"{path} is a link: a run writes through no link in its folder; remove it, and start again")
    if (stat.S_ISDIR if folder else stat.S_ISREG)(found.st_mode):
        return
    kind = "a file" if stat.S_ISREG(found.st_mode) else "a folder" if stat.S_ISDIR(found.st_mode) else "no plain file"
    raise UserError(f"{path} is {kind}, where a run has a {'folder' if folder else 'file'}: move it away")


def refuse_shared(path: Path) -> None:
    """Raise UserError if `path` is to be appended to, and is a link or has another name elsewhere."""
    refuse_other(path)
    if path.exists() and path.stat().st_nlink > 1:
        raise UserError(
            f"{path} is also a file elsewhere (a hard link), which a run would write to: put a copy in its place"
        )


def read_plain(path: Path) -> bytes:
    """Return the content of a file. Raises OSError for what is no plain file, such as a FIFO, too."""
    handle = os.open(path, READ)
    with os.fdopen(handle, "rb") as file:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, "it is no plain file", str(path))
        return file.read()


class Appended:
    """A file that grows by whole records: a record that finds no room leaves nothing behind.

    Raises UserError if it is not a regular file (a link, for example), and OSError.
    """

    def __init__(self, path: Path) -> None:
        refuse_shared(path)
        self._file = FileIO(path, "a+", opener=lambda name, flags: os.open(name, flags | NO_LINK, 0o666))

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

    def end_line(self) -> bool:
        """End a last line that was cut off, as by a kill, so that the next one stands alone; return whether it was."""
        size = self._file.seek(0, os.SEEK_END)
        cut = size > 0 and os.pread(self._file.fileno(), 1, size - 1) != b"\n"
        if cut:
            self.append(b"\n")
        return cut

    def close(self) -> None:
        self._file.close()
