"""Make images smaller before they are packed: fewer pixels to decode in every epoch, at a loss that is told."""

import io
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

from PIL import Image

from lsdali.errors import UserError
from lsdali.limits import cpu_cores

Sample = tuple[str, bytes, int]
"""The ending of an image's file name, its bytes, and its class."""
AT_A_TIME = 64  # images that are made smaller together


@dataclass
class Shrinking:
    """Images whose longer side has more than `max_side` pixels become JPEGs of that side.

    The others keep their bytes. So do those that Pillow cannot read, and those that are neither RGB nor gray of 8 bits.
    """

    max_side: int
    quality: int
    changed: int = 0
    before: int = 0  # bytes of all images
    after: int = 0

    def __post_init__(self) -> None:
        if self.max_side < 1:
            raise UserError(f"--max-side {self.max_side}: give a number of pixels, such as 400")
        if not 1 <= self.quality <= 100:
            raise UserError(f"--quality {self.quality}: give 1 to 100, such as 92")

    def apply(self, samples: Iterable[Sample]) -> Iterator[Sample]:
        """Yield the samples in their order, large images made smaller by several threads."""
        source = iter(samples)
        with ThreadPoolExecutor(cpu_cores(1)) as pool:
            while part := list(islice(source, AT_A_TIME)):
                for sample, (ending, image, label) in zip(part, pool.map(self.shrink, part), strict=True):
                    self.changed += image is not sample[1]
                    self.before, self.after = self.before + len(sample[1]), self.after + len(image)
                    yield ending, image, label

    def shrink(self, sample: Sample) -> Sample:
        """Return the sample, smaller if it is too large."""
        _, content, label = sample
        try:
            with Image.open(io.BytesIO(content)) as image:
                if max(image.size) <= self.max_side or image.mode not in ("RGB", "L"):
                    return sample
                factor = self.max_side / max(image.size)
                width, height = (max(round(side * factor), 1) for side in image.size)
                small, out = image.resize((width, height), Image.Resampling.LANCZOS), io.BytesIO()
                small.save(out, "JPEG", quality=self.quality, exif=image.getexif())
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
            return sample  # the scan will name it
        return "jpg", out.getvalue(), label

    def describe(self, images: int) -> str:
        """Return what was changed, in words."""
        how = f"to {self.max_side} px on the longer side, as JPEGs of quality {self.quality}"
        share = self.after / max(self.before, 1)
        return f"{self.changed:,} of {images:,} images were made smaller, {how}: {share:.0%} of the bytes"
