"""YAML and key=value overrides -> a checked Recipe.

All errors come at once, each with its line, its key and what would be right.
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from difflib import get_close_matches
from math import inf
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from lsdali import parts
from lsdali.config import TAGS
from lsdali.errors import UserError
from lsdali.recipe.kinds import Kinds, kinds_at, narrowed, tags, under
from lsdali.recipe.messages import cut, explain
from lsdali.recipe.schema import OPERATIONAL, Recipe
from lsdali.recipe.yaml12 import DEEPEST_NESTING, parse_yaml
from lsdali.terminal import printable

Root = TypeVar("Root", bound=BaseModel)
LONGEST_TEXT = 4096  # characters of a text: no path is longer


class Tree(dict[str, Any]):
    """The values of a file, with what overrides have made of them: where each stands, and what was overridden."""

    def __init__(self, values: Mapping[str, Any], lines: Mapping[tuple[str | int, ...], int]) -> None:
        super().__init__(values)
        self.lines = lines
        self.given: set[tuple[str, ...]] = set()

    def line(self, path: tuple[str | int, ...]) -> int:
        """Return the line of the nearest key in the file; 0 if there is none."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path, 0)


def load(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Return the recipe in a YAML file, with `dotted.key=value` overrides applied.

    Raises:
        UserError: the file cannot be read, or lists every key that is wrong.
    """
    path = Path(path)
    tree = read_tree(path)
    use_parts(tree, path)
    for override in overrides:
        apply_override(tree, override)
    if tree.get("run_dir") is None:
        tree["run_dir"] = str(Path("runs") / default_name(path))
    return check_recipe(tree, path)


def default_name(path: Path) -> str:
    """Name a run after its file and the folders inside `recipes`: recipes/digits/ce.yaml is digits_ce."""
    folders = path.absolute().parent.parts
    inside = folders[folders.index("recipes") + 1 :] if "recipes" in folders else ()
    return "_".join((*inside, path.stem))


def check_recipe(tree: Mapping[str, Any], path: str | Path) -> Recipe:
    """Return the recipe that a tree of plain values is, with the modules in use that it names.

    Raises UserError with every key that is wrong, or for a module that cannot be used.
    """
    use_parts(tree, path)
    return check_tree(Recipe, tree, path)


def use_parts(tree: Mapping[str, Any], path: str | Path) -> None:
    """Use the modules that a tree names, so that their parts can be read. Raises UserError if that fails."""
    parts.use_installed()
    names = tree.get("uses", ())
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
        return  # check_tree says so
    try:
        parts.use(names)
    except UserError as error:
        raise UserError(f"{source_of(tree, path, ('uses',))[1]}: uses: {error}") from error


def check_tree(kind: type[Root], tree: Mapping[str, Any], path: str | Path) -> Root:
    """Return the Config of a file of its own. Raises UserError with every key that is wrong."""
    full = written_out(kind, tree)
    for keys, why in unusable(full):
        _, where = source_of(tree, path, keys)
        raise UserError(f"{where}: {cut('.'.join(map(str, keys)))}: {why}")
    try:
        return kind.model_validate(full)
    except ValidationError as error:
        found = {explain(kind, detail, full) for detail in error.errors(include_url=False)}
        lines = sorted((*source_of(tree, path, keys), text) for keys, text in found)
        raise UserError("\n  ".join(printable(f"{where}: {text}") for _, where, text in lines)) from None


def unusable(node: Any, keys: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """Yield where a text is that no path, name or class can be, and why."""
    if isinstance(node, str) and "\0" in node:
        yield keys, "text cannot hold the character NUL"
    elif isinstance(node, str) and len(node) > LONGEST_TEXT:
        yield keys, f"a text of {len(node):,} characters; at most {LONGEST_TEXT:,} are read"
    elif isinstance(node, Mapping):
        for key, value in node.items():
            if len(str(key)) > LONGEST_TEXT:
                yield (*keys, str(key)), "unknown key"
            yield from unusable(value, (*keys, key))
    elif isinstance(node, (list, tuple)):
        for number, value in enumerate(node):
            yield from unusable(value, (*keys, number))


def source_of(tree: Mapping[str, Any], path: str | Path, keys: tuple[str | int, ...]) -> tuple[float, str]:
    """Return the line of a key and `file:line`, or infinity and `command line` for what an override said."""
    if not isinstance(tree, Tree):
        return 0, str(path)
    if any(keys[:depth] in tree.given for depth in range(1, len(keys) + 1)):
        return inf, "command line"
    line = tree.line(keys)
    return line, f"{path}:{line}" if line else str(path)


def read_tree(path: Path, what: str = "recipe", keys: str = "epochs, batch, data, model and method") -> Tree:
    """Return a file's top mapping, unchecked; `what` it should be, with such `keys`, is what an error says."""
    if not os.path.isfile(path):
        near = get_close_matches(path.name, [p.name for p in path.parent.glob("*.yaml")], 1)
        raise UserError(
            f"no {what} {path}" + (f"; did you mean {path.parent / near[0]}?" if near else ": give a YAML file")
        )
    try:
        values, lines = parse_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path} holds no {what}: expected keys such as {keys}")
    return Tree({str(key): value for key, value in values.items()}, lines)


# ---- short forms


def written_out(root: type[BaseModel], tree: Mapping[str, Any]) -> dict[str, Any]:
    """Return a tree without `x-` keys, and with `model: NAME` written as `model: {name: NAME}`."""
    return _written_out(tree, [root])


def _written_out(node: Mapping[Any, Any], kinds: Kinds) -> dict[Any, Any]:
    kept = {key: value for key, value in node.items() if not str(key).startswith("x-")}
    return {key: _value(value, under(narrowed(kinds, kept), str(key))) for key, value in kept.items()}


def _value(value: Any, kinds: Kinds) -> Any:
    if isinstance(value, str) and kinds and all("name" in kind.model_fields for kind in kinds):
        return {"name": value}
    if isinstance(value, Mapping):
        return _written_out(value, kinds)
    if isinstance(value, (list, tuple)):
        return [_value(item, kinds) for item in value]
    return value


# ---- overrides


def apply_override(tree: dict[str, Any], override: str) -> None:
    """Set `dotted.key=value` in the tree; the value is read as YAML."""
    key, value = split_override(override)
    set_key(tree, key, value)


def split_override(override: str) -> tuple[str, Any]:
    """Return the dotted key and the value of `dotted.key=value`. Raises UserError for another form."""
    key, sign, text = override.partition("=")
    if key.count(".") > DEEPEST_NESTING:
        raise UserError(f"override {cut(key)}: no key has more than {DEEPEST_NESTING} parts")
    if not sign or not all(key.strip().split(".")):
        raise UserError(f"override {cut(override)!r}: write key=value, for example data.root=/data/imagenet")
    try:
        return key.strip(), parse_yaml(text)[0]
    except yaml.YAMLError as error:
        if any(word in str(error) for word in ("nested", "digits", "alias")):
            raise UserError(f"override {cut(key)}: {error}") from None
        return key.strip(), text


def set_key(tree: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key; what it goes through and the tree lacks begins with its defaults.

    Another kind of a part (`data.name=list`) drops the file's keys that it does not have, not those of other overrides.
    """
    names = tuple(key.split("."))
    whole = written_out(Recipe, tree)
    tree.update(whole)
    node: dict[str, Any] = tree
    for depth, name in enumerate(names[:-1]):
        if not isinstance(node.get(name), dict):
            node[name] = {} if names[-1] in TAGS else default_at(names[: depth + 1], tree)
        node = node[name]
    above = names[:-1]
    given = tree.given if isinstance(tree, Tree) else set()
    if names[-1] in TAGS and node.get(names[-1]) != value:
        drop_foreign(node, names[-1], value, kinds_at(Recipe, above, {}), {g[-1] for g in given if g[:-1] == above})
    node[names[-1]] = value
    given.add(names)
    if key == "uses":
        use_parts(tree, "recipe")


def drop_foreign(node: dict[str, Any], tag: str, value: Any, kinds: Kinds, kept: set[str]) -> None:
    """Drop the keys that the new kind of a part does not have, except for those in `kept`."""
    new = [kind for kind in kinds if value in tags(kind, tag)]
    for name in [name for name in node if new and name not in kept and name != tag]:
        if not any(name in kind.model_fields for kind in new):
            del node[name]


def default_at(path: Sequence[str], tree: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a recipe without this key has there, so that an override of one key below it leaves the rest."""
    above = kinds_at(Recipe, path[:-1], tree)
    defaults = [kind.model_fields[path[-1]].default for kind in above if path[-1] in kind.model_fields]
    return defaults[0].model_dump(mode="json") if defaults and isinstance(defaults[0], BaseModel) else {}


# ---- recipes as text


def to_yaml(recipe: Recipe) -> str:
    """Return the recipe with every default written out."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, default_flow_style=None, width=100)


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Return `key: old -> new` for every key that decides a result and differs between two dumped recipes."""
    flat_old, flat_new = decisive(old), decisive(new)
    missing = object()
    return [
        f"{key}: {flat_old.get(key, 'absent')} -> {flat_new.get(key, 'absent')}"
        for key in {**flat_old, **flat_new}
        if flat_old.get(key, missing) != flat_new.get(key, missing)
    ]


def decisive(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys of a dumped recipe that decide a result, dotted, with their values.

    A key that did not exist when it was written has its default.
    """
    with suppress(ValidationError):
        tree = Recipe.model_validate(tree).model_dump(mode="json")
    return {key: value for key, value in flatten(tree) if not key.startswith(OPERATIONAL)}


def flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    """Yield the dotted key and value of every leaf."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
