"""Taxonomies on disk: bundled ones by name; JSON files, tables and class folders by path.

Errors about a file are written FILE:LINE: message.
"""

import importlib.resources
import json
from collections.abc import Sequence
from importlib.resources.abc import Traversable
from os import PathLike
from pathlib import Path
from typing import Any

from taxonomy.errors import TaxonomyError
from taxonomy.folders import from_folder
from taxonomy.json_document import json_lines, line_of, read_document
from taxonomy.rows import from_rows
from taxonomy.tables import read_table
from taxonomy.tree import Taxonomy
from taxonomy.validation import Problem, structure_problems

MAX_TEXT = 64 << 20
"""Bytes of a tree, a table or a list, at most; bounds memory. All nouns of WordNet with definitions take a quarter."""

_MAX_LOCATED = 8 << 20
"""Characters of a JSON text, at most, in which the lines of problems are looked for: that takes a second for each
million."""
_LONGEST = 600
"""Characters of a problem that are shown."""


def load_taxonomy(name_or_path: str | PathLike[str]) -> Taxonomy:
    """Load a bundled taxonomy by name, or one of your own by path.

    A folder is read as a tree of class folders, a .csv or .tsv file as a table, any other file as JSON.

    Args:
        name_or_path: a bundled name wins over a file of that name; write ./NAME for the file.

    Raises:
        TaxonomyError: there is no such name or file, or it is wrong; the text names file and line.
    """
    if isinstance(name_or_path, str) and name_or_path in bundled():
        text = (_bundled_folder() / f"{name_or_path}.json").read_text(encoding="utf-8")
        return Taxonomy.from_dict(json.loads(text))
    path = Path(name_or_path)
    if path.is_dir():
        return from_folder(path)
    taxonomy, problems = examine(path)
    if taxonomy is None:
        raise TaxonomyError(problems[0])
    return taxonomy


def bundled() -> tuple[str, ...]:
    """List the names of the taxonomies that come with the package, sorted."""
    folder = _bundled_folder()
    if not folder.is_dir():
        return ()
    return tuple(sorted(entry.name[:-5] for entry in folder.iterdir() if entry.name.endswith(".json")))


def _bundled_folder() -> Traversable:
    return importlib.resources.files("taxonomy") / "data" / "bundled"


def examine(path: str | PathLike[str]) -> tuple[Taxonomy | None, list[str]]:
    """Read a JSON or CSV file and list all of its problems.

    Returns:
        The taxonomy, or None where something is wrong; and one line FILE:LINE: message per problem.
    """
    path = Path(path)
    try:
        text = read_text(path)
        if path.suffix.lower() in (".csv", ".tsv"):
            return _from_table(path, text)
        data = parse_json(path, text)
    except TaxonomyError as error:
        return None, [str(error)]
    document, found = read_document(data)
    if document is not None:
        ids, names = [node[0] for node in document.nodes], [node[1] for node in document.nodes]
        found = structure_problems(ids, names, document.parents, document.leaves, document.tiers)
    if found:
        return None, _located(path, text, found)
    return Taxonomy.from_dict(data), []


def _located(path: Path, text: str, problems: Sequence[Problem]) -> list[str]:
    lines = json_lines(text) if len(text) <= _MAX_LOCATED else {}
    return [_told(path, line_of(problem.place, lines), problem.message) for problem in problems]


def _told(path: Path, line: int, message: str) -> str:
    return f"{path}:{line}: {message if len(message) <= _LONGEST else f'{message[:_LONGEST]}…'}"


def parse_json(path: Path, text: str) -> Any:
    """Return what the JSON text of a file says; raises TaxonomyError with file and line."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise TaxonomyError(
            f"{path}:{error.lineno}: not valid JSON: {error.msg} (column {error.colno})"
        ) from None
    except RecursionError:
        raise TaxonomyError(f"{path}:1: nested too deeply") from None
    except ValueError:  # of numbers with thousands of digits
        raise TaxonomyError(f"{path}:1: it holds an endless number") from None


def read_text(path: Path) -> str:
    """Read a UTF-8 text, with or without a byte order mark; raises TaxonomyError where it cannot be."""
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_TEXT + 1)
        if len(data) <= MAX_TEXT:
            return data.decode("utf-8-sig")
    except FileNotFoundError:
        names = f"bundled are {', '.join(bundled())}" if bundled() else "none are bundled"
        raise TaxonomyError(f"{path}: no such file, nor a bundled taxonomy ({names})") from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise TaxonomyError(f"{path}:{line}: not UTF-8 text; save the file as UTF-8") from None
    except OSError as error:
        raise TaxonomyError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError as error:  # a path that no file can have, such as one with a null character
        raise TaxonomyError(f"{str(path)!r}: cannot be read ({error})") from None
    raise TaxonomyError(f"{path}:1: longer than {MAX_TEXT >> 20} MiB; is it a tree or a table of classes?")


def from_csv(path: str | PathLike[str]) -> Taxonomy:
    """Read a table with a row per leaf and a column per tier.

    The first row names the columns: the tiers from coarse to fine, the last of them the leaf's name; a
    column `id` (the leaf's id) and a column `definition` may stand anywhere. A class repeated to its right
    is one node that serves in both tiers. Nodes without an id get the path of their names, like
    "animal/dog"; names that occur twice get their parent's name, like "food (plant)". Separators are
    commas, semicolons or tabs.

    Raises:
        TaxonomyError: the table cannot be read or is wrong; the text names file and line.
    """
    taxonomy, problems = _from_table(Path(path), read_text(Path(path)))
    if taxonomy is None:
        raise TaxonomyError(problems[0])
    return taxonomy


def _from_table(path: Path, text: str) -> tuple[Taxonomy | None, list[str]]:
    rows, problems = read_table(text)
    if problems:
        return None, [_told(path, line, message) for line, message in problems]
    return from_rows(rows, name=path.stem), []
