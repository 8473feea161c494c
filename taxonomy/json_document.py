"""The JSON document of a taxonomy: taken apart, laid out as text, and the line of each of its values."""

import bisect
import contextlib
import json
import os
import re
import textwrap
from collections.abc import Iterable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

from taxonomy.errors import TaxonomyError
from taxonomy.validation import Place, Problem, node_problems

FORMAT = "hierclass-taxonomy"
VERSION = 1


class Document(NamedTuple):
    """The content of a JSON document, parents as indices; not yet known to be a tree."""

    name: str
    nodes: list[tuple[str, str, str]]  # id, name, definition
    parents: list[int]
    leaves: list[str]
    tiers: list[list[str]]


def read_document(data: Any) -> tuple[Document | None, list[Problem]]:
    """Read the parts of a decoded JSON document.

    Returns:
        The document's content, or None where problems were found; and the problems.
    """
    problems = _header_problems(data)
    if problems:
        return None, problems
    problems = _type_problems(data)
    if problems:
        return None, problems
    nodes, parents = [], []
    index: dict[str, int] = {}
    for i, node in enumerate(data["nodes"]):
        index.setdefault(node["id"], i)
        nodes.append((node["id"], node["name"], node.get("definition", "")))
    for i, node in enumerate(data["nodes"]):
        parent = node.get("parent")
        if parent is not None and parent not in index:
            text = f"node {node['id']!r} has the unknown parent {parent!r}; add that node or correct the id"
            problems.append(Problem(text, ("nodes", i, "parent")))
        parents.append(-1 if parent is None else index.get(parent, -1))
    problems += [p for p in node_problems([n[0] for n in nodes], [n[1] for n in nodes]) if p not in problems]
    if problems:
        return None, problems
    return Document(data["name"], nodes, parents, data["leaves"], data["tiers"]), []


def _header_problems(data: Any) -> list[Problem]:
    if not isinstance(data, dict):
        return [Problem("a taxonomy is a JSON object with format, version, name, nodes, leaves and tiers")]
    if data.get("format") != FORMAT:
        found = repr(data["format"]) if "format" in data else "missing"
        return [Problem(f'this is no taxonomy: "format" is {found}; it must be "{FORMAT}"', ("format",))]
    version = data.get("version")
    if isinstance(version, int) and not isinstance(version, bool) and version > VERSION:
        text = (
            f"made by a newer version of hierclass (format {version}, known is {VERSION}); update hierclass"
        )
        return [Problem(text, ("version",))]
    if version != VERSION or isinstance(version, bool):
        found = repr(version) if "version" in data else "missing"
        return [Problem(f'"version" is {found}; it must be {VERSION}', ("version",))]
    a_list = (list, "a list")
    kinds = {"name": (str, "text"), "nodes": a_list, "leaves": a_list, "tiers": a_list}
    problems = []
    for key, (kind, words) in kinds.items():
        if key not in data:
            problems.append(Problem(f'"{key}" is missing; it must be {words}'))
        elif not isinstance(data[key], kind):
            problems.append(Problem(f'"{key}" must be {words}', (key,)))
    return problems


def _type_problems(data: dict[str, Any]) -> list[Problem]:
    problems = []
    for i, node in enumerate(data["nodes"]):
        if not isinstance(node, dict):
            problems.append(Problem(f"node {i} must be an object with id, name and parent", ("nodes", i)))
            continue
        for key in ("id", "name"):
            if key not in node:
                problems.append(Problem(f'node {i} has no "{key}"; add one', ("nodes", i)))
        for key, value in node.items():
            text_or_null = key == "parent" and value is None
            if key in ("id", "name", "definition", "parent") and not (isinstance(value, str) or text_or_null):
                problems.append(Problem(f'"{key}" of node {i} must be text', ("nodes", i, key)))
    id_lists: list[tuple[Any, str, Place]] = [(data["leaves"], "leaves", ("leaves",))]
    id_lists += [(tier, f"tier {k}", ("tiers", k)) for k, tier in enumerate(data["tiers"])]
    for values, where, place in id_lists:
        if not isinstance(values, list):
            problems.append(Problem(f"{where} must be a list of node ids", place))
            continue
        for j, value in enumerate(values):
            if not isinstance(value, str):
                problems.append(Problem(f"entry {j} of {where} must be a node id (text)", (*place, j)))
    return problems


# ---------------------------------------------------------------- lines of a JSON file

_BLANK = re.compile(r"[ \t\r\n]*")
_DEEPEST = 3  # ("nodes", 3, "parent")


def json_lines(text: str) -> dict[Place, int]:
    """Map the places of a valid JSON text, up to three steps deep, to line numbers from 1."""
    breaks = [match.start() for match in re.finditer("\n", text)]
    decoder = json.JSONDecoder()
    lines: dict[Place, int] = {}

    def skip(pos: int) -> int:
        match = _BLANK.match(text, pos)
        assert match is not None
        return match.end()

    def value(pos: int, place: Place) -> int:
        lines[place] = bisect.bisect_left(breaks, pos) + 1
        opener = text[pos]
        if opener not in "{[" or len(place) == _DEEPEST:
            return decoder.raw_decode(text, pos)[1]
        pos, count = skip(pos + 1), 0
        while text[pos] not in "}]":
            key: str | int = count
            if opener == "{":
                key, pos = decoder.raw_decode(text, pos)
                pos = skip(skip(pos) + 1)  # past the colon
            pos, count = skip(value(pos, (*place, key))), count + 1
            if text[pos] == ",":
                pos = skip(pos + 1)
        return pos + 1

    value(skip(0), ())
    return lines


def line_of(place: Place, lines: dict[Place, int]) -> int:
    """Find the line of a place, or of the nearest place around it that exists."""
    while place and place not in lines:
        place = place[:-1]
    return lines.get(place, 1)


# ---------------------------------------------------------------- writing


def write_document(data: Mapping[str, Any], path: str | PathLike[str]) -> None:
    """Write the document of a taxonomy to a temporary file, which is synced to disk and then renamed.

    Raises:
        TaxonomyError: the file cannot be written there.
    """
    path = Path(path)
    if path.suffix.lower() in (".csv", ".tsv"):
        raise TaxonomyError(f"{path}: taxonomies are saved as JSON; choose a name that ends in .json")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        target = Path(os.path.realpath(path))  # of a link what it leads to is replaced
        if target.exists() and not target.is_file():
            raise TaxonomyError(f"{path}: cannot be written (it is no file); choose another place")
        temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
        with temporary.open("w", encoding="utf-8", newline="\n") as file:
            file.write(dumps(data))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
        sync_folder(target.parent)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise TaxonomyError(f"{path}: cannot be written ({error.strerror}); choose another place") from None
    except ValueError as error:  # a path that no file can have
        raise TaxonomyError(f"{str(path)!r}: cannot be written ({error})") from None


def sync_folder(folder: Path) -> None:
    """Sync the names in a folder to disk, where the system can (Windows can't)."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def dumps(data: Mapping[str, Any]) -> str:
    """Lay the document of a taxonomy out as JSON text for people: one node a line, ids in wrapped lines."""
    nodes = ",\n".join(f"    {_dumps(node)}" for node in data["nodes"])
    tiers = ",\n".join(f"    [\n{_wrapped(tier, 6)}\n    ]" for tier in data["tiers"])
    head = ",\n".join(f"  {_dumps(key)}: {_dumps(data[key])}" for key in ("format", "version", "name"))
    leaves = _wrapped(data["leaves"], 4)
    lists = ",\n".join(
        f'  "{key}": [\n{lines}\n  ]'
        for key, lines in (("nodes", nodes), ("leaves", leaves), ("tiers", tiers))
    )
    return f"{{\n{head},\n{lists}\n}}\n"


def _dumps(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def _wrapped(ids: Iterable[str], indent: int) -> str:
    lines = [""]
    for node_id in ids:
        entry = _dumps(node_id)
        if lines[-1] and len(lines[-1]) + len(entry) > 100:
            lines.append("")
        lines[-1] += f"{entry}, "
    text = "\n".join(line.rstrip() for line in lines).rstrip(",")
    return textwrap.indent(text, " " * indent)
