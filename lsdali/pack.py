"""Pack class folders into tar shards: `python -m lsdali.pack ROOT OUT [--shard-bytes 1e9]`.

ROOT holds train/<class>/* and val/<class>/*. OUT gets train/000000.tar, ..., val/000000.tar, ... in WebDataset's layout
(<number>.jpg beside <number>.cls) and classes.txt; `data: {name: shards, root: OUT}` trains from it, here or from where
OUT is copied to (`root: https://host/OUT`). Samples are in the order of `data.name: folder`, files as they are, and the
same folders always give the same bytes. train/000000.tar.json and so on say what lies where in each shard, so that a
shard in a store need not be read to find out.
"""

import argparse
import io
import os
import sys
import tarfile
from collections.abc import Sequence
from itertools import accumulate, pairwise
from pathlib import Path

from lsdali.data.io.shard_index import write_index
from lsdali.data.sets.listing import Listing, list_folders
from lsdali.data.sets.shards import walk
from lsdali.errors import UserError


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="lsdali.pack", description=__doc__.splitlines()[0])
    parser.add_argument("root", metavar="ROOT", help="folder with train/<class>/* and val/<class>/*")
    parser.add_argument("out", metavar="OUT", type=Path, help="folder for the shards; new, or empty")
    parser.add_argument("--shard-bytes", type=float, default=1e9, metavar="N", help="bytes of images a shard, about")
    args = parser.parse_args(argv)
    try:
        pack(args.root, args.out, args.shard_bytes)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def pack(root: str, out: Path, shard_bytes: float) -> None:
    """Raises UserError for a wrong layout, a folder `out` that is not empty, and what cannot be read or written."""
    if shard_bytes < 1:
        raise UserError(f"--shard-bytes {shard_bytes:g} is too small; 1e9 is usual")
    try:
        out.mkdir(parents=True, exist_ok=True)
        if any(out.iterdir()):
            raise UserError(f"{out} is not empty; name a new folder")
        both = [list_folders(root, "train", "val", "train"), list_folders(root, "train", "val", "val")]
        for split, listing in zip(("train", "val"), both):
            (out / split).mkdir()
            for number, samples in enumerate(cut(listing, shard_bytes)):
                file = out / split / f"{number:06d}.tar"
                write_shard(listing, samples, file)
                write_index(file, walk(file, file.name))
            print(f"{split}: {len(listing.labels):,} images in {number + 1:,} shards")
        (out / "classes.txt").write_text("".join(f"{name}\n" for name in listing.classes), encoding="utf-8")
    except (OSError, UnicodeEncodeError) as error:
        raise UserError(f"{root} cannot be packed into {out}: {error}") from None


def cut(listing: Listing, shard_bytes: float) -> list[range]:
    """The samples of each shard, by the bytes that come before each."""
    sizes = (os.stat(listing.path(i)).st_size for i in range(len(listing.labels)))
    shard = [int(before // shard_bytes) for before in accumulate(sizes, initial=0)]
    n = len(listing.labels)
    return [range(a, b) for a, b in pairwise([0, *(i for i in range(1, n) if shard[i] != shard[i - 1]), n])]


def write_shard(listing: Listing, samples: range, file: Path) -> None:
    """One shard; it has its name only when it is whole."""
    draft = file.with_suffix(".part")
    with tarfile.open(draft, "w", format=tarfile.USTAR_FORMAT) as tar:
        for i in samples:
            path = listing.path(i)
            ending = os.fsdecode(path.rpartition(b".")[2]).lower()
            label = str(int(listing.labels[i])).encode()
            for kind, content in ((ending, Path(os.fsdecode(path)).read_bytes()), ("cls", label)):
                member = tarfile.TarInfo(f"{i:08d}.{kind}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    draft.rename(file)


if __name__ == "__main__":
    sys.exit(main())
