"""YAML as people write it: numbers and booleans of YAML 1.2, and the line of every key.

PyYAML follows YAML 1.1, where `no` is false, `1e-3` is text and 2024-11-25 is a date.
"""

import re
from typing import Any

import yaml

Path = tuple[str | int, ...]
PLAIN_SCALARS = (  # tag, pattern, first characters
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+", list("-+0123456789")),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.inf|\.nan", list("-+.0123456789")),
    ("merge", r"<<", ["<"]),
)


class RecipeLoader(yaml.SafeLoader):
    """Safe loading that refuses a key given twice, which YAML would answer with the last one."""

    yaml_implicit_resolvers: dict[str, Any] = {}

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.YAMLError(f"a list or mapping is the key in line {key.start_mark.line + 1}; write text")
            if key.value in seen:
                raise yaml.YAMLError(f"key {key.value!r} is given twice, again in line {key.start_mark.line + 1}")
            seen.add(key.value)
        return super().construct_mapping(node, deep)

    def decimal(self, node: yaml.ScalarNode) -> int:
        """An integer; a leading zero means nothing."""
        text = self.construct_scalar(node)
        if len(text) > 100:
            raise yaml.YAMLError(f"the number in line {node.start_mark.line + 1} has {len(text)} digits")
        return int(text)


for tag, pattern, first in PLAIN_SCALARS:
    RecipeLoader.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", re.compile(f"(?:{pattern})$"), first)
RecipeLoader.add_constructor("tag:yaml.org,2002:int", RecipeLoader.decimal)


def parse_yaml(text: str) -> tuple[Any, dict[Path, int]]:
    """Return the value of a YAML text, and the line of every key and list item, counted from 1.

    Raises yaml.YAMLError for text that is no YAML, nested too deeply, or holds a number of over 100 digits.
    """
    loader = RecipeLoader(text)
    try:
        node = loader.get_single_node()
        lines: dict[Path, int] = {}
        if node is None:
            return None, lines
        _find_lines(node, (), lines, set())
        return loader.construct_document(node), lines
    except RecursionError:
        raise yaml.YAMLError("it is nested too deeply") from None
    finally:
        loader.dispose()


def _find_lines(node: yaml.Node, path: Path, lines: dict[Path, int], seen: set[int]) -> None:
    """Aliases are followed once: a few lines can stand for more keys than there is memory."""
    if id(node) in seen:
        return
    seen.add(id(node))
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            below = (*path, str(key.value))
            lines[below] = key.start_mark.line + 1
            _find_lines(value, below, lines, seen)
    elif isinstance(node, yaml.SequenceNode):
        for number, value in enumerate(node.value):
            item = (*path, number)
            lines[item] = value.start_mark.line + 1
            _find_lines(value, item, lines, seen)
