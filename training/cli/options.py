"""Options of ``hierclass-train``: those derived from a recipe's declarations, and those of a command alone.

`with_options` adds an option per declared field of a recipe to a command; `read_fields` turns their text into values.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import json
import re
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from hierclass.errors import InputError
from training.distillation.recipe import DistilRecipe
from training.recipe.option import GROUPS, as_text, specs_of
from training.recipe.recipe import Recipe
from training.recipe.stored_options import StoredOptions
from training.trainer.processes import num_processes

PANELS = {group: group.capitalize() for group in GROUPS}
"""Group of options → its heading in ``--help``."""
RUN_OPTIONS = (
    "look",
    *("out", "resume", "recipe", "workers", "threads", "save_every", "check", "tiers", "pin", "yes", "level"),
    *("minutes", "updates", "eval_data", "known_top1", "report", "split", "overwrite"),
)
"""Arguments that are no fields of a recipe, as messages name them."""
NAMES = {*specs_of(Recipe), *specs_of(DistilRecipe), *RUN_OPTIONS}


def flag_of(name: str) -> str:
    """The option that sets a field or an argument."""
    declared = {**specs_of(DistilRecipe), **specs_of(Recipe)}.get(name)
    return declared.flag if declared and declared.flag else "--" + name.replace("_", "-")


def as_flags(message: str) -> str:
    """A message of the library with the options in place of the fields that it names: `` `batch_size` `` etc."""
    return re.sub(
        r"`([a-z][a-z0-9_]*)`", lambda found: flag_of(found[1]) if found[1] in NAMES else found[0], message
    )


def field_option(recipe: type[StoredOptions], name: str, *, group: bool = True) -> Any:
    """The `typer.Option` of a recipe's field, to use in `Annotated`; ``group`` False puts it under no heading."""
    declared = specs_of(recipe)[name]
    default = f" Default: {declared.chosen}." if declared.chosen else ""
    kind = _base_type(typing.get_type_hints(recipe)[name])
    whole = kind is int  # typer's ranges have no open ends
    return typer.Option(
        *([declared.flag] if declared.flag else []),
        metavar=declared.metavar,
        help=declared.help + default,
        min=declared.at_least if whole else None,
        max=declared.at_most if whole else None,
        rich_help_panel=PANELS[declared.group] if group else None,
    )


def with_options(recipe: type[StoredOptions]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Decorate a command with an option per field of a recipe, read from ``ctx.params``; sort options by group."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = inspect.signature(command, eval_str=True).parameters
        declared = [_parameter(recipe, name) for name in specs_of(recipe)]
        headings = ["", *PANELS.values()]
        keywords = [each.replace(kind=each.KEYWORD_ONLY) for each in (*declared, *own.values())]
        parameters = sorted(keywords, key=lambda each: headings.index(_panel(each)))

        @functools.wraps(command)
        def run(**given: Any) -> None:
            command(**{name: given[name] for name in own})

        del run.__wrapped__  # typer would see through to the command's own signature
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {each.name: each.annotation for each in parameters}
        return run

    return decorate


def _panel(parameter: inspect.Parameter) -> str:
    metadata = getattr(parameter.annotation, "__metadata__", ())
    return metadata[0].rich_help_panel or "" if metadata else ""


def _parameter(recipe: type[StoredOptions], name: str) -> inspect.Parameter:
    declared, hint = specs_of(recipe)[name], typing.get_type_hints(recipe)[name]
    kind: Any = _base_type(hint)
    default = next(field.default for field in dataclasses.fields(recipe) if field.name == name)
    if declared.chosen or declared.repeat or default is dataclasses.MISSING:
        default = None
    if declared.repeat:
        kind = list[str]
    elif kind in (tuple, None):  # numbers or words with commas; a number or a word
        kind, default = str, as_text(default) if default else None
    elif declared.path:
        kind = Path
    kind = kind | None if default is None else kind
    annotation = Annotated[kind, field_option(recipe, name)]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _base_type(hint: Any) -> Any:
    """The type of a field without None: `tuple` for sequences, None for a union of several types."""
    if isinstance(hint, types.UnionType):
        kinds = [kind for kind in typing.get_args(hint) if kind is not types.NoneType]
        return _base_type(kinds[0]) if len(kinds) == 1 else None
    return typing.get_origin(hint) or hint


def is_given(ctx: typer.Context, name: str) -> bool:
    """Whether a parameter's option is on the command line."""
    source = ctx.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def read_fields(ctx: typer.Context, recipe: type[StoredOptions]) -> dict[str, Any]:
    """Field → value of the options on the command line; paths become absolute, empty lists are left out.

    Raises `InputError` for text that is not a list of numbers, or not KEY=VALUE.
    """
    hints = typing.get_type_hints(recipe)
    given = {name: ctx.params[name] for name in specs_of(recipe) if is_given(ctx, name)}
    values = {name: _read(recipe, name, hints[name], value) for name, value in given.items()}
    return {name: value for name, value in values.items() if value != ()}


def _read(recipe: type[StoredOptions], name: str, hint: Any, value: Any) -> Any:
    """Convert a value from typer's type to that of the field."""
    declared, kind = specs_of(recipe)[name], _base_type(hint)
    if declared.path:
        absolute = [str(Path(path).absolute()) for path in (value if declared.repeat else [value])]
        return tuple(absolute) if declared.repeat else absolute[0]
    if kind is dict:
        return arguments(value)
    if declared.repeat:
        return tuple(value)
    if kind is tuple:
        return _read_list(name, value, hint)
    return number_or_word(value) if kind is None else value


def _read_list(name: str, text: str, hint: Any) -> tuple[Any, ...]:
    optional = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    of = typing.get_args(optional[0])[0]
    if of is str:
        return tuple(part.strip() for part in text.split(","))
    values = numbers(text, name)
    if of is int:
        if any(value != int(value) for value in values):
            raise InputError(f"`{name}` {text}: give whole numbers of pixels, such as 80,128,224")
        return tuple(map(int, values))
    return values


def numbers(text: str, name: str) -> tuple[float, ...]:
    """Parse ``"0.25,0.5,1"``; empty text gives (). Raises `InputError` naming the option ``name``."""
    try:
        return tuple(float(part) for part in text.split(",")) if text.strip() else ()
    except ValueError as error:
        raise InputError(f"`{name}` {text}: give numbers separated by commas, such as 0.25,0.5,1") from error


def tier_sizes(text: str | None) -> list[int] | None:
    """Parse ``"10,40"`` into rising whole numbers from 2; None stays None. Raises `InputError`."""
    if text is None:
        return None
    try:
        sizes = [int(part) for part in text.split(",")]
    except ValueError:
        sizes = []
    if not sizes or sizes[0] < 2 or sizes != sorted(set(sizes)):
        raise InputError(f"`tiers` {text}: give growing numbers of classes, coarse to fine, such as 10,40")
    return sizes


def pins(texts: list[str]) -> dict[str, str]:
    """Parse ``["crane=n03126707"]`` into name → synset id. Raises `InputError`."""
    found = {}
    for text in texts:
        name, _, synset = text.rpartition("=")
        if not name or not re.fullmatch(r"n\d{8}", synset):
            raise InputError(f"`pin` {text}: write it as NAME=SYNSET, such as crane=n03126707")
        found[name] = synset
    return found


def number_or_word(text: str) -> float | str:
    """Parse ``"0.25"`` as a number; other text stays, to be checked by `Recipe.check`."""
    try:
        return float(text)
    except ValueError:
        return text


def arguments(pairs: list[str]) -> dict[str, Any]:
    """Parse ``["channels=32,64", "act_layer=silu"]`` into keyword arguments: numbers, booleans, lists, text."""
    values = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key:
            raise InputError(f"`backbone_args` {pair}: write it as KEY=VALUE")
        parts = [_scalar(part) for part in text.split(",")]
        values[key.strip()] = parts if len(parts) > 1 else parts[0]
    return values


def _scalar(text: str) -> Any:
    try:
        return json.loads(text.strip().lower() if text.strip().lower() in {"true", "false"} else text)
    except ValueError:
        return text.strip()


# ---------------------------------------------------------------- options that are no fields of a recipe


def check_overwrite(*, resume: bool, overwrite: bool) -> None:
    """Raise `InputError` if a run can't be replaced in this way."""
    if resume and overwrite:
        raise InputError("`resume` continues a run, `overwrite` begins anew; give one of them")
    if overwrite and num_processes() > 1:
        raise InputError("`overwrite` needs one process; delete the folder, or choose another `out`")


Tiers = Annotated[
    str | None,
    typer.Option(
        help="Classes of the coarser tiers of a proposed tree, such as 10,40. Default: by how many there are.",
        rich_help_panel=PANELS["tree"],
    ),
]
Pin = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=SYNSET",
        help="The meaning of a class's name: crane=n03126707. Repeatable.",
        rich_help_panel=PANELS["tree"],
    ),
]
Yes = Annotated[
    bool,
    typer.Option(
        "--yes", "-y", help="Take the proposed tree without asking.", rich_help_panel=PANELS["tree"]
    ),
]
Look = Annotated[
    bool,
    typer.Option(
        "--look/--no-look",
        help="Look at some images of each class with the bundled model: what they show tells what names mean.",
        rich_help_panel=PANELS["tree"],
    ),
]
Check = Annotated[
    str,
    typer.Option(
        help="How images are looked at before training: none, quick (header and end), full (decoded), or auto.",
        rich_help_panel=PANELS["data"],
    ),
]
RecipeFile = Annotated[
    str | None,
    typer.Option(
        "--recipe",
        metavar="NAME|FILE",
        help="A bundled recipe (small-images), or a .toml file with options; those given beside it win.",
    ),
]
Out = Annotated[Path | None, typer.Option(help="Folder of the run. Default: runs/ and the name of the data.")]
DistilOut = Annotated[Path, typer.Option("--out", help="Folder of the run; the model is left in OUT/model.")]
Resume = Annotated[
    bool, typer.Option("--resume", help="Continue the run in --out; its recipe is read from there.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Begin a new run in place of the one in --out.")]
OverwriteResults = Annotated[
    bool, typer.Option("--overwrite", help="Replace the files of --json and --report.")
]
DistilResume = Annotated[
    bool, typer.Option("--resume", help="Continue the run in --out, for longer if --crops is larger now.")
]
Level = Annotated[
    int | None,
    typer.Option(
        min=0,
        help="Train this level alone. Default: one after the other.",
        rich_help_panel=PANELS["network"],
    ),
]
Updates = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="In place of --crops: updates, of --batch-size crops each.",
        rich_help_panel=PANELS["schedule"],
    ),
]
Minutes = Annotated[
    float | None,
    typer.Option(
        min=0,
        help="End after N minutes; --resume goes on from there.",
        rich_help_panel=PANELS["schedule"],
    ),
]
SaveEvery = Annotated[
    float,
    typer.Option(
        min=0,
        help="Minutes after which the state is saved within an epoch; 0: after epochs only.",
        rich_help_panel=PANELS["rare"],
    ),
]
Graphs = Annotated[
    bool,
    typer.Option(
        "--graphs/--no-graphs",
        help="Write the model's graphs at the end, by which it runs without PyTorch.",
        rich_help_panel=PANELS["rare"],
    ),
]
AutomaticWorkers = Annotated[
    int | None,
    typer.Option(
        min=0,
        show_default="1; with a GPU, by the number of cores",
        help="Processes that prepare images for each process of the run; 0: none.",
        rich_help_panel=PANELS["rare"],
    ),
]
RunThreads = Annotated[
    int | None,
    typer.Option("--threads", min=1, help="CPU threads of the network.", rich_help_panel=PANELS["rare"]),
]
EvalData = Annotated[
    list[str] | None,
    typer.Option(
        metavar="PATH|NAME:PATH",
        help="Labelled photographs, as fit's --data, to measure and calibrate the model with at the end. Repeatable.",
        rich_help_panel=PANELS["photographs"],
    ),
]
KnownTop1 = Annotated[
    float | None,
    typer.Option(
        metavar="SHARE",
        help="Where the images are easier, or harder, than those the model will meet: the last level's top-1 on "
        "representative ones, such as 0.751. Images that it has wrong are weighted to give this top-1 here.",
    ),
]
Data = Annotated[list[str] | None, field_option(Recipe, "data", group=False)]
DevFrom = Annotated[int | None, field_option(Recipe, "dev_from", group=False)]
Seed = Annotated[int, field_option(Recipe, "seed", group=False)]
OnlyDevShare = Annotated[
    float | None, typer.Option("--dev-share", help="Only the share of every class that fit holds out.")
]
MeasuredSplit = Annotated[
    str, typer.Option(help="Of tables with a column split: the held-out images to take first, val or test.")
]
EvaluationBatch = Annotated[
    int | None,
    typer.Option(
        "--batch-size",
        min=1,
        help="Images that are answered at once. Default: by their size and the device.",
    ),
]
Workers = Annotated[int, typer.Option(min=0, help="Processes that prepare images; 0: none.")]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads of the network.")]
