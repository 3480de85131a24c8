"""Compare runs: `python -m lsdali.report RUN [RUN ...]` prints one row a run from the summaries in their folders."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from lsdali.errors import UserError

FIGURES = {"top1": "top-1 %", "top5": "top-5 %", "nll": "NLL", "ece": "ECE %", "aurc": "AURC x1000"}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="lsdali report", description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a run folder such as runs/digits_ce")
    try:
        Console(width=None if sys.stdout.isatty() else 120).print(table(parser.parse_args(argv).runs))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def table(runs: Sequence[Path]) -> Table:
    """Last metrics, best top-1 and speed of each run."""
    out = Table("run folder", *FIGURES.values(), "best top-1 %", "images/s", "seconds")
    for run in runs:
        summary = read_summary(run)
        last = [f"{summary['last'][key]:.3f}" for key in FIGURES]
        best = f"{summary['best']['top1']:.3f} (epoch {summary['best']['epoch']})"
        out.add_row(str(run), *last, best, f"{summary['images_per_second']:.0f}", f"{summary['wall_seconds']:.0f}")
    return out


def read_summary(run: Path) -> dict[str, Any]:
    path = run / "summary.json"
    if not path.is_file():
        raise UserError(f"{run} holds no finished run: {path} is missing")
    summary: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return summary


if __name__ == "__main__":
    sys.exit(main())
