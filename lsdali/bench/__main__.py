"""The command line of the benchmarks."""

import argparse
import sys
from collections.abc import Sequence

from lsdali.bench import loader, methods, models, networks, pskd, resident, stream, zls
from lsdali.errors import UserError

COMMANDS = (loader, resident, stream, methods, zls, pskd, models, networks)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m lsdali.bench", description="What things cost on this machine.")
    names = "|".join(module.__name__.rpartition(".")[2] for module in COMMANDS)
    commands = parser.add_subparsers(required=True, metavar=names)
    for module in COMMANDS:
        module.add_arguments(commands)
    options = parser.parse_args(arguments)
    try:
        options.run_command(options)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
