"""Readers of the file formats in which data sets are published. Nothing that a file holds is executed."""

import gzip
import io
import pickle
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lsdali.data.io.byte_range import Bytes
from lsdali.errors import UserError


class _Known(pickle.Unpickler):
    """Reads lists, dicts, text, numbers and NumPy arrays; refuses every other type before anything runs."""

    def find_class(self, module: str, name: str) -> Any:
        if name == "_reconstruct" and module in ("numpy.core.multiarray", "numpy._core.multiarray"):
            return np.zeros(1).__reduce__()[0]
        if name == "scalar" and module in ("numpy.core.multiarray", "numpy._core.multiarray"):
            return np.int64(0).__reduce__()[0]
        if name == "_frombuffer" and module in ("numpy.core.numeric", "numpy._core.numeric"):
            return np.zeros(1).__reduce_ex__(5)[0]
        if module == "numpy" and name in ("ndarray", "dtype"):
            return getattr(np, name)
        if (module, name) in (("_codecs", "encode"), ("__builtin__", "bytes"), ("builtins", "bytes")):
            return _old_bytes
        raise pickle.UnpicklingError(f"it holds a {module}.{name}, which CIFAR does not have")


def _old_bytes(text: str = "", encoding: str = "latin1") -> bytes:
    """Return bytes that Python 3 wrote in a protocol of Python 2: as text in which each letter is a byte."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it holds text in {encoding}, which CIFAR does not have")
    return text.encode("latin1")


def read_pickle(file: Path) -> dict[str, Any]:
    """Return the dictionary of one of CIFAR's pickles, its keys as text."""
    try:
        content = _Known(io.BytesIO(file.read_bytes()), encoding="bytes").load()
        return {key.decode() if isinstance(key, bytes) else str(key): value for key, value in content.items()}
    except Exception as error:  # a damaged pickle can raise anything
        raise UserError(f"{file} is no CIFAR file ({error}); get the data again") from None


def read_idx(file: Path) -> Bytes:
    """Return an array in LeCun's idx format, plain or gzip; unsigned bytes only."""
    try:
        content = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
        zero, kind, dimensions = struct.unpack_from(">HBB", content)
        shape = struct.unpack_from(f">{dimensions}I", content, 4)
        values = np.frombuffer(content, np.uint8, offset=4 + 4 * dimensions)
        if zero != 0 or kind != 8 or len(values) != np.prod(shape):
            raise ValueError(f"its head tells of {shape} bytes, {len(values)} follow")
        return values.reshape(shape)
    except (OSError, EOFError, ValueError, struct.error) as error:
        raise UserError(f"{file} is no whole idx file ({error}); get the data again") from None


def read_mat(file: Path, names: Sequence[str]) -> dict[str, Any]:
    """Return variables of a MATLAB file of version 5."""
    try:
        from scipy.io import loadmat
    except ImportError:
        raise UserError(f"{file} is a MATLAB file; pip install scipy reads it") from None
    try:
        content = loadmat(file, squeeze_me=False)
        return {name: content[name] for name in names}
    except Exception as error:  # a damaged file can raise anything
        raise UserError(f"{file} is no MATLAB file with {' and '.join(names)} ({error}); get the data again") from None
