"""Go on from a checkpoint: the newest one whose content fits this run, the same on every rank."""

from collections.abc import Callable, Mapping
from typing import Any

from lsdali.errors import SharedError
from lsdali.recipe import Recipe
from lsdali.state.checkpoint import Checkpoints
from lsdali.state.restore import WrongContent
from lsdali.state.run_folder import figures, is_number
from lsdali.trainer import Trainer

Content = dict[str, Any]
REQUIRED = [name for name, field in Recipe.model_fields.items() if field.is_required()]


def wrong_in(content: Mapping[str, Any]) -> str | None:
    """Return what in a checkpoint's content cannot be right, whatever the recipe; None if nothing is."""
    for name, kind in (("recipe", Mapping), ("parts", Mapping), ("data", str), ("teachers", list), ("classes", int)):
        if not isinstance(content[name], kind):
            return f"wrong inside: its {name} cannot be read"
    if lacking := [name for name in REQUIRED if name not in content["recipe"]]:
        return f"wrong inside: its recipe has no {lacking[0]}"
    step, steps, trainer = content["step"], content["steps"], content["parts"].get("trainer")
    if not is_count(step) or not is_count(steps) or step > steps:
        return f"wrong inside: it stands at step {step!s:.40} of {steps!s:.40}"
    if not isinstance(trainer, Mapping):
        return "wrong inside: it has no part trainer"
    if trainer.get("step") != step or not is_count(trainer["step"]):
        return f"wrong inside: it stands at step {step} and its trainer at {trainer.get('step')!s:.40}"
    return wrong_record(trainer, over=step == steps)


def wrong_record(trainer: Mapping[str, Any], *, over: bool) -> str | None:
    """Return the same for what a run knows of its evaluations, times and skipped steps."""
    seconds, record = trainer["seconds"], trainer["record"]
    if not all(is_number(seconds[name]) and 0 <= seconds[name] < 1e12 for name in ("wall", "training")):
        return "wrong inside: its times are no numbers of seconds"
    if not is_count(trainer.get("skipped", 0)):
        return "wrong inside: its number of skipped steps is none"
    if over and not record.keys() & {"model", "student"}:
        return "wrong inside: all steps are done, and it holds no figures"
    for name, entries in record.items():
        if name == "stop":
            waited, epoch = entries["waited"], entries["epoch"]
            if not is_count(waited) or not is_count(epoch) or not is_number(entries["value"]):
                return "wrong inside: its record of early stopping cannot be read"
            continue
        for which in ("last", "best"):
            figures(entries[which])
    return None


def is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def resume(trainer: Trainer, checkpoints: Checkpoints, content: Content, check: Callable[[Content], None]) -> Content:
    """Give a trainer the state of a checkpoint, or of the newest older one that fits; return which. A collective.

    `check` raises if a content is of another recipe or other data.
    Raises SharedError if none fits.
    """
    found: Content | None = content
    while found is not None:
        check(found)
        try:
            longer = trainer.recipe.epochs != found["recipe"]["epochs"]
            if found["steps"] != (steps := trainer.clock.steps) and not longer:
                raise WrongContent(f"wrong inside: it is of a run of {found['steps']} steps, and this one has {steps}")
            trainer.restore(found["parts"])
        except WrongContent as error:
            checkpoints.refuse_newest(str(error))
            found = checkpoints.newest(wrong_in)
        else:
            checkpoints.set_unfit_aside()
            return found
    raise SharedError("no checkpoint fits: they were removed while this run looked at them")


def other_threads(header: Mapping[str, Any], content: dict[str, Any]) -> str:
    """Return what to say of another number of threads than wrote the checkpoint; empty if it is the same."""
    now, before = header["threads"], content.get("threads", header["threads"])
    if now == before:
        return ""
    return (
        f"torch computes with {now} threads here and did with {before} before, so the last bits of the weights may "
        f"differ from those of an uninterrupted run; threads: {before} keeps them"
    )
