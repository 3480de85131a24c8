"""Write a file with torch.save durably, or report the disk's own error."""

import os
from collections.abc import Mapping
from io import FileIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves


class Target:
    """A file for torch.save that keeps the disk's error, which torch's own error hides."""

    def __init__(self, file: FileIO) -> None:
        self.file = file
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        left = memoryview(data)
        try:
            while left:
                left = left[self.file.write(left) :]
        except OSError as error:
            self.error = error
            raise
        return len(data)

    def flush(self) -> None: ...


def write_synced(content: Mapping[str, Any], path: Path) -> None:
    """Save to a new file that is on disk when this returns. Raises OSError."""
    with FileIO(path, "x") as file:
        target = Target(file)
        try:
            torch.save(content, target)  # type: ignore[arg-type]
        except Exception as error:
            raise target.error or error from None
        os.fsync(file.fileno())


def size_of(state: Any) -> int:
    """Return the bytes of all tensors in a state."""
    return sum(x.nbytes for x in tree_leaves(state) if isinstance(x, Tensor))


def link(source: Path, target: Path) -> None:
    """Make a second name for a file, or a copy if the file system knows no links."""
    try:
        os.link(source, target)
    except OSError:
        target.write_bytes(source.read_bytes())


def sync_folder(folder: Path) -> None:
    """Make renames in a folder last through a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
