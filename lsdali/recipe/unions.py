"""The parts of a recipe whose kinds can grow: rebuilt in place, so that every importer of Recipe sees the same."""

from collections.abc import Iterable
from functools import reduce
from operator import or_
from typing import Annotated, Any

from pydantic import BaseModel, Field

from lsdali.data import DATASETS
from lsdali.data.sampling.augment import AUGMENTATIONS, TrainImages
from lsdali.data.sets.catalog import DataSet
from lsdali.loggers import LOGGERS
from lsdali.methods import METHODS
from lsdali.methods.shared.features import FEATURE_LOSSES, FeatureConfig
from lsdali.optim.configs import OPTIMIZERS


def union(kinds: Iterable[type[BaseModel]]) -> Any:
    """Return the union of some kinds."""
    return reduce(or_, kinds)


def descendants(kind: type[BaseModel]) -> list[type[BaseModel]]:
    """Return a class and all that derive from it, each once."""
    return list(dict.fromkeys([kind, *(below for child in kind.__subclasses__() for below in descendants(child))]))


def rebuild(recipe: type[BaseModel]) -> None:
    """Give the recipe and what it holds the kinds that are in the registries now."""
    kinds: Any = Annotated[union(AUGMENTATIONS.values()), Field(discriminator="name")]
    augment: Any = tuple[kinds, ...]
    crops = descendants(TrainImages)
    for crop in crops:
        crop.model_fields["augment"].annotation = augment
    fields = recipe.model_fields
    fields["data"].annotation = union(DATASETS.values())
    fields["method"].annotation = union(method.Config for method in METHODS.values())
    fields["optimizer"].annotation = union(OPTIMIZERS.values())
    compared: Any = Annotated[union(FEATURE_LOSSES.values()), Field(discriminator="name")]
    FeatureConfig.model_fields["loss"].annotation = compared
    taught = [method.Config for method in METHODS.values() if "features" in method.Config.model_fields]
    log: Any = fields["log"].annotation
    loggers: Any = Annotated[union(LOGGERS.values()), Field(discriminator="name")]
    log.model_fields["loggers"].annotation = tuple[loggers, ...]
    for kind in (*crops, *descendants(DataSet), FeatureConfig, *taught, log, recipe):
        kind.model_rebuild(force=True)
