"""Images and labels packed into tar files, in WebDataset's layout."""

import os
import re
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from lsdali.data.catalog import CenterCrop, Files, RandomResizedCrop, TrainCrop
from lsdali.data.listing import EXTENSIONS, Listing, Split, few, join, require_root
from lsdali.data.place import Ranges
from lsdali.errors import UserError

CLASSES = "classes.txt"
THREADS = 8
_PACKED = (".gz", ".bz2", ".xz", ".zst", ".lz4")
_IMAGES = {e.decode().removeprefix(".") for e in EXTENSIONS}
_MEMBER = re.compile(r"((?:.*/)?[^./]+)\.([^/]*)", re.DOTALL)  # key, up to the first dot of the basename; ending
_LABEL = re.compile(rb"\s*(\d{1,6})\s*")
_BLOCK, _LONGEST = 512, 64  # bytes of a tar block; of a label that is read
_MAGIC = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd", b"\x04\x22\x4d\x18")  # gzip, bzip2, xz, zstd, lz4


class Shards(Files):
    """Images with labels in plain tar files: `<key>.jpg` (or another image) beside `<key>.cls`, a class number as text.

    The layout of WebDataset. classes.txt in root, one name a line, names the classes; without it their names are
    their numbers, as many as training has. Members with other endings are ignored.
    """

    name: Literal["shards"] = "shards"
    train: TrainCrop = RandomResizedCrop(size=224)
    eval: CenterCrop = CenterCrop(resize=256, size=224)
    train_shards: str = "train/*.tar"
    """The training shards, relative to root; *, ? and [] match as in a shell."""
    val_shards: str = "val/*.tar"
    """The validation shards, relative to root."""

    def layout(self) -> tuple[str, ...]:
        return (self.train_shards, "" if self.split else self.val_shards)

    def listing(self, split: Split) -> Listing:
        base = require_root(self.root, f"{self.train_shards} and {self.val_shards}")
        train = find(base, self.train_shards)
        files = train
        if self.split is None:
            val = find(base, self.val_shards)
            if shared := sorted({(base / f).resolve() for f in train} & {(base / f).resolve() for f in val}):
                raise UserError(f"{few(shared)}: a shard of both train and val; validate on other data")
            files = train if split == "train" else val
        shards, classes = walk_all(base, files), class_names(base)
        if classes is not None:
            return assemble(base, shards, classes, (CLASSES, *files))
        in_train = shards if files is train else walk_all(base, train)
        numbers = range(1 + max(max(s.labels) for s in in_train))
        return assemble(base, shards, tuple(map(str, numbers)), (CLASSES, *files, *train))


@dataclass(frozen=True, slots=True)
class Shard:
    """The samples of one tar file, in its order."""

    name: str  # relative to the root
    members: list[str]  # names of the images
    labels: list[int]
    spans: list[tuple[int, int]]  # first byte and length of each image


def find(base: Path, pattern: str) -> list[str]:
    """The shards that match, relative to base, sorted. Raises UserError where there is none, or a compressed one."""
    try:
        packed = sorted(p.name for p in base.glob(f"{pattern}.*") if p.suffix in _PACKED)
        found = sorted(str(p.relative_to(base)) for p in base.glob(pattern) if p.is_file())
    except (ValueError, NotImplementedError) as error:
        raise UserError(f"'{pattern}' is no pattern of files below data root {base}: {error}") from None
    if packed:
        raise UserError(f"{base} has compressed shards: {few(packed)}; samples are read at any place: decompress them")
    if not found:
        raise UserError(f"data root {base} has no file {pattern}; expected tar files, not compressed")
    return found


def class_names(base: Path) -> tuple[str, ...] | None:
    """The lines of classes.txt; None where there is no such file."""
    file = base / CLASSES
    if not file.is_file():
        return None
    try:
        names = file.read_text(encoding="utf-8").rstrip().split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file} cannot be read as text: {error}") from None
    names = [name.strip() for name in names]
    if "" in names:
        raise UserError(f"{file}, line {names.index('') + 1} is empty; expected the name of class {names.index('')}")
    if twice := sorted(name for name, count in Counter(names).items() if count > 1):
        raise UserError(f"{file} names a class twice: {few(twice)}")
    return tuple(names)


def walk_all(base: Path, files: Sequence[str]) -> list[Shard]:
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(lambda name: walk(base, name), files))


def walk(base: Path, name: str) -> Shard:
    """What one tar file holds. Raises UserError for one that is damaged or compressed, or whose members do not pair."""
    images: dict[str, tarfile.TarInfo] = {}
    labels: dict[str, int] = {}
    for key, ending, member, text in _pairs(base / name):
        kind = images if ending in _IMAGES else labels
        if key in kind:
            what = "images" if kind is images else "labels"
            raise UserError(f"{base / name} has two {what} with the key {key}; every sample needs a key of its own")
        if ending in _IMAGES:
            images[key] = member
        elif (number := _LABEL.fullmatch(text)) is None:
            raise UserError(f"{base / name}:{member.name} holds {text!r}; expected a class number as text, 0 to 999999")
        else:
            labels[key] = int(number[1])
    _refuse_lone(base / name, "images without a label .cls", [k for k in images if k not in labels])
    _refuse_lone(base / name, "labels without an image", [k for k in labels if k not in images])
    if not images:
        raise UserError(f"{base / name} holds no image; expected members <key>.jpg and <key>.cls")
    found = images.values()
    return Shard(name, [m.name for m in found], [labels[k] for k in images], [(m.offset_data, m.size) for m in found])


def _pairs(file: Path) -> Iterator[tuple[str, str, tarfile.TarInfo, bytes]]:
    """Key, ending, member and, of labels, content, of each image and label."""
    for member, text in _members(file):
        parts = _MEMBER.fullmatch(member.name)
        if parts is None or not member.isreg():
            continue
        key, ending = parts[1], parts[2].lower()
        if ending in _IMAGES and member.issparse():
            raise UserError(f"{file}:{member.name} is stored with holes (sparse); pack it again without --sparse")
        if ending == "cls" or ending in _IMAGES:
            yield key, ending, member, text


def _members(file: Path) -> Iterator[tuple[tarfile.TarInfo, bytes]]:
    """Every member, and the content of labels. Raises UserError for a file that is damaged or compressed."""
    try:
        with open(file, "rb") as raw:
            if os.pread(raw.fileno(), 8, 0).startswith(_MAGIC):
                raise UserError(f"{file} is compressed; samples are read at any place: decompress it")
            with tarfile.open(fileobj=raw, mode="r:") as tar:
                while (member := tar.next()) is not None:
                    size = min(member.size, _LONGEST) if member.name.lower().endswith(".cls") else 0
                    yield member, os.pread(raw.fileno(), size, member.offset_data)
                    tar.members = []  # type: ignore[attr-defined]  # they would all stay in memory
                # tarfile takes a damaged header for the end; a whole archive ends with blocks of zeros.
                if os.pread(raw.fileno(), _BLOCK, tar.offset) != bytes(_BLOCK):
                    raise tarfile.ReadError(f"no member and no end at byte {tar.offset:,}")
    except (tarfile.TarError, OSError, ValueError) as error:
        raise UserError(f"{file} is no whole tar file ({error}); get or pack it again") from None


def _refuse_lone(file: Path, what: str, keys: list[str]) -> None:
    if keys:
        raise UserError(f"{file} has {what}: {few(keys)}; every sample needs both")


def assemble(base: Path, shards: Sequence[Shard], classes: tuple[str, ...], sources: Sequence[str]) -> Listing:
    """The samples of all shards; `sources` are the files that were read, or might have been.

    Raises UserError for labels outside the classes.
    """
    for shard in shards:
        if strange := [k for k, label in enumerate(shard.labels) if label >= len(classes)]:
            raise UserError(
                f"{base / shard.name}:{shard.members[strange[0]]} has the label {shard.labels[strange[0]]}; "
                f"{CLASSES if (base / CLASSES).is_file() else 'train'} has {len(classes)} classes, counted from 0"
            )
    names = (np.array([os.fsencode(f"{s.name}:{m}") for m in s.members]) for s in shards)
    spans = [(k, start, length) for k, s in enumerate(shards) for start, length in s.spans]
    labels = np.array([label for s in shards for label in s.labels], np.int64)
    files = join([np.array([os.fsencode(s.name) for s in shards])])
    folders = {str(folder) for name in sources for folder in Path(name).parents}
    watched = sorted({*sources, *folders})
    return Listing(
        base, join(names), labels, classes, tuple(watched), ranges=Ranges(base, files, np.array(spans, np.int64))
    )
