"""Describe the keys of a typed file, in lines for a terminal."""

import json
from copy import copy
from functools import cache, reduce
from operator import or_
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, create_model

from lsdali.config import TAGS, Config
from lsdali.errors import UserError
from lsdali.methods import METHODS
from lsdali.recipe.kinds import Kinds, kinds_in, tag_of, tags, under


def lines_at(root: type[BaseModel], path: str) -> list[str]:
    """Return what to print about a dotted path below a kind. Raises UserError for one that does not exist."""
    kinds: Kinds = [root]
    key = None
    for part in path.split(".") if path else ():
        chosen = [kind for kind in kinds for tag in TAGS if len(kinds) > 1 and part in tags(kind, tag)]
        holders = [kind for kind in kinds if part in kind.model_fields]
        if not chosen and not holders:
            names = sorted({name for kind in kinds for name in kind.model_fields})
            choices = sorted({str(name) for kind in kinds for name in tags(kind, tag_of(kinds) or "name")})
            raise UserError(
                f"there is no key {part!r} in {path}; here are {', '.join(choices * (len(kinds) > 1) + names)}"
            )
        key = None if chosen else (holders[0], part)
        below = under(holders, part)
        kinds = chosen or below or []
    if not kinds and key is not None:
        return key_lines(*key)
    if len(kinds) > 1:
        tag = tag_of(kinds) or "name"
        return [f"{path}.{name}  {kind_summary(kind)}" for kind in kinds for name in tags(kind, tag)]
    return [kind_summary(kinds[0]), "", *(line for name in kinds[0].model_fields for line in key_lines(kinds[0], name))]


def kind_summary(kind: Any) -> str:
    """Return the first line of what is written about a kind; of a method's settings, what the method is."""
    named = [method for method in METHODS.values() if method.Config is kind]
    return ((named[0] if named else kind).__doc__ or "").strip().split("\n")[0]


def key_lines(kind: Any, name: str) -> list[str]:
    """Return `name: type = default`, and the description below it."""
    field = kind.model_fields[name]
    part = properties(kind)[name]
    default = "" if field.is_required() else f" = {json.dumps(part.get('default'))}"
    text = " ".join(part["description"].split())
    return [f"{name}: {type_text(part)}{default}", *([f"    {text}"] if text else [])]


@cache
def properties(kind: type[Config]) -> dict[str, Any]:
    """Return the JSON Schema of each key of a kind; parts of their own are plain mappings in it, which is quicker."""
    fields: dict[str, Any] = {}
    for name, field in kind.model_fields.items():
        own = copy(field)
        own.discriminator = None
        own.default = field.default.model_dump() if isinstance(field.default, BaseModel) else field.default
        fields[name] = (shallow(field.annotation), own)
    shallow_kind = create_model(kind.__name__, __config__=kind.model_config, **fields)
    texts = kind.descriptions()
    parts = shallow_kind.model_json_schema()["properties"]
    return {name: {"description": texts.get(name, ""), **part} for name, part in parts.items()}


def shallow(annotation: Any) -> Any:
    """Return a type with `dict` in place of the Configs in it."""
    if annotation in kinds_in(annotation):
        return dict
    if not kinds_in(annotation):
        return annotation
    parts = tuple(shallow(part) for part in get_args(annotation))
    origin = get_origin(annotation)
    if origin is Annotated:
        return parts[0]
    return reduce(or_, parts) if origin in (Union, UnionType) else origin[parts]


def type_text(part: dict[str, Any]) -> str:
    """Return a JSON Schema type in words."""
    words = {
        "integer": "whole number",
        "number": "number",
        "string": "text",
        "boolean": "true or false",
        "null": "null",
    }
    if "const" in part:
        return str(part["const"])
    if "enum" in part:
        return "|".join(map(str, part["enum"]))
    choices = part.get("anyOf") or part.get("oneOf")
    if choices:
        return " or ".join(dict.fromkeys(type_text(choice) for choice in choices))
    if part.get("type") == "array":
        items = part.get("items") or (part.get("prefixItems") or [{}])[0]
        return f"list of {type_text(items)}"
    bounds = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
    limits = ", ".join(f"{sign} {part[key]:g}" for key, sign in bounds.items() if key in part)
    return words.get(part.get("type", ""), "mapping") + (f" ({limits})" if limits else "")
