"""Name what is in images: `lsdali predict RUN|EXPORT IMAGE|FOLDER|LIST ...`.

RUN is a run folder or a checkpoint file, EXPORT a file or hub folder that `lsdali export` wrote, LIST a text file with
one path a line. Probabilities of a RUN are those of `lsdali evaluate` on the same images. The exit status is 1 if some
images could not be read; they are named.
"""

import argparse
import csv
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lsdali import parts
from lsdali.errors import UserError, command
from lsdali.face.callable import call_module
from lsdali.terminal import say

if TYPE_CHECKING:
    from lsdali.face.prediction import Prediction


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lsdali predict", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", metavar="RUN|EXPORT", help="a run folder, a checkpoint file, or what export wrote")
    parser.add_argument("images", nargs="+", metavar="IMAGE|FOLDER|LIST", help="what to look at")
    parser.add_argument("--top", type=int, default=5, metavar="N", help="name the N most probable classes (default: 5)")
    parser.add_argument("--temperature", type=float, default=1.0, metavar="T", help="divide the logits by T")
    parser.add_argument("--checkpoint", default="best", metavar="best|last|FILE", help="which one of a run folder")
    parser.add_argument("--weights", choices=("model", "ema"), default="model")
    parser.add_argument("--batch", type=int, default=64, metavar="N", help="images of a forward pass (default: 64)")
    parser.add_argument("--decoder", choices=("dali", "pillow"), default="dali", help="who reads the images")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print one JSON object a line")
    form.add_argument("--csv", action="store_true", help="print CSV: image, rank, class, probability, fault")
    parts.add_refusal(parser)
    return parser


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Predict, print, and return the exit status: 1 if an image could not be read."""
    options = arguments().parse_args(argv)
    for key in ("top", "batch", "temperature"):
        if getattr(options, key) <= 0:
            raise UserError(f"--{key} {getattr(options, key):g} must be above 0")
    from lsdali import dist
    from lsdali.face.images import files_in
    from lsdali.face.prediction import of_files, open_predictor

    files = files_in(options.images)
    trained = open_predictor(Path(options.run), options.checkpoint, options.weights, dist.own_device())
    found = of_files(trained, files, options.top, options.temperature, options.batch, options.decoder)
    return print_predictions(in_order(with_progress(found, len(files))), options)


def in_order(found: Iterable[tuple[int, "Prediction"]]) -> Iterator["Prediction"]:
    """Yield predictions in the order of their images, each as soon as all before it are there."""
    early: dict[int, Prediction] = {}
    following = 0
    for number, prediction in found:
        early[number] = prediction
        while following in early:
            yield early.pop(following)
            following += 1


def with_progress(found: Iterable[Any], total: int) -> Iterator[Any]:
    """Pass on what is found, with a progress bar on a terminal."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    visible = console.is_terminal and not sys.stdout.isatty()
    yield from track(found, "images", total, console=console, disable=not visible, transient=True)


def print_predictions(found: Iterable["Prediction"], options: argparse.Namespace) -> int:
    """Print predictions in the form that the options ask for; bad images also to stderr."""
    bad = 0
    table = csv.writer(sys.stdout)
    if options.csv:
        table.writerow(["image", "rank", "class", "probability", "fault"])
    for one in found:
        if options.json:
            say(json.dumps(asdict(one)))
        elif options.csv:
            for rank, (name, p) in enumerate(zip(one.classes, one.probabilities, strict=True), 1):
                table.writerow([one.image, rank, name, f"{p:.6f}", ""])
            if one.fault is not None:
                table.writerow([one.image, "", "", "", one.fault])
        elif one.fault is None:
            pairs = zip(one.classes, one.probabilities, strict=True)
            say(f"{one.image}  " + "  ".join(f"{name} {100 * p:.2f} %" for name, p in pairs))
        if one.fault is not None:
            bad += 1
            say(f"bad image: {one.image} ({one.fault})", file=sys.stderr)
    return int(bad > 0)


def predict(*args: Any, **kwargs: Any) -> list["Prediction"]:
    """See lsdali.face.prediction.predict."""
    from lsdali.face.prediction import predict as function

    return function(*args, **kwargs)


call_module(__name__, predict)

if __name__ == "__main__":
    sys.exit(main())
