"""Index: the samples of one split. A data set lists them, a scan adds sizes and faults, a recipe chooses some."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lsdali.data.io.byte_range import ByteRange, ByteRanges, PendingBytes
from lsdali.data.io.header import FAULTS, Header, read_header
from lsdali.data.io.quirks import read_upright
from lsdali.data.io.remote import RemoteRanges
from lsdali.data.sampling.sampler import Ints
from lsdali.data.sets.walk import LeftOut

SampleForm = Literal["paths", "encoded", "pixels"]
TO_FILL: Any = object()  # until __post_init__


@dataclass(frozen=True, slots=True, eq=False)
class Index:
    """N samples. Bad files keep their numbers, so that a repaired file shifts no other sample.

    A data set gives the first five fields, and others that it knows without looking at the files. Until a scan every
    size is 0 and every file is taken for good; until a choice every sample of the set is there, with its own label.
    """

    root: Path | str  # a URL is text
    paths: NDArray[np.bytes_]  # [N] relative to root; at least one NUL ends each
    labels: Ints  # [N] in use
    classes: tuple[str, ...]
    watched: tuple[str, ...] = ()  # folders and files, relative to root, whose change makes the list of samples stale
    pixels: NDArray[np.uint8] | None = None  # [whole set, H, W, 1 or 3] if they are at hand; paths then only name them
    ranges: ByteRanges | None = None  # of samples that are parts of larger files; paths then only name them
    headers: NDArray[np.int32] | None = None  # [N, 3] what read_header() returns of each, where that is known already
    left_out: LeftOut = field(default_factory=LeftOut)  # what lies among the files and is no data
    # What a scan adds.
    size: NDArray[np.int32] = TO_FILL  # [N, 2] width, height in pixels; 0 where unknown
    status: NDArray[np.uint8] = TO_FILL  # [N] position in FAULTS; 0 is good
    fingerprint: str = ""  # sha256 of paths, pixels that come as arrays, lengths of ranges, and the labels in use
    stamp: str = ""  # changes with the bytes or the time of any file; empty where that is not known
    upright: bool = False  # sizes are those after the EXIF orientation
    # What a choice adds.
    clean: Ints = TO_FILL  # [N] labels before noise
    numbers: Ints = TO_FILL  # [N] numbers in the whole set, or in `pixels` if these are those of a part
    held: bool = False  # whether the pixels are kept on the device, without DALI

    def __post_init__(self) -> None:
        n = len(self.labels)
        begin = {
            "size": np.zeros((n, 2), np.int32),
            "status": np.zeros(n, np.uint8),
            "clean": self.labels,
            "numbers": np.arange(n),
        }
        for name, value in begin.items():
            if getattr(self, name) is TO_FILL:
                object.__setattr__(self, name, value)

    def __len__(self) -> int:
        return len(self.labels)

    def path(self, i: int) -> str:
        """Return the absolute path of sample i."""
        return os.path.join(self.root, os.fsdecode(bytes(self.paths[i])))

    def byte_range(self, i: int) -> ByteRange:
        """Return where the bytes of sample i lie."""
        return ByteRange(os.fsencode(self.path(i))) if self.ranges is None else self.ranges.byte_range(i)

    @property
    def form(self) -> SampleForm:
        """What images() gives."""
        if self.pixels is not None:
            return "pixels"
        return "paths" if self.ranges is None else "encoded"

    def images(self, i: Ints) -> NDArray[np.uint8] | PendingBytes:
        """Return n images: pixels [n, H, W, 3], absolute paths [n, L'] with NULs, or a promise of their bytes."""
        if self.pixels is not None:
            pixels = self.pixels[self.numbers[i]]
            return np.ascontiguousarray(np.broadcast_to(pixels, (*pixels.shape[:3], 3)))
        if self.ranges is not None:
            return self.ranges.read(i)
        root = np.frombuffer(os.fsencode(self.root) + b"/", np.uint8)
        paths = self.paths[i].view(np.uint8).reshape(len(i), -1)
        return np.hstack([np.broadcast_to(root, (len(i), len(root))), paths])

    def read_header(self, i: int) -> Header:
        """Return what read_header() says of sample i now. Raises UserError if a store fails or has other files."""
        if isinstance(self.ranges, RemoteRanges):
            return self.ranges.read_header(i, upright=self.upright)
        return read_upright(*self.byte_range(i))[:3] if self.upright else read_header(*self.byte_range(i))

    def bad(self) -> Ints:
        """Return the numbers of the samples with a fault."""
        return np.flatnonzero(self.status)

    def faults(self) -> list[tuple[str, str]]:
        """Return path and fault of every bad file."""
        return [(self.path(int(i)), FAULTS[self.status[i]]) for i in self.bad()]
