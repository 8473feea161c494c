"""From the options of ``hierclass-train fit``, and a recipe in a file, to the recipe that is wanted."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import typer

from hierclass.errors import InputError
from taxonomy.files import bundled
from training import options
from training.presets import read_preset
from training.recipe import PARAMETERS, Recipe, option_of

DEFAULTS = Recipe(data=(), taxonomy="tiny-imagenet")
NUMBERS = ("widths", "depths", "densities", "level_weights", "crop_scale")
"""Fields of a recipe that are written as numbers with commas; empty text is the default."""
OF_THE_MACHINE = ("compile", "accumulate")
"""Fields of a recipe that may change on resuming: they change the result by rounding alone."""
OF_THE_BACKBONE = ("backbone_args", "stem_stride")
"""Fields of a recipe that mean one backbone and nothing to another."""


def wanted_recipe(ctx: typer.Context, out: Path) -> tuple[Recipe, bool]:
    """The recipe to train, and whether it was stored by an earlier start; an option without effect is refused."""
    recipe, stored = _wanted(ctx, out)
    for name in ("distil_from", "distil_to", "distil_teacher"):
        if is_given(ctx, name) and not recipe.distil:
            value = getattr(recipe, name)
            raise InputError(
                f"{option_of(name)} {value} has no effect without --distil; give that, such as 0.5"
            )
    return recipe, stored


def _wanted(ctx: typer.Context, out: Path) -> tuple[Recipe, bool]:
    """The recipe of the options; with ``--resume`` the one in ``out``, which they must not contradict.

    Before the first state is saved, and for those of the machine always, an option that is given wins.
    """
    recipe = _given(ctx)
    if ctx.params["resume"] and (out / "recipe.json").exists():
        stored = Recipe.load(out / "recipe.json")
        given = {name: getattr(recipe, name) for name in given_fields(ctx)}
        from training.outputs import RunFolder

        begun = RunFolder(out).state.exists()
        for name, ours in given.items():
            theirs = getattr(stored, name)
            if begun and ours != theirs and name not in OF_THE_MACHINE:
                raise InputError(
                    f"{option_of(name)} {ours} differs from the run in {out} ({theirs}); leave it out, or change --out"
                )
        return dataclasses.replace(stored, **given), True
    if not recipe.data:
        raise InputError(
            f"{out} holds no run to resume" if ctx.params["resume"] else "give the images with --data"
        )
    return recipe, False


def _given(ctx: typer.Context) -> Recipe:
    """The recipe of the options; paths absolute, so that a run resumes from another working directory."""
    fields = [field.name for field in dataclasses.fields(Recipe)]
    values = {name: ctx.params[name] for name in fields if ctx.params.get(name) is not None}
    values["data"] = tuple(map(_absolute, ctx.params["data"] or ()))
    values.setdefault("taxonomy", DEFAULTS.taxonomy)  # until one is proposed
    if values["taxonomy"] not in bundled():
        values["taxonomy"] = str(Path(values["taxonomy"]).absolute())
    values["backbone_args"] = options.arguments(ctx.params["backbone_arg"] or [])
    values["consensus"] = options.number_or_auto(values["consensus"])
    for name in NUMBERS:
        values[name] = options.numbers(values[name], option_of(name)) or getattr(DEFAULTS, name)
    preset = _preset(ctx)
    values.update({name: value for name, value in preset.items() if not is_given(ctx, name)})
    return Recipe(**values)


def _preset(ctx: typer.Context) -> dict[str, Any]:
    """What the file of --recipe sets; another --backbone leaves out what it says of its own."""
    values = read_preset(ctx.params["recipe"]) if ctx.params["recipe"] else {}
    wanted = ctx.params["backbone"]
    if is_given(ctx, "backbone") and values.get("backbone", wanted) != wanted:
        for name in OF_THE_BACKBONE:
            values.pop(name, None)
    return values


def _absolute(data: str) -> str:
    from training.sources import absolute

    return absolute(data)


def given_fields(ctx: typer.Context) -> set[str]:
    """The fields of a recipe that are given on the command line, or by the file of --recipe."""
    fields = [field.name for field in dataclasses.fields(Recipe)]
    return {name for name in fields if is_given(ctx, name)} | _preset(ctx).keys()


def is_given(ctx: typer.Context, field: str) -> bool:
    """Whether an option is on the command line, by its parameter or the field of the recipe that it sets."""
    source = ctx.get_parameter_source(PARAMETERS.get(field, field))
    return source is not None and source.name == "COMMANDLINE"
