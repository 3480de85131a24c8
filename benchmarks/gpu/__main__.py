"""Measure and check on a GPU what could only be reasoned about: `python -m benchmarks.gpu IMAGES --out FOLDER`.

IMAGES is a folder of JPEGs, 500 or more. Each step is a process of its own with a time limit, and leaves
FOLDER/<step>.json; the same command again does what is not there yet. `--rehearse` does all in small, on a CPU too.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.gpu.plan import steps_of
from benchmarks.gpu.session import Session
from lsdali.errors import command


@command
def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("images", type=Path, metavar="IMAGES")
    parser.add_argument("--out", type=Path, default=Path("gpu-session"), metavar="FOLDER")
    parser.add_argument("--minutes", type=float, default=25.0, help="for all steps; the last ones are left out")
    parser.add_argument("--only", nargs="+", metavar="STEP", help="these steps alone")
    parser.add_argument("--list", action="store_true", help="name the steps, and stop")
    parser.add_argument("--rehearse", action="store_true", help="everything in small")
    options = parser.parse_args(arguments)
    session = Session(options.images, options.out, rehearse=options.rehearse)
    steps = steps_of(session)
    if options.list:
        print("\n".join(f"{step.name:10} {step.seconds:4.0f} s  {step.why}" for step in steps))
        return 0
    return session.run(steps, options.only, options.minutes)


if __name__ == "__main__":
    sys.exit(main())
