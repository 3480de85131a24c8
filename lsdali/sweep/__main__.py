"""Train every cell of a table: `lsdali sweep FILE [key=value ...]`.

FILE, such as sweeps/digits.yaml, names recipes, what varies, the seeds and the tables. The same command again leaves
what is finished, goes on with what was cut off, and prints the tables; on several hosts at once, each cell is trained
by one of them.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING

from lsdali import parts
from lsdali.errors import UserError, command
from lsdali.terminal import console, say

if TYPE_CHECKING:  # the rest is imported where it is used, so that --help answers at once
    from lsdali.sweep.cells import Cell
    from lsdali.sweep.schema import Sweep


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return 0, 1 if cells have failed, 2 for bad input, or 128 + n after signal n."""
    return start(arguments().parse_intermixed_args(argv))


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lsdali sweep", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", nargs="?", metavar="FILE", help="a sweep file such as sweeps/digits.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="overrides of every cell's recipe")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--list", action="store_true", help="print every cell's resolved recipe, and stop")
    what.add_argument("--dry-run", action="store_true", help="print every cell's steps and images, and stop")
    what.add_argument("--table", action="store_true", help="print and write the tables of what is finished, and stop")
    what.add_argument(
        "--slurm",
        nargs="?",
        const="bash_scripts/slurm/sweep.sbatch",
        metavar="SCRIPT",
        help="submit one array of Slurm jobs a stage by this batch script (default: %(const)s), and stop",
    )
    what.add_argument("--schema", action="store_true", help="print the JSON Schema of sweep files, and stop")
    what.add_argument(
        "--keys", nargs="?", const="", metavar="PATH", help="print the keys of sweep files, or those of PATH, and stop"
    )
    parser.add_argument("--jobs", type=positive, default=1, metavar="N", help="cells at a time")
    parser.add_argument("--processes", type=positive, default=1, metavar="N", help="processes (GPUs) of each run")
    parser.add_argument(
        "--only", action="append", metavar="PATTERN", help="cells such as 'students/*alpha=0.1*', and what they need"
    )
    parser.add_argument("--seeds", type=seeds_of, default=[], metavar="N,N,...", help="instead of those of the file")
    pace = parser.add_mutually_exclusive_group()
    pace.add_argument("--rate", type=float, metavar="X", help="hours for --dry-run, by training images a second")
    pace.add_argument("--measure", action="store_true", help="hours for --dry-run, by a few steps of each kind of cell")
    parts.add_refusal(parser)
    return parser


def positive(text: str) -> int:
    if int(text) < 1:
        raise ValueError
    return int(text)


def seeds_of(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def start(args: argparse.Namespace) -> int:
    """Do what the arguments ask for. Raises UserError for bad input."""
    from lsdali.recipe.key_lines import lines_at
    from lsdali.sweep.cells import expand, load_sweep
    from lsdali.sweep.figures import check_figures
    from lsdali.sweep.schema import Sweep

    if args.schema:
        say(json.dumps(Sweep.model_json_schema(), indent=1))
        return 0
    if args.keys is not None:
        say("\n".join(lines_at(Sweep, args.keys)))
        return 0
    if args.file is None:
        raise UserError("which sweep? Give a YAML file, for example sweeps/digits.yaml")
    path = Path(args.file)
    sweep = load_sweep(path)
    cells = expand(sweep, path, args.overrides, args.seeds)
    check_figures(sweep, cells)
    wanted = chosen(cells, args.only)
    for cell in wanted:
        cell.recipe()
    if args.list or args.dry_run:
        return show_cells(args, wanted)
    if args.slurm:
        from lsdali.sweep.slurm import submit

        return submit(args, wanted)
    return work(args, sweep, path, cells, wanted)


def chosen(cells: Sequence["Cell"], patterns: Sequence[str] | None) -> list["Cell"]:
    """Return the cells that match a pattern, and all that these need. Raises UserError if a pattern matches none."""

    for pattern in patterns or ():
        if not any(fnmatch(cell.name, pattern) for cell in cells):
            raise UserError(f"--only {pattern}: there is no such cell; the first one is {cells[0].name}")
    wanted = {cell for cell in cells if patterns is None or any(fnmatch(cell.name, p) for p in patterns)}
    for cell in reversed(cells):  # a cell comes after those that it needs
        if cell in wanted:
            wanted.update(need for needs in cell.needs.values() for need in needs)
    return [cell for cell in cells if cell in wanted]


def show_cells(args: argparse.Namespace, cells: Sequence["Cell"]) -> int:
    from lsdali.sweep.plan import Stopwatch, dry_run, listing

    if args.list:
        for text in listing(cells):
            say(text, end="")
    else:
        watch = Stopwatch(args.rate) if args.rate or args.measure else None
        table, unknown = dry_run(cells, watch, args.jobs)
        console(160).print(table)
        for why in unknown:
            say(f"not counted: {why}")
    return 0


def work(
    args: argparse.Namespace, sweep: "Sweep", path: Path, cells: Sequence["Cell"], wanted: Sequence["Cell"]
) -> int:
    """Train what is wanted, then show the tables of all that is finished."""
    from lsdali.sweep.run import Runner

    runner = Runner(wanted, args.jobs, args.processes, lambda line: say(line, flush=True))
    if not args.table:
        runner.run()
    tell_tables(sweep, path, cells)
    left = len(wanted) - len(runner.done) - len(runner.failed)
    if not args.table:
        say(f"{len(runner.done)} finished, {len(runner.failed)} failed, {left} left of {len(wanted)} cells")
    for cell, why in runner.failed.items():
        say(f"failed: {cell.name}: {why}", file=sys.stderr)
    if runner.stopped:
        return 128 + runner.stopped
    return 1 if runner.failed else 0


def tell_tables(sweep: "Sweep", path: Path, cells: Sequence["Cell"]) -> None:
    """Print the tables, and write them into the sweep's folder."""
    from lsdali.sweep.figures import finished
    from lsdali.sweep.tables import grid
    from lsdali.sweep.write import to_terminal, write_tables

    terminal = console(160)
    done = {cell for cell in cells if finished(cell)}
    grids = [
        grid(f"{sweep.title}: {caption}" if sweep.title else caption, table, cells, done)
        for caption, table in sweep.tables.items()
    ]
    for one in grids:
        to_terminal(one, terminal)
    for file in write_tables(grids, cells[0].folder.parents[1]):
        say(f"written: {file}")


if __name__ == "__main__":
    sys.exit(main())
