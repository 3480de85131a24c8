"""Images named by hand: files, folders and lists of files, to batches as evaluation reads them."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lsdali.data.index.stored import each_file
from lsdali.data.io.header import FAULTS, GOOD, TOO_MANY, read_stamped
from lsdali.data.io.image_formats import EXTENSIONS
from lsdali.data.io.quirks import read_upright
from lsdali.data.pipeline.loader import BadImages, EvalLoader
from lsdali.data.sets.catalog import DataSet
from lsdali.data.sets.listing import join_paths
from lsdali.data.sets.sample_index import Index
from lsdali.data.sets.walk import is_hidden
from lsdali.errors import UserError, first_line
from lsdali.face.trained import Preprocessing

Decoder = Literal["dali", "pillow"]
Found = tuple[list[int], Tensor | None, dict[int, str]]
"""Numbers of images, their pixels [n, 3, size, size], and what is wrong with others, by number."""


def files_in(sources: Sequence[str | Path]) -> list[str]:
    """Return the image files that are named: files, all images below folders (sorted), and those that text files list.

    A list has one path a line, relative to the list's folder; lines that begin with # are comments.
    Raises UserError for what is not there, and for a folder or list without an image.
    """
    out: list[str] = []
    for source in map(Path, sources):
        if source.is_dir():
            found = below(source)
        elif not source.exists():
            raise UserError(f"there is no image, folder or list {source}")
        else:
            found = [str(source)] if is_image_name(source.name) else paths_in(source)
        if not found:
            raise UserError(f"{source} holds no image")
        out += found
    return out


def is_image_name(name: str) -> bool:
    """Return whether a file's ending is that of an image, or it has none."""
    return "." not in name or os.fsencode(name.lower()).endswith(EXTENSIONS)


def below(folder: Path) -> list[str]:
    """Return all images below a folder, sorted; hidden files and folders are left out."""
    found = []
    for base, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not is_hidden(os.fsencode(name)))
        images = [f for f in sorted(files) if "." in f and is_image_name(f) and not is_hidden(os.fsencode(f))]
        found += [os.path.join(base, f) for f in images]
    return found


def paths_in(file: Path) -> list[str]:
    """Return the paths in a text file."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        raise UserError(f"{file} is no image by its name, and no list of images (text, one path a line)") from None
    names = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    return [str(file.parent / name) for name in names]


def decoded(files: Sequence[str], data: DataSet, batch: int, device: torch.device, decoder: Decoder) -> Iterator[Found]:
    """Yield all images in order, batch by batch, and with each what is wrong with those that cannot be read."""
    if decoder == "pillow":
        yield from with_pillow(files, Preprocessing.of(data), batch, data.max_pixels)
    else:
        yield from with_dali(files, data, batch, device)


def with_pillow(files: Sequence[str], preprocess: Preprocessing, batch: int, max_pixels: int) -> Iterator[Found]:
    """Yield batches that Pillow decodes."""
    for start in range(0, len(files), batch):
        numbers, images, faults = [], [], {}
        for number, file in enumerate(files[start : start + batch], start):
            try:
                with Image.open(file) as image:
                    if image.width * image.height > max_pixels:
                        raise ValueError(FAULTS[TOO_MANY])
                    images.append(preprocess(image))
                    numbers.append(number)
            except Exception as error:  # Pillow's readers raise what they like for a damaged file
                faults[number] = first_line(error)
        yield numbers, torch.stack(images) if images else None, faults


def with_dali(files: Sequence[str], data: DataSet, batch: int, device: torch.device) -> Iterator[Found]:
    """Yield batches as validation data is read, to the bit."""
    index = index_of(files, data)
    faults = {int(i): FAULTS[index.status[i]] for i in np.flatnonzero(index.status != GOOD)}
    left = [i for i in range(len(files)) if i not in faults]
    while left:
        chosen = np.array(left)
        loader = EvalLoader(part(index, chosen), data, batch=min(batch, len(left)), device=device, half=False)
        try:
            for found in loader:
                rows = found.index[found.valid.cpu()].tolist()
                numbers = [int(chosen[row]) for row in rows]
                yield numbers, found.images[: len(rows)], faults
                left, faults = left[len(rows) :], {}
        except BadImages as error:
            faults |= {int(chosen[row]): why for row, why in error.found.items()}
            left = [i for i in left if i not in faults]
        finally:
            loader.close()
    if faults:
        yield [], None, faults


def index_of(files: Sequence[str], data: DataSet) -> Index:
    """Return the index of some files, with sizes and faults."""
    paths = join_paths([np.array([os.fsencode(os.path.abspath(file))[1:] for file in files])])
    index = Index(root=Path("/"), paths=paths, labels=np.zeros(len(files), np.int64), classes=("",))
    rows = each_file(index, read_upright if data.exif_orientation else read_stamped)
    size, status = rows[:, :2].astype(np.int32), rows[:, 2].astype(np.uint8)
    status[(status == GOOD) & (rows[:, 0] * rows[:, 1] > data.max_pixels)] = TOO_MANY
    return replace(index, size=size, status=status, upright=data.exif_orientation)


def part(index: Index, rows: np.ndarray) -> Index:
    """Return the index of some of the files, numbered anew."""
    return Index(
        root=index.root,
        paths=index.paths[rows],
        labels=index.labels[rows],
        classes=index.classes,
        size=index.size[rows],
        status=index.status[rows],
        upright=index.upright,
    )
