"""Write a trained network as a file for other programs: `lsdali export RUN --format safetensors`.

RUN is a run folder or a checkpoint file. The file is read back, and its outputs are compared with the network's.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from lsdali.errors import command

FORMATS = ("onnx", "safetensors", "torchscript")


@command
def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="lsdali export", description=__doc__)
    parser.add_argument("run", metavar="RUN", type=Path, help="a run folder or a checkpoint file")
    parser.add_argument("--format", choices=FORMATS, default="safetensors")
    parser.add_argument("--out", type=Path, help="the file to write; by default beside the checkpoint")
    options = parser.parse_args(argv)
    from lsdali.models.exports import export

    print(export(options.run, options.format, options.out))
    return 0


if __name__ == "__main__":
    sys.exit(main())
