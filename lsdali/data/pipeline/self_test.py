"""Check that the training graph decodes on this machine."""

import io

import numpy as np
from PIL import Image

from lsdali.data.pipeline.graph import GraphSpec, resized_graph

SIDE, WINDOW = 96, (17, 9, 48)  # x, y and side of what is decoded: odd corners, which fall between halved chroma pixels


def decoded_difference(device_id: int | None) -> float:
    """Decode a window of a JPEG whose chroma has half the resolution, on a GPU or (None) on the CPU.

    Returns the mean difference from Pillow's pixels, in grey levels. Raises RuntimeError if DALI cannot decode it.
    """
    y, x = np.mgrid[:SIDE, :SIDE] / SIDE
    pixels = np.stack([x, y, 1 - x], -1) * 255
    file = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(file, "JPEG", quality=95, subsampling="4:2:0")
    left, top, side = WINDOW
    whole = np.asarray(Image.open(file), np.float32)
    start, shape = np.array([[top, left]], np.int32), np.full((1, 2), side, np.int32)
    low, high = np.zeros((1, 2), np.float32), np.full((1, 2), side, np.float32)
    arrays = [np.frombuffer(file.getvalue(), np.uint8)], np.zeros((1, 1), np.int64), start, shape, low, high
    spec = GraphSpec(
        batch=1,
        threads=1,
        prefetch=1,
        device_id=device_id,
        half=False,
        size=side,
        mean=(0, 0, 0),
        std=(1 / 255, 1 / 255, 1 / 255),
        largest=SIDE * SIDE,
        images="encoded",
    )
    (images, _) = resized_graph(lambda _: arrays, spec).run()
    decoded = np.asarray(images.as_cpu()[0] if device_id is not None else images[0])
    return float(np.abs(decoded - whole[top : top + side, left : left + side]).mean())
