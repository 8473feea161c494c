"""Declare training options, each once, as metadata of a recipe's field.

The command line, the checks of a recipe and docs/options.md are derived from these declarations.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from typing import Any

GROUPS = ("data", "tree", "teacher", "photographs", "network", "schedule", "rare")
"""Groups of options in ``--help``, in order."""

CHECKS = ("auto", "none", "quick", "full")
"""Modes of checking images before training (`training.data.dataset_check`)."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class OptionSpec:
    """Declaration of a training option; its name, type and default are those of the field.

    Numbers must be finite and within ``at_least``, ``more_than``, ``at_most`` and ``less_than``; texts must be one of
    ``choices``, if any. ``expected`` replaces the generated description of accepted values; ``noun`` names a number
    from 0 to 1. ``chosen`` says what decides if nothing is given. The option has an effect only if one of the fields
    ``needs`` is set; ``example`` is a value to suggest. ``flag`` is the command line option if it is not the field's
    name. With ``repeat`` the option is given once per value; with ``path`` paths become absolute.
    """

    help: str
    group: str
    at_least: float | None = None
    more_than: float | None = None
    at_most: float | None = None
    less_than: float | None = None
    choices: tuple[str, ...] = ()
    noun: str = "a share"
    expected: str = ""
    chosen: str = ""
    needs: tuple[str, ...] = ()
    example: str = ""
    flag: str = ""
    metavar: str | None = None
    repeat: bool = False
    path: bool = False

    def accepts(self, value: Any) -> bool:
        """Whether a value is in the declared range and choices; None and undeclared ranges accept all."""
        if isinstance(value, str):
            return not self.choices or value in self.choices
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not self.values:
            return True
        return (
            math.isfinite(value)
            and (self.at_least is None or value >= self.at_least)
            and (self.more_than is None or value > self.more_than)
            and (self.at_most is None or value <= self.at_most)
            and (self.less_than is None or value < self.less_than)
        )

    @property
    def values(self) -> str:
        """Accepted values in words, as in "more than 0, less than 1"; empty if all are."""
        if self.expected or self.choices:
            return self.expected or list_words(self.choices)
        low = self.at_least if self.more_than is None else self.more_than
        high = self.at_most if self.less_than is None else self.less_than
        if low is None:
            return ""
        if high is None:
            more = "0 or more" if low == 0 else f"at least {low:g}"
            return f"more than {low:g}" if self.more_than is not None else more
        end = f"at most {high:g}" if self.less_than is None else f"less than {high:g}"
        if self.more_than is not None:
            return f"more than {low:g}, {end}"
        if self.less_than is not None:
            return f"{low:g} or more, {end}"
        return f"{self.noun} from 0 to 1" if (low, high) == (0, 1) else f"{low:g} to {high:g}"


def option(default: Any, group: str, help: str, **more: Any) -> Any:
    """A recipe's field with a default; ``more`` are fields of `OptionSpec`."""
    return dataclasses.field(default=default, metadata=spec(group, help, **more))


def like(recipe: Any, name: str, default: Any, **changes: Any) -> Any:
    """A recipe's field declared as that of another recipe, with its own default and ``changes``."""
    declared = dataclasses.replace(specs_of(recipe)[name], **changes)
    return dataclasses.field(default=default, metadata={"option": declared})


def spec(group: str, help: str, **more: Any) -> dict[str, OptionSpec]:
    """Metadata of a recipe's field: an `OptionSpec`."""
    return {"option": OptionSpec(group=group, help=help, **more)}


def specs_of(recipe: Any) -> dict[str, OptionSpec]:
    """Field → declaration of a recipe or its class, in order."""
    return {field.name: field.metadata["option"] for field in dataclasses.fields(recipe)}


def list_words(words: Iterable[str]) -> str:
    """``("a", "b", "c")`` → "a, b or c"."""
    *others, last = words
    return f"{', '.join(others)} or {last}" if others else last


def as_text(value: Any) -> str:
    """Format a value as on the command line: lists with commas, None as "none"."""
    if isinstance(value, (tuple, list)):
        return ",".join(f"{each:g}" if isinstance(each, float) else str(each) for each in value)
    return "none" if value is None else str(value)
