"""YAML as people write it: numbers and booleans of YAML 1.2, and the line of every key.

PyYAML follows YAML 1.1, in which `no` is false, `1e-3` is text and 2024-11-25 is a date.
"""

import re
from typing import Any

import yaml

Path = tuple[str | int, ...]
DEEPEST_NESTING = 50  # levels of lists and mappings
MOST_VALUES = 1_000_000  # values, each use of an alias counted
TOO_DEEP = yaml.YAMLError(f"it is nested too deeply, more than {DEEPEST_NESTING} levels")
OPENED = re.compile(rf"(?:[\[{{]\s*){{{DEEPEST_NESTING + 1}}}")  # PyYAML looks through all of it before it nests
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
    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Compose a node; refuse one inside more than DEEPEST others before Python's own limit would."""
        if self.depth > DEEPEST_NESTING:
            raise TOO_DEEP
        self.depth += 1
        node: yaml.Node | None = super().compose_node(parent, index)
        self.depth -= 1
        return node

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
        """Return an integer; a leading zero means nothing."""
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
    if OPENED.search(text):
        raise TOO_DEEP
    loader = RecipeLoader(text)
    try:
        node = loader.get_single_node()
        lines: dict[Path, int] = {}
        if node is None:
            return None, lines
        _extent(node, {})
        _find_lines(node, (), lines, set())
        return loader.construct_document(node), lines
    except RecursionError:
        raise yaml.YAMLError("it is nested too deeply") from None
    finally:
        loader.dispose()


def _extent(node: yaml.Node, known: dict[int, tuple[int, int] | None]) -> tuple[int, int]:
    """Return how many values a node stands for, and how many levels.

    Raises yaml.YAMLError if a few aliases stand for more than memory holds, or for what they are in.
    """
    if id(node) in known:
        found = known[id(node)]
        if found is None:
            raise yaml.YAMLError(f"the alias in line {node.start_mark.line + 1} stands for something that it is in")
        return found
    known[id(node)] = None
    below: list[yaml.Node] = []
    if isinstance(node, yaml.MappingNode):
        below = [value for _, value in node.value]
    elif isinstance(node, yaml.SequenceNode):
        below = node.value
    parts = [_extent(value, known) for value in below]
    size, depth = 1 + sum(part[0] for part in parts), 1 + max((part[1] for part in parts), default=0)
    if depth > DEEPEST_NESTING + 2:
        raise TOO_DEEP
    if size > MOST_VALUES:
        raise yaml.YAMLError(f"its aliases stand for more than {MOST_VALUES:,} values")
    known[id(node)] = size, depth
    return size, depth


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
