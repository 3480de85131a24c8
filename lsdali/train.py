"""Train from a recipe: `torchrun --nproc_per_node N -m lsdali.train RECIPE [key=value ...]`.

Without torchrun, `python -m lsdali.train RECIPE` is a run of one process.
"""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from lsdali import parts

if TYPE_CHECKING:  # the rest is imported where it is used, so that --help answers at once
    import torch

    from lsdali.events import Begun
    from lsdali.faults.pulse import Pulse
    from lsdali.recipe import Recipe
    from lsdali.trainer import Trainer


def main(argv: Sequence[str] | None = None) -> int:
    """Console entry. lsdali.errors lists the exit statuses."""
    args = arguments().parse_intermixed_args(argv)
    from lsdali.errors import SharedError, UserError, report_error

    try:
        if args.recipe is None:
            raise UserError("which recipe? Give a YAML file, for example recipes/digits/ce.yaml")
        from lsdali.recipe import load, to_yaml

        recipe = load(args.recipe, args.overrides)
    except UserError as error:
        return report_error(SharedError(error))
    if args.show:
        print(to_yaml(recipe), end="")
        return 0
    announce(recipe)
    from torch.distributed.elastic.multiprocessing.errors import record

    return int(record(start)(recipe) or 0)


def announce(recipe: Any) -> None:
    """Say what begins, before anything is built; rank 0 alone."""
    if os.environ.get("RANK", "0") == "0":
        what = f"{recipe.method.name} with {recipe.model.name} on {recipe.data.name}"
        print(f"{what}, {recipe.epochs} epochs, into {recipe.run_dir}", flush=True)


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lsdali train",
        description=__doc__,
        epilog="Running the same command again continues a run where it stopped.",
    )
    parser.add_argument("recipe", nargs="?", metavar="RECIPE", help="a YAML file such as recipes/imagenet_zls.yaml")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="for example data.root=/data/imagenet epochs=90"
    )
    parser.add_argument(
        "--print",
        action="store_true",
        dest="show",
        help="print the resolved recipe with every default, and stop",
    )
    parts.add_refusal(parser)
    return parser


def start(recipe: "Recipe") -> int:
    """Train a checked recipe on this process's device; return the exit status (see lsdali.errors)."""
    from lsdali.faults.attend import attended

    return attended(partial(run, recipe), seconds=60 * recipe.faults.stall_minutes)


def run(recipe: "Recipe", device: "torch.device", pulse: "Pulse | None" = None) -> None:
    """Train into the recipe's run folder; continue from its newest whole checkpoint."""
    from lsdali import dist
    from lsdali.build import build
    from lsdali.disk import write_whole
    from lsdali.errors import Stopped
    from lsdali.events import open_events
    from lsdali.faults import marker
    from lsdali.loggers import with_loggers
    from lsdali.loggers.profile import profiled
    from lsdali.recipe import to_yaml
    from lsdali.selection import stopped
    from lsdali.state.checkpoint import Checkpoints

    folder = Path(recipe.run_dir or "runs")
    with dist.raise_together():
        lock = claim(folder)
        events = with_loggers(open_events(folder), recipe.log.loggers, folder)
    try:
        if any(dist.gather_objects(marker.stopped_before(folder))):
            marker.end_launcher()
            raise Stopped
        if dist.is_main():
            marker.remove(folder)
        if pulse is not None:
            pulse.on_early_stop = partial(marker.leave, folder, None, None)
        checkpoints = Checkpoints(folder / "checkpoints", recipe.save.keep, events.log)
        content = checkpoints.newest()
        if content is not None:
            same_recipe(recipe, content, folder)
            early = stopped(content["parts"]["trainer"]["record"], recipe.stop)
            over = early or (content["step"] == content["steps"] and recipe.epochs == content["recipe"]["epochs"])
            if over and (folder / "summary.json").is_file():
                how = "stopped early" if early else f"is finished: {recipe.epochs} epochs"
                events.log(f"this run {how}; its figures are in {folder / 'summary.json'}")
                return
        fingerprint = None if content is None else content["data"]
        trainer = build(recipe, folder, device, checkpoints, events, begun=fingerprint)
        trainer.pulse = pulse or trainer.pulse
        with dist.raise_together():
            trainer.train = profiled(trainer.train, recipe.log.profile, trainer.clock.steps, folder, events.log)
        if content is not None:
            same_inputs(trainer.header, content, folder)
            not_too_long(trainer, content, folder)
            trainer.restore(content["parts"])
            for sentence in parts.changes(content.get("uses", ()), trainer.header["uses"]):
                events.log(sentence)
        if dist.is_main():
            (folder / "summary.json").unlink(missing_ok=True)  # of a run that goes on longer
            write_whole(folder / "recipe.yaml", to_yaml(recipe))
        events.write(begun(trainer))
        trainer.run()
    finally:
        events.close()
        lock.close()


def claim(folder: Path) -> IO[str]:
    """Hold the run folder for this run; the lock goes with the process, however it ends."""
    import fcntl

    from lsdali import dist
    from lsdali.errors import UserError

    if not dist.is_main():
        return open(os.devnull)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("w")
    except OSError as error:
        raise UserError(f"run_dir {folder} cannot be written: {error.strerror}") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise UserError(f"another run is writing to {folder}: wait for it, or give another run_dir") from None
    return lock


def same_recipe(recipe: "Recipe", content: dict[str, Any], folder: Path) -> None:
    """Raises SharedError where a run cannot go on with this recipe.

    It may have other epochs where those that are trained would not have been others.
    """
    from lsdali.errors import SharedError
    from lsdali.recipe import differences

    different = differences(content["recipe"], recipe.model_dump(mode="json"))
    if not different:
        return
    what = f"{folder} holds a run of another recipe ({'; '.join(different)})"
    if len(different) > 1 or recipe.epochs == content["recipe"]["epochs"]:
        raise SharedError(f"{what}: give another run_dir, or the old values to go on")
    if fixed := recipe.fixed_length():
        weights = f"model.weights.source=file model.weights.path={folder}/checkpoints/best.pt"
        raise SharedError(
            f"{what}, and {fixed}, so the epochs it has trained would have been others; a new run can begin with its "
            f"weights: {weights} run_dir=..."
        )


def same_inputs(header: Mapping[str, Any], content: dict[str, Any], folder: Path) -> None:
    from lsdali.errors import SharedError

    inputs = (
        ("data", "training files or their labels"),
        ("teachers", "teacher's weights"),
        ("class_weights", "class weights"),
    )
    for key, what in inputs:
        if content.get(key) != header[key]:
            raise SharedError(
                f"the {what} have changed since {folder} was begun: restore them, or give another run_dir"
            )


def not_too_long(trainer: "Trainer", content: dict[str, Any], folder: Path) -> None:
    from lsdali.errors import SharedError

    if content["step"] > trainer.clock.steps:
        raise SharedError(
            f"{folder} has trained {content['step']} steps, and {trainer.clock.epochs} epochs are "
            f"{trainer.clock.steps}: give at least as many epochs as it has trained"
        )


def begun(trainer: "Trainer") -> "Begun":
    import platform

    import numpy
    import nvidia.dali
    import torch
    import torchvision

    import lsdali
    from lsdali import dist
    from lsdali.events import Begun

    packages = (lsdali, torch, torchvision, nvidia.dali, numpy)
    used = {part["name"]: str(part["version"]) for part in trainer.header["uses"]}
    clock = trainer.clock
    return Begun(
        recipe=trainer.recipe.model_dump(mode="json"),
        versions={"python": platform.python_version(), **{p.__name__: p.__version__ for p in packages}, **used},
        device=str(trainer.device.type),
        world=dist.world(),
        step=clock.step,
        steps=clock.steps,
        epoch=clock.epoch,
        epochs=clock.epochs,
        parameters=sum(p.numel() for p in trainer.student.parameters()),
        optimizer=trainer.optimizer.describe(),
        data=trainer.data,
    )


if __name__ == "__main__":
    sys.exit(main())
