"""Config: the base of every typed, frozen part of a recipe."""

import os
import re
from inspect import cleandoc
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict

TAGS = ("name", "crop", "source")  # keys whose value says which Config a mapping is


class Config(BaseModel):
    """A frozen sub-tree of a recipe. Unknown keys, wrong types, inf and nan are errors; nothing is converted.

    Every field has a docstring. A field that only changes its default keeps the docstring of the base, and a tag
    (such as `name`) is described by its class.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True, defer_build=True
    )

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        """Give a field that overrides another one its description, and a tag the class's own."""
        bases = [base.model_fields for base in cls.__mro__[1:] if issubclass(base, Config)]
        for name, field in cls.model_fields.items():
            inherited = (fields[name].description for fields in bases if name in fields)
            described = cleandoc(cls.__doc__ or "") if name in TAGS else next(filter(None, inherited), None)
            field.description = field.description or described


def expand_path(path: str) -> str:
    """Return a path with the home folder for `~` and the environment's values for `${NAME}`."""

    def value(found: re.Match[str]) -> str:
        if found[1] not in os.environ:
            raise ValueError(f"the environment has no variable {found[1]}: export it, or write the path out")
        return os.environ[found[1]]

    if not path.strip():
        raise ValueError("a path cannot be empty; write . for the current folder")
    if "\0" in path:
        raise ValueError("a path cannot hold the character NUL")
    return os.path.expanduser(re.sub(r"\$\{(\w+)\}", value, path))


PathText = Annotated[str, AfterValidator(expand_path)]
"""A path of a recipe."""
