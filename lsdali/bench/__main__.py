"""The command line of the benchmarks."""

import argparse
import sys
from collections.abc import Sequence

from lsdali.bench import loader, methods, models, networks, resident
from lsdali.errors import UserError


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m lsdali.bench", description="What things cost on this machine.")
    commands = parser.add_subparsers(required=True, metavar="loader|resident|methods|models|networks")
    for module in (loader, resident, methods, models, networks):
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
