"""Config: the base of every typed, frozen part of a recipe."""

import os
import re
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict


class Config(BaseModel):
    """A frozen sub-tree of a recipe. Unknown keys, wrong types, inf and nan are errors; nothing is converted."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True, defer_build=True
    )


def expand(path: str) -> str:
    """Return a path with the home folder for `~` and the environment's values for `${NAME}`."""

    def value(found: re.Match[str]) -> str:
        if found[1] not in os.environ:
            raise ValueError(f"the environment has no variable {found[1]}: export it, or write the path out")
        return os.environ[found[1]]

    if "\0" in path:
        raise ValueError("a path cannot hold the character NUL")
    return os.path.expanduser(re.sub(r"\$\{(\w+)\}", value, path))


PathText = Annotated[str, AfterValidator(expand)]
"""A path of a recipe."""
