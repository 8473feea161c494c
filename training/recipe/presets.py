"""Read recipes from TOML files: those in ``training/recipe/bundled``, or the user's own."""

from __future__ import annotations

import dataclasses
import tomllib
from pathlib import Path
from typing import Any

from hierclass.errors import InputError
from training.recipe.recipe import Recipe

FOLDER = Path(__file__).parent / "bundled"
NOT_IN_FILES = ("data", "taxonomy")
"""Fields that belong to a run and can't be set in a recipe file."""


def bundled_recipes() -> list[str]:
    """Names of the bundled recipes, sorted."""
    return sorted(file.stem for file in FOLDER.glob("*.toml"))


def read_recipe_file(name: str) -> dict[str, Any]:
    """Field of `Recipe` → value, of a bundled recipe or a .toml file.

    Raises `InputError` for an unknown name, invalid TOML, an unknown option, or a value of another type.
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
