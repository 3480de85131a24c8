"""Write a trained network as a file for other programs: `lsdali export RUN --format safetensors`.

RUN is a run folder or a checkpoint file. What was written is read back, and its outputs are compared with the
network's. A model card with recipe, figures and digest lies beside it.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from lsdali import parts
from lsdali.errors import command
from lsdali.terminal import say

FORMATS = ("hub-folder", "onnx", "safetensors", "torch-export", "torchscript")


@command
def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="lsdali export", description=__doc__)
    parser.add_argument("run", metavar="RUN", type=Path, help="a run folder or a checkpoint file")
    parser.add_argument(
        "--format", "--to", choices=FORMATS, default="safetensors", help="hub-folder: Hugging Face's layout for timm"
    )
    parser.add_argument("--out", type=Path, help="the file (or folder) to write; by default beside the checkpoint")
    parser.add_argument(
        "--weights", choices=("model", "ema"), default="model", help="the model's own, or their moving average"
    )
    parser.add_argument(
        "--names",
        choices=("publisher", "lsdali"),
        default="publisher",
        help="names of tensors in safetensors: those of torchvision or timm where the network is theirs, or lsdali's",
    )
    parser.add_argument(
        "--pixels", action="store_true", help="the program takes pixels 0 .. 255 (uint8) and normalises them itself"
    )
    parts.add_refusal(parser)
    options = parser.parse_args(argv)
    from lsdali.models.exports import export

    say(
        export(
            options.run,
            options.format,
            options.out,
            weights=options.weights,
            names=options.names,
            pixels=options.pixels,
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
