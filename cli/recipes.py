"""minigan recipes"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.table import Table

    from minigan.recipes import Recipe


@click.command(short_help="List the recipes, or one's fields.")
@click.argument("name", required=False)
def recipes(name: str | None) -> None:
    """List the recipes; or every field of the recipe NAME, with its values and range.

    \b
    minigan recipes
    minigan recipes mnist-dcgan
    """
    from minigan.cli.tables import print_table

    print_table(_fields(name) if name else _overview())


def _overview() -> Table:
    from minigan.cli.tables import table
    from minigan.models import FAMILIES
    from minigan.recipes import RECIPES

    rows = table("recipe", "preset", "steps", "batch", "parameters G + D", "what differs")
    for name, presets in RECIPES.items():
        default = presets["default"]
        nets = FAMILIES[default.net].build(default.latent_dim, default.init)
        size = " + ".join(f"{net.parameter_count():,}".replace(",", " ") for net in nets)
        for preset, recipe in presets.items():
            first = recipe is default
            about = recipe.about if first else " ".join(_differences(recipe, default))
            rows.add_row(
                name if first else "",
                preset,
                str(recipe.steps),
                str(recipe.batch),
                size if first else "",
                about,
            )
    return rows


def _differences(recipe: Recipe, default: Recipe) -> list[str]:
    shown = {"steps", "batch"}  # in columns of their own
    return [
        f"{f.name}={_value(getattr(recipe, f.name))}"
        for f in dataclasses.fields(recipe)
        if f.name not in shown and getattr(recipe, f.name) != getattr(default, f.name)
    ]


def _value(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _fields(name: str) -> Table:
    from minigan.cli.tables import table
    from minigan.recipes import RECIPES, find

    default = find(name)
    presets = RECIPES[name]
    rows = table("field", *presets, "range", "what it is")
    for f in dataclasses.fields(default):
        values = [_value(getattr(recipe, f.name)) for recipe in presets.values()]
        if f.name != "about":
            rows.add_row(f.name, *values, _range(f), f.metadata["help"])
    return rows


def _range(f: dataclasses.Field[Any]) -> str:
    """What Recipe takes for the field."""
    low, high, choices = (f.metadata[k] for k in ("low", "high", "choices"))
    if choices is not None:
        return ", ".join(choices)
    if low is None:
        return ""
    return f"{low} or more" if high is None else f"{low} to {high}"
