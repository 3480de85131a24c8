"""Images and labels packed into tar files, in WebDataset's layout."""

import os
import re
import sys
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import numpy as np

from lsdali.config import PathText
from lsdali.data.io.byte_range import ByteRanges, is_url
from lsdali.data.io.header import Header
from lsdali.data.io.image_formats import EXTENSIONS
from lsdali.data.io.quirks import turned
from lsdali.data.io.remote import RemoteRanges
from lsdali.data.io.shard_index import ENDING, RemoteFile, Shard, read_index
from lsdali.data.io.store import Store, has_magic, open_store
from lsdali.data.sets.catalog import CenterCrop, Files, RandomResizedCrop, TrainCrop
from lsdali.data.sets.listing import Split, few, join_paths, require_root
from lsdali.data.sets.sample_index import Index
from lsdali.data.sets.walk import is_hidden
from lsdali.errors import UserError
from lsdali.terminal import say

CLASSES_FILE = "classes.txt"
WALK_THREADS = 8
_PACKED = (".gz", ".bz2", ".xz", ".zst", ".lz4")
_IMAGES = {e.decode().removeprefix(".") for e in EXTENSIONS}
_MEMBER = re.compile(r"((?:.*/)?[^./]+)\.([^/]*)", re.DOTALL)  # key, up to the first dot of the basename; ending
_LABEL = re.compile(rb"\s*(\d{1,6})\s*")
_BLOCK, _LONGEST_LABEL = 512, 64  # bytes of a tar block; of a label that is read
_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd", b"\x04\x22\x4d\x18")  # gzip, bzip2, xz, zstd, lz4


class Shards(Files):
    """Images with labels in plain tar files: `<key>.jpg` (or another image) beside `<key>.cls`, a class number as text.

    The layout of WebDataset. classes.txt in root, one name a line, names the classes; without it their names are
    their numbers, as many as training has. Members with other endings are ignored. The root may be a URL.
    """

    stores: ClassVar[bool] = True
    name: Literal["shards"] = "shards"
    root: PathText
    """Folder of the data set, or its address in a store: https://, s3://, gs:// or another that fsspec reads."""
    train: TrainCrop = RandomResizedCrop(size=224)
    eval: CenterCrop = CenterCrop(resize=256, size=224)
    train_shards: PathText = "train/*.tar"
    """The training shards, relative to root; *, ? and [] match as in a shell, or {000000..000063} names each."""
    val_shards: PathText = "val/*.tar"
    """The validation shards, relative to root."""

    def layout(self) -> tuple[str, ...]:
        return (self.train_shards, "" if self.holdout else self.val_shards)

    def listing(self, split: Split) -> Index:
        base = open_store(self.root) if is_url(self.root) else _shard_folder(self)
        train = find(base, self.train_shards)
        files = train
        if self.holdout is None:
            val = find(base, self.val_shards)
            if shared := sorted({_resolved(base, f) for f in train} & {_resolved(base, f) for f in val}):
                raise UserError(f"{few(shared)}: a shard of both train and val; validate on other data")
            files = train if split == "train" else val
        shards, classes = walk_all(base, files, self.exif_orientation), classes_of(base)
        # A new file that matches shows in its folder's time; stores have none, and are asked.
        sources = (CLASSES_FILE, *files, *(p for p in self.layout() if isinstance(base, Store) and has_magic(p)))
        if classes is not None:
            return listing_of(base, shards, classes, sources, self.exif_orientation)
        in_train = shards if files is train else walk_all(base, train)
        numbers = range(1 + max(max(s.labels) for s in in_train))
        return listing_of(base, shards, tuple(map(str, numbers)), (*sources, *train), self.exif_orientation)


def _shard_folder(config: Shards) -> Path:
    return require_root(config.root, f"{config.train_shards} and {config.val_shards}")


def _resolved(base: Path | Store, name: str) -> Path | str:
    return (base / name).resolve() if isinstance(base, Path) else base / name


def find(base: Path | Store, pattern: str) -> list[str]:
    """Return the shards that match, relative to base, sorted.

    Raises UserError if there is none, or a compressed one.
    """
    names = expand_braces(pattern)
    if names != [pattern]:
        if has_magic(pattern):
            raise UserError(f"'{pattern}' has both braces and one of *?[; use either")
        if isinstance(base, Path) and (lacking := [n for n in names if not (base / n).is_file()]):
            raise UserError(f"data root {base} lacks shards that {pattern} names: {few(lacking)}")
        return sorted(set(names))
    if isinstance(base, Store):
        return base.glob(pattern) if has_magic(pattern) else names
    try:
        packed = sorted(p.name for p in base.glob(f"{pattern}.*") if p.suffix in _PACKED)
        found = sorted(
            str(p.relative_to(base)) for p in base.glob(pattern) if p.is_file() and not is_hidden(os.fsencode(p.name))
        )
    except (ValueError, NotImplementedError) as error:
        raise UserError(f"'{pattern}' is no pattern of files below data root {base}: {error}") from None
    if packed:
        raise UserError(f"{base} has compressed shards: {few(packed)}; samples are read at any place: decompress them")
    if not found:
        raise UserError(f"data root {base} has no file {pattern}; expected tar files, not compressed")
    return found


def expand_braces(pattern: str) -> list[str]:
    """Expand WebDataset's braces: a{08..10} -> a08, a09, a10."""
    parts = re.split(r"\{(\d+)\.\.(\d+)\}", pattern)  # text, first, last, text, ...
    runs = [[f"{k:0{len(a)}}" for k in range(int(a), int(b) + 1)] for a, b in zip(parts[1::3], parts[2::3])]
    if not all(runs):
        raise UserError(f"'{pattern}' has a range that names nothing; write the lower number first, as in {{00..63}}")
    texts = parts[::3]
    return ["".join(map("".join, zip(texts, (*numbers, "")))) for numbers in product(*runs)]


def classes_of(base: Path | Store) -> tuple[str, ...] | None:
    """Return the lines of classes.txt; None if there is no such file."""
    file = base / CLASSES_FILE
    try:
        if isinstance(base, Store):
            content = base.text(CLASSES_FILE)
        else:
            content = (base / CLASSES_FILE).read_bytes() if (base / CLASSES_FILE).is_file() else None
        if content is None:
            return None
        names = content.decode().rstrip().split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file} cannot be read as text: {error}") from None
    names = [name.strip() for name in names]
    if "" in names:
        raise UserError(f"{file}, line {names.index('') + 1} is empty; expected the name of class {names.index('')}")
    if twice := sorted(name for name, count in Counter(names).items() if count > 1):
        raise UserError(f"{file} names a class twice: {few(twice)}")
    return tuple(names)


def walk_all(base: Path | Store, files: Sequence[str], upright: bool = False) -> list[Shard]:
    """Return what the tar files hold; of those in a store, with EXIF orientations if images are to be `upright`."""
    with ThreadPoolExecutor(WALK_THREADS) as pool:
        if isinstance(base, Store):
            return _from_store(base, files, pool, upright)
        return list(pool.map(lambda name: walk(base / name, name), files))


def _from_store(store: Store, files: Sequence[str], pool: ThreadPoolExecutor, upright: bool) -> list[Shard]:
    """By index files; a shard without one is read from end to end, and that is said."""
    sizes = {name: stamp and stamp[0] for name, stamp in zip(files, store.stamps(files), strict=True)}
    if lacking := [name for name, size in sizes.items() if size is None]:
        raise UserError(f"{store} lacks shards, or keeps them closed: {few(lacking)}")
    store.require_ranges(files[0])
    found = list(pool.map(lambda name: read_index(store, name, sizes[name] or 0), files))
    if upright:
        found = [None if shard is None or shard.turns is None else shard for shard in found]
    if lone := [name for name, shard in zip(files, found, strict=True) if shard is None]:
        total = sum(sizes[name] or 0 for name in lone)
        say(
            f"{store}: {few(lone)}: no index file ({ENDING}, by lsdali.pack) that fits; {len(lone)} shards with "
            f"{total:,} bytes are read from end to end, this once",
            file=sys.stderr,
            flush=True,
        )
    walked = dict(
        zip(lone, pool.map(lambda name: walk(RemoteFile(store, name, sizes[name] or 0), name), lone), strict=True)
    )
    return [walked[name] if shard is None else shard for name, shard in zip(files, found, strict=True)]


def walk(file: Path | RemoteFile, name: str) -> Shard:
    """Return what one tar file holds.

    Raises UserError for one that is damaged or compressed, or whose members do not pair.
    """
    images: dict[str, tarfile.TarInfo] = {}
    labels: dict[str, int] = {}
    headers: list[tuple[Header, int]] = []
    for key, ending, member, text in _pairs(file):
        kind = images if ending in _IMAGES else labels
        if key in kind:
            what = "images" if kind is images else "labels"
            raise UserError(f"{file} has two {what} with the key {key}; every sample needs a key of its own")
        if ending in _IMAGES:
            images[key] = member
            if isinstance(file, RemoteFile):  # while its bytes are here
                headers.append(file.read_header(member.offset_data, member.size))
        elif (number := _LABEL.fullmatch(text)) is None:
            raise UserError(f"{file}:{member.name} holds {text!r}; expected a class number as text, 0 to 999999")
        else:
            labels[key] = int(number[1])
    _refuse_lone(file, "images without a label .cls", [k for k in images if k not in labels])
    _refuse_lone(file, "labels without an image", [k for k in labels if k not in images])
    if not images:
        raise UserError(f"{file} holds no image; expected members <key>.jpg and <key>.cls")
    found = images.values()
    spans = [(m.offset_data, m.size) for m in found]
    members, classes = [m.name for m in found], [labels[k] for k in images]
    if not headers:
        return Shard(name, members, classes, spans)
    return Shard(name, members, classes, spans, [header for header, _ in headers], [turn for _, turn in headers])


def _pairs(file: Path | RemoteFile) -> Iterator[tuple[str, str, tarfile.TarInfo, bytes]]:
    """Key, ending, member and, of labels, content, of each image and label."""
    for member, text in _members(file):
        parts = _MEMBER.fullmatch(member.name)
        if parts is None or not member.isreg() or _in_hidden(member.name):
            continue
        key, ending = parts[1], parts[2].lower()
        if ending in _IMAGES and member.issparse():
            raise UserError(f"{file}:{member.name} is stored with holes (sparse); pack it again without --sparse")
        if ending == "cls" or ending in _IMAGES:
            yield key, ending, member, text


def _in_hidden(name: str) -> bool:
    """Return whether a folder of the member is hidden or a system's."""
    return any(is_hidden(os.fsencode(part)) for part in name.split("/")[:-1] if part not in (".", ".."))


def _members(file: Path | RemoteFile) -> Iterator[tuple[tarfile.TarInfo, bytes]]:
    """Every member, and the content of labels. Raises UserError for a file that is damaged or compressed."""
    try:
        with nullcontext(file) if isinstance(file, RemoteFile) else open(file, "rb") as raw:
            pread = raw.pread if isinstance(raw, RemoteFile) else partial(os.pread, raw.fileno())
            if pread(8, 0).startswith(_COMPRESSED):
                raise UserError(f"{file} is compressed; samples are read at any place: decompress it")
            with tarfile.open(fileobj=cast(Any, raw), mode="r:") as tar:
                while (member := tar.next()) is not None:
                    size = min(member.size, _LONGEST_LABEL) if member.name.lower().endswith(".cls") else 0
                    yield member, pread(size, member.offset_data)
                    tar.members = []  # type: ignore[attr-defined]  # they would all stay in memory
                # tarfile takes a damaged header for the end; a whole archive ends with blocks of zeros.
                if pread(_BLOCK, tar.offset) != bytes(_BLOCK):
                    raise tarfile.ReadError(f"no member and no end at byte {tar.offset:,}")
    except (tarfile.TarError, OSError, ValueError) as error:
        raise UserError(f"{file} is no whole tar file ({error}); get or pack it again") from None


def _refuse_lone(file: Path | RemoteFile, what: str, keys: list[str]) -> None:
    if keys:
        raise UserError(f"{file} has {what}: {few(keys)}; every sample needs both")


def listing_of(
    base: Path | Store, shards: Sequence[Shard], classes: tuple[str, ...], sources: Sequence[str], upright: bool = False
) -> Index:
    """Return the samples of all shards; `sources` are the files that were read, or might have been.

    `upright`: sizes of images in a store are those after their EXIF orientation.

    Raises UserError for labels outside the classes.
    """
    for shard in shards:
        if strange := [k for k, label in enumerate(shard.labels) if label >= len(classes)]:
            raise UserError(
                f"{base / shard.name}:{shard.members[strange[0]]} has the label {shard.labels[strange[0]]}; "
                f"{CLASSES_FILE if classes_of(base) else 'train'} has {len(classes)} classes, counted from 0"
            )
    names = (np.array([os.fsencode(f"{s.name}:{m}") for m in s.members]) for s in shards)
    spans = [(k, start, length) for k, s in enumerate(shards) for start, length in s.spans]
    labels = np.array([label for s in shards for label in s.labels], np.int64)
    files = join_paths([np.array([os.fsencode(s.name) for s in shards])])
    table = np.array(spans, np.int64)
    if isinstance(base, Store):
        stamps = np.array(base.stamps([s.name for s in shards]), np.int64)
        ranges = RemoteRanges(base.root, files, table, stamps=stamps)
        headers = np.array([row for s in shards for row in _headers(s, upright)], np.int32)
        return Index(
            base.root, join_paths(names), labels, classes, tuple(sorted({*sources})), ranges=ranges, headers=headers
        )
    folders = {str(folder) for name in sources for folder in Path(name).parents}
    watched = sorted({*sources, *folders})
    return Index(base, join_paths(names), labels, classes, tuple(watched), ranges=ByteRanges(base, files, table))


def _headers(shard: Shard, upright: bool) -> list[Header]:
    found = shard.headers or []
    return [turned(h, t) for h, t in zip(found, shard.turns, strict=True)] if upright and shard.turns else found


DATA_SETS = {"shards": Shards}
