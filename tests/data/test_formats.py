"""What the scan says of files of every kind, against what DALI decodes and what Pillow sees."""

import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from nvidia.dali import fn, pipeline_def, types
from PIL import Image

from lsdali.data.index.scan_split import ODDITY, STATUS, examine
from lsdali.data.io.header import FAULTS, GOOD
from lsdali.data.io.quirks import READ_ALIKE

HIGH, WIDE = 40, 60
Y, X = np.mgrid[:HIGH, :WIDE]
RGB = np.stack([X * 4 % 256, Y * 6 % 256, (X + Y) * 2 % 256], -1).astype(np.uint8)
IMAGE = Image.fromarray(RGB)
GRAY = IMAGE.convert("L")
LEVELS = np.asarray(GRAY)


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)  # type: ignore[arg-type]
    return out.getvalue()


def without(data: bytes, marker: bytes) -> bytes:
    """A JPEG without a segment."""
    at = data.index(marker)
    return data[:at] + data[at + 2 + int.from_bytes(data[at + 2 : at + 4], "big") :]


def bmp(bits: int, compression: int, pixels: bytes, between: bytes = b"") -> bytes:
    start = 54 + len(between)
    header = struct.pack("<IiiHHIIiiII", 40, WIDE, HIGH, 1, bits, compression, len(pixels), 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", start + len(pixels), 0, 0, start) + header + between + pixels


def png(depth: int, color: int, rows: NDArray[np.uint8]) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", WIDE, HIGH, depth, color, 0, 0, 0)
    body = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def turned(kind: str) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return saved(IMAGE, kind, exif=exif)


SHADES = b"".join(bytes([k, k, k, 0]) for k in range(256))
FIFTEEN = (RGB[::-1].astype("<u2") >> 3 << [10, 5, 0]).sum(-1).astype("<u2").tobytes()
RUNS = b"".join(b"".join(bytes([1, v]) for v in row) + b"\0\0" for row in LEVELS[::-1]) + b"\0\1"
HALF: Callable[[bytes], bytes] = lambda data: data[: len(data) // 2]  # noqa: E731
JPEG, PNG, WEBP, BMP, TIFF = (saved(IMAGE, kind) for kind in ("JPEG", "PNG", "WEBP", "BMP", "TIFF"))
PPM = b"P6\n60 40\n255\n" + RGB.tobytes()

# Read alike, read differently, and not read.
ALIKE = {
    "jpeg": JPEG,
    "progressive": saved(IMAGE, "JPEG", progressive=True),
    "gray jpeg": saved(GRAY, "JPEG"),
    "cmyk of Adobe's": saved(IMAGE.convert("CMYK"), "JPEG"),
    "jpeg and junk": JPEG + b"junk" * 500,
    "turned jpeg": turned("JPEG"),
    "png": PNG,
    "palette": saved(IMAGE.convert("P"), "PNG", transparency=3),
    "alpha": saved(IMAGE.convert("RGBA"), "PNG"),
    "16-bit colours": png(16, 2, np.asarray(RGB.astype(">u2") * 257).astype(">u2").view(np.uint8)),
    "webp": WEBP,
    "webp without loss": saved(IMAGE, "WEBP", lossless=True),
    "bmp": BMP,
    "bmp of runs": bmp(8, 1, RUNS, SHADES),
    "ppm": PPM,
    "ppm with comments": PPM.replace(b"P6\n", b"P6\n# " + b"c" * 2000 + b"\n"),
    "tiff": TIFF,
    "tiff lzw": saved(IMAGE, "TIFF", compression="tiff_lzw"),
    "tiff jpeg": saved(IMAGE, "TIFF", compression="jpeg", quality=95),
    "tiff cmyk": saved(IMAGE.convert("CMYK"), "TIFF"),
}
DIFFERENT = {
    "cmyk without marker": without(saved(IMAGE.convert("CMYK"), "JPEG"), b"\xff\xee"),
    "16-bit gray png": png(16, 0, (LEVELS.astype(np.uint16) * 257).astype(">u2").view(np.uint8)),
    "16-bit gray pgm": b"P5\n60 40\n65535\n" + (LEVELS.astype(np.uint16) * 257).astype(">u2").tobytes(),
    "pgm up to 100": b"P5\n60 40\n100\n" + (LEVELS.astype(int) * 100 // 255).astype(np.uint8).tobytes(),
    "bmp of 16 bits": bmp(16, 3, FIFTEEN, struct.pack("<III", 0x7C00, 0x3E0, 0x1F)),
    "tiff of floats": saved(Image.fromarray(LEVELS.astype(np.float32)), "TIFF"),
    "16-bit tiff": saved(Image.fromarray(LEVELS.astype(np.uint16) * 257), "TIFF"),
    "tiff with alpha": saved(GRAY.convert("LA"), "TIFF"),
    "lab": saved(IMAGE.convert("LAB"), "TIFF"),
    "turned tiff": turned("TIFF"),
}
KIND, CUT = "a kind of JPEG, TIFF, BMP or PNM that is not supported", "truncated"
BAD = {
    "lossless jpeg": (JPEG.replace(b"\xff\xc0", b"\xff\xc3", 1), KIND),
    "bmp of 15 bits": (bmp(16, 0, FIFTEEN), KIND),
    "bmp with a jpeg": (bmp(0, 4, JPEG), KIND),
    "ppm as text": (b"P3\n60 40\n255\n" + " ".join(map(str, RGB.ravel().tolist())).encode(), KIND),
    "tiff of 32 bits": (saved(Image.fromarray(LEVELS.astype(np.int32)), "TIFF"), KIND),
    "tiff lzma": (saved(IMAGE, "TIFF", compression="lzma"), KIND),
    "half a jpeg": (HALF(JPEG), CUT),
    "half a png": (HALF(PNG), CUT),
    "half a webp": (HALF(WEBP), CUT),
    "half a bmp": (HALF(BMP), CUT),
    "a bmp less a byte": (BMP[:-1], CUT),
    "half a tiff": (HALF(TIFF), CUT),
    "a ppm less a byte": (PPM[:-1], CUT),
    "gif": (saved(IMAGE, "GIF"), "GIF is not supported"),
    "heic": (b"\0\0\0\x18ftypheic" + bytes(500), "unknown format"),
    "zeros": (bytes(4096), "unknown format"),
    "svg": (b'<?xml version="1.0"?><svg/>', "text or HTML"),
}


@pipeline_def(batch_size=1, num_threads=1, device_id=None)  # type: ignore[untyped-decorator]
def decoder(data: NDArray[np.uint8]) -> object:
    """As in lsdali.data.pipeline.graph."""
    encoded = fn.external_source(source=lambda: [data], dtype=types.UINT8)
    return fn.decoders.image(encoded, device="cpu", jpeg_fancy_upsampling=True, adjust_orientation=False)


def decoded(data: bytes) -> NDArray[np.uint8]:
    pixels: NDArray[np.uint8] = np.asarray(decoder(np.frombuffer(data, np.uint8)).run()[0].as_array())[0]
    return pixels


def facts(folder: object, data: bytes) -> tuple[int, ...]:
    file = f"{folder}/image"
    with open(file, "wb") as out:
        out.write(data)
    return examine(file)


@pytest.mark.parametrize("name", ALIKE)
def test_what_the_scan_passes_is_decoded_as_pillow_does(tmp_path: object, name: str) -> None:
    found, pixels = facts(tmp_path, ALIKE[name]), decoded(ALIKE[name])
    assert (found[STATUS], found[ODDITY]) == (GOOD, READ_ALIKE)
    assert found[:2] == pixels.shape[1::-1] == (WIDE, HIGH)
    seen = np.asarray(Image.open(io.BytesIO(ALIKE[name])).convert("RGB"), float)
    assert np.abs(pixels - seen).mean() < 1


@pytest.mark.parametrize("name", DIFFERENT)
def test_what_is_decoded_otherwise_is_told(tmp_path: object, name: str) -> None:
    found, pixels = facts(tmp_path, DIFFERENT[name]), decoded(DIFFERENT[name])
    assert found[STATUS] == GOOD
    assert found[ODDITY] != READ_ALIKE
    assert found[:2] == pixels.shape[1::-1] == (WIDE, HIGH)
    seen = np.asarray(Image.open(io.BytesIO(DIFFERENT[name])).convert("RGB"), float)
    assert seen.shape != pixels.shape or np.abs(pixels - seen).mean() > 1


@pytest.mark.parametrize("name", BAD)
def test_what_dali_does_not_decode_is_bad_by_name(tmp_path: object, name: str) -> None:
    data, fault = BAD[name]
    assert FAULTS[facts(tmp_path, data)[STATUS]] == fault
    with pytest.raises(RuntimeError):
        decoded(data)
