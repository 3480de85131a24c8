"""Scalars in the file format of TensorBoard, written at once by the thread that has them.

A file is a row of records (TensorFlow's TFRecord): length as uint64, its checksum, the data, their checksum. The data
are protocol buffers (tensorflow/core/util/event.proto, framework/summary.proto), of which five fields are enough here.
"""

import os
import socket
import struct
import time
from collections.abc import Mapping
from ctypes import c_float
from pathlib import Path

from lsdali.disk import Appended

POLYNOMIAL = 0x82F63B78  # Castagnoli's, its bits reversed
MASK = 0xA282EAD8


def _row(byte: int) -> int:
    for _ in range(8):
        byte = byte >> 1 ^ (POLYNOMIAL if byte & 1 else 0)
    return byte


TABLE = [_row(byte) for byte in range(256)]


def masked_checksum(data: bytes) -> bytes:
    """Return the CRC-32C of RFC 3720, rotated and shifted as TFRecord wants it, 4 bytes."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = TABLE[(crc ^ byte) & 0xFF] ^ crc >> 8
    crc ^= 0xFFFFFFFF
    return struct.pack("<I", ((crc >> 15 | crc << 17) + MASK) & 0xFFFFFFFF)


def record(data: bytes) -> bytes:
    length = struct.pack("<Q", len(data))
    return length + masked_checksum(length) + data + masked_checksum(data)


def varint(number: int) -> bytes:
    """Return a number from 0 in 7 bits a byte, the lowest first."""
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def text(number: int, content: bytes) -> bytes:
    """Return a field of bytes, text or another message."""
    return varint(number << 3 | 2) + varint(len(content)) + content


def event(step: int | None, body: bytes) -> bytes:
    """Return an Event of now: wall_time is its field 1, step its field 2."""
    step_field = b"" if step is None else varint(2 << 3) + varint(step)
    return varint(1 << 3 | 1) + struct.pack("<d", time.time()) + step_field + body


def summary(values: Mapping[str, float]) -> bytes:
    """Return the summary of an Event (field 5): tag (1) and simple_value (2), float32, of each value (1)."""
    rows = [text(1, tag.encode()) + varint(2 << 3 | 5) + bytes(c_float(value)) for tag, value in values.items()]
    return text(5, b"".join(text(1, row) for row in rows))


class EventFile:
    """A new file in a folder. `begin` is the step from which on TensorBoard forgets what older files hold."""

    def __init__(self, folder: Path, begin: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{os.getpid()}"
        self._file = Appended(folder / name)
        version, start = text(3, b"brain.Event:2"), text(7, varint(1 << 3) + varint(1))  # session_log: START
        try:
            self._file.append(record(event(None, version)) + record(event(begin, start)))
        except OSError:
            self._file.close()
            raise

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Write scalars by their tags. Raises OSError."""
        self._file.append(record(event(step, summary(values))))

    def close(self) -> None:
        self._file.close()
