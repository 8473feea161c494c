"""Make the recipe of ``hierclass-train fit`` from options, a recipe file and a stored run."""

from __future__ import annotations

import dataclasses
from collections.abc import Set
from pathlib import Path
from typing import Any

import typer

from hierclass.errors import InputError
from taxonomy.files import bundled
from training.cli.options import is_given, read_fields
from training.cli.tuning import with_base
from training.recipe.option import list_words, specs_of
from training.recipe.presets import read_recipe_file
from training.recipe.recipe import SHARES, Recipe
from training.recipe.stored_options import StoredOptions

DEFAULTS = Recipe(data=(), taxonomy="tiny-imagenet")
MAY_CHANGE = ("compile", "accumulate")
"""Fields that may change on resuming: they change results by rounding alone."""
OF_THE_TREE = ("tiers", "pin", "yes")
"""Options for proposing a taxonomy; a run that has begun keeps its taxonomy."""
OF_THE_BACKBONE = ("backbone_args", "stem_stride")
"""Fields that are dropped from a recipe file when another backbone is given."""


def wanted_recipe(ctx: typer.Context, out: Path) -> tuple[Recipe, bool]:
    """Return the recipe to train, and whether it was stored by an earlier start; refuse an option without effect.

    With ``--resume`` it is the recipe in ``out``, which options must not contradict. Before the first state is saved,
    and for `MAY_CHANGE` always, an option that is given wins.
    """
    recipe, stored = _wanted(ctx, out)
    refuse_idle(recipe, given_fields(ctx), read_fields(ctx, Recipe).keys())
    refuse_two_splits(ctx)
    return recipe, stored


def refuse_idle(recipe: StoredOptions, given: Set[str], typed: Set[str]) -> None:
    """Raise `InputError` for a field that is given and has no effect, because the field that it needs is not set.

    A field that a file gives (``given``, not ``typed``) may be idle where the command line switched the other off.
    """
    specs = specs_of(recipe)
    for name in (name for name in specs if specs[name].needs):
        needs = specs[name].needs
        idle = not any(getattr(recipe, other) for other in needs)
        if idle and (name in typed or (name in given and typed.isdisjoint(needs))):
            value = getattr(recipe, name)
            shown = ",".join(map(str, value)) if isinstance(value, tuple) else value
            raise InputError(
                f"`{name}` {shown} has no effect without "
                f"{list_words(f'`{other}`' for other in needs)}; give that, such as {specs[needs[0]].example}"
            )


def refuse_two_splits(ctx: typer.Context) -> None:
    """Raise `InputError` when images are to be held out both by number and by share."""
    if is_given(ctx, "dev_from") and is_given(ctx, "dev_share"):
        raise InputError("`dev_share` has no effect beside `dev_from`; leave one of them out")


def _wanted(ctx: typer.Context, out: Path) -> tuple[Recipe, bool]:
    recipe = _given(ctx)
    if ctx.params["resume"] and (out / "recipe.json").exists():
        stored = Recipe.load(out / "recipe.json")
        given = {name: getattr(recipe, name) for name in given_fields(ctx)}
        from training.trainer.run_dir import RunDir

        begun = RunDir(out).begun
        idle = [name for name in OF_THE_TREE if begun and is_given(ctx, name)]
        if idle:
            raise InputError(
                f"`{idle[0]}` has no effect on the run in {out}, which has its tree; leave it out, or change `out`"
            )
        for name, ours in given.items():
            theirs = getattr(stored, name)
            if begun and ours != theirs and name not in MAY_CHANGE:
                raise InputError(
                    f"`{name}` {ours} differs from the run in {out} ({theirs}); leave it out, or change `out`"
                )
        return dataclasses.replace(stored, **given), True
    recipe = with_base(recipe, given_fields(ctx), from_recipe_file=ctx.params["recipe"] is not None)
    if not (recipe.data or recipe.add):
        raise InputError(
            f"{out} holds no run to resume" if ctx.params["resume"] else "give the images with `data`"
        )
    return recipe, False


def _given(ctx: typer.Context) -> Recipe:
    """The recipe of the options, with absolute paths, so that a run resumes from another working directory."""
    typed = read_fields(ctx, Recipe)
    for name in ("data", "add"):
        if name in typed:
            from training.data.datasets import absolute

            typed[name] = tuple(map(absolute, typed[name]))
    if "base" in typed:
        typed["base"] = "" if typed["base"] == "none" else str(Path(typed["base"]).absolute())
    if typed.get("taxonomy", DEFAULTS.taxonomy) not in bundled():
        typed["taxonomy"] = str(Path(typed["taxonomy"]).absolute())
    return dataclasses.replace(DEFAULTS, **{**_preset(ctx), **typed})


def _preset(ctx: typer.Context) -> dict[str, Any]:
    """Fields set by the file of --recipe, without those that do not fit a given --backbone or --structure."""
    values = read_recipe_file(ctx.params["recipe"]) if ctx.params["recipe"] is not None else {}
    foreign: set[str] = set()
    backbone, structure = ctx.params["backbone"], ctx.params["structure"]
    if is_given(ctx, "backbone") and values.get("backbone", backbone) != backbone:
        foreign.update(OF_THE_BACKBONE)
    if is_given(ctx, "structure"):
        from hierclass.nested import STRUCTURES

        if structure in STRUCTURES:
            foreign.update(set(SHARES).difference(STRUCTURES[structure].takes))
            foreign.update(() if STRUCTURES[structure].shares_blocks else ("sizes", "own"))
    return {name: value for name, value in values.items() if name not in foreign}


def given_fields(ctx: typer.Context) -> set[str]:
    """Fields of a recipe that are given on the command line or in the file of --recipe."""
    return read_fields(ctx, Recipe).keys() | _preset(ctx).keys()
