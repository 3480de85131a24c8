"""Config: the base of every typed, frozen part of a recipe."""

from pydantic import BaseModel, ConfigDict


class Config(BaseModel):
    """A frozen sub-tree of a recipe. Unknown keys, wrong types, inf and nan are errors; nothing is converted."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True, defer_build=True
    )
