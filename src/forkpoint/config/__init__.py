"""Recipes: TOML in, frozen models out."""

from forkpoint.config.load import load_recipe, parse_recipe, recipe_to_toml
from forkpoint.config.recipe import Recipe

__all__ = ["Recipe", "load_recipe", "parse_recipe", "recipe_to_toml"]
