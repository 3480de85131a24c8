"""A recipe's teacher: in the step, or from answers that were computed before."""

from pathlib import Path
from typing import Any, cast

import torch

from lsdali.data.sets.sample_index import Index
from lsdali.errors import UserError
from lsdali.models.checks import check_image_size
from lsdali.models.teacher import Teacher, load_teacher
from lsdali.models.teacher_cache import CachedTeacher, open_folder
from lsdali.models.teacher_configs import EnsembleTeacher, TeacherConfig
from lsdali.recipe.schema import Recipe


def recipe_teacher(recipe: Recipe, config: TeacherConfig, train: Index, classes: int, device: torch.device) -> Teacher:
    """Return the teacher on the device, or, with a cache, one that reads its answers; without its network in memory.

    Raises UserError if it does not fit the data, or its cache does not fit the recipe.
    """
    if config.cache is None:
        return network_teacher(recipe, config, train, classes, device)
    refuse_mixture(recipe)
    asked = network_teacher(recipe, config, train, classes, torch.device("cpu"))
    folder = open_folder(Path(config.cache), answers_key(recipe, config, train, asked))
    cached = CachedTeacher(folder, asked.digest, config.temperature)
    cached.expect_epochs(recipe.epochs)
    return cached


def network_teacher(recipe: Recipe, config: TeacherConfig, train: Index, classes: int, device: torch.device) -> Teacher:
    """Return the teacher on the device, ready for the recipe's images."""
    loaded = load_teacher(config, classes, device, train.classes)
    check_image_size(loaded, "the teacher", recipe.data.train.sizes(recipe.epochs))
    loaded.expect((recipe.data.mean, recipe.data.std))
    return loaded


def refuse_mixture(recipe: Recipe) -> None:
    """Raise UserError if an image is not a function of (seed, epoch, sample) alone."""
    if recipe.mix is not None:
        raise UserError(
            f"method.teacher.cache and mix: {recipe.mix.name} do not go together: whom an image is mixed with depends "
            "on the batch; leave one out"
        )
    if recipe.data.train.repeats > 1:
        raise UserError(
            f"method.teacher.cache and data.train.repeats {recipe.data.train.repeats} do not go together: it keeps "
            "one answer for a sample and epoch; leave one out"
        )


def answers_key(recipe: Recipe, config: TeacherConfig, train: Index, teacher: Teacher) -> dict[str, Any]:
    """Return all that decides a teacher's logits, by name. Its own temperature comes after them and is not in it."""
    data = recipe.data
    crop = data.train.model_dump(mode="json", exclude={"repeats"})
    key = {
        "teacher": teacher.digest,
        "teacher's normalisation": teacher.normalisations(),
        "data": train.fingerprint,
        "seed": recipe.seed,
        "precision": recipe.precision,
        "data.mean": data.mean,
        "data.std": data.std,
        "data.exif_orientation": data.exif_orientation,
        **{f"data.train.{name}": value for name, value in crop.items()},
    }
    if isinstance(config, EnsembleTeacher):
        key["temperatures of the ensemble"] = [cast(Any, part).temperature for part in config.of]
    return key
