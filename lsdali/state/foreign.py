"""Files of torch that others wrote, read without running code, and what is wrong with them in a sentence."""

import argparse
import collections
import pathlib
import re
import warnings
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lsdali.errors import first_line

GLOBAL = re.compile(r"GLOBAL (\S+)")


def inert_globals() -> list[Any]:
    """Return what trainers save beside tensors and what holds no code: arguments, NumPy's numbers, paths."""
    arrays: Any = np._core.multiarray  # type: ignore[attr-defined]
    numbers = [getattr(np.dtypes, name) for name in np.dtypes.__all__ if name != "ObjectDType"]
    pieces = [(arrays.scalar, "scalar"), (arrays._reconstruct, "_reconstruct")]
    old = [(piece, f"numpy.core.multiarray.{name}") for piece, name in pieces]
    text: Any = __import__("_codecs").encode
    paths = [pathlib.PosixPath, (pathlib.PurePosixPath, "pathlib.WindowsPath")]
    return [
        argparse.Namespace,
        collections.defaultdict,
        *(piece for piece, _ in pieces),
        *old,
        np.ndarray,
        np.dtype,
        *numbers,
        (text, "_codecs.encode"),
        *paths,
    ]


class AsMapping:
    """Stands for a class that is not imported: its objects become mappings, which take items and attributes."""

    def __new__(cls, *values: Any, **named: Any) -> Any:
        return collections.OrderedDict()


class AsList(list[Any]):
    """The same for objects with elements, or with a state of their own form, which is left out."""

    def __new__(cls, *values: Any, **named: Any) -> "AsList":
        return super().__new__(cls)

    def __init__(self, *values: Any, **named: Any) -> None:
        super().__init__()

    def __setstate__(self, state: Any) -> None:
        pass


MOST_PLACEHOLDERS = 100  # classes in a file that are not imported


def read_torch(path: Path, *, mmap: bool = False, unread: Sequence[tuple[Any, str]] = ()) -> Any:
    """Return the content of a file, on the host. Raises what torch does; `refusal` says it in a few words.

    `unread`: what stands for classes that are not imported, and their names.
    """
    with torch.serialization.safe_globals([*inert_globals(), *unread]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*TorchScript archive")
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap or None)


def read_around_objects(path: Path) -> Any:
    """Return the same with a placeholder for every object of a class that is not known, so that no code of it runs.

    Trainers save settings as objects of their own beside the tensors. Raises what torch does for what cannot be read
    so, such as functions of the system.
    """
    kinds: dict[str, Any] = {}  # in the order in which the file names them
    while True:
        try:
            return read_torch(path, unread=[(kind, name) for name, kind in kinds.items()])
        except Exception as fault:
            found = GLOBAL.search(str(fault))
            if found is not None:
                name = found[1] if "." in found[1] else f"builtins.{found[1]}"
                if name in kinds or len(kinds) == MOST_PLACEHOLDERS:
                    raise
                kinds[name] = AsMapping
                continue
            # What failed is most likely an object of the class that was named last.
            last = next((name for name in reversed(kinds) if kinds[name] is AsMapping), None)
            if last is None:
                raise
            kinds[last] = AsList


def refusal(fault: Exception) -> str:
    """Return why a file was not read, in a few words, without torch's advice to run what is in it."""
    said = str(fault)
    found = GLOBAL.search(said)
    if found is not None:
        return (
            f"it holds an object of {found[1]}, and reading that would run its code; "
            "save the model's state_dict() where the file was written"
        )
    if "TorchScript" in said:
        return "it is a TorchScript program; save the model's state_dict() where it was written"
    if "weights_only" in said or "Weights only" in said:
        detail = re.sub(r"\x1b\[[0-9;]*m", "", said).rpartition("WeightsUnpickler error: ")[2]
        return f"it is no file of tensors ({detail.strip().partition(chr(10))[0]})"
    return first_line(fault)


OLD_TORCH = b"\x80\x02\x8a\nl\xfc\x9cF\xf9"
"""How files begin that torch wrote before it wrote archives, in 1.6."""


def starts_as_old_torch(path: Path) -> bool:
    """Return whether a file begins as torch's did before 1.6."""
    with path.open("rb") as file:
        return file.read(len(OLD_TORCH)) == OLD_TORCH


FILE_KINDS = (
    (b"version https://git-lfs", "it is a pointer of Git LFS, not the file: run git lfs pull where it was cloned"),
    (b"\x89HDF\r\n", "it is an HDF5 file, as Keras writes: save the tensors from there with torch.save or safetensors"),
    (b"\x1f\x8b", "it is compressed with gzip: unpack it"),
    (b"BZh", "it is compressed with bzip2: unpack it"),
    (b"<!doctype", "it is a web page, not the file that the page offers: download the file itself"),
    (b"<html", "it is a web page, not the file that the page offers: download the file itself"),
    (b"{", "it is JSON, as an index of several files is: name the file with the tensors"),
)
"""How files begin that people take for weights, in lower case, and what to say of them."""


def no_weights(path: Path) -> str:
    """Return what a file is that holds no tensors, and what to do; empty if it may hold some."""
    if path.is_dir():
        return "it is a folder: name the file in it"
    if not path.is_file():
        return "it is no file, but a FIFO, socket or device"
    with path.open("rb") as file:
        begin = file.read(64)
        file.seek(0, 2)
        length = file.tell()
    if not length:
        return "it is empty: get it again"
    if path.suffix == ".safetensors":
        return ""
    if begin.startswith(b"PK\x03\x04"):
        return "" if zipfile.is_zipfile(path) else "it is cut off or overwritten: get it again"
    return next((said for magic, said in FILE_KINDS if begin.lstrip().lower().startswith(magic.lower())), "")
