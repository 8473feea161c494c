"""Base of recipes: frozen options, stored as JSON and read back with their types checked."""

from __future__ import annotations

import dataclasses
import difflib
import json
import types
import typing
from pathlib import Path
from typing import Any, Self

from hierclass.errors import InputError
from hierclass.files import read_regular, replacing
from training.recipe.option import as_text, specs_of

MAX_BYTES = 2**20
"""Size of a recipe; they have some kilobytes."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class StoredOptions:
    """Base class of recipes; fields without a default must be stored."""

    def to_dict(self) -> dict[str, Any]:
        """The recipe as JSON values."""
        return dict(json.loads(json.dumps(dataclasses.asdict(self))))

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Read what `to_dict` returned.

        Raises `InputError` for other JSON than an object, unknown or missing keys, and values of another type.
        """
        if not isinstance(values, dict):
            raise InputError("recipe: it is no object of options")
        kinds = typing.get_type_hints(cls)
        if unknown := sorted(values.keys() - kinds.keys()):
            close = difflib.get_close_matches(unknown[0], kinds, n=1)
            hint = f"did you mean {close[0]}?" if close else "was it written by another version?"
            raise InputError(f"recipe: unknown option {', '.join(unknown)}; {hint}")
        if missing := sorted(cls._required() - values.keys()):
            raise InputError(f"recipe: it has no {missing[0]}")
        arguments: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        for name, value in arguments.items():
            if not _is(kinds[name], value):
                text = json.dumps(values[name], default=str)  # TOML has dates, JSON has none
                raise InputError(f"recipe: {name} can not be {text}; give {_kind_in_words(kinds[name])}")
        return cls(**arguments)

    @classmethod
    def _required(cls) -> set[str]:
        missing = dataclasses.MISSING
        return {
            field.name
            for field in dataclasses.fields(cls)
            if field.default is missing and field.default_factory is missing
        }

    def check_values(self) -> None:
        """Refuse values outside their declared range or choices; raises `InputError` naming the field."""
        for name, declared in specs_of(self).items():
            value = getattr(self, name)
            if not declared.accepts(value):
                raise InputError(f"`{name}` {as_text(value)}: give {declared.values}")

    def save(self, path: Path) -> None:
        """Write the recipe as JSON, atomically."""
        write_json(path, self.to_dict())

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read the recipe that `save` wrote; raises `InputError` for a broken file."""
        try:
            return cls.from_dict(json.loads(read_regular(path, MAX_BYTES).decode("utf-8")))
        except (OSError, ValueError, RecursionError) as error:  # an InputError is a ValueError
            reason = str(error).removeprefix("recipe: ")
            raise InputError(
                f"{path} is no recipe: {reason}; mend it, or delete it and give the options of the run again"
            ) from error


def _is(kind: Any, value: Any) -> bool:
    """Whether a JSON value (lists as tuples) has the type of a field."""
    if isinstance(kind, types.UnionType):
        return any(_is(one, value) for one in typing.get_args(kind))
    if kind in (int, float):
        return isinstance(value, (int, kind)) and not isinstance(value, bool)
    origin = typing.get_origin(kind) or kind
    items = value if origin is tuple and isinstance(value, tuple) else ()
    return isinstance(value, origin) and all(_is(typing.get_args(kind)[0], item) for item in items)


def _kind_in_words(kind: Any) -> str:
    """Description of a field's type."""
    if isinstance(kind, types.UnionType):
        kinds = (one for one in typing.get_args(kind) if one is not type(None))
        return " or ".join(dict.fromkeys(map(_kind_in_words, kinds)))
    words = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", dict: "a table"}
    if kind in words:
        return words[kind]
    of = typing.get_args(kind)[0] if typing.get_origin(kind) is tuple else None
    return "a list of texts" if of is str else "a list of numbers" if of in (int, float) else "a table"


def write_json(path: Path, value: Any) -> None:
    """Write a value as readable JSON, atomically."""
    with replacing(path) as file:
        file.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
