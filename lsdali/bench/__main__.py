"""The command line of the benchmarks."""

import argparse
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import TypeAlias

from lsdali.errors import command

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


@command
def main(arguments: Sequence[str] | None = None) -> int:
    return run_commands("lsdali bench", "loader|stream|methods", (add_loader, add_stream, add_methods), arguments)


def run_commands(
    prog: str, names: str, adders: Sequence[Callable[[Commands], None]], arguments: Sequence[str] | None
) -> int:
    """Parse a sub-command and run it; return the exit status."""
    parser = argparse.ArgumentParser(prog=prog, description="What things cost on this machine.")
    commands = parser.add_subparsers(required=True, metavar=names)
    for add in adders:
        add(commands)
    options = parser.parse_args(arguments)
    options.run_command(options)
    return 0


def on_call(module: str, name: str) -> Callable[[argparse.Namespace], None]:
    """Return a function of lsdali.bench that is imported when it is called, so that --help answers at once."""

    def run(options: argparse.Namespace) -> None:
        getattr(import_module(f"lsdali.bench.{module}"), name)(options)

    return run


def add_loader(commands: Commands) -> None:
    what = "Compare lsdali's training loader with torchvision's."
    sub = commands.add_parser("loader", help="training loader against torchvision's", description=what)
    sub.add_argument("root", metavar="ROOT", help="a folder of images, flat or nested")
    sub.add_argument("--reps", type=int, default=7, help="runs of each loader")
    sub.add_argument("--size", type=int, default=224, help="side of the crop in pixels")
    sub.add_argument("--workers", type=int, default=2, help="DALI threads, and DataLoader workers")
    sub.add_argument("--files", type=int, default=2000, help="images to use at most")
    sub.set_defaults(run_command=on_call("loader", "loader"))
    sub = commands.add_parser("once")
    sub.add_argument("run")
    sub.set_defaults(run_command=on_call("loader", "once"))


def add_stream(commands: Commands) -> None:
    what = "Hash the first steps of a recipe's training data on several numbers of ranks, and compare."
    sub = commands.add_parser("stream", help="the same data on any number of ranks?", description=what)
    sub.add_argument("recipe", metavar="RECIPE")
    sub.add_argument("overrides", nargs="*", metavar="key=value")
    sub.add_argument("--steps", type=int, default=20)
    sub.add_argument("--worlds", type=int, nargs="+", default=[1, 2, 3], help="numbers of ranks")
    sub.set_defaults(run_command=on_call("stream", "stream"))
    sub = commands.add_parser("stream-part")
    sub.add_argument("folder")
    sub.add_argument("start", type=int)
    sub.add_argument("stop", type=int)
    sub.add_argument("recipe")
    sub.add_argument("overrides", nargs="*")
    sub.set_defaults(run_command=on_call("stream", "stream_part"))


def add_methods(commands: Commands) -> None:
    what = "Measure a training step of each recipe's method, relative to cross-entropy."
    sub = commands.add_parser("methods", help="training steps against cross-entropy", description=what)
    sub.add_argument("recipes", nargs="+", metavar="RECIPE", help="recipes whose methods are compared")
    sub.add_argument("--shape", choices=["cifar", "imagenet"], default="imagenet")
    sub.add_argument("--batch", type=int, default=None, help="images a step; 8 or 32 on a CPU, 256 or 512 on a GPU")
    sub.add_argument("--precision", choices=["fp32", "tf32", "bf16", "fp16"], default="fp32")
    sub.add_argument("--samples", type=int, default=1_281_167, help="of the training set that the state is told for")
    sub.add_argument("--reps", type=int, default=15, help="steps of each method")
    sub.add_argument("--warmup", type=int, default=3, help="steps of each method before")
    sub.set_defaults(run_command=on_call("methods", "methods"))


if __name__ == "__main__":
    sys.exit(main())
