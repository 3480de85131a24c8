"""The command line of the benchmarks."""

import argparse
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import TypeAlias

from lsdali import parts
from lsdali.errors import command

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


@command
def main(arguments: Sequence[str] | None = None) -> int:
    adders = (add_loader, add_stream, add_methods, add_step, add_train, add_scale, *PHASES)
    names = "loader|stream|methods|step|train|scale|eval|save|start|memory"
    return run_commands("lsdali bench", names, adders, arguments)


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
    parts.add_refusal(sub)
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
    parts.add_refusal(sub)
    sub.set_defaults(run_command=on_call("methods", "methods"))


def add_step(commands: Commands) -> None:
    what = "Measure a training step on made-up images: precisions, compiled, and others' loops."
    sub = commands.add_parser("step", help="a training step on made-up images", description=what)
    sub.add_argument("--recipe", metavar="RECIPE", help="whose method is trained; default: cross-entropy")
    parts.add_refusal(sub)
    sub.add_argument("--model", metavar="NAME", help="the network; default: that of the shape")
    sub.add_argument("--shape", choices=["cifar", "imagenet"], default="imagenet")
    sub.add_argument("--batch", type=int, help="images a step; 8 or 32 on a CPU, 256 or 512 on a GPU")
    sub.add_argument("--precision", choices=["fp32", "tf32", "bf16", "fp16"], nargs="+", default=["fp32"])
    modes = ["default", "reduce-overhead", "max-autotune"]
    sub.add_argument("--compile", choices=modes, nargs="*", default=[], help="modes to compile with, in turn")
    sub.add_argument("--compare", action="store_true", help="also a plain PyTorch loop")
    sub.add_argument("--warmup", type=int, default=3, help="steps of each before")
    add_turns(sub, 15)
    sub.set_defaults(run_command=on_call("step", "step"))


def add_recipe(sub: argparse.ArgumentParser, module: str, name: str, turns: int = 7) -> None:
    """Add a recipe and what all benchmarks of one take."""
    parts.add_refusal(sub)
    sub.add_argument("recipe", metavar="RECIPE")
    sub.add_argument("overrides", nargs="*", metavar="key=value", default=[])
    add_turns(sub, turns)
    sub.set_defaults(run_command=on_call(module, name))


def add_turns(sub: argparse.ArgumentParser, turns: int) -> None:
    """Add what every benchmark with a table takes."""
    sub.add_argument("--turns", type=int, default=turns, help=f"measurements of each contestant (default {turns})")
    sub.add_argument("--json", type=Path, metavar="FILE", help="also write every figure to FILE")


def add_steps(sub: argparse.ArgumentParser) -> None:
    """Add how long a run of steps is."""
    sub.add_argument("--steps", type=int, default=30, help="steps of a run (default 30)")
    sub.add_argument("--warmup", type=int, default=5, help="steps of each run before (default 5)")


def add_train(commands: Commands) -> None:
    what = "Measure the training that a recipe describes, each run in a fresh process."
    sub = commands.add_parser("train", help="a recipe's training: images/s, data wait", description=what)
    add_recipe(sub, "training", "train_speed")
    add_steps(sub)
    sub.add_argument("--compare", action="store_true", help="also a plain PyTorch loop, torchvision's, timm's loader")
    part = commands.add_parser("train-part")
    part.add_argument("kind")
    part.add_argument("recipe")
    part.add_argument("overrides", nargs="*")
    add_steps(part)
    part.set_defaults(run_command=on_call("training", "train_part"))


def add_scale(commands: Commands) -> None:
    what = "Measure a recipe's training on 1, 2 ... processes of this machine, each with the recipe's batch."
    sub = commands.add_parser("scale", help="training on several processes", description=what)
    add_recipe(sub, "training", "scale")
    add_steps(sub)
    sub.add_argument("--worlds", type=int, nargs="+", default=[1, 2], help="numbers of processes")


def add_eval(commands: Commands) -> None:
    what = "Measure a recipe's evaluation against its forward passes alone."
    add_recipe(commands.add_parser("eval", help="evaluation", description=what), "phases", "evaluation_cost")


def add_save(commands: Commands) -> None:
    what = "Measure what a checkpoint of a recipe's run costs."
    sub = commands.add_parser("save", help="checkpoints", description=what)
    add_recipe(sub, "phases", "saving")
    sub.add_argument("--folder", type=Path, help="on the disk to measure; default: that of temporary files")


def add_start(commands: Commands) -> None:
    what = "Measure imports, messages and a whole run of one epoch, each in a fresh process."
    sub = commands.add_parser("start", help="time until something happens", description=what)
    add_recipe(sub, "phases", "starting")


def add_memory(commands: Commands) -> None:
    what = "Measure the most memory that a recipe's process holds, by batch."
    sub = commands.add_parser("memory", help="memory by batch", description=what)
    add_recipe(sub, "phases", "held_memory", turns=1)
    sub.add_argument("--batches", type=int, nargs="+", help="global batches; default: the recipe's")
    part = commands.add_parser("memory-part")
    part.add_argument("recipe")
    part.add_argument("overrides", nargs="*")
    part.set_defaults(run_command=on_call("phases", "memory_part"))


PHASES = (add_eval, add_save, add_start, add_memory)

if __name__ == "__main__":
    sys.exit(main())
