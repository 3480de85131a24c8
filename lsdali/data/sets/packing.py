"""Write samples into tar shards in WebDataset's layout."""

import io
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from lsdali.data.io.shard_index import write_index
from lsdali.data.sets.listing import list_folders
from lsdali.data.sets.parquet import parquet_samples
from lsdali.data.sets.sample_index import Index
from lsdali.data.sets.shards import walk
from lsdali.data.sets.shrinking import Sample, Shrinking
from lsdali.errors import UserError
from lsdali.terminal import say


@dataclass(frozen=True)
class PackedSplits:
    """The samples of train and val to pack, in order, and the names of the classes."""

    splits: Mapping[str, Iterable[Sample]]
    classes: tuple[str, ...]


def pack(root: str, out: Path, shard_bytes: float, shrinking: Shrinking | None = None) -> None:
    """Pack class folders, or files of Parquet as Hugging Face has them; large images smaller if that is asked for.

    Raises UserError for a wrong layout, a folder `out` that is not empty, and what cannot be read or written.
    """
    try:
        found = parquet_samples(Path(root).expanduser())
        samples = folder_samples(root) if found is None else PackedSplits(*found)
        write_shards(samples, out, shard_bytes, shrinking)
    except (OSError, UnicodeEncodeError) as error:
        raise UserError(f"{root} cannot be packed into {out}: {error}") from None


def write_shards(samples: PackedSplits, out: Path, shard_bytes: float, shrinking: Shrinking | None = None) -> None:
    """Raise UserError for a folder `out` that is not empty or a split without samples, and OSError."""
    if shard_bytes < 1:
        raise UserError(f"--shard-bytes {shard_bytes:g} is too small; 1e9 is usual")
    out.mkdir(parents=True, exist_ok=True)
    if any(out.iterdir()):
        raise UserError(f"{out} is not empty; name a new folder")
    everything = 0
    for split, whole in samples.splits.items():
        content = whole if shrinking is None else shrinking.apply(whole)
        (out / split).mkdir()
        images = 0
        shards = 0
        for shards, shard in enumerate(cut_into_shards(content, shard_bytes), start=1):
            file = out / split / f"{shards - 1:06d}.tar"
            write_shard(shard, images, file)
            write_index(file, walk(file, file.name))
            images += len(shard)
        if images == 0:
            raise UserError(f"{split} holds no sample")
        say(f"{split}: {images:,} images in {shards:,} shards")
        everything += images
    if shrinking is not None:
        say(shrinking.describe(everything))
    (out / "classes.txt").write_text("".join(f"{name}\n" for name in samples.classes), encoding="utf-8")


def folder_samples(root: str) -> PackedSplits:
    """Return the files of class folders, as they are. Raises UserError for a wrong layout."""
    train, val = (list_folders(root, "train", "val", split) for split in ("train", "val"))
    return PackedSplits({"train": files_of(train), "val": files_of(val)}, train.classes)


def files_of(index: Index) -> Iterator[Sample]:
    for i in range(len(index.labels)):
        path = index.path(i)
        yield path.rpartition(".")[2].lower(), Path(path).read_bytes(), int(index.labels[i])


def cut_into_shards(samples: Iterable[Sample], shard_bytes: float) -> Iterator[list[Sample]]:
    """Yield the samples of each shard, by the bytes that come before each in the whole."""
    shard: list[Sample] = []
    before = 0
    for sample in samples:
        size = len(sample[1])
        if shard and before // shard_bytes != (before - len(shard[-1][1])) // shard_bytes:
            yield shard
            shard = []
        shard.append(sample)
        before += size
    if shard:
        yield shard


def write_shard(samples: list[Sample], first: int, file: Path) -> None:
    """Write one shard, whose samples are numbered from `first`; it has its name only when it is whole."""
    draft = file.with_suffix(".part")
    with tarfile.open(draft, "w", format=tarfile.USTAR_FORMAT) as tar:
        for i, (ending, image, label) in enumerate(samples, start=first):
            for kind, content in ((ending, image), ("cls", str(label).encode())):
                member = tarfile.TarInfo(f"{i:08d}.{kind}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    draft.rename(file)
