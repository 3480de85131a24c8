"""The cache folder, folders that appear there whole or not at all, and work that is done once on each node."""

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lsdali import dist
from lsdali.disk import free
from lsdali.errors import UserError, first_line
from lsdali.terminal import printable

PATIENCE = 600.0  # seconds that one process waits for what another does in the cache
LOCK_LOOK = 0.1


def cache_dir() -> Path:
    """Return $LSDALI_CACHE, else $XDG_CACHE_HOME/lsdali, else ~/.cache/lsdali."""
    if own := os.environ.get("LSDALI_CACHE"):
        return Path(own).expanduser().absolute()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser().absolute() / "lsdali"


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Yield a temporary folder to fill, renamed to `target` at the end.

    Where another process made `target` meanwhile, theirs stays and ours goes: both hold the same.
    Raises UserError if the folder cannot be written.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    except OSError as error:
        raise _unwritable(target.parent, error) from error
    try:
        yield draft
        draft.chmod(0o755)
        with suppress(OSError):
            draft.rename(target)
        if not target.is_dir():
            raise UserError(f"{target} could not be made; set LSDALI_CACHE to a folder that can be written")
        sync(target.parent)
    except OSError as error:
        raise _unwritable(target.parent, error) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _unwritable(folder: Path, error: OSError) -> UserError:
    why = error.strerror or str(error)  # NumPy's own errors have no number
    return UserError(
        f"the cache folder {folder} cannot be written ({why}, {free(folder)} free there); "
        "make room, or set LSDALI_CACHE to a folder that can"
    )


def sync(path: Path) -> None:
    """Let what was written to a file or folder last through a power cut. Raises OSError."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


MANIFEST = "sha256.json"


def seal(draft: Path, key: str) -> None:
    """Write the checksums of the files of a folder, and what the folder is for, into it, and sync all of it."""
    files = sorted(path.name for path in draft.iterdir())
    content = {"key": key, "files": {name: _checksum(draft / name) for name in files}}
    (draft / MANIFEST).write_text(json.dumps(content))
    for name in (*files, MANIFEST):
        sync(draft / name)
    sync(draft)


def damage(folder: Path, key: str) -> str:
    """Return what is wrong with a sealed folder, in a few words; empty if it holds what was sealed for `key`."""
    try:
        content = json.loads((folder / MANIFEST).read_bytes())
        if content["key"] != key:
            return "made for other data"
        for name, checksum in content["files"].items():
            if _checksum(folder / name) != checksum:
                return f"damaged: {name} has other content than was written"
    except FileNotFoundError as error:
        return f"not whole: {Path(str(error.filename)).name} is missing"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"not readable: {first_line(error)}"
    return ""


def _checksum(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as opened:
        while part := opened.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()


def discard(folder: Path) -> None:
    """Remove a folder of the cache, or what has taken its name. Processes that have its files mapped keep them."""
    if folder.is_dir() and not folder.is_symlink():
        shutil.rmtree(folder, ignore_errors=True)
    else:
        folder.unlink(missing_ok=True)


@contextmanager
def alone(name: str, log: Callable[[str], None] = print) -> Iterator[None]:
    """Let one process at a time work on `name` in the cache folder, so that several runs do not do the same work.

    A process waits PATIENCE seconds at most, and `log` is told for whom; then it does the work itself. Only a help:
    where the file system knows no locks, each process works for itself.
    """
    handle = _lock_file(name)
    try:
        if handle >= 0:
            _take(handle, name, log)
        yield
    finally:
        if handle >= 0:
            os.close(handle)


def _lock_file(name: str) -> int:
    """Return an open file to lock; -1 if there can be none."""
    folder = cache_dir() / "locks"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        return os.open(folder / name, flags, 0o666)
    except OSError:
        return -1


def _take(handle: int, name: str, log: Callable[[str], None]) -> None:
    """Lock the file and write into it who has it; wait for another process, but not for ever."""
    started, said = time.monotonic(), False
    while not _locked(handle):
        waited = time.monotonic() - started
        if not said and waited > 1:
            log(f"waiting for {_holder(handle)}, which works on {name} of the cache, {PATIENCE:g} s at most")
            said = True
        if waited > PATIENCE:
            log(f"{_holder(handle)} still works on {name} of the cache after {PATIENCE:g} s; this run does it too")
            return
        time.sleep(LOCK_LOOK)
    with suppress(OSError):
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"process {os.getpid()} on {os.uname().nodename}".encode(), 0)


def _locked(handle: int) -> bool:
    """Return whether there is nothing to wait for: the lock is ours, or the file system knows none."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


def _holder(handle: int) -> str:
    """Return which process has the lock, as it wrote it."""
    try:
        said = os.pread(handle, 200, 0).decode(errors="backslashreplace")
    except OSError:
        said = ""
    return printable(said) or "another process"


def on_each_node(work: Callable[[], Path]) -> Path:
    """Run `work` once per node and return its result on every rank; a failure is raised on all. Collective."""
    folder, problem = None, None
    if dist.local_rank() == 0 or not dist.active():
        try:
            folder = work()
        except UserError as error:
            problem = str(error)
    node = dist.rank() - dist.local_rank()
    answers = dist.gather_objects((node, folder, problem))
    if problems := [p for _, _, p in answers if p]:
        raise UserError(problems[0])
    return next(f for n, f, _ in answers if n == node and f)
