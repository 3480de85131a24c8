"""The command line of the scripts that made the tables in this folder."""

import sys
from collections.abc import Sequence

from benchmarks import (
    foreign,
    guards,
    models,
    networks,
    optimizers,
    pskd,
    readme,
    resident,
    round_trips,
    saves,
    scale,
    zls,
)
from lsdali.bench.__main__ import run_commands
from lsdali.errors import command


@command
def main(arguments: Sequence[str] | None = None) -> int:
    scripts = (resident, zls, pskd, models, networks, saves, guards, readme, foreign, optimizers, round_trips, scale)
    names = "|".join(script.__name__.rpartition(".")[2] for script in scripts)
    return run_commands("python -m benchmarks", names, [script.add_arguments for script in scripts], arguments)


if __name__ == "__main__":
    sys.exit(main())
