"""YAML and key=value overrides -> a checked Recipe.

All errors come at once, each naming its key and the nearest valid one.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from lsdali.errors import UserError
from lsdali.recipe.schema import OPERATIONAL, Recipe
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
EXPONENT = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+")


def load(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe in a YAML file, with `dotted.key=value` overrides applied.

    Raises:
        UserError: the file cannot be read, or lists every key that is wrong.
    """
    path = Path(path)
    tree = read_recipe(path)
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


def check_recipe(tree: Mapping[str, Any], path: Path) -> Recipe:
    """The recipe that a tree of plain values is; raises UserError with every key that is wrong, under the path."""
    try:
        return Recipe.model_validate(tree)
    except ValidationError as error:
        lines = sorted({explain(detail, tree) for detail in error.errors(include_url=False)})
        raise UserError("\n  ".join([f"{path}:", *lines])) from None


def read_recipe(path: Path) -> dict[str, Any]:
    """The file's top mapping, unchecked."""
    if not path.is_file():
        near = get_close_matches(path.name, [p.name for p in path.parent.glob("*.yaml")], 1)
        raise UserError(
            f"no recipe {path}" + (f"; did you mean {path.parent / near[0]}?" if near else ": give a YAML file")
        )
    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise UserError(f"{path} holds no recipe: expected keys such as epochs, batch, data, model and method")
    return tree


class _Loader(yaml.SafeLoader):
    """Safe loading that refuses a key given twice, which YAML would answer with the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.YAMLError(f"key {key.value!r} is given twice, again in line {key.start_mark.line + 1}")
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def apply_override(tree: dict[str, Any], override: str) -> None:
    """Set `dotted.key=value` in the tree; the value is read as YAML."""
    key, sign, text = override.partition("=")
    names = key.strip().split(".")
    if not sign or not all(names):
        raise UserError(f"override {override!r}: write key=value, for example data.root=/data/imagenet")
    try:
        value = yaml.load(text, _Loader)
    except yaml.YAMLError:
        value = text
    node = tree
    for depth, name in enumerate(names[:-1]):
        if not isinstance(node.get(name), dict):
            node[name] = {} if names[-1] in TAGS else default_at(names[: depth + 1], tree)
        node = node[name]
    node[names[-1]] = value


def default_at(path: Sequence[str], tree: Mapping[str, Any]) -> dict[str, Any]:
    """The sub-tree that a recipe without this key has, so that an override of one of its keys leaves the others."""
    defaults = [m.model_fields[path[-1]].default for m in models_at(path[:-1], tree) if path[-1] in m.model_fields]
    return defaults[0].model_dump(mode="json") if defaults and isinstance(defaults[0], BaseModel) else {}


def to_yaml(recipe: Recipe) -> str:
    """The recipe with every default written out."""
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
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


# ---- what an error says


def explain(detail: ErrorDetails, tree: Mapping[str, Any]) -> str:
    """One line: the key, what is wrong, and what would be right."""
    kind, given, context = detail["type"], detail["input"], detail.get("ctx", {})
    path = key_path(detail, tree)
    key = ".".join(str(part) for part in path)
    if kind == "extra_forbidden":
        if key in RENAMED:
            return f"{key}: is called {RENAMED[key]} since version 0.2"
        return f"{key}: unknown key{suggest_key(path, tree)}"
    if kind == "missing":
        return f"{key}: missing"
    if kind in ("union_tag_not_found", "union_tag_invalid"):
        name = context["discriminator"].strip("'")
        choices = choices_of(path, tree, name)
        if kind == "union_tag_not_found":
            return f"{key}.{name}: missing; one of {', '.join(choices)}"
        return f"{key}.{name}: {not_allowed(context['tag'], choices)}"
    if kind == "literal_error":
        return f"{key}: {not_allowed(given, QUOTED.findall(context['expected']))}"
    if isinstance(given, str) and kind in EXPECTED and EXPONENT.fullmatch(given):
        number = yaml_float(given)
        return f"{key}: got the text '{given}', since YAML reads a number only with a point and a sign: write {number}"
    if kind in EXPECTED:
        return f"{key}: expected {EXPECTED[kind]}, got {show(given)}"
    if kind == "value_error":
        return f"{key}: {context['error']}" if key else str(context["error"])
    message = detail["msg"].replace("Input should be", "must be")
    return f"{key}: {message}, got {show(given)}"


def key_path(detail: ErrorDetails, tree: Mapping[str, Any]) -> tuple[str | int, ...]:
    """The error's place as a user wrote it: without the union tags that pydantic puts in between."""
    node: Any = tree
    path: list[str | int] = []
    for depth, part in enumerate(detail["loc"]):
        last = depth == len(detail["loc"]) - 1
        if isinstance(node, Mapping):
            if part not in node and not (last and detail["type"] == "missing"):
                continue
            node = node.get(part)
        elif isinstance(node, (list, tuple)) and isinstance(part, int):
            node = node[part] if part < len(node) else None
        path.append(part)
    return tuple(path)


def show(value: Any) -> str:
    return f"the text {value!r}" if isinstance(value, str) else ("null" if value is None else repr(value))


def yaml_float(text: str) -> str:
    mantissa, exponent = re.split("[eE]", text)
    sign = exponent if exponent[0] in "+-" else f"+{exponent}"
    return f"{mantissa if '.' in mantissa else mantissa + '.0'}e{sign}"


def not_allowed(given: Any, choices: Sequence[str]) -> str:
    near = get_close_matches(str(given), choices, 1)
    hint = f"did you mean '{near[0]}'?" if near else f"one of {', '.join(choices)}"
    return f"{given!r} is not allowed; {hint}"


def suggest_key(path: Sequence[str | int], tree: Mapping[str, Any]) -> str:
    """The nearest key beside the unknown one, else a key of that name elsewhere, else what is possible here."""
    name = str(path[-1])
    models = models_at(path[:-1], tree)
    beside = sorted({field for model in models for field in model.model_fields})
    near = get_close_matches(name, beside, 1)
    if near:
        return f"; did you mean '{near[0]}'?"
    elsewhere = [place for place in sorted(all_keys(Recipe)) if place.rsplit(".", 1)[-1] == name]
    return f"; did you mean '{elsewhere[0]}'?" if elsewhere else f"; here are {', '.join(beside)}"


def models_at(path: Sequence[str | int], tree: Mapping[str, Any]) -> list[type[BaseModel]]:
    """The Config classes that the mapping at a path can be, narrowed by its own tag."""
    models: list[type[BaseModel]] = [Recipe]
    node: Any = tree
    for part in path:
        if isinstance(part, int):  # an item of a list can be what the list can hold
            node = node[part] if isinstance(node, (list, tuple)) and part < len(node) else None
        else:
            annotations = [m.model_fields[part].annotation for m in models if part in m.model_fields]
            node = node.get(part) if isinstance(node, Mapping) else None
            models = [kind for a in annotations for kind in kinds_in(a)]
        tagged = [m for m in models if isinstance(node, Mapping) and has_tag(m, node)]
        models = tagged or models
    return models


def has_tag(model: type[BaseModel], node: Mapping[str, Any]) -> bool:
    return any(node.get(name) in get_args(f.annotation) for name, f in model.model_fields.items() if name in TAGS)


TAGS = ("name", "crop", "source")


def kinds_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [kind for argument in get_args(annotation) for kind in kinds_in(argument)]


def choices_of(path: Sequence[str | int], tree: Mapping[str, Any], name: str) -> list[str]:
    return sorted({tag for m in models_at(path, tree) for tag in get_args(m.model_fields[name].annotation)})


def all_keys(model: type[BaseModel], prefix: str = "") -> set[str]:
    keys: set[str] = set()
    for name, field in model.model_fields.items():
        keys.add(prefix + name)
        for kind in kinds_in(field.annotation):
            keys |= all_keys(kind, f"{prefix}{name}.")
    return keys
