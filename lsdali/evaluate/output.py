"""Write the results of an evaluation to the terminal and to files."""

import argparse
import io
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lsdali.errors import UserError
from lsdali.evaluate.binning import check_bins
from lsdali.evaluate.figures import CALIBRATE_ON, Calibration, Ensemble, Row
from lsdali.evaluate.plane import plane_figures
from lsdali.evaluate.robust import Shifted, parse_disturbance, shift_sentence
from lsdali.evaluate.runs import Predicted, Run, Samples
from lsdali.evaluate.views import VIEWS
from lsdali.metric_names import METRICS
from lsdali.page import render
from lsdali.page.evaluation import evaluation, heat, value
from lsdali.page.render import write_file
from lsdali.terminal import console, printable


def check(args: argparse.Namespace, names: Sequence[str]) -> None:
    """Raise UserError if arguments do not go together, or a file cannot be written."""
    if not names:
        raise UserError("which run? Give a run folder, such as runs/digits_ce")
    if args.ensemble == 0 and len(names) < 2:
        raise UserError(f"--ensemble needs two runs or more, and {names[0]} is one; last:20 takes its checkpoints")
    if args.predictions is not None and len(names) > 1:
        raise UserError(f"--predictions writes those of one run, and these are {len(names)}")
    if args.robust and args.views:
        raise UserError("--robust looks at each image alone: leave out --views")
    if args.plane:
        check_plane(args)
    for text in args.bins:
        check_bins(text)
    for text in args.robust:
        parse_disturbance(text)
    for path in (args.json, args.html, args.predictions):
        if path is not None and not path.parent.is_dir():
            raise UserError(f"{path} cannot be written: there is no folder {path.parent}")


def check_plane(args: argparse.Namespace) -> None:
    """Raise UserError if --plane has no page, or a company that evaluates."""
    if args.html is None:
        raise UserError("--plane draws into a page: add --html FILE")
    if args.ensemble is not None or args.temperature or args.predictions or args.robust:
        raise UserError("--plane evaluates nothing: leave out --ensemble, --temperature, --predictions and --robust")


def print_results(
    args: argparse.Namespace,
    runs: Sequence[Run],
    samples: Sequence[Samples],
    parts: Sequence[Predicted],
    calibrations: Sequence[Calibration],
    lines: Sequence[Row],
    curves: Sequence[Ensemble],
    moved: Sequence[Shifted],
) -> None:
    """Print the table, and write the files that were asked for."""
    found = contents(args, runs, samples, calibrations, [*lines, *(one.line for one in curves)], curves)
    found["shifts"] = [one.figures for one in moved]
    print_found(found)
    if args.json is not None:
        write_file(args.json, json.dumps(found, indent=1))
    if args.html is not None:
        page = render(
            "evaluate.html", shlex.join(args.command), part=evaluation(found, ", ".join(r.name for r in runs))
        )
        write_file(args.html, page)
    if args.predictions is not None:
        save_predictions(args.predictions, parts[0], moved)


def contents(
    args: argparse.Namespace,
    runs: Sequence[Run],
    samples: Sequence[Samples],
    calibrations: Sequence[Calibration],
    lines: Sequence[Row],
    curves: Sequence[Ensemble],
) -> dict[str, Any]:
    """Return what --json writes."""
    return {
        "runs": [{**run.describe(), "data": part.describe()} for run, part in zip(runs, samples, strict=True)],
        "views": VIEWS.get(args.views),
        "classes": list(samples[0].index.classes),
        "temperature": CALIBRATE_ON[args.temperature] if calibrations else None,
        "fits": [
            {"run": run.name, "temperature": fit.temperature, "bounds": fit.bounds, "samples": fit.samples}
            for run, fit in zip(runs, calibrations)
        ],
        "rows": [asdict(line) for line in lines],
        "ensembles": [
            {"run": one.run, "curve": [{"members": k, "metrics": metrics} for k, metrics in enumerate(one.curve, 1)]}
            for one in curves
        ],
    }


def print_found(found: Mapping[str, Any]) -> None:
    """Print the table, which checkpoint each run's figures are of, and on which samples."""
    out = console(500)
    out.print(table(found["rows"]))
    for run in found["runs"]:
        epoch = f", epoch {run['epoch']}" if run["epoch"] is not None else ""
        tell(out, f"{run['run']}: {run['weights']} weights of {run['checkpoint']}{epoch}, step {run['step']}")
    for data in dict.fromkeys(run["data"] for run in found["runs"]):
        tell(out, f"evaluated on {data}" + (f", {found['views']}" if found["views"] else ""))
    if found["temperature"]:
        tell(out, f"temperatures are fitted on {found['temperature']}")
    for line in found["fits"]:
        if line["temperature"] in line["bounds"]:
            tell(out, f"{line['run']}: its temperature is a bound, not a minimum")
    for one in found["ensembles"]:
        errors = "  ".join(f"{m['members']}: {m['metrics']['error1']:.2f}" for m in one["curve"])
        tell(out, f"{one['run']}: top-1 error (%) of the newest checkpoints together, by their number: {errors}")
    for one in found["shifts"]:
        tell(out, shift_sentence(one))


def tell(out: Console, text: str) -> None:
    out.print(Text(printable(text)), soft_wrap=True)


def table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Return one line a row; the metrics that IBLS's code has in a way of its own are in the JSON and on the page."""
    names = [name for name in rows[0]["metrics"] if not name.endswith("_ibls")]
    titles = (METRICS[name].title if name in METRICS else name for name in names)
    out = Table("run", "samples", "temperature", *titles)
    for row in rows:
        cells = [row["name"], row["samples"], heat(row), *(value(row["metrics"], name) for name in names)]
        out.add_row(*(Text(printable(cell)) for cell in cells))
    return out


def save_predictions(path: Path, part: Predicted, moved: Sequence[Shifted]) -> None:
    """Write logits, labels and numbers of the samples, and what --robust found of each."""
    file = io.BytesIO()
    arrays: dict[str, Any] = {name: array for one in moved for name, array in one.arrays.items()}
    np.savez(file, logits=part.logits.numpy(), labels=part.labels.numpy(), index=part.index.numpy(), **arrays)
    write_file(path, file.getvalue())


def write_plane(args: argparse.Namespace, found: Mapping[str, Any]) -> None:
    """Write the page of --plane, and its points where --json asks for them."""
    write_file(args.html, render("plane.html", shlex.join(args.command), runs=plane_figures(found), names=args.plane))
    if args.json is not None:
        write_file(args.json, json.dumps(found))
