"""Data sets of torch (`__len__`, `__getitem__` -> image, label) as shards, which train as all other data do."""

import hashlib
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from lsdali.data.io.cache import alone, cache_dir, new_folder
from lsdali.data.sets.packing import PackedSplits, write_shards
from lsdali.errors import UserError
from lsdali.terminal import say


class MapStyle(Protocol):
    """A map-style data set of torch."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


def pack_datasets(
    train: MapStyle,
    val: MapStyle,
    out: Path,
    classes: Sequence[str] | None = None,
    *,
    shard_bytes: float = 1e9,
) -> dict[str, str]:
    """Write two data sets into shards in a new folder, and return the recipe's `data` for them.

    Each image is read once and kept without loss (PNG); order, augmentation, memories and resume are then those of
    shards, at DALI's speed. A sample is (image, label): a PIL image, or uint8 [H, W], [H, W, 1 or 3] or a tensor
    [1 or 3, H, W]. `classes` names the classes; else `train.classes` does, or their numbers.

    Raises UserError for images that are no pixels or differ when they are read again, and for labels without a class.
    """
    names = classes if classes is not None else getattr(train, "classes", None)
    if names is None:
        names = [str(k) for k in range(1 + max(label_of(train[i], i) for i in range(len(train))))]
    splits = {
        "train": encoded(train, "train", len(names)),
        "val": encoded(val, "val", len(names)),
    }
    try:
        write_shards(PackedSplits(splits, tuple(map(str, names))), out, shard_bytes)
    except OSError as error:
        raise UserError(f"the data cannot be packed into {out}: {error}") from None
    return {"name": "shards", "root": str(out)}


def cached_datasets(train: MapStyle, val: MapStyle) -> dict[str, str]:
    """Return the recipe's `data` for two data sets, packed into the cache folder, where each content lies once.

    Every image is read once to know the content, and once more to pack it where it is new, which is told.

    Raises UserError as `pack_datasets` does.
    """
    known = [Known.of(data, split) for data, split in ((train, "train"), (val, "val"))]
    own_names = getattr(train, "classes", None)
    names = [*map(str, range(known[0].classes) if own_names is None else own_names)]
    digest = hashlib.sha256(repr([names, *(one.digests for one in known)]).encode()).hexdigest()[:32]
    target = cache_dir() / "datasets" / digest
    with alone(f"datasets-{digest}"):
        if not target.is_dir():
            say(f"packing {len(train):,} and {len(val):,} images into {target}, once for this content", flush=True)
            with new_folder(target) as draft:
                pack_datasets(known[0], known[1], draft, names)
    return {"name": "shards", "root": str(target)}


@dataclass(frozen=True)
class Known:
    """A data set that has been read, whose images must not change."""

    data: MapStyle
    split: str
    digests: list[bytes]  # of image and label of each sample
    classes: int  # the greatest label, and one more

    @classmethod
    def of(cls, data: MapStyle, split: str) -> "Known":
        """Read a data set. Raises UserError for what is no image of pixels, and for labels that are no numbers."""
        digests, classes = [], 0
        for i in range(len(data)):
            sample = data[i]
            label = label_of(sample, i)
            digests.append(sample_digest(sample[0], label, f"{split} sample {i}"))
            classes = max(classes, label + 1)
        return cls(data, split, digests, classes)

    def __len__(self) -> int:
        return len(self.digests)

    def __getitem__(self, i: int) -> Any:
        sample, what = self.data[i], f"{self.split} sample {i}"
        if sample_digest(sample[0], label_of(sample, i), what) != self.digests[i]:
            raise another_image(what)
        return sample


def sample_digest(image: Any, label: int, what: str) -> bytes:
    """Return 16 bytes that tell a sample from others."""
    picture = as_picture(image, what)
    head = f"{label} {picture.mode} {picture.size} ".encode()
    return hashlib.blake2b(head + picture.tobytes(), digest_size=16).digest()


def another_image(what: str) -> UserError:
    """Return what to say of a sample that is not the same twice."""
    return UserError(f"{what} is another image when it is read again: leave random transforms to data.train")


def encoded(data: MapStyle, split: str, classes: int) -> Iterator[tuple[str, bytes, int]]:
    """Yield the samples of a data set, in order, as PNG."""
    for i in range(len(data)):
        sample = data[i]
        label = label_of(sample, i)
        if not 0 <= label < classes:
            raise UserError(f"{split} sample {i} has the label {label}, and there are {classes} classes")
        content = as_png(sample[0], f"{split} sample {i}")
        if i == 0 and content != as_png(data[0][0], f"{split} sample 0"):
            raise another_image(f"{split} sample 0")
        yield "png", content, label


def label_of(sample: Any, i: int) -> int:
    """Return the label of a sample (image, label)."""
    try:
        _, label = sample
        number = int(label)
    except (TypeError, ValueError) as error:
        raise UserError(f"sample {i} is no pair of an image and a class number") from error
    return number


def as_png(image: Any, what: str) -> bytes:
    """Return an image without loss. Raises UserError if it is none of pixels."""
    file = io.BytesIO()
    as_picture(image, what).save(file, "PNG")
    return file.getvalue()


def as_picture(image: Any, what: str) -> Any:
    """Return an image in grey or RGB, as PIL has it. Raises UserError if it is none of pixels."""
    from PIL import Image

    picture = image if isinstance(image, Image.Image) else picture_of(image, what)
    return picture if picture.mode in ("L", "RGB") else picture.convert("RGB")


def picture_of(image: Any, what: str) -> Any:
    """Return an array or tensor as a PIL image."""
    import torch
    from PIL import Image

    if isinstance(image, torch.Tensor):
        image = image.movedim(0, -1).cpu().numpy() if image.ndim == 3 else image.cpu().numpy()
    pixels = np.asarray(image)
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    fits = pixels.dtype == np.uint8 and (pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] == 3))
    if not fits:
        raise UserError(
            f"{what} is {pixels.dtype} {list(pixels.shape)}: give PIL images or uint8 pixels, and leave tensors of "
            "numbers and normalisation to the recipe"
        )
    return Image.fromarray(np.ascontiguousarray(pixels))
