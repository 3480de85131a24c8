"""The cache folder, folders that appear there whole or not at all, and work that is done once on each node."""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lsdali import dist
from lsdali.errors import UserError


def cache_dir() -> Path:
    """$LSDALI_CACHE, else $XDG_CACHE_HOME/lsdali, else ~/.cache/lsdali."""
    if own := os.environ.get("LSDALI_CACHE"):
        return Path(own).expanduser().absolute()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser().absolute() / "lsdali"


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A temporary folder to fill, renamed to `target` at the end.

    Where another process made `target` meanwhile, theirs stays and ours goes: both hold the same.
    Raises UserError where the folder cannot be written.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    except OSError as error:
        raise UserError(
            f"the cache folder {target.parent} cannot be written ({error.strerror}); "
            "set LSDALI_CACHE to a folder that can"
        ) from error
    try:
        yield draft
        draft.chmod(0o755)
        with suppress(OSError):
            draft.rename(target)
        if not target.is_dir():
            raise UserError(f"{target} could not be made; set LSDALI_CACHE to a folder that can be written")
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def on_each_node(work: Callable[[], Path]) -> Path:
    """What one process of this node found; UserError where that of any node failed. Collective."""
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
