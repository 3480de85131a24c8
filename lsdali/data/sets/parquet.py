"""Images and labels in files of Parquet, in the layout of Hugging Face's data sets."""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from lsdali.data.io.image_formats import EXTENSIONS
from lsdali.errors import UserError

SPLIT_STARTS = {"train": ("train",), "val": ("validation", "valid", "val", "test")}
"""How names of files or folders of each split begin, the likeliest first."""
IMAGES, LABELS = ("image", "img"), ("label", "labels", "fine_label")
"""Names of columns, the likeliest first."""


def parquet_samples(root: Path) -> tuple[Mapping[str, Iterable[tuple[str, bytes, int]]], tuple[str, ...]] | None:
    """Return samples by split, and the names of the classes; None if the folder holds no Parquet.

    A sample is an image's ending, its bytes and its class. Raises UserError for a split or column that is missing.
    """
    files = sorted(path for path in root.rglob("*.parquet") if path.is_file())
    if not files:
        return None
    splits = {split: files_of_split(root, files, split) for split in SPLIT_STARTS}
    names = parquet_classes(splits["train"])
    return {split: rows_of(found, len(names)) for split, found in splits.items()}, names


def files_of_split(root: Path, files: list[Path], split: str) -> list[Path]:
    """Return the files whose own name, or a folder's, begins with a name of the split."""
    for start in SPLIT_STARTS[split]:
        found = [f for f in files if any(part.startswith(start) for part in f.relative_to(root).parts)]
        if found:
            return found
    raise UserError(f"{root} has no Parquet files of {split}: names begin with {' or '.join(SPLIT_STARTS[split])}")


def open_parquet(path: Path) -> Any:
    """Return a Parquet file. Raises UserError if pyarrow is missing or cannot read it."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as fault:
        raise UserError("files of Parquet need the package pyarrow: pip install lsdali[parquet]") from fault
    try:
        return parquet.ParquetFile(path)
    except (OSError, pyarrow.ArrowException) as fault:
        raise UserError(f"{path} cannot be read as Parquet: {fault}") from fault


def column(path: Path, names: list[str], known: tuple[str, ...], what: str) -> str:
    """Return the first known name among a file's columns. Raises UserError if there is none."""
    for name in known:
        if name in names:
            return name
    raise UserError(f"{path} has no column of {what} ({', '.join(known)}); its columns are {', '.join(names)}")


def parquet_classes(files: list[Path]) -> tuple[str, ...]:
    """Return what Hugging Face's features call the classes, else their numbers, as many as training has."""
    file = open_parquet(files[0])
    label = column(files[0], file.schema_arrow.names, LABELS, "labels")
    told = json.loads((file.schema_arrow.metadata or {}).get(b"huggingface", b"{}"))
    names = told.get("info", {}).get("features", {}).get(label, {}).get("names")
    if names is not None:
        return tuple(names)
    most = max(max(open_parquet(f).read([label]).column(label).to_pylist()) for f in files)
    return tuple(map(str, range(most + 1)))


def rows_of(files: list[Path], classes: int) -> Iterator[tuple[str, bytes, int]]:
    """Yield the samples of files, in their order.

    Raises UserError for a row without an image or with a foreign label.
    """
    for path in files:
        file = open_parquet(path)
        names = file.schema_arrow.names
        image, label = column(path, names, IMAGES, "images"), column(path, names, LABELS, "labels")
        row = 0
        for batch in file.iter_batches(64, columns=[image, label]):
            for cell, number in zip(batch.column(image).to_pylist(), batch.column(label).to_pylist(), strict=True):
                content = cell.get("bytes") if isinstance(cell, dict) else cell
                if not isinstance(content, bytes):
                    raise UserError(f"{path}, row {row}: the column {image} holds no image's bytes")
                if not isinstance(number, int) or not 0 <= number < classes:
                    raise UserError(f"{path}, row {row}: the label {number} is none of {classes} classes")
                yield ending(content, cell), content, number
                row += 1


def ending(content: bytes, cell: Any) -> str:
    """Return the ending of an image's name: that of its path, else by its first bytes."""
    path = cell.get("path") if isinstance(cell, dict) else None
    given = str(path or "").rpartition(".")[2].lower()
    if f".{given}".encode() in EXTENSIONS:
        return given
    return "png" if content.startswith(b"\x89PNG") else "jpg"
