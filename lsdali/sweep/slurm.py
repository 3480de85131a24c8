"""A sweep as Slurm arrays: one a stage, one task a cell; a stage waits for those that it needs."""

import argparse
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from lsdali.errors import UserError
from lsdali.sweep.cells import Cell
from lsdali.sweep.figures import finished
from lsdali.terminal import say


def submit(args: argparse.Namespace, cells: Sequence[Cell]) -> int:
    """Write the list of each stage's commands and submit it; if there is no Slurm, print how to.

    Raises UserError if the batch script is not there or Slurm refuses.
    """
    script = Path(args.slurm)
    if not script.is_file():
        raise UserError(f"--slurm: no batch script {script}; start from a clone of the project, or name one")
    submitted: dict[str, str] = {}  # job by stage
    for stage in dict.fromkeys(cell.stage for cell in cells):
        own = [cell for cell in cells if cell.stage == stage and not finished(cell)]
        if own:
            needs = sorted({submitted[need] for cell in own for need in cell.needs if need in submitted})
            submitted[stage] = send(array(args, script, own, needs), stage)
    return 0


def array(args: argparse.Namespace, script: Path, cells: Sequence[Cell], needs: Sequence[str]) -> list[str]:
    """Write the commands of some cells, a line each; the command that submits them."""
    file = cells[0].folder.parents[1] / "slurm" / f"{cells[0].stage}.txt"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(f"{shlex.join(task(args, cell))}\n" for cell in cells), encoding="utf-8")
    together = f"%{args.jobs}" if args.jobs > 1 else ""
    waits = [f"--dependency=afterany:{':'.join(needs)}"] if needs else []
    return ["sbatch", "--parsable", f"--array=1-{len(cells)}{together}", *waits, str(script), str(file)]


def task(args: argparse.Namespace, cell: Cell) -> list[str]:
    """Return the command of one cell; it also claims it, so that no other task or sweep does it again."""
    seeds = ["--seeds", ",".join(map(str, args.seeds))] if args.seeds else []
    options = ["--only", cell.name, "--processes", str(args.processes), *seeds]
    return [sys.executable, "-m", "lsdali.sweep", args.file, *args.overrides, *options]


def send(command: list[str], stage: str) -> str:
    """Submit an array; return its job number, or a place for it if there is no Slurm here."""
    say("$", shlex.join(command), flush=True)
    if shutil.which("sbatch") is None:
        return f"<job of {stage}>"
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"sbatch refuses the stage {stage}: {done.stderr.strip()}")
    return done.stdout.strip().split(";")[0]
