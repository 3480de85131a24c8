"""Pack class folders or Parquet into tar shards: `lsdali pack ROOT OUT [--shard-bytes 1e9] [--max-side 400]`.

ROOT holds train/<class>/* and val/<class>/*, or files of Parquet in the layout of Hugging Face's data sets (names that
begin with train, and with validation, val or test; columns image and label), which `pip install lsdali[parquet]` reads.
OUT gets train/000000.tar, ..., val/000000.tar, ... in WebDataset's layout (<number>.jpg beside <number>.cls) and
classes.txt; `data: {name: shards, root: OUT}` trains from it, here or from where OUT is copied to
(`root: https://host/OUT`). Samples are in the order of `data.name: folder`, or of the files of Parquet, their bytes as
they are, and the same ROOT always gives the same bytes. train/000000.tar.json and so on say what lies where in each
shard, so that a shard in a store need not be read to find out.

With `--max-side N` images with a longer side than N pixels are made smaller and stored as JPEGs of `--quality`, the
others as they are: training then decodes fewer pixels, of images that are no longer the original ones.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from lsdali.errors import UserError, command


@command
def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="lsdali pack", description=__doc__.splitlines()[0])
    parser.add_argument("root", metavar="ROOT", help="folder with class folders, or files of Parquet")
    parser.add_argument("out", metavar="OUT", type=Path, help="folder for the shards; new, or empty")
    parser.add_argument("--shard-bytes", type=float, default=1e9, metavar="N", help="bytes of images a shard, about")
    parser.add_argument("--max-side", type=int, metavar="N", help="make images with a longer side than N px smaller")
    parser.add_argument("--quality", type=int, metavar="Q", help="of JPEGs that are made smaller (default 92)")
    args = parser.parse_args(argv)
    if args.quality is not None and args.max_side is None:
        raise UserError("--quality is that of images made smaller: give --max-side too, such as 400")
    from lsdali.data.sets.packing import pack
    from lsdali.data.sets.shrinking import Shrinking

    shrinking = None if args.max_side is None else Shrinking(args.max_side, args.quality or 92)
    pack(args.root, args.out, args.shard_bytes, shrinking)
    return 0


if __name__ == "__main__":
    sys.exit(main())
