"""What a file's first and last bytes say: its format, its size in pixels, and whether it is whole.

No decoder is called: at ImageNet's size decoding every file once would cost as much as an epoch.
"""

import os
import struct
from collections.abc import Callable

from lsdali.data.io.byte_range import OpenRange, Readable

# The place in this table is the status that the index stores; 0 is good.
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
)
GOOD, MISSING, UNREADABLE, EMPTY, TEXT, GIF, UNKNOWN, TRUNCATED, DAMAGED, HUGE = range(len(FAULTS))

HEAD, TAIL = 4096, 1024
Header = tuple[int, int, int]  # width, height, status


def read_header(path: str | bytes, start: int = 0, length: int | None = None) -> Header:
    """Width and height in pixels and a place in FAULTS, of a file or a range of it. Never raises for a bad file."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        return 0, 0, absent(error)
    try:
        span = OpenRange(file, start, length)
        return parse_header(span, span.read(HEAD, 0))
    except OSError:
        return 0, 0, UNREADABLE
    finally:
        os.close(file)


def absent(error: OSError) -> int:
    """The fault of a file that cannot be opened."""
    return MISSING if isinstance(error, FileNotFoundError | NotADirectoryError) else UNREADABLE


def parse_header(file: Readable, head: bytes) -> Header:
    """The same for an open file and its first HEAD bytes."""
    try:
        return _read_header(file, head)
    except (struct.error, IndexError):
        return 0, 0, TRUNCATED
    except ValueError:
        return 0, 0, DAMAGED
    except OSError:
        return 0, 0, UNREADABLE


def _read_header(file: Readable, head: bytes) -> Header:
    if not head:
        return 0, 0, EMPTY
    for magic, parse_header in _FORMATS:
        if head.startswith(magic):
            width, height, whole = parse_header(file, head)
            if not (width > 0 and height > 0):
                return 0, 0, DAMAGED
            if max(width, height) > 65535:
                return width, height, HUGE
            return width, height, GOOD if whole else TRUNCATED
    if head.startswith(b"GIF8"):
        return 0, 0, GIF
    text = head.lstrip()[:1] == b"<" or not any(b < 9 or 13 < b < 32 or b > 126 for b in head[:512])
    return 0, 0, TEXT if text else UNKNOWN


Measured = tuple[int, int, bool]  # width, height, whether the end is there


def _tail(file: Readable, head: bytes, mark: bytes, start: int) -> bool:
    """Whether `mark` stands anywhere from `start` to the end; junk after it is common and harmless."""
    size = file.size
    if size <= len(head):
        return head.find(mark, start) >= 0
    near = max(start, size - TAIL)
    if mark in file.read(size - near, near):
        return True
    return near > start and mark in file.read(size - start, start)


def _jpeg(file: Readable, head: bytes) -> Measured:
    """Walk the segments to the frame header (SOFn) and the scan (SOS), past any embedded thumbnail."""
    base, at = 0, 2
    width = height = 0
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
            height, width = struct.unpack_from(">HH", head, here + 5)
        at += 2 + struct.unpack_from(">H", head, here + 2)[0]
    return width, height, _tail(file, head if base == 0 else b"", b"\xff\xd9", at)


def _png(file: Readable, head: bytes) -> Measured:
    if head[12:16] != b"IHDR":
        raise ValueError
    width, height = struct.unpack_from(">II", head, 16)
    return width, height, _tail(file, head, b"IEND\xaeB`\x82", 33)


def _bmp(file: Readable, head: bytes) -> Measured:
    (start,) = struct.unpack_from("<I", head, 10)
    width, height = struct.unpack_from("<ii", head, 18)
    return width, abs(height), file.size > start


def _webp(file: Readable, head: bytes) -> Measured:
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


def _pnm(file: Readable, head: bytes) -> Measured:
    words = [w for line in head[:1024].splitlines() for w in line.split(b"#")[0].split()][:4]
    width, height, depth = (int(w) for w in words[1:])
    channels = 3 if words[0] == b"P6" else 1
    pixels = width * height * channels * (2 if depth > 255 else 1)
    return width, height, file.size >= pixels


def _tiff(file: Readable, head: bytes) -> Measured:
    order = "<" if head[:2] == b"II" else ">"
    (offset,) = struct.unpack_from(order + "I", head, 4)
    table = file.read(HEAD, offset)
    found = {}
    for k in range(struct.unpack_from(order + "H", table)[0]):
        tag, kind = struct.unpack_from(order + "HH", table, 2 + 12 * k)
        if tag in (256, 257):
            (found[tag],) = struct.unpack_from(order + ("H" if kind == 3 else "I"), table, 10 + 12 * k)
        if tag > 257:
            break
    return found.get(256, 0), found.get(257, 0), True


_FORMATS: tuple[tuple[bytes, Callable[[Readable, bytes], Measured]], ...] = (
    (b"\xff\xd8\xff", _jpeg),
    (b"\x89PNG\r\n\x1a\n", _png),
    (b"BM", _bmp),
    (b"RIFF", _webp),
    (b"P5", _pnm),
    (b"P6", _pnm),
    (b"II*\0", _tiff),
    (b"MM\0*", _tiff),
)
