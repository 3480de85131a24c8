"""Recipes: one YAML file, one experiment, typed and complete."""

from lsdali.recipe.parse import differences, load, to_yaml
from lsdali.recipe.schema import Recipe

__all__ = ["Recipe", "differences", "load", "to_yaml"]
