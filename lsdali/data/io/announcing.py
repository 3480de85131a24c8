"""Tell the system which files are read soon, so that a slow disk or network reads them before they are asked for."""

import os
from contextlib import suppress

import numpy as np
from numpy.typing import NDArray

from lsdali.disk import READ


def ask_ahead(paths: NDArray[np.uint8]) -> None:
    """Open each of [n, L] absolute paths with NULs, and let the system read it; what cannot be opened is left out."""
    for row in paths:
        with suppress(OSError):
            file = os.open(bytes(row).rstrip(b"\0"), READ)
            try:
                os.posix_fadvise(file, 0, 0, os.POSIX_FADV_WILLNEED)
            finally:
                os.close(file)
