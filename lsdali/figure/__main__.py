"""Figures of trained networks, as SVG, PDF or PNG, and their numbers as JSON. Runs under torchrun too.

`key=value` changes the data part of the recipes, evaluate.batch or precision.
"""

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from lsdali import parts
from lsdali.figure.kinds import FIGURE_KINDS
from lsdali.terminal import say

if TYPE_CHECKING:  # the rest is imported where it is used, so that --help answers at once
    import torch


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluate runs; return the exit status, 0, or 2 for bad input."""
    args = arguments().parse_args(argv)
    from torch.distributed.elastic.multiprocessing.errors import record

    return int(record(start)(args) or 0)


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lsdali figure", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    kinds = parser.add_subparsers(dest="name", metavar="NAME", required=True)
    for name, kind in FIGURE_KINDS.items():
        own = kinds.add_parser(name, help=kind.text, description=kind.text)
        own.add_argument("runs", nargs="+", metavar="RUN | key=value", help="a run folder or a checkpoint file")
        own.add_argument("--checkpoint", default="best", metavar="best|last|FILE", help="which one of each run folder")
        own.add_argument("--weights", choices=("model", "ema"), default="model")
        own.add_argument("--titles", nargs="+", metavar="TEXT", help="of the runs (default: names of their folders)")
        own.add_argument(
            "--out",
            action="append",
            type=Path,
            metavar="FILE",
            help="a file to write: .svg, .pdf, .png or .json (default: NAME.svg and NAME.json)",
        )
        parts.add_refusal(own)
        kind.options(own)
    return parser


def start(args: argparse.Namespace) -> int:
    """Make the figure on this process's device. What is not bad input is raised, for torchrun to report."""
    from lsdali import dist
    from lsdali.errors import UserError, report_error

    try:
        with dist.session() as device:
            make(args, device)
    except UserError as error:
        return report_error(error)
    return 0


def make(args: argparse.Namespace, device: "torch.device") -> None:
    """Let every rank read, and rank 0 draw."""
    from lsdali import dist
    from lsdali.errors import UserError
    from lsdali.evaluate.runs import open_run
    from lsdali.figure.drawing import check_files, write

    args.overrides = [text for text in args.runs if "=" in text and not Path(text).exists()]
    names = [text for text in args.runs if text not in args.overrides]
    drawn = FIGURE_KINDS[args.name].drawn
    paths = args.out or ([Path(f"{args.name}.svg"), Path(f"{args.name}.json")] if drawn else [])
    args.titles = args.titles or [Path(name).name for name in names]
    with dist.raise_together():
        check_files(paths)
        if paths and not drawn:
            raise UserError(f"{args.name} draws nothing: leave out --out; --into names a folder")
        if not names:
            raise UserError("which run? Give a run folder, such as runs/digits_ce")
        if len(args.titles) != len(names):
            raise UserError(f"--titles names {len(args.titles)} runs, and these are {len(names)}")
    runs = [open_run(Path(name), args.checkpoint, args.weights) for name in names]
    kind = import_module(f"lsdali.figure.{FIGURE_KINDS[args.name].module}")
    found = kind.numbers(runs, args, device)
    with dist.raise_together():
        if dist.is_main():
            if drawn:
                write(paths, found, kind.size(found), kind.draw)
            say("\n".join(map(str, paths if drawn else kind.write_files(found))))


if __name__ == "__main__":
    sys.exit(main())
