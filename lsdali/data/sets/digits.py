"""scikit-learn's bundled handwritten digits as PNG files, so that they take the same road as any data set."""

import struct
import zlib
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lsdali.data.io.cache import new_folder
from lsdali.data.sampling.sampler import stratified
from lsdali.errors import UserError

VAL_SAMPLES = 360


def write_digits(root: str) -> None:
    """Write root/{train,val}/<digit>/<number>.png unless root exists: 1,437 and 360, always the same."""
    target = Path(root).expanduser().absolute()
    if target.is_dir():
        return
    pixels, labels = bundled_digits()
    levels = np.rint(pixels * 255 / 16).astype(np.uint8)
    held_out = np.zeros(len(labels), bool)
    held_out[stratified(labels, VAL_SAMPLES)] = True
    with new_folder(target) as draft:
        for i, (image, label) in enumerate(zip(levels, labels)):
            file = draft / ("val" if held_out[i] else "train") / str(label) / f"{i:04d}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(png(image))


def bundled_digits() -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return [N, 8, 8] levels 0 to 16 and [N] digits out of scikit-learn's file, as its load_digits does.

    To import scikit-learn takes more than a second.
    """
    found = find_spec("sklearn")
    if found is None or not found.submodule_search_locations:
        raise UserError("data.name: digits needs scikit-learn, which brings the images: pip install scikit-learn")
    table = np.loadtxt(Path(found.submodule_search_locations[0]) / "datasets/data/digits.csv.gz", delimiter=",")
    return table[:, :-1].reshape(-1, 8, 8), table[:, -1].astype(np.int64)


def png(image: NDArray[np.uint8]) -> bytes:
    """Map [H, W] uint8 -> a grayscale PNG file."""
    height, width = image.shape

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = np.hstack([np.zeros((height, 1), np.uint8), image])  # each row starts with its filter: none
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows.tobytes())) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body
