"""Recipes in files: TOML with the options of a recipe and, as comments, the reason of each.

Bundled ones lie in ``training/recipe/bundled``; anybody's own file of that form is as good.
"""

from __future__ import annotations

import dataclasses
import tomllib
from pathlib import Path
from typing import Any

from hierclass.errors import InputError
from training.recipe.recipe import Recipe

FOLDER = Path(__file__).parent / "bundled"
NOT_IN_FILES = ("data", "taxonomy")
"""What belongs to a run, not to a way of training."""


def bundled_recipes() -> list[str]:
    """Names of the recipes that come with the package, sorted."""
    return sorted(file.stem for file in FOLDER.glob("*.toml"))


def read_recipe_file(name: str) -> dict[str, Any]:
    """The options that a bundled recipe, or a .toml file, sets: field of `Recipe` → value.

    Raises `InputError` for an unknown name, for a file that is no TOML, and for an unknown option or a value of
    another type (the message names it).
    """
    file = FOLDER / f"{name}.toml" if name in bundled_recipes() else Path(name)
    try:
        values = tomllib.loads(file.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise InputError(
            f"`recipe` {name}: there is no such file; the bundled recipes are {', '.join(bundled_recipes())}"
        ) from None
    except (OSError, ValueError) as error:
        raise InputError(f"`recipe` {name} cannot be read: {error}") from error
    for field in NOT_IN_FILES:
        if field in values:
            raise InputError(f"`recipe` {name}: {field} belongs to a run; give it with `{field}`")
    try:
        recipe = Recipe.from_dict({"data": [], "taxonomy": "", **values})
    except InputError as error:
        raise InputError(f"`recipe` {name}: {str(error).removeprefix('recipe: ')}") from error
    return {
        field.name: getattr(recipe, field.name)
        for field in dataclasses.fields(Recipe)
        if field.name in values
    }
