"""Write class folders into tar shards in WebDataset's layout."""

import io
import os
import tarfile
from itertools import accumulate, pairwise
from pathlib import Path

from lsdali.data.io.shard_index import write_index
from lsdali.data.sets.listing import list_folders
from lsdali.data.sets.sample_index import Index
from lsdali.data.sets.shards import walk
from lsdali.errors import UserError


def pack(root: str, out: Path, shard_bytes: float) -> None:
    """Raises UserError for a wrong layout, a folder `out` that is not empty, and what cannot be read or written."""
    if shard_bytes < 1:
        raise UserError(f"--shard-bytes {shard_bytes:g} is too small; 1e9 is usual")
    try:
        out.mkdir(parents=True, exist_ok=True)
        if any(out.iterdir()):
            raise UserError(f"{out} is not empty; name a new folder")
        both = [list_folders(root, "train", "val", "train"), list_folders(root, "train", "val", "val")]
        for split, index in zip(("train", "val"), both):
            (out / split).mkdir()
            for number, samples in enumerate(cut(index, shard_bytes)):
                file = out / split / f"{number:06d}.tar"
                write_shard(index, samples, file)
                write_index(file, walk(file, file.name))
            print(f"{split}: {len(index.labels):,} images in {number + 1:,} shards")
        (out / "classes.txt").write_text("".join(f"{name}\n" for name in index.classes), encoding="utf-8")
    except (OSError, UnicodeEncodeError) as error:
        raise UserError(f"{root} cannot be packed into {out}: {error}") from None


def cut(index: Index, shard_bytes: float) -> list[range]:
    """The samples of each shard, by the bytes that come before each."""
    sizes = (os.stat(index.path(i)).st_size for i in range(len(index.labels)))
    shard = [int(before // shard_bytes) for before in accumulate(sizes, initial=0)]
    n = len(index.labels)
    return [range(a, b) for a, b in pairwise([0, *(i for i in range(1, n) if shard[i] != shard[i - 1]), n])]


def write_shard(index: Index, samples: range, file: Path) -> None:
    """One shard; it has its name only when it is whole."""
    draft = file.with_suffix(".part")
    with tarfile.open(draft, "w", format=tarfile.USTAR_FORMAT) as tar:
        for i in samples:
            path = index.path(i)
            ending = path.rpartition(".")[2].lower()
            label = str(int(index.labels[i])).encode()
            for kind, content in ((ending, Path(path).read_bytes()), ("cls", label)):
                member = tarfile.TarInfo(f"{i:08d}.{kind}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    draft.rename(file)
