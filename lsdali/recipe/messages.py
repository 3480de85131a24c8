"""Error messages for recipes: the key as the user wrote it, what is wrong, and what would be right."""

import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from lsdali.config import TAGS
from lsdali.recipe.kinds import Kinds, all_keys, kinds_at, tag_of, tags, under
from lsdali.recipe.synonyms import KEYS, NESTED
from lsdali.state.upgrade import RENAMED

EXPECTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text",
    "tuple_type": "a list",
    "list_type": "a list",
    "model_type": "a mapping of keys",
    "model_attributes_type": "a mapping of keys",
    "dict_type": "a mapping of keys",
}
QUOTED = re.compile("'([^']*)'")
Keys = tuple[str | int, ...]


def explain(root: type[BaseModel], detail: ErrorDetails, tree: Mapping[str, Any]) -> tuple[Keys, str]:
    """Return where an error is, and what to say about it in one line."""
    path = key_path(root, detail, tree)
    if detail["type"].startswith("union_tag"):
        path = (*path, detail["ctx"]["discriminator"].strip("'"))
    key = ".".join(str(part) for part in path)
    text = reason(root, detail, tree, path, key)
    return path, f"{key}: {text}" if key else text


def reason(root: type[BaseModel], detail: ErrorDetails, tree: Mapping[str, Any], path: Keys, key: str) -> str:
    kind, given, context = detail["type"], detail["input"], detail.get("ctx", {})
    if kind == "extra_forbidden":
        return f"is called {RENAMED[key]} since version 0.2" if key in RENAMED else unknown_key(root, path, tree)
    if kind == "missing":
        return "missing"
    if kind == "union_tag_not_found":
        return f"missing; one of {', '.join(choices(root, path, tree))}"
    if kind == "union_tag_invalid":
        return not_allowed(context["tag"], choices(root, path, tree))
    if kind == "literal_error":
        return not_allowed(given, QUOTED.findall(context["expected"]))
    if kind in EXPECTED:
        advice = f": write '{given}' in quotes" if kind == "string_type" and type(given) in (int, float, bool) else ""
        return f"expected {EXPECTED[kind]}, got {show(given)}{advice}"
    if kind == "value_error":
        return str(context["error"])
    return f"{detail['msg'].replace('Input should be', 'must be')}, got {show(given)}"


def key_path(root: type[BaseModel], detail: ErrorDetails, tree: Mapping[str, Any]) -> Keys:
    """Return the place of an error as a user wrote it: without the tags that pydantic puts after a union's key."""
    node: Any = tree
    kinds: Kinds = [root]
    path: list[str | int] = []
    for part in detail["loc"]:
        if len(kinds) > 1 and part in {value for kind in kinds for tag in TAGS for value in tags(kind, tag)}:
            kinds = [kind for kind in kinds for tag in TAGS if part in tags(kind, tag)]
            continue
        if isinstance(part, int):
            node = node[part] if isinstance(node, (list, tuple)) and part < len(node) else None
        else:
            kinds = under(kinds, part)
            node = node.get(part) if isinstance(node, Mapping) else None
        path.append(part)
    return tuple(path)


def show(value: Any) -> str:
    """Return a value in at most 80 characters."""
    return cut(f"the text {value!r}" if isinstance(value, str) else ("null" if value is None else repr(value)))


def cut(text: str) -> str:
    """Return a text with at most 80 characters."""
    return text if len(text) <= 80 else f"{text[:77]}..."


def not_allowed(given: Any, allowed: Sequence[str]) -> str:
    near = get_close_matches(cut(str(given)), allowed, 1)
    hint = f"did you mean '{near[0]}'?" if near else f"one of {', '.join(allowed)}"
    return f"{cut(repr(given))} is not allowed; {hint}"


def choices(root: type[BaseModel], path: Keys, tree: Mapping[str, Any]) -> list[str]:
    """Return the values that the tag at the end of a path may have."""
    return sorted({value for kind in kinds_at(root, path[:-1], tree) for value in tags(kind, str(path[-1]))})


def having(root: type[BaseModel], path: Keys, tree: Mapping[str, Any]) -> str:
    """Return which other kinds of the same part have a key; empty if none has."""
    here, every = (kinds_at(root, path[:-1], values) for values in (tree, {}))
    tag = tag_of(every)
    if tag is None or len(here) != 1:
        return ""
    names = [str(value) for kind in every if path[-1] in kind.model_fields for value in tags(kind, tag)]
    shown = ", ".join(names[:5] + ["..."] * (len(names) > 5))
    return f"'{tags(here[0], tag)[0]}' has no such key; it is for {shown}" if names else ""


def unknown_key(root: type[BaseModel], path: Keys, tree: Mapping[str, Any]) -> str:
    """Return what to write instead: a synonym, the nearest key beside it, one of that name elsewhere, or all here."""
    name, above = cut(str(path[-1])), path[:-1]
    beside = sorted({field for kind in kinds_at(root, above, tree) for field in kind.model_fields})
    said = NESTED.get((str(above[-1]), name)) if above else KEYS.get(name)
    if said is None and (others := having(root, path, tree)):
        return others
    if said is None:
        starts = [key for key in beside if name.startswith(key) or key.startswith(name)]
        near = starts[:1] if len(starts) == 1 else get_close_matches(name, beside, 1)
        elsewhere = {key for key in all_keys(root) if key.rpartition(".")[2] == name}
        if not near and (name in elsewhere or len(elsewhere) == 1):
            near = [name] if name in elsewhere else list(elsewhere)
        said = near[0] if near else None
    if said is not None:
        return f"unknown key; did you mean '{said}'?" if " " not in said else f"unknown key; write {said}"
    return f"unknown key; here are {', '.join(beside)}" if beside else "unknown key; there are no keys here"
