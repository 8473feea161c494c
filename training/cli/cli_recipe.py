"""From the options of ``hierclass-train fit``, and a recipe in a file, to the recipe that is wanted."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import typer

from hierclass.errors import InputError
from taxonomy.files import bundled
from training.cli import options
from training.recipe.presets import read_preset
from training.recipe.recipe import PARAMETERS, PER_LEVEL, SHARES, Recipe, option_of

DEFAULTS = Recipe(data=(), taxonomy="tiny-imagenet")
NUMBERS = (*PER_LEVEL, "crop_scale")
"""Fields of a recipe that are written as numbers with commas; empty text is the default."""
OF_THE_MACHINE = ("compile", "accumulate")
"""Fields of a recipe that may change on resuming: they change the result by rounding alone."""
OF_THE_TREE = ("tiers", "pin", "yes")
"""Options that say how a tree is proposed; a run that has begun has its tree."""
NEEDS = {
    **dict.fromkeys(("distil_from", "distil_to", "distil_teacher"), (("distil",), "0.5")),
    "smoothing_along": (("smoothing",), "0.1"),
    "mix_prob": (("mixup", "cutmix"), "0.2"),
    "grow": (("start_size",), "48"),
}
"""Fields of a recipe that say something of another one → which, and a value of it; without that they do nothing."""
OF_THE_BACKBONE = ("backbone_args", "stem_stride")
"""Fields of a recipe that mean one backbone and nothing to another."""


def wanted_recipe(ctx: typer.Context, out: Path) -> tuple[Recipe, bool]:
    """The recipe to train, and whether it was stored by an earlier start; an option without effect is refused."""
    recipe, stored = _wanted(ctx, out)
    given, typed = given_fields(ctx), typed_fields(ctx)
    for name, (others, example) in NEEDS.items():
        idle = not any(getattr(recipe, other) for other in others)
        switched_off = not typed.isdisjoint(others)  # what the file says of it is no mistake then
        if idle and (name in typed or (name in given and not switched_off)):
            needed = " or ".join(map(option_of, others))
            value = getattr(recipe, name)
            raise InputError(
                f"{option_of(name)} {value} has no effect without {needed}; give that, such as {example}"
            )
    refuse_two_splits(ctx)
    return recipe, stored


def refuse_two_splits(ctx: typer.Context) -> None:
    """Raise `InputError` when images are to be held out both by number and by share."""
    if is_given(ctx, "dev_from") and is_given(ctx, "dev_share"):
        raise InputError("--dev-share has no effect beside --dev-from; leave one of them out")


def _wanted(ctx: typer.Context, out: Path) -> tuple[Recipe, bool]:
    """The recipe of the options; with ``--resume`` the one in ``out``, which they must not contradict.

    Before the first state is saved, and for those of the machine always, an option that is given wins.
    """
    recipe = _given(ctx)
    if ctx.params["resume"] and (out / "recipe.json").exists():
        stored = Recipe.load(out / "recipe.json")
        given = {name: getattr(recipe, name) for name in given_fields(ctx)}
        from training.trainer.run_dir import RunFolder

        begun = RunFolder(out).state.exists()
        idle = [option_of(name) for name in OF_THE_TREE if begun and is_given(ctx, name)]
        if idle:
            raise InputError(
                f"{idle[0]} has no effect on the run in {out}, which has its tree; leave it out, or change --out"
            )
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
    values["sizes"] = None if values["sizes"] is None else tuple(map(int, values["sizes"]))
    values["own"] = tuple(ctx.params["own"].split(","))
    preset = _preset(ctx)
    values.update({name: value for name, value in preset.items() if not is_given(ctx, name)})
    return Recipe(**values)


def _preset(ctx: typer.Context) -> dict[str, Any]:
    """What the file of --recipe sets; another --backbone or --structure leaves out what it says of its own."""
    values = read_preset(ctx.params["recipe"]) if ctx.params["recipe"] is not None else {}
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


def _absolute(data: str) -> str:
    from training.data.datasets import absolute

    return absolute(data)


def given_fields(ctx: typer.Context) -> set[str]:
    """The fields of a recipe that are given on the command line, or by the file of --recipe."""
    return typed_fields(ctx) | _preset(ctx).keys()


def typed_fields(ctx: typer.Context) -> set[str]:
    """The fields of a recipe that are given on the command line."""
    return {field.name for field in dataclasses.fields(Recipe) if is_given(ctx, field.name)}


def is_given(ctx: typer.Context, field: str) -> bool:
    """Whether an option is on the command line, by its parameter or the field of the recipe that it sets."""
    source = ctx.get_parameter_source(PARAMETERS.get(field, field))
    return source is not None and source.name == "COMMANDLINE"
