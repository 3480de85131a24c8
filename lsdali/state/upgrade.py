"""Bring recipes that older versions wrote, inside checkpoints, to today's keys."""

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

RENAMED = {
    "data.split": "data.holdout",
    "data.limit": "data.max_samples",
    "data.max_bad": "data.max_bad_files",
}
"""Dotted keys of a recipe, old and new. A recipe file with an old key is refused with the new name."""


def upgraded(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Return the tree of a recipe under today's keys; what is there already stays."""
    tree = deepcopy(dict(recipe))
    for old, new in RENAMED.items():
        *path, name = old.split(".")
        node: Any = tree
        for part in path:
            node = node.get(part) if isinstance(node, dict) else None
        if isinstance(node, dict) and name in node:
            node[new.rpartition(".")[2]] = node.pop(name)
    return tree
