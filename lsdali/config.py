"""Config: the base of every typed, frozen part of a recipe."""

from pydantic import BaseModel, ConfigDict


class Config(BaseModel):
    """A frozen sub-tree of a recipe. Unknown keys and wrong types are errors; nothing is converted silently."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True)
