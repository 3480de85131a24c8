"""Objects of a Python program as parts of a recipe: they get a name, and are known by the module that defines them."""

from collections.abc import Callable, Mapping
from copy import deepcopy
from typing import Any

from torch import nn

from lsdali import parts
from lsdali.config import Config
from lsdali.data.sets.map_style import cached_datasets
from lsdali.errors import UserError
from lsdali.methods.base import Method
from lsdali.models import MODELS


def give_model(model: nn.Module | Callable[[int], nn.Module], name: str | None = None) -> str:
    """Put a module, or a function (classes) -> module, among the networks; return its name there.

    A module is copied at each start, so that training leaves the caller's as it is.
    """
    kind = type(model) if isinstance(model, nn.Module) else model
    name = name or str(getattr(kind, "__name__", "model")).lower()
    name = name if name not in MODELS or parts.owner("MODELS", name) else f"my_{name}"

    def build(classes: int) -> nn.Module:
        return deepcopy(model) if isinstance(model, nn.Module) else model(classes)

    build.__module__, build.__doc__ = kind.__module__, kind.__doc__
    parts.add("MODELS", name, build)
    return name


def give_method(method: type[Method]) -> str:
    """Put a class of a method among the methods; return its name there."""
    name = str(method.Config.model_fields["name"].default)
    parts.add("METHODS", name, method)
    return name


def give_datasets(pair: Any) -> dict[str, str]:
    """Return a recipe's data for two map-style data sets of torch (train, val).

    Raises UserError if there are not two, or they have no length or samples.
    """
    found = [*pair] if isinstance(pair, (tuple, list)) else [pair]
    if len(found) != 2 or not all(hasattr(data, "__len__") and hasattr(data, "__getitem__") for data in found):
        raise UserError(
            "data: expected two map-style data sets of torch (train, val), each with __len__ and __getitem__ "
            f"-> (image, label), got {', '.join(type(data).__name__ for data in found)}"
        )
    return cached_datasets(*found)


def part_of_recipe(key: str, value: Any) -> Any:
    """Return what a recipe holds for an argument `model`, `method` or `data` of a Python program.

    Raises UserError for an object that cannot stand there.
    """
    if isinstance(value, Config):
        return value.model_dump(mode="json")
    if key == "data" and isinstance(value, Mapping) and "datasets" in value:
        return {**give_datasets(value["datasets"]), **{k: v for k, v in value.items() if k != "datasets"}}
    if isinstance(value, (str, Mapping)):
        return value
    if key == "data" and isinstance(value, (tuple, list)):
        return give_datasets(value)
    if key == "method" and isinstance(value, type) and issubclass(value, Method):
        return {"name": give_method(value)}
    if key == "model" and callable(value):
        return {"name": give_model(value)}
    wanted = {
        "model": ", a module or a function (classes) -> module",
        "method": " or a class derived from Method",
        "data": " or two data sets of torch (train, val)",
    }
    raise UserError(f"{key}: expected a name, a mapping of keys{wanted.get(key, '')}, got {type(value).__name__}")
