"""Compute a teacher's answers once, for all students of a recipe's crops: `lsdali cache RECIPE [key=value ...]`.

The folder is `method.teacher.cache` of the recipe, by which the students read it. Crops and flips are functions of
(seed, epoch, sample), so the answers are those of a teacher that runs in every step. On several processes:
`torchrun --nproc_per_node N -m lsdali.cache RECIPE`. The same command again continues after a kill, with the first
epoch that is not whole.
"""

import argparse
import shutil
import sys
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from lsdali import parts
from lsdali.disk import in_words
from lsdali.errors import UserError, command, shared_errors
from lsdali.terminal import say

if TYPE_CHECKING:  # the rest is imported where it is used, so that --help answers at once
    import torch

    from lsdali.faults.pulse import Pulse
    from lsdali.models.teacher_cache import AnswerFolder
    from lsdali.recipe import Recipe


@command
def main(argv: Sequence[str] | None = None) -> int:
    args = arguments().parse_intermixed_args(argv)
    with shared_errors():
        if args.recipe is None:
            raise UserError("which recipe? Give a YAML file, for example recipes/digits/kd.yaml")
        from lsdali.recipe import load

        recipe = load(args.recipe, args.overrides)
        refuse_no_cache(recipe, args)
    from lsdali.faults.attend import attended

    return attended(partial(fill_cache, recipe, args), seconds=60 * recipe.faults.stall_minutes)


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="lsdali cache", description=__doc__.replace("`", ""))
    parser.add_argument("recipe", nargs="?", metavar="RECIPE", help="a student's recipe")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="such as method.teacher.cache=answers")
    parser.add_argument("--top", metavar="K", help="how many logits a sample keeps, or all (default 32)")
    parser.add_argument("--values", choices=("fp16", "fp32"), help="number format (default fp16)")
    parser.add_argument("--epochs", type=int, metavar="N", help="the first N epochs (default: all of the recipe)")
    parser.add_argument("--dry-run", action="store_true", help="say how large it becomes, and stop")
    parts.add_refusal(parser)
    return parser


def refuse_no_cache(recipe: "Recipe", args: argparse.Namespace) -> None:
    """Raise UserError if the recipe has no teacher with a cache, or its images differ from batch to batch."""
    from lsdali.recipe.teachers import refuse_mixture

    method: Any = recipe.method
    teacher = getattr(method, "teacher", None)
    if teacher is None:
        raise UserError(f"the method '{method.name}' asks no teacher, so there is nothing to keep")
    if teacher.cache is None:
        raise UserError("where to? Name the folder, for example method.teacher.cache=answers")
    refuse_mixture(recipe)
    if args.top not in (None, "all") and not (args.top.isdecimal() and int(args.top)):
        raise UserError(f"--top {args.top}: give a number of logits, or all")
    if args.epochs is not None and not 1 <= args.epochs <= recipe.epochs:
        raise UserError(f"--epochs {args.epochs}: the recipe has epochs 1 to {recipe.epochs}")


def fill_cache(recipe: "Recipe", args: argparse.Namespace, device: "torch.device", pulse: "Pulse") -> None:
    """Make what is missing of the folder. Collective."""
    import torch

    from lsdali import dist
    from lsdali.answers import Making

    if recipe.threads is not None:
        torch.set_num_threads(recipe.threads)
    epochs = args.epochs or recipe.epochs
    with dist.raise_together():
        making = Making.prepare(recipe, args.top, args.values, device)
    if dist.is_main():
        say(room_needed(making.folder, epochs), flush=True)
    if args.dry_run:
        return
    making.make(epochs, pulse)


def room_needed(folder: "AnswerFolder", epochs: int) -> str:
    """Return how large the folder becomes, what is there, and what is free."""
    left = sum(not folder.has(epoch) for epoch in range(epochs))
    above = next(path for path in (folder.path, *folder.path.absolute().parents) if path.exists())
    free, need = shutil.disk_usage(above).free, left * folder.epoch_bytes
    return (
        f"{folder.path}: {epochs} epochs of {folder.samples:,} samples, {folder.describe()}: "
        f"{in_words(epochs * folder.epoch_bytes)}, of which {in_words(need)} are to be made ({in_words(free)} free)"
    )


if __name__ == "__main__":
    sys.exit(main())
