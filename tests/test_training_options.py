"""Options of training are declared once: on the command line, in checks and in the docs they are the same."""

from __future__ import annotations

import dataclasses
import io
import re
import runpy
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from hierclass.errors import InputError
from training.cli import app
from training.cli.exits import FlagConsole
from training.cli.options import as_flags, flag_of
from training.distillation.recipe import DistilRecipe
from training.recipe.option import specs_of
from training.recipe.recipe import Recipe

DOCS = Path(__file__).parents[1] / "docs"
RECIPES = {
    "fit": Recipe(data=("x",), taxonomy="tiny-imagenet"),
    "distil": DistilRecipe(images=("x",), timm="x"),
}


def options_of(command: str) -> dict[str, Any]:
    """Parameter → option of a command."""
    return {each.name: each for each in get_command(app).commands[command].params}  # type: ignore[attr-defined]


@pytest.mark.parametrize("command", ["fit", "distil"])
def test_every_field_of_a_recipe_is_an_option_with_its_help(command: str) -> None:
    options = options_of(command)
    for name, declared in specs_of(RECIPES[command]).items():
        assert flag_of(name) in options[name].opts
        assert options[name].help.startswith(declared.help)


def test_the_help_of_fit_is_in_groups(capsys: pytest.CaptureFixture[str]) -> None:
    app(["fit", "--help"], standalone_mode=False)
    headings = re.findall(r"─ (\w+) ─", capsys.readouterr().out)
    assert headings == ["Options", "Data", "Tree", "Network", "Schedule", "Rare"]


def test_the_page_of_options_is_that_of_the_declarations() -> None:
    written = runpy.run_path(str(DOCS / "options.py"))["option_tables"]()
    assert (DOCS / "options.md").read_text(encoding="utf-8") == written, "run python docs/options.py"


@pytest.mark.parametrize("command", ["fit", "distil"])
def test_the_check_of_a_recipe_keeps_to_the_declared_ranges(command: str) -> None:
    recipe = RECIPES[command]
    recipe.check()
    for name, declared in specs_of(recipe).items():
        for bound, step in ((declared.at_least, -1), (declared.more_than, 0), (declared.at_most, 1)):
            if bound is not None:
                with pytest.raises(InputError, match=rf"^`{name}` .*: give "):
                    dataclasses.replace(recipe, **{name: bound + step}).check()
        if declared.choices:
            with pytest.raises(InputError, match=rf"^`{name}` nonsense: give {declared.values}$"):
                dataclasses.replace(recipe, **{name: "nonsense"}).check()


def test_a_person_at_the_command_line_reads_options_where_the_library_names_fields() -> None:
    message = "`batch_size` 1: give 2, or `backbone_args`; `n` and `x.y` stay"
    shown = "--batch-size 1: give 2, or --backbone-arg; `n` and `x.y` stay"
    assert as_flags(message) == shown
    console = FlagConsole(file=io.StringIO(), width=100)
    console.print(message)
    assert console.file.getvalue() == f"{shown}\n"  # type: ignore[attr-defined]
