"""Small disks that tests fill: a tmpfs where mounting is permitted."""

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

Mount = Callable[[Path, str], Path]
FILLER = "filler"


def mounting() -> Iterator[Mount]:
    """Yield a function that mounts a tmpfs of a size ("2m") on a folder; skip the test where that is not permitted."""
    mounted: list[Path] = []

    def mount(folder: Path, size: str) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        arguments = ["mount", "-t", "tmpfs", "-o", f"size={size}", "lsdali", folder]
        done = subprocess.run(arguments, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"a tmpfs cannot be mounted here: {done.stderr.strip()}")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "-l", folder], check=True)


def fill(folder: Path, leave: int = 0) -> None:
    """Write until the disk has so many bytes left, a multiple of its pages of 4096."""
    with (folder / FILLER).open("ab", buffering=0) as file:
        try:
            while file.write(bytes(4096)):
                pass
        except OSError:
            file.truncate(file.tell() // 4096 * 4096 - leave)
