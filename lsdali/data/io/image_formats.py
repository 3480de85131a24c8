"""The image formats that are read: how files of each begin, and what their names end with."""

from typing import NamedTuple


class ImageFormat(NamedTuple):
    """One format."""

    name: str
    starts: tuple[bytes, ...]
    endings: tuple[str, ...]


IMAGE_FORMATS = (
    ImageFormat("JPEG", (b"\xff\xd8\xff",), ("jpg", "jpeg", "jfif")),
    ImageFormat("PNG", (b"\x89PNG\r\n\x1a\n",), ("png",)),
    ImageFormat("BMP", (b"BM",), ("bmp",)),
    ImageFormat("WebP", (b"RIFF",), ("webp",)),
    ImageFormat("PNM", (b"P5", b"P6"), ("pgm", "ppm")),
    ImageFormat("TIFF", (b"II*\0", b"MM\0*"), ("tif", "tiff")),
)
FORMAT_NAMES = ("unknown", *(kind.name for kind in IMAGE_FORMATS), "GIF")
EXTENSIONS = tuple(f".{ending}".encode() for kind in IMAGE_FORMATS for ending in kind.endings)
FORMAT_OF_ENDING = {e.encode(): n for n, kind in enumerate(IMAGE_FORMATS, 1) for e in kind.endings}
"""Position in FORMAT_NAMES by ending, in lower case."""
FORMAT_OF_START = {s[:2]: n for n, kind in enumerate(IMAGE_FORMATS, 1) for s in kind.starts} | {
    b"GI": len(FORMAT_NAMES) - 1
}
"""Position in FORMAT_NAMES by the first two bytes of a file."""


def is_image(path: str) -> bool:
    """Return whether a path ends as an image file does."""
    return path.lower().encode(errors="surrogateescape").endswith(EXTENSIONS)
