"""The GPU decoder of this machine, and the faster way to decode a part of a JPEG with it."""

import ctypes
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import nvidia.dali
from nvidia.dali import backend

Way = Literal["window", "whole"]

Version = tuple[int, int, int]
WINDOWS_SINCE = (13, 2)  # of nvJPEG; nvimgcodec 0.9 leaves windows of subsampled JPEGs to the CPU with older ones
PACKAGED = {12: "nvjpeg/lib", 13: "cu13/lib"}  # where pip puts nvJPEG, by CUDA's major version


@dataclass(frozen=True, slots=True)
class DecoderReport:
    """Versions of what decodes images on a GPU; None if a library is not found."""

    dali: str
    cuda: int  # the major version that DALI is built for
    nvimgcodec: str | None
    nvjpeg: Version | None

    @property
    def way(self) -> Way:
        """`window`: decode a part of the image; `whole`: decode all of it and cut on the GPU."""
        return "window" if self.nvjpeg is not None and self.nvjpeg >= WINDOWS_SINCE else "whole"

    def describe(self) -> str:
        """Return one line: the versions, and what follows from them."""
        number = "not found" if self.nvjpeg is None else ".".join(map(str, self.nvjpeg))
        found = f"DALI {self.dali} for CUDA {self.cuda}, nvImageCodec {self.nvimgcodec or 'not found'}, nvJPEG {number}"
        if self.way == "window":
            return f"{found}: the GPU decodes windows of images"
        return (
            f"{found}: the GPU decodes whole images, because before nvJPEG 13.2 it leaves windows of JPEGs with "
            "subsampled colours to the CPU; with a PyTorch for CUDA 13, pip install lsdali[cuda13]"
        )


def decoder_report() -> DecoderReport:
    """Return the versions of the decoders that DALI would use on a GPU. Needs no GPU."""
    cuda = int(nvidia.dali.__cuda_version__) // 1000
    return DecoderReport(nvidia.dali.__version__, cuda, nvimgcodec_version(), nvjpeg_version(cuda))


def nvimgcodec_version() -> str | None:
    number: int = backend.GetNvimgcodecVersion()  # type: ignore[attr-defined]
    return f"{number // 1000}.{number % 1000 // 100}.{number % 100}" if number > 0 else None


def nvjpeg_version(cuda: int) -> Version | None:
    """Ask the library for its version: the one that pip put beside DALI, else the system's."""
    beside = Path(nvidia.dali.__file__).parents[1] / PACKAGED.get(cuda, "") / f"libnvjpeg.so.{cuda}"
    for name in (str(beside), f"libnvjpeg.so.{cuda}"):
        with suppress(OSError):
            library = ctypes.CDLL(name)
            major, minor, patch = (ctypes.c_int(0) for _ in range(3))
            for part, number in enumerate((major, minor, patch)):
                library.nvjpegGetProperty(part, ctypes.byref(number))
            return major.value, minor.value, patch.value
    return None
