"""Walk the typed parts of a recipe: which Config classes can stand at a path of keys."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, get_args, get_origin

from pydantic import BaseModel

from lsdali.config import TAGS

Kinds = list[type[BaseModel]]


def kinds_in(annotation: Any) -> Kinds:
    """Return the Config classes in a type, such as `A | B | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [kind for argument in get_args(annotation) for kind in kinds_in(argument)]


def tag_of(kinds: Kinds) -> str | None:
    """Return the key that tells several kinds apart; None if none does."""
    return next((tag for tag in TAGS if kinds and all(tags(kind, tag) for kind in kinds)), None)


def tags(kind: type[BaseModel], tag: str) -> tuple[Any, ...]:
    """Return the values of the tag that mean this kind."""
    return get_args(kind.model_fields[tag].annotation) if tag in kind.model_fields else ()


def narrowed(kinds: Kinds, node: Any) -> Kinds:
    """Return the kinds that a mapping's own tag leaves; all of them if it has none, or an unknown one."""
    found = [k for k in kinds for t in TAGS if isinstance(node, Mapping) and node.get(t) in tags(k, t)]
    return found or kinds


def under(kinds: Kinds, key: str) -> Kinds:
    """Return the kinds that the value of a key can be, each once."""
    found = [kind for k in kinds if key in k.model_fields for kind in kinds_in(k.model_fields[key].annotation)]
    return list(dict.fromkeys(found))


def kinds_at(root: type[BaseModel], path: Sequence[str | int], tree: Any) -> Kinds:
    """Return the kinds that the mapping at a path can be, narrowed by its own tag."""
    kinds, node, named = [root], tree, False
    for part in path:
        if isinstance(part, int):
            node = node[part] if isinstance(node, (list, tuple)) and part < len(node) else None
        else:
            node = node.get(part) if isinstance(node, Mapping) else None
            kinds, named = (kinds, False) if named else (under(kinds, part), by_names(kinds, part))
        kinds = narrowed(kinds, node)
    return kinds


def by_names(kinds: Kinds, key: str) -> bool:
    """Return whether the keys below a key are names of the user's own, as in `dict[str, Stage]`."""
    return any(get_origin(k.model_fields[key].annotation) is dict for k in kinds if key in k.model_fields)


def all_keys(kind: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Yield the dotted name of every key at and below a kind; those of several kinds come once for each."""
    for name, field in kind.model_fields.items():
        yield prefix + name
        for below in kinds_in(field.annotation):
            yield from all_keys(below, f"{prefix}{name}.")
