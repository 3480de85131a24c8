"""Check before the first step that a recipe and its method fit together."""

from typing import Any, cast

from lsdali import dist
from lsdali.errors import UserError
from lsdali.methods.base import Method
from lsdali.recipe import Recipe


def check_shares(recipe: Recipe, method: Method) -> None:
    """Raise UserError if samples that belong together would be parted, or mixed without a rule for it."""
    name = cast(Any, recipe.method).name
    if recipe.micro_batch is not None and recipe.micro_batch < method.group_size:
        raise UserError(
            f"micro_batch {recipe.micro_batch} is too small: "
            f"the method '{name}' reads {method.group_size} samples together"
        )
    least = min(batch // dist.world() for _, batch in recipe.batches.spans)
    if (seen := min(recipe.micro_batch or least, least) * dist.world()) < method.compares:
        raise UserError(
            f"the method '{name}' compares {method.compares} samples, and its (micro-)batches have {seen}: give more"
        )
    if recipe.data.train.repeats > 1 and (method.each_once or method.sampler != "shuffled"):
        raise UserError(
            f"data.train.repeats {recipe.data.train.repeats} and the method '{name}' do not go together: "
            "it needs each sample once in an epoch; leave the key out"
        )
    if recipe.data.order != "shuffled" and (method.each_once or method.sampler != "shuffled"):
        needs = "each sample once in an epoch" if method.each_once else "an order of its own"
        raise UserError(
            f"data.order: {recipe.data.order} and the method '{name}' do not go together: it needs {needs}; "
            "leave the key out"
        )
    check_views(recipe, method, name)
    if recipe.mix is None:
        return
    if method.mixup_refusal is not None:
        raise UserError(f"mix: {recipe.mix.name} and the method '{name}' do not go together: {method.mixup_refusal}")
    for _, batch in recipe.batches.spans:
        if batch % (2 * dist.world()):
            raise UserError(
                f"mix: {recipe.mix.name} mixes neighbours, so each of {dist.world()} processes needs an even share; "
                f"batch {batch} is no multiple of {2 * dist.world()}"
            )


def check_start(recipe: Recipe, method: Method) -> None:
    """Raise UserError if the run would be over before the method does anything of its own."""
    if method.delayed_until is not None and method.delayed_until[1] >= recipe.epochs:
        key, epoch = method.delayed_until
        raise UserError(
            f"{key} {epoch} leaves no epoch of {recipe.epochs} to the method '{cast(Any, recipe.method).name}', "
            f"which would be cross-entropy throughout; give at most {recipe.epochs - 1}"
        )


def check_views(recipe: Recipe, method: Method, name: str) -> None:
    """Raise UserError if the method reads several views of each sample, and the data do not give them whole."""
    if method.views == 1:
        return
    if (repeats := recipe.data.train.repeats) != method.views:
        raise UserError(
            f"the method '{name}' reads {method.views} views of each image: set data.train.repeats to {method.views}, "
            f"not {repeats}"
        )
    if recipe.micro_batch is not None:
        raise UserError(f"micro_batch parts the {method.views} views that the method '{name}' reads: leave it out")
