"""Recipes: one YAML file, one experiment, typed and complete."""

from lsdali.recipe.parse import (
    apply_override,
    check_recipe,
    check_tree,
    decisive,
    default_name,
    differences,
    load,
    read_tree,
    set_key,
    split_override,
    to_yaml,
    use_parts,
)
from lsdali.recipe.schema import Recipe

__all__ = [
    "Recipe",
    "apply_override",
    "check_recipe",
    "check_tree",
    "decisive",
    "default_name",
    "differences",
    "load",
    "read_tree",
    "set_key",
    "split_override",
    "to_yaml",
    "use_parts",
]
