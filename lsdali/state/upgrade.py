"""Bring recipes that older versions wrote, inside checkpoints, to today's keys."""

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

RENAMED = {
    "data.split": "data.holdout",
    "data.limit": "data.max_samples",
    "data.max_bad": "data.max_bad_files",
    "data.noise.kind": "data.noise.name",
    "data.noise.seed": "data.noise_seed",
    "method.noise.path": "method.noise.file",
    "method.norm": "method.variant",
    "method.mean": "method.variant",
    "method.first_epoch": "method.variant",
    "method.clamp": "method.variant",
    "method.rule": "method.variant",
}
"""Dotted keys of a recipe, old and new. A recipe file with an old key is refused with the new name."""
PAPER = ("text", "alike", "pair", "samples", "all_exits", None)
CODE = ("class", "elements", "final_only", 1e-7)
VALUES: dict[tuple[str, Any], str] = {
    ("method.noise.name", "file"): "matrix",
    **{("method.variant", value): "paper" for value in PAPER},
    **{("method.variant", value): "code" for value in CODE},
}
"""Values that have another name: (today's key, old value) -> today's value."""


def upgraded(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Return the tree of a recipe under today's keys."""
    tree = deepcopy(dict(recipe))
    for old, new in RENAMED.items():
        if old == "method.rule" and (tree.get("method") or {}).get("name") == "ibls":  # there it is a rule still
            continue
        if (above := _above(tree, old)) is not None and old.rpartition(".")[2] in above:
            value = above.pop(old.rpartition(".")[2])
            if (target := _above(tree, new)) is not None:
                target[new.rpartition(".")[2]] = value
    for (key, before), after in VALUES.items():
        name = key.rpartition(".")[2]
        if (above := _above(tree, key)) is not None and name in above and above[name] == before:
            above[name] = after
    return tree


def _above(tree: dict[str, Any], key: str) -> dict[str, Any] | None:
    """Return the mapping that holds a dotted key; None if there is none."""
    node: Any = tree
    for part in key.split(".")[:-1]:
        node = node.get(part) if isinstance(node, dict) else None
    return node if isinstance(node, dict) else None
