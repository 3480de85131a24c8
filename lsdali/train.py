"""Train from a recipe: `torchrun --nproc_per_node N -m lsdali.train RECIPE [key=value ...]`.

Without torchrun, `python -m lsdali.train RECIPE` is a run of one process.
"""

import argparse
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lsdali import parts
from lsdali.errors import UserError, command, shared_errors
from lsdali.face.callable import call_module
from lsdali.limits import refuse_few_files
from lsdali.terminal import printable, say

if TYPE_CHECKING:  # the rest is imported where it is used, so that --help answers at once
    import torch
    from torch import nn

    from lsdali.data.sets.map_style import MapStyle
    from lsdali.events import Begun, Events
    from lsdali.face.runs import Result
    from lsdali.faults.pulse import Pulse
    from lsdali.methods.base import Method
    from lsdali.recipe import Recipe
    from lsdali.trainer import Trainer


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Train, or print the recipe. lsdali.errors lists the exit statuses."""
    args = arguments().parse_intermixed_args(argv)
    refuse_few_files()
    with shared_errors():
        if args.recipe is None:
            raise UserError("which recipe? Give a YAML file, for example recipes/digits/ce.yaml")
        from lsdali.recipe import load, to_yaml

        recipe = load(args.recipe, args.overrides)
    if args.show:
        say(to_yaml(recipe), end="")
        return 0
    announce(recipe)
    from torch.distributed.elastic.multiprocessing.errors import record

    return int(record(start)(recipe) or 0)


def train(
    recipe: "str | Path | Mapping[str, Any] | Recipe",
    *,
    model: "str | Mapping[str, Any] | nn.Module | Callable[[int], nn.Module] | None" = None,
    data: "str | Mapping[str, Any] | tuple[MapStyle, MapStyle] | None" = None,
    method: "str | Mapping[str, Any] | type[Method] | None" = None,
    **overrides: Any,
) -> "Result":
    """Train from a recipe in this process, or in each process that torchrun has started; go on where it stopped.

    Args:
        recipe: a YAML file, a mapping of its keys, or a Recipe
        model: a network in place of the recipe's: a name, a mapping, a module, or a function (classes) -> module. A
            module begins with the weights that it has, and is left as it is.
        data: a data set in its place: a name, a mapping, or two map-style data sets of torch (train, val), also as the
            key `datasets` of a mapping with further keys such as `train` and `eval`
        method: a method in its place: a name, a mapping, or a class derived from Method
        **overrides: values of other keys, dotted ones as `**{"optimizer.lr": 0.1}`

    Raises UserError for bad input. Under torchrun a run that fails ends the process, as on the command line.
    """
    from lsdali.face.runs import train as carry_out

    given = {"model": model, "data": data, "method": method}
    chosen = {key: value for key, value in given.items() if value is not None}
    return carry_out(run, recipe, {**chosen, **overrides})


def announce(recipe: Any) -> None:
    """Say what begins, before anything is built; rank 0 alone."""
    if os.environ.get("RANK", "0") == "0":
        what = f"{recipe.method.name} with {recipe.model.name} on {recipe.data.name}"
        say(printable(f"{what}, {recipe.epochs} epochs, into {recipe.run_dir}"), flush=True)


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
    import torch

    from lsdali import dist
    from lsdali.errors import Stopped, UserError
    from lsdali.events import open_events
    from lsdali.faults import marker
    from lsdali.loggers import with_loggers
    from lsdali.state.run_folder import claim

    folder = Path(recipe.run_dir or "runs")
    if recipe.threads is not None:
        torch.set_num_threads(recipe.threads)
    with dist.raise_together():
        claimed = claim(folder) if dist.is_main() else None
        guard = nothing if claimed is None else claimed.check
        events = with_loggers(open_events(folder, guard), recipe.log.loggers, folder)
    started = False
    try:
        if any(dist.gather_objects(marker.stopped_before(folder))):
            marker.end_launcher()
            raise Stopped
        if dist.is_main():
            marker.remove(folder)
        if pulse is not None:
            pulse.on_early_stop = partial(marker.leave, folder, None, None)
        trainer = open_trainer(recipe, folder, device, events, guard)
        started = trainer is not None
        if trainer is not None:
            trainer.pulse = pulse or trainer.pulse
            events.write(begun(trainer))
            trainer.run()
    except UserError:
        if claimed is not None and not started:
            claimed.abandon()
        raise
    finally:
        events.close()
        if claimed is not None:
            claimed.release()


def nothing() -> None:
    """Check nothing, as ranks do that write nothing."""


def open_trainer(
    recipe: "Recipe", folder: Path, device: "torch.device", events: "Events", guard: Callable[[], None]
) -> "Trainer | None":
    """Return the trainer at the step where its run stands; None if the run is finished.

    Raises UserError, the same on every rank, if the recipe does not fit the data, the device or the folder.
    """
    from lsdali import dist
    from lsdali.build import build
    from lsdali.disk import write_whole
    from lsdali.loggers.profile import profiled
    from lsdali.recipe import to_yaml
    from lsdali.resume import other_threads, resume, wrong_in
    from lsdali.selection import stopped
    from lsdali.state.checkpoint import Checkpoints
    from lsdali.state.run_folder import read_summary

    summary = folder / "summary.json"
    checkpoints = Checkpoints(folder / "checkpoints", recipe.save.keep, events.log, guard)
    content = checkpoints.newest(wrong_in)
    if content is not None:
        same_recipe(recipe, content, folder)
        early = stopped(content["parts"]["trainer"]["record"], recipe.stop)
        if early or (content["step"] == content["steps"] and recipe.epochs == content["recipe"]["epochs"]):
            if dist.from_main(read_summary(summary) is not None):
                how = "stopped early" if early else f"is finished: {recipe.epochs} epochs"
                events.log(f"this run {how}; its figures are in {summary}")
                return None
            if summary.is_file():
                events.log(f"{summary} is damaged; it is written anew")
    trainer = build(recipe, folder, device, checkpoints, events, begun=None if content is None else content["data"])
    with dist.raise_together():
        trainer.train = profiled(trainer.train, recipe.log.profile, trainer.clock.steps, folder, events.log)
    if content is not None:
        content = resume(trainer, checkpoints, content, lambda found: same_run(trainer, found, folder))
        for sentence in parts.changes(content.get("uses", ()), trainer.header["uses"]):
            events.log(sentence)
        if device.type == "cpu" and (other := other_threads(trainer.header, content)):
            events.log(other)
    with dist.raise_together():
        if dist.is_main():
            summary.unlink(missing_ok=True)  # of a run that goes on longer
            write_whole(folder / "recipe.yaml", to_yaml(recipe))
    return trainer


def same_run(trainer: "Trainer", content: dict[str, Any], folder: Path) -> None:
    same_recipe(trainer.recipe, content, folder)
    same_inputs(trainer.header, content, folder)
    not_too_long(trainer, content, folder)


def same_recipe(recipe: "Recipe", content: dict[str, Any], folder: Path) -> None:
    """Raise SharedError if a run cannot go on with this recipe.

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


call_module(__name__, train)

if __name__ == "__main__":
    sys.exit(main())
