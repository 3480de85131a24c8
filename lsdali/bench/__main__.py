"""The command line of the benchmarks."""

import argparse
import sys
from collections.abc import Sequence
from types import ModuleType

from lsdali.bench import loader, methods, stream
from lsdali.errors import command


@command
def main(arguments: Sequence[str] | None = None) -> int:
    return run_commands("lsdali bench", (loader, stream, methods), arguments)


def run_commands(prog: str, modules: Sequence[ModuleType], arguments: Sequence[str] | None) -> int:
    """Parse a sub-command, one a module, and run it; return the exit status."""
    parser = argparse.ArgumentParser(prog=prog, description="What things cost on this machine.")
    names = "|".join(module.__name__.rpartition(".")[2] for module in modules)
    commands = parser.add_subparsers(required=True, metavar=names)
    for module in modules:
        module.add_arguments(commands)
    options = parser.parse_args(arguments)
    options.run_command(options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
