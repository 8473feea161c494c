"""Writes docs/options.md, a table of all options of training, from their declarations. Run it after changing one."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from training.cli.options import as_flags, flag_of
from training.distillation.recipe import DistilRecipe
from training.recipe.option import GROUPS, OptionSpec, as_text, specs_of
from training.recipe.recipe import Recipe

PAGE = Path(__file__).parent / "options.md"
HEAD = """# Options of training

Every option that shapes the result of `hierclass-train fit` and `hierclass-train distil`, and is kept in
`recipe.json` under the name of its field. This page is written by `python docs/options.py`. Options of one start
alone (`--out`, `--resume`, `--workers`, …) are in `hierclass-train fit --help`.
"""


def option_tables() -> str:
    """The page, Markdown."""
    lines = [HEAD]
    for command, recipe in (("fit", Recipe), ("distil", DistilRecipe)):
        lines += [f"## `hierclass-train {command}`", ""]
        for group in GROUPS:
            rows = [row for row in _rows(recipe) if row[0] == group]
            if rows:
                lines += [f"### {group.capitalize()}", "", "| option | default | values | what it does |"]
                lines += ["| --- | --- | --- | --- |", *(row[1] for row in rows), ""]
    return "\n".join(lines)


def _rows(recipe: type[Any]) -> Iterator[tuple[str, str]]:
    """Group and row of each declared option."""
    defaults = {field.name: field.default for field in dataclasses.fields(recipe)}
    for name, declared in specs_of(recipe).items():
        cells = [f"`{flag_of(name)}`", _default(defaults[name], declared), as_flags(declared.values)]
        yield declared.group, f"| {' | '.join([*cells, declared.help])} |".replace("  ", " ")


def _default(value: Any, declared: OptionSpec) -> str:
    if declared.chosen:
        return declared.chosen
    if value is dataclasses.MISSING or value is None or value == ():
        return ""
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else f"`{as_text(value)}`"


if __name__ == "__main__":
    PAGE.write_text(option_tables(), encoding="utf-8")
