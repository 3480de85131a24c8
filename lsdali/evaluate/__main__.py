"""Evaluate trained runs: `python -m lsdali.evaluate RUN [RUN ...] [data.KEY=VALUE ...]`, or the same under torchrun.

The metrics are those of summary.json. `key=value` changes the data part of the recipes, evaluate.batch or precision.
"""

import argparse
import io
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the rest is imported where it is used, so that --help answers at once
    import torch

    from lsdali.evaluate.figures import Calibration, Row
    from lsdali.evaluate.runs import Predicted, Run

WAYS = ("half", "held_out", "same", "ibls")  # figures.CALIBRATE_ON says what they are


def main(argv: Sequence[str] | None = None) -> int:
    """Console entry. The exit status is 0, or 2 for bad input."""
    args = arguments().parse_intermixed_args(argv)
    from torch.distributed.elastic.multiprocessing.errors import record

    return int(record(start)(args) or 0)


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lsdali evaluate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", metavar="RUN | key=value", help="a run folder or a checkpoint file")
    parser.add_argument("--checkpoint", default="best", metavar="best|last|FILE", help="which one of each run folder")
    parser.add_argument("--weights", choices=("model", "ema"), default="model")
    parser.add_argument(
        "--temperature",
        nargs="?",
        choices=WAYS,
        const="half",
        help="fit a temperature and show the metrics with it: on a half of the samples, evaluated on the other half "
        "(the default); on what the run held out of its training data; on the same samples that are evaluated; or on "
        "these within the bounds of IBLS",
    )
    parser.add_argument("--ensemble", action="store_true", help="also evaluate the mean of the runs' softmax outputs")
    parser.add_argument(
        "--plane",
        nargs=3,
        metavar="CLASS",
        help="instead of all that, draw the features of three classes into --html (and --json): two alike and another, "
        "say",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure and the bins of the ECE to FILE")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page with reliability diagrams to FILE")
    parser.add_argument(
        "--predictions", type=Path, metavar="FILE", help="write logits [N, K], labels [N], index [N] of one run (.npz)"
    )
    return parser


def start(args: argparse.Namespace) -> int:
    """Evaluate on this process's device. What is not bad input is raised, for torchrun to report."""
    from lsdali import dist
    from lsdali.errors import UserError, report_error

    try:
        with dist.session() as device:
            evaluate(args, device)
    except UserError as error:
        return report_error(error)
    return 0


def evaluate(args: argparse.Namespace, device: "torch.device") -> None:
    """Let every run predict on all ranks; rank 0 makes the figures of it."""
    from lsdali import dist
    from lsdali.evaluate.figures import calibrate, rows
    from lsdali.evaluate.runs import open_held_out, open_run, open_samples, predict, same_samples

    overrides = [text for text in args.runs if "=" in text and not Path(text).exists()]
    names = [text for text in args.runs if text not in overrides]
    with dist.raise_together():
        check(args, names)
    runs = [open_run(Path(name), args.checkpoint, args.weights) for name in names]
    if args.plane:
        return draw(args, runs, overrides, device)
    held_out = [open_held_out(run, overrides) for run in runs] if args.temperature == "held_out" else []
    samples = [open_samples(run, overrides) for run in runs]
    if args.ensemble:
        with dist.raise_together():
            same_samples(runs, samples)
    parts = [predict(run, part, device) for run, part in zip(runs, samples, strict=True)]
    kept: list[Predicted | None] = [predict(run, part, device) for run, part in zip(runs, held_out)]
    with dist.raise_together():
        if dist.is_main():
            pairs = zip(parts, kept or [None] * len(parts), strict=True)
            calibrations = [calibrate(args.temperature, *pair) for pair in pairs] if args.temperature else []
            about = [{**run.describe(), "data": part.describe()} for run, part in zip(runs, samples, strict=True)]
            tell(args, about, parts, calibrations, rows(parts, calibrations, together=args.ensemble))


def check(args: argparse.Namespace, names: Sequence[str]) -> None:
    from lsdali.errors import UserError

    if not names:
        raise UserError("which run? Give a run folder, such as runs/digits_ce")
    if args.ensemble and len(names) < 2:
        raise UserError(f"--ensemble needs two runs or more, and {names[0]} is one")
    if args.plane and args.html is None:
        raise UserError("--plane draws into a page: add --html FILE")
    if args.plane and (args.ensemble or args.temperature or args.predictions):
        raise UserError("--plane evaluates nothing: leave out --ensemble, --temperature and --predictions")
    if args.predictions is not None and len(names) > 1:
        raise UserError(f"--predictions writes those of one run, and these are {len(names)}")
    for path in (args.json, args.html, args.predictions):
        if path is not None and not path.parent.is_dir():
            raise UserError(f"{path} cannot be written: there is no folder {path.parent}")


def draw(args: argparse.Namespace, runs: Sequence["Run"], overrides: Sequence[str], device: "torch.device") -> None:
    """Write the features of three classes. Collective."""
    from lsdali import dist
    from lsdali.evaluate.plane import as_html, plane

    found = {run.name: plane(run, overrides, args.plane, device) for run in runs}
    with dist.raise_together():
        if dist.is_main():
            write(args.html, as_html(found, args.plane).encode(errors="replace"))
            if args.json is not None:
                write(args.json, json.dumps(found).encode())


def tell(
    args: argparse.Namespace,
    about: Sequence[dict[str, Any]],
    parts: Sequence["Predicted"],
    calibrations: Sequence["Calibration"],
    lines: Sequence["Row"],
) -> None:
    """Print the table, and write the files that were asked for."""
    import numpy as np
    from rich.console import Console

    from lsdali.evaluate.figures import CALIBRATE_ON
    from lsdali.evaluate.page import as_html, table

    found: dict[str, Any] = {
        "runs": about,
        "temperature": CALIBRATE_ON[args.temperature] if calibrations else None,
        "fits": [
            {
                "run": part.name,
                "temperature": calibrate.temperature,
                "bounds": calibrate.bounds,
                "samples": calibrate.samples,
            }
            for part, calibrate in zip(parts, calibrations)
        ],
        "rows": [asdict(line) for line in lines],
    }
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(table(lines))
    for data in dict.fromkeys(run["data"] for run in about):
        console.print(f"evaluated on {data}", highlight=False, soft_wrap=True)
    if calibrations:
        console.print(f"temperatures are fitted on {found['temperature']}", highlight=False, soft_wrap=True)
    for line in found["fits"]:
        if line["temperature"] in line["bounds"]:
            console.print(f"{line['run']}: its temperature is a bound, not a minimum", highlight=False, soft_wrap=True)
    if args.json is not None:
        write(args.json, json.dumps(found, indent=1).encode())
    if args.html is not None:
        write(args.html, as_html(found, lines).encode())
    if args.predictions is not None:
        part, file = parts[0], io.BytesIO()
        np.savez(file, logits=part.logits.numpy(), labels=part.labels.numpy(), index=part.index.numpy())
        write(args.predictions, file.getvalue())


def write(path: Path, content: bytes) -> None:
    from lsdali.errors import UserError

    try:
        path.write_bytes(content)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}") from None


if __name__ == "__main__":
    sys.exit(main())
