"""Config: the base of every typed, frozen part of a recipe."""

import ast
import os
import re
import sys
from collections.abc import Iterator
from functools import cache
from inspect import cleandoc
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, GetJsonSchemaHandler

TAGS = ("name", "crop", "source")  # keys whose value says which Config a mapping is


class Config(BaseModel):
    """A frozen sub-tree of a recipe. Unknown keys, wrong types, inf and nan are errors; nothing is converted.

    Every field has a docstring. A field that only changes its default keeps the docstring of the base, and a tag
    (such as `name`) is described by its class.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, defer_build=True)

    @classmethod
    def descriptions(cls) -> dict[str, str]:
        """Return what is written about each field. Source files are read for it, so a run does not ask."""
        written = [(kind, field_docstrings(kind.__module__).get(kind.__qualname__, {})) for kind in cls.__mro__]
        texts = {}
        for name in cls.model_fields:
            own = ((kind, fields[name]) for kind, fields in written if name in fields)
            found = (text or (cleandoc(kind.__doc__ or "") if name in TAGS else "") for kind, text in own)
            if text := next(filter(None, found), None):
                texts[name] = text
        return texts

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: Any, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        schema = handler(core_schema)
        properties = handler.resolve_ref_schema(schema)["properties"]
        for name, text in cls.descriptions().items():
            properties[name].setdefault("description", text)
        return schema


@cache
def field_docstrings(module: str) -> dict[str, dict[str, str]]:
    """Return the docstring of each field of a module's classes, or ""; nothing for a module without a source file."""
    file = getattr(sys.modules.get(module), "__file__", None)
    if file is None or not Path(file).is_file():
        return {}
    return dict(_docstrings_in(ast.parse(Path(file).read_text(encoding="utf-8")), ""))


def _docstrings_in(node: ast.Module | ast.ClassDef, prefix: str) -> Iterator[tuple[str, dict[str, str]]]:
    for child in node.body:
        if isinstance(child, ast.ClassDef):
            name = prefix + child.name
            found = {}
            for field, below in pairwise([*child.body, ast.Pass()]):
                if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                    found[field.target.id] = _text(below)
            yield name, found
            yield from _docstrings_in(child, f"{name}.")


def _text(node: ast.stmt) -> str:
    """Return the text of an expression that is nothing else, or ""."""
    value = node.value if isinstance(node, ast.Expr) else None
    return cleandoc(value.value) if isinstance(value, ast.Constant) and isinstance(value.value, str) else ""


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
