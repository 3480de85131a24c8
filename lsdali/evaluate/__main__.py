"""Evaluate trained runs: metrics, calibration, temperatures, ensembles. Runs under torchrun too.

Those metrics that summary.json has are the same. `key=value` changes the data part of the recipes, evaluate.batch or
precision; of a recipe that is evaluated with pretrained weights, also the model.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lsdali import parts
from lsdali.errors import command

if TYPE_CHECKING:  # the rest is imported where it is used, so that --help answers at once
    import torch

    from lsdali.evaluate.figures import Ensemble, Member
    from lsdali.evaluate.runs import Predicted, Run, Samples

VIEW_NAMES = ("flip", "five", "ten")  # views.VIEWS says what they are
WAYS = ("half", "held_out", "same", "ibls")  # figures.CALIBRATE_ON says what they are


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluate runs; return the exit status, 0, or 2 for bad input."""
    args = parse(sys.argv[1:] if argv is None else argv)
    from torch.distributed.elastic.multiprocessing.errors import record

    return int(record(start)(args) or 0)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Return the arguments, and as `command` the line that a page repeats."""
    args = arguments().parse_intermixed_args(argv)
    args.command = ["lsdali", "evaluate", *argv]
    return args


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lsdali evaluate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = "a run folder, a checkpoint file, or a recipe with model.weights"
    parser.add_argument("runs", nargs="+", metavar="RUN | key=value", help=what)
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
    parser.add_argument(
        "--ensemble",
        nargs="?",
        const=0,
        type=ensemble_members,
        metavar="last:N",
        help="also evaluate the mean of the runs' softmax outputs; last:N: of the newest 1, 2, ... N checkpoints of "
        "each run",
    )
    parser.add_argument("--views", choices=VIEW_NAMES, help="average over flips or crops of each image")
    parser.add_argument(
        "--bins",
        action="append",
        default=[],
        metavar="KIND:SIZE",
        help="also the ECE, MCE and ACE with other bins: width:N (equal), mass:N (equally full), ibls:N, pskd:WIDTH",
    )
    parser.add_argument(
        "--robust",
        action="append",
        default=[],
        metavar="KIND[:SIZE]",
        help="also on disturbed images, in grey levels of 255: shift, diagonal, noise:SIGMA, fgsm:SIZE, "
        "pgd:SIZE[:STEP[:STEPS]]",
    )
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
    parts.add_refusal(parser)
    return parser


def ensemble_members(text: str) -> int:
    """Return the number in last:N."""
    count = text.removeprefix("last:")
    if count == text or not count.isdigit() or int(count) < 2:
        raise argparse.ArgumentTypeError(f"{text!r}: write last:20 (two or more), or --ensemble behind the runs")
    return int(count)


@command
def start(args: argparse.Namespace) -> int:
    """Evaluate on this process's device. What is not bad input is raised, for torchrun to report."""
    from lsdali import dist

    with dist.session() as device:
        evaluate(args, device)
    return 0


def evaluate(args: argparse.Namespace, device: "torch.device") -> None:
    """Let every run predict on all ranks; rank 0 makes the figures of it."""
    from lsdali import dist
    from lsdali.evaluate.figures import calibrate, rows
    from lsdali.evaluate.output import check, print_results
    from lsdali.evaluate.robust import disturbed_rows, parse_disturbance, shifts
    from lsdali.evaluate.runs import open_held_out, open_run, open_samples, predict, same_samples, with_views

    overrides = [text for text in args.runs if "=" in text and not Path(text).exists()]
    names = [text for text in args.runs if text not in overrides]
    with dist.raise_together():
        check(args, names)
    runs = [open_run(Path(name), args.checkpoint, args.weights, overrides) for name in names]
    if args.plane:
        return draw(args, runs, overrides, device)
    held_out = [open_held_out(run, overrides) for run in runs] if args.temperature == "held_out" else []
    samples = [open_samples(run, overrides) for run in runs]
    with dist.raise_together():
        if args.ensemble == 0:
            same_samples(runs, samples)
        samples, held_out = ([with_views(part, args.views) for part in parts] for parts in (samples, held_out))
    parts = [predict(run, part, device) for run, part in zip(runs, samples, strict=True)]
    kept: list[Predicted | None] = [predict(run, part, device) for run, part in zip(runs, held_out)]
    pairs = zip(parts, kept or [None] * len(parts), strict=True)
    with dist.raise_together():
        calibrations = [calibrate(args.temperature, *pair) for pair in pairs] if args.temperature else []
        lines = rows(parts, calibrations, args.bins, together=args.ensemble == 0)
    curves = last_ensembles(args, runs, samples, held_out, device) if args.ensemble else []
    asked = [parse_disturbance(text) for text in args.robust]
    for run, part in zip(runs, samples, strict=True):
        lines += disturbed_rows(run, part, asked, args.bins, device)
    moved = [found for run, part in zip(runs, samples, strict=True) for found in shifts(run, part, asked, device)]
    with dist.raise_together():
        if dist.is_main():
            print_results(args, runs, samples, parts, calibrations, lines, curves, moved)


def last_ensembles(
    args: argparse.Namespace,
    runs: Sequence["Run"],
    samples: Sequence["Samples"],
    held_out: Sequence["Samples"],
    device: "torch.device",
) -> list["Ensemble"]:
    """Return the ensembles of each run's newest checkpoints, one member after another. Collective."""
    from lsdali import dist
    from lsdali.evaluate.figures import ensemble_curves
    from lsdali.evaluate.runs import newest_checkpoints

    out = []
    for number, (run, part) in enumerate(zip(runs, samples, strict=True)):
        with dist.raise_together():
            paths = newest_checkpoints(Path(run.name), args.ensemble)
        kept = held_out[number] if held_out else None
        out += ensemble_curves(run.name, (member(args, path, part, kept, device) for path in paths), args.bins)
    return out


def member(
    args: argparse.Namespace, path: Path, part: "Samples", held_out: "Samples | None", device: "torch.device"
) -> "Member":
    """Return what a checkpoint predicts, and its temperature if one is asked for. Collective."""
    from lsdali import dist
    from lsdali.evaluate.figures import calibrate
    from lsdali.evaluate.runs import open_run, predict

    run = open_run(path, "best", args.weights)
    found = predict(run, part, device)
    kept = None if held_out is None else predict(run, held_out, device)
    with dist.raise_together():
        return found, calibrate(args.temperature, found, kept) if args.temperature else None


def draw(args: argparse.Namespace, runs: Sequence["Run"], overrides: Sequence[str], device: "torch.device") -> None:
    """Write the features of three classes. Collective."""
    from lsdali import dist
    from lsdali.evaluate.output import write_plane
    from lsdali.evaluate.plane import plane

    found = {run.name: plane(run, overrides, args.plane, device) for run in runs}
    with dist.raise_together():
        if dist.is_main():
            write_plane(args, found)


if __name__ == "__main__":
    sys.exit(main())
