"""scikit-learn's bundled handwritten digits as PNG files, so that they take the same road as any data set."""

import struct
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lsdali.data.io.cache import new_folder
from lsdali.data.sampling.sampler import stratified

VAL_SAMPLES = 360


def write_digits(root: str) -> None:
    """Write root/{train,val}/<digit>/<number>.png unless root exists: 1,437 and 360, always the same."""
    target = Path(root).expanduser().absolute()
    if target.is_dir():
        return
    # scikit-learn takes a second to import and serves this one data set.
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    levels = np.rint(pixels.reshape(-1, 8, 8) * 255 / 16).astype(np.uint8)
    held_out = np.zeros(len(labels), bool)
    held_out[stratified(labels.astype(np.int64), VAL_SAMPLES)] = True
    with new_folder(target) as draft:
        for i, (image, label) in enumerate(zip(levels, labels)):
            file = draft / ("val" if held_out[i] else "train") / str(label) / f"{i:04d}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(png(image))


def png(image: NDArray[np.uint8]) -> bytes:
    """Map [H, W] uint8 -> a grayscale PNG file."""
    height, width = image.shape

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = np.hstack([np.zeros((height, 1), np.uint8), image])  # each row starts with its filter: none
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows.tobytes())) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body
