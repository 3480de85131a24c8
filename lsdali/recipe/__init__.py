"""Recipes: one YAML file, one experiment, typed and complete."""

from lsdali.recipe.parse import apply_override, check_recipe, decisive, differences, load, to_yaml
from lsdali.recipe.schema import Recipe

__all__ = ["Recipe", "apply_override", "check_recipe", "decisive", "differences", "load", "to_yaml"]
