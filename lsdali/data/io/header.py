"""Read image headers: format, size in pixels, and, from the last bytes, whether the file is complete.

No decoder is called: at ImageNet's size decoding every file once would cost as much as an epoch.
"""

import errno
import os
import re
import struct
from collections.abc import Callable

from lsdali.data.io.byte_range import READ, OpenRange, Readable
from lsdali.data.io.image_formats import IMAGE_FORMATS
from lsdali.errors import UserError

# The position in this table is the status that the index stores; 0 is good.
FAULTS = (
    "good",
    "missing",
    "not readable",
    "empty",
    "text or HTML",
    "GIF is not supported",
    "unknown format",
    "truncated",
    "damaged header",
    "larger than 65,535 pixels",
    "no regular file",
    "a kind of JPEG, TIFF, BMP or PNM that is not supported",
    "more pixels than data.max_pixels",
)
GOOD, MISSING, UNREADABLE, EMPTY, TEXT, GIF, UNKNOWN, TRUNCATED, DAMAGED, HUGE, NO_FILE, KIND, TOO_MANY = range(13)

HEAD, TAIL = 4096, 1024
_ABSENT = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG}
_NO_FILE = {errno.ESPIPE, errno.EISDIR, errno.ENXIO, errno.ENODEV, errno.EAGAIN}
Header = tuple[int, int, int]  # width, height, status
Stamped = tuple[int, int, int, int, int]


def read_header(path: str | bytes, start: int = 0, length: int | None = None) -> Header:
    """Return width, height in pixels and the position in FAULTS of a file or a range of it; never raise for a bad file.

    Raises UserError if the system fails, as it does without permission or with a disk error.
    """
    return read_stamped(path, start, length)[:3]


def read_stamped(path: str | bytes, start: int = 0, length: int | None = None) -> Stamped:
    """Return what read_header() returns, then the bytes of the file and the time of its last change in ns.

    The last two are 0 if there is no file.
    """
    try:
        file = os.open(path, READ)
        try:
            found = os.fstat(file)
            if found.st_mode & 0o170000 != 0o100000:
                return 0, 0, NO_FILE, 0, 0
            span = OpenRange.of(file, found.st_size, start, length)
            header = parse_header(span, os.pread(file, min(HEAD, span.size), start))
            return *header, found.st_size, found.st_mtime_ns
        finally:
            os.close(file)
    except OSError as error:
        return 0, 0, fault_of(error, path), 0, 0


def fault_of(error: OSError, path: str | bytes) -> int:
    """Return the fault of a file that cannot be opened or read. Raises UserError if the system is to blame."""
    if absent(error):
        return MISSING
    if no_regular_file(error):
        return NO_FILE
    raise SystemFault(error, path) from None


def absent(error: OSError) -> bool:
    """Return whether there is no such file, which a link to itself is too."""
    return error.errno in _ABSENT


def no_regular_file(error: OSError) -> bool:
    """Return whether a FIFO, a socket, a device or a folder is what could not be read."""
    return error.errno in _NO_FILE


class SystemFault(UserError):
    """The system cannot read a file, whatever it holds: no permission, no more open files, a disk or network error."""

    def __init__(self, error: OSError, path: str | bytes) -> None:
        self.path = os.fsdecode(path)
        super().__init__(f"{self.path} cannot be read: {error.strerror}; the same command goes on once it can")


def parse_header(file: Readable, head: bytes) -> Header:
    """Return the same for an open file and its first HEAD bytes. Raises OSError."""
    try:
        return _read_header(file, head)
    except (struct.error, IndexError):
        return 0, 0, TRUNCATED
    except ValueError:
        return 0, 0, DAMAGED


def _read_header(file: Readable, head: bytes) -> Header:
    if not head:
        return 0, 0, EMPTY
    for start, read in _SIZE_BY_START:
        if head.startswith(start):
            width, height, whole = read(file, head)
            if not (width > 0 and height > 0):
                return 0, 0, DAMAGED
            if max(width, height) > 65535:
                return width, height, HUGE
            if whole is None:
                return width, height, KIND
            return width, height, GOOD if whole else TRUNCATED
    if head.startswith(b"GIF8"):
        return 0, 0, GIF
    if _OTHER_PNM.match(head):
        return 0, 0, KIND
    text = head.lstrip()[:1] == b"<" or not any(b < 9 or 13 < b < 32 or b > 126 for b in head[:512])
    return 0, 0, TEXT if text else UNKNOWN


Measured = tuple[int, int, bool | None]  # width, height, whether the end is there; None: a kind that no decoder reads


def _tail(file: Readable, head: bytes, mark: bytes, start: int) -> bool:
    """Whether `mark` stands anywhere from `start` to the end; junk after it is common and harmless."""
    size = file.size
    if size <= len(head):
        return head.find(mark, start) >= 0
    near = max(start, size - TAIL)
    if mark in file.read(size - near, near):
        return True
    return near > start and mark in file.read(size - start, start)


def _jpeg_size(file: Readable, head: bytes) -> Measured:
    """Walk the segments to the frame header (SOFn) and the scan (SOS), past any embedded thumbnail."""
    base, at = 0, 2
    width = height = 0
    known = True
    while True:
        if at - base + 9 > len(head):
            base, head = at, file.read(HEAD, at)
        here = at - base
        if head[here] != 0xFF:
            raise ValueError
        marker = head[here + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        if marker == 0xDA:
            break
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            bits, height, width = struct.unpack_from(">BHH", head, here + 4)
            known = marker in (0xC0, 0xC1, 0xC2, 0xC9, 0xCA) and bits == 8  # others are lossless or of 12 bits
        at += 2 + (head[here + 2] << 8 | head[here + 3])
    whole = _tail(file, head if base == 0 else b"", b"\xff\xd9", at)
    return width, height, whole if known else None


def _png_size(file: Readable, head: bytes) -> Measured:
    if head[12:16] != b"IHDR":
        raise ValueError
    width, height = struct.unpack_from(">II", head, 16)
    return width, height, _tail(file, head, b"IEND\xaeB`\x82", 33)


def _bmp(file: Readable, head: bytes) -> Measured:
    start, length = struct.unpack_from("<II", head, 10)
    os2 = length == 12
    width, height, _, bits = struct.unpack_from("<HHHH" if os2 else "<iiHH", head, 18)
    kind = (bits, 0 if os2 else struct.unpack_from("<I", head, 30)[0])
    if kind not in _BMP_KINDS:
        return width, abs(height), None
    rows = 1 if kind == _BMP_RUNS else (abs(height) - 1) * ((width * bits + 31) // 32 * 4) + (width * bits + 7) // 8
    return width, abs(height), file.size >= start + rows


_BMP_RUNS = (8, 1)
_BMP_KINDS = {(1, 0), (4, 0), (8, 0), _BMP_RUNS, (16, 3), (24, 0), (32, 0), (32, 3)}
"""Bits of a pixel and compression (0 none, 1 runs, 3 masks of channels) that DALI decodes."""


def _webp_size(file: Readable, head: bytes) -> Measured:
    if head[8:12] != b"WEBP":
        raise ValueError
    whole = file.size >= struct.unpack_from("<I", head, 4)[0] + 8
    kind = head[12:16]
    if kind == b"VP8X":
        wide, high = head[24:27], head[27:30]
        return 1 + int.from_bytes(wide, "little"), 1 + int.from_bytes(high, "little"), whole
    if kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", head, 21)
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF), whole
    width, height = struct.unpack_from("<HH", head, 26)
    return width & 0x3FFF, height & 0x3FFF, whole


_GAP = rb"(?:\s|#[^\r\n]*[\r\n])+"
_PNM_HEADER = re.compile(rb"P[56]" + 3 * (_GAP + rb"(\d{1,9})") + rb"\s")
_OTHER_PNM = re.compile(rb"P[12347]\s")  # text, bitmaps, PAM


def pnm_header(head: bytes) -> tuple[int, int, int, int]:
    """Return width, height, largest value and first byte of the pixels of a PNM file. Raises ValueError."""
    found = _PNM_HEADER.match(head)
    if found is None:
        raise ValueError
    return int(found[1]), int(found[2]), int(found[3]), found.end()


def _pnm_size(file: Readable, head: bytes) -> Measured:
    width, height, depth, start = pnm_header(head)
    channels = 3 if head.startswith(b"P6") else 1
    return width, height, file.size >= start + width * height * channels * (2 if depth > 255 else 1)


def _tiff_size(file: Readable, head: bytes) -> Measured:
    parts = _tiff_values(file, head)
    found = {tag: values[0] for tag, values in parts.items()}
    bits, sample = found.get(258, 0), found.get(339, 1)
    known = bits > 0 and found.get(259, 1) in _TIFF_COMPRESSIONS and (bits, sample) in _TIFF_SAMPLES
    width, height = found.get(256, 0), found.get(257, 0)
    if not known:
        return width, height, None
    ends = [
        start + length
        for starts, lengths in ((273, 279), (324, 325))  # of strips, of tiles
        for start, length in zip(parts.get(starts, ()), parts.get(lengths, ()))
    ]
    return width, height, max(ends, default=0) <= file.size


# What DALI decodes of TIFF: compressions, and (bits, sample format) of a channel.
_TIFF_COMPRESSIONS = {1, 2, 3, 4, 5, 6, 7, 8, 32773, 32946, 50000}
_TIFF_SAMPLES = {(1, 1), (2, 1), (4, 1), (8, 1), (16, 1), (32, 3), (8, 4), (16, 4)}


def tiff_tags(file: Readable, head: bytes) -> dict[int, int]:
    """Return the first value of each tag of a TIFF file's first image that holds short or long numbers."""
    return {tag: values[0] for tag, values in _tiff_values(file, head).items()}


def _tiff_values(file: Readable, head: bytes) -> dict[int, tuple[int, ...]]:
    """Return the values of each such tag, at most _MOST_VALUES."""
    order = "<" if head[:2] == b"II" else ">"
    (offset,) = struct.unpack_from(order + "I", head, 4)
    table = file.read(HEAD, offset)
    found = {}
    for k in range(struct.unpack_from(order + "H", table)[0]):
        tag, kind, count = struct.unpack_from(order + "HHI", table, 2 + 12 * k)
        if kind not in (3, 4) or not count:
            continue
        count = min(count, _MOST_VALUES)
        size, letter = (2, "H") if kind == 3 else (4, "I")
        begin, data = 10 + 12 * k, table
        if count * size > 4:
            (at,) = struct.unpack_from(order + "I", table, begin)
            begin, data = 0, file.read(count * size, at)
        found[tag] = struct.unpack_from(f"{order}{count}{letter}", data, begin)
    return found


_MOST_VALUES = 1 << 16


_READERS: dict[str, Callable[[Readable, bytes], Measured]] = {
    "JPEG": _jpeg_size,
    "PNG": _png_size,
    "BMP": _bmp,
    "WebP": _webp_size,
    "PNM": _pnm_size,
    "TIFF": _tiff_size,
}
_SIZE_BY_START = [(start, _READERS[kind.name]) for kind in IMAGE_FORMATS for start in kind.starts]
