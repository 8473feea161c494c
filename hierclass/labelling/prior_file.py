"""Files of weights per class, for `--prior`: CSV or JSON, read within bounds; what is wrong is told with its line."""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hierclass.decisions.prior import Prior, leaf_weights, read_weight
from hierclass.errors import InputError
from hierclass.images.discovery import display_name
from taxonomy import Taxonomy

Entries = list[tuple[tuple[str, float], str]]
"""Classes and weights, each with where it stands."""
MOST_BYTES = 1 << 20
"""Bytes of a file of weights, at most; of 1,000 classes they take about 20,000."""
_DECIMAL_COMMA = re.compile(r"^(\d+),(\d+)$")
_JSON_STRING = re.compile(r'"(?:[^"\\]|\\.)*"(\s*:)?')
"""A text of JSON, and what tells that it is a key."""


@dataclass(frozen=True, slots=True)
class PriorFile:
    """The weights of a file; `places` says of each where it stands, such as "spring.csv line 3"."""

    name: str
    entries: Prior
    places: tuple[str, ...]

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> PriorFile:
        """Read a CSV file of lines `class,weight`, or a JSON object of classes and weights (ending .json).

        Columns after these two are skipped where the first line names them, and where they are empty. Between
        semicolons a weight may have a decimal comma.

        Raises:
            InputError: the file can't be read, or is none of these; the message names the line.
        """
        path = Path(path)
        name = display_name(path.name)
        entries = _json_entries if path.suffix.lower() == ".json" else _csv_entries
        found = entries(name, _read_text(path, name))
        if not found:
            raise InputError(f"{name} names no class; give lines such as: dog,2.5")
        return cls(name, tuple(entry for entry, _ in found), tuple(place for _, place in found))

    def check(self, taxonomy: Taxonomy) -> None:
        """Raise InputError, which names the line, if a class is not of the model or the weights make no prior."""
        leaf_weights(self.entries, taxonomy, self.places, self.name)


def _read_text(path: Path, name: str) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise InputError(f"{display_name(path)} can't be read: {error.strerror or error}") from error
    if len(data) > MOST_BYTES:
        raise InputError(f"{name} is larger than a mebibyte; is it a file of weights?")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise InputError(f"{name} line {line} is no UTF-8; save it as CSV UTF-8") from None


def _csv_entries(name: str, text: str) -> Entries:
    first = text.split("\n", 1)[0]
    delimiter = next((mark for mark in ("\t", ";") if mark in first), ",")
    reader, found = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter), Entries()
    num_columns = 2
    try:
        for cells in reader:
            place = f"{name} line {reader.line_num}"
            cells = [cell.strip() for cell in cells]
            if not any(cells):
                continue
            if not found and [cell.casefold() for cell in cells[1:2]] == ["weight"]:
                num_columns = len(cells)
                continue
            if len(cells) < 2 or not cells[0] or any(cells[num_columns:]):
                raise InputError(
                    f"{place}: give a class and its weight, as dog,2.5; a comma in a name needs quotes, a "
                    "further column a heading beside class,weight"
                )
            weight = _DECIMAL_COMMA.sub(r"\1.\2", cells[1]) if delimiter == ";" else cells[1]
            found.append(((cells[0], read_weight(weight, place)), place))
    except csv.Error as error:
        raise InputError(f"{name} line {reader.line_num} can't be read: {error}") from None
    return found


def _json_entries(name: str, text: str) -> Entries:
    try:
        given = json.loads(text, object_pairs_hook=tuple)
    except json.JSONDecodeError as error:
        raise InputError(f"{name} line {error.lineno} is no JSON: {error.msg}") from None
    except (RecursionError, ValueError):  # nested too deeply, or a number of too many digits
        given = None
    if not isinstance(given, tuple):
        raise InputError(f'{name} is no JSON object of classes and weights, as {{"dog": 2.5}}')
    found = []
    for (key, weight), line in zip(given, _lines_of_keys(text), strict=False):
        place = f"{name} line {line}"
        as_written = json.dumps(weight) if weight is None or isinstance(weight, bool) else weight
        found.append(((key.strip(), read_weight(as_written, place)), place))
    return found


def _lines_of_keys(text: str) -> Iterator[int]:
    """Yield the number of the line of every key of a JSON object, in order."""
    line, at = 1, 0
    for string in _JSON_STRING.finditer(text):
        line, at = line + text.count("\n", at, string.start()), string.start()
        if string[1]:
            yield line
