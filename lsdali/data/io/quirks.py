"""Read further traits from image headers: EXIF orientation, and whether DALI and Pillow read the pixels alike."""

import os
import struct

from lsdali.data.io.byte_range import READ, Memory, OpenRange, Readable
from lsdali.data.io.header import GOOD, HEAD, Header, Stamped, pnm_header, read_stamped, tiff_tags
from lsdali.data.io.image_formats import IMAGE_FORMATS

UPRIGHT = 1
_ADOBE, _EXIF = 0xEE, 0xE1
_NO_FRAME = (0xC4, 0xC8, 0xCC)
_LONGEST_EXIF = 1 << 16  # bytes of EXIF data that are read
# The position in this table is what traits() returns.
ODDITIES = (
    "",
    "CMYK JPEG without Adobe's marker, whose colours DALI inverts",
    "16-bit gray, which Pillow clips to white and DALI scales",
    "PNM file whose largest value is not 255, which DALI does not scale",
    "TIFF of floats, which DALI scales from 0..1 and Pillow clips",
    "TIFF with an alpha channel beside gray, or in Lab colours",
    "TIFF with an EXIF orientation, by which Pillow turns it",
    "BMP of 16 bits, whose levels DALI and Pillow spread a little differently",
)
READ_ALIKE, CMYK, GRAY16, DEPTH, FLOATS, ALPHA, TURNED, BITS16 = range(len(ODDITIES))
Traits = tuple[int, int]  # EXIF orientation 1 to 8, position in ODDITIES


def read_upright(path: str | bytes, start: int = 0, length: int | None = None) -> Stamped:
    """Return what read_stamped() returns, with the sides of the image as it is after its EXIF orientation.

    Raises UserError if the system fails.
    """
    *header, size, changed = read_stamped(path, start, length)
    turn = orientation(path, start, length) if header[2] == GOOD else UPRIGHT
    return *turned((header[0], header[1], header[2]), turn), size, changed


def turned(header: Header, turn: int) -> Header:
    """Return a header with the sides as they are after an EXIF orientation."""
    width, height, status = header
    return (height, width, status) if status == GOOD and turn > 4 else header


def orientation(path: str | bytes, start: int = 0, length: int | None = None) -> int:
    """Return the EXIF orientation, 1 to 8; 1 (upright) if none can be read."""
    try:
        file = os.open(path, READ)
        try:
            span = OpenRange.of(file, os.fstat(file).st_size, start, length)
            return traits(span, span.read(HEAD, 0))[0]
        finally:
            os.close(file)
    except OSError:
        return UPRIGHT


def traits(file: Readable, head: bytes) -> Traits:
    """Return the orientation and the oddity of an open file with the first bytes `head`. Raises OSError."""
    try:
        for start, look in _LOOK_BY_START:
            if head.startswith(start):
                return look(file, head)
    except (struct.error, IndexError, ValueError):
        pass
    return UPRIGHT, READ_ALIKE


def _turn(exif: bytes) -> int:
    """Return the orientation in a block of EXIF data."""
    data = exif.removeprefix(b"Exif\0\0")
    try:
        found = tiff_tags(Memory(data), data).get(274, UPRIGHT)
    except struct.error:
        return UPRIGHT
    return found if 1 <= found <= 8 else UPRIGHT


def _jpeg_traits(file: Readable, head: bytes) -> Traits:
    """Walk the segments before the scan."""
    base, at = 0, 2
    turn, components, adobe = UPRIGHT, 0, False
    while True:
        here = at - base
        if here + 10 > len(head):
            base, head, here = at, file.read(HEAD, at), 0
            if len(head) < 10:
                break
        marker = head[here + 1]
        if head[here] != 0xFF or marker == 0xDA:
            break
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        size = head[here + 2] << 8 | head[here + 3]
        if marker == _EXIF and turn == UPRIGHT:
            inside = here + 2 + size <= len(head)
            data = head[here + 4 : here + 2 + size] if inside else file.read(size - 2, at + 4)
            turn = _turn(data) if data.startswith(b"Exif\0\0") else UPRIGHT
        elif marker == _ADOBE:
            adobe = adobe or head.startswith(b"Adobe", here + 4)
        elif 0xC0 <= marker <= 0xCF and marker not in _NO_FRAME:
            components = head[here + 9]
        at += 2 + size
    return turn, CMYK if components == 4 and not adobe else READ_ALIKE


def _png_traits(file: Readable, head: bytes) -> Traits:
    depth, color = head[24], head[25]
    turn, at = UPRIGHT, 8
    while len(chunk := file.read(8, at)) == 8:
        (size,) = struct.unpack_from(">I", chunk)
        if chunk[4:] == b"eXIf":
            turn = _turn(file.read(min(size, _LONGEST_EXIF), at + 8))
        at += 12 + size
    return turn, GRAY16 if (depth, color) == (16, 0) else READ_ALIKE


def _webp_traits(file: Readable, head: bytes) -> Traits:
    turn, at = UPRIGHT, 12
    if head[12:16] != b"VP8X" or not head[20] & 8:  # no EXIF data
        return UPRIGHT, READ_ALIKE
    while len(chunk := file.read(8, at)) == 8:
        (size,) = struct.unpack_from("<I", chunk, 4)
        if chunk[:4] == b"EXIF":
            turn = _turn(file.read(min(size, _LONGEST_EXIF), at + 8))
        at += 8 + size + size % 2
    return turn, READ_ALIKE


def _pnm_traits(file: Readable, head: bytes) -> Traits:
    _, _, depth, _ = pnm_header(head)
    if depth in (255, 65535):
        return UPRIGHT, GRAY16 if depth > 255 and head.startswith(b"P5") else READ_ALIKE
    return UPRIGHT, DEPTH


def _bmp_traits(file: Readable, head: bytes) -> Traits:
    return UPRIGHT, BITS16 if head[14] != 12 and head[28:30] == b"\x10\0" else READ_ALIKE


def _tiff_traits(file: Readable, head: bytes) -> Traits:
    tags = tiff_tags(file, head)
    bits, sample, channels, colors = (tags.get(tag, 1) for tag in (258, 339, 277, 262))
    turn = tags.get(274, UPRIGHT)
    if sample == 3:
        return turn, FLOATS
    if channels == 2 or colors in (8, 9, 10):
        return turn, ALPHA
    if bits == 16 and channels == 1:
        return turn, GRAY16
    return turn, READ_ALIKE if turn == UPRIGHT else TURNED


_LOOKS = {
    **{"JPEG": _jpeg_traits, "PNG": _png_traits, "WebP": _webp_traits},
    **{"BMP": _bmp_traits, "PNM": _pnm_traits, "TIFF": _tiff_traits},
}
_LOOK_BY_START = [(start, _LOOKS[kind.name]) for kind in IMAGE_FORMATS if kind.name in _LOOKS for start in kind.starts]
