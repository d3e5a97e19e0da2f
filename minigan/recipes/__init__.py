"""Recipes: what to train, and how. recipe.py: the fields; the others: families of recipes."""

from __future__ import annotations

from minigan.recipes import mnist
from minigan.recipes.recipe import Recipe, RecipeError, did_you_mean

RECIPES: dict[str, dict[str, Recipe]] = {**mnist.RECIPES}


def find(name: str, preset: str = "default") -> Recipe:
    """The recipe of that name and preset.   Raises: RecipeError that lists what there is."""
    if name not in RECIPES:
        meant = did_you_mean(name, list(RECIPES))
        raise RecipeError(f"unknown recipe {name!r}: there are {', '.join(RECIPES)}{meant}")
    presets = RECIPES[name]
    if preset not in presets:
        raise RecipeError(f"unknown preset {preset!r}: {name} has {', '.join(presets)}")
    return presets[preset]


__all__ = ["RECIPES", "Recipe", "RecipeError", "find"]
