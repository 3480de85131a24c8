"""Compare runs: one row for each recipe, the mean and standard deviation over its seeds.

RUN is a run folder, or a folder of them, which is taken whole. Unfinished runs are shown as such.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lsdali.errors import UserError, command
from lsdali.metric_names import METRICS
from lsdali.report.groups import RunGroup, grouped
from lsdali.report.runs import RunRecord, find_runs
from lsdali.report.tables import METRIC_COLUMNS, WRITERS, ReportTable, comparison, recipe_differences, surroundings
from lsdali.terminal import console, printable, say

NARROW = ("runs", "epochs", "figures of", "of epoch")  # columns of the terminal, beside the metrics


@command
def main(argv: Sequence[str] | None = None) -> int:
    given = sys.argv[1:] if argv is None else list(argv)
    args = arguments().parse_args(given)
    runs = find_runs(args.folders)
    groups = grouped(runs)
    if not groups:
        raise UserError("; ".join(faults(runs)))
    table = comparison(groups)
    if args.html is not None:
        write_page(args, runs, groups, table, shlex.join(["lsdali", "report", *given]))
    if args.format == "table":
        print_table(table)
    else:
        say(WRITERS[args.format](table), end="")
    for fault in faults(runs):
        say(f"note: {printable(fault)}", file=sys.stderr)
    return 0


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lsdali report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", nargs="+", type=Path, metavar="RUN", help="such as runs/digits_ce, or runs")
    parser.add_argument("--format", choices=("table", *WRITERS), default="table", help="how the table is printed")
    parser.add_argument("--html", type=Path, metavar="FILE", help="also write a page with learning curves to FILE")
    return parser


def faults(runs: Sequence[RunRecord]) -> list[str]:
    return [fault for run in runs for fault in run.faults]


def print_table(table: ReportTable) -> None:
    """Print the table without the errors, which the accuracies say already, and the speed."""
    from rich.table import Table as Drawn
    from rich.text import Text

    titles = {METRICS[name].title for name in METRIC_COLUMNS if not name.startswith("error")}
    kept = [number for number, title in enumerate(table.columns) if title in titles or title in NARROW]
    drawn = Drawn(*(table.columns[number] for number in kept))
    for row in table.rows:
        drawn.add_row(*(Text(row[number].text, "bold" if row[number].best else "") for number in kept))
    console(500).print(drawn)


def write_page(
    args: argparse.Namespace, runs: Sequence[RunRecord], groups: Sequence[RunGroup], table: ReportTable, line: str
) -> None:
    """Write a page that stands alone; `line` is the command that it repeats.

    Raises UserError if it cannot be written, or matplotlib is missing.
    """
    from lsdali.page.evaluation import Evaluation, read_evaluation
    from lsdali.page.render import render, write_file
    from lsdali.report.curves import curves

    notes = faults(runs)
    evaluations: list[Evaluation] = []
    for file in sorted({file for folder in args.folders for file in folder.rglob("evaluat*.json")}):
        try:
            evaluations.append(read_evaluation(file))
        except UserError as error:
            notes.append(str(error))
    values: dict[str, Any] = {
        "table": table,
        "downloads": {name: text(table) for name, text in WRITERS.items()},
        "groups": groups,
        "curves": curves(groups),
        "differences": recipe_differences(groups),
        "surroundings": surroundings(groups),
        "evaluations": evaluations,
        "notes": notes,
    }
    write_file(args.html, render("report.html", line, **values))
