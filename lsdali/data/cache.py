"""The cache folder, and folders that appear there whole or not at all."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

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
