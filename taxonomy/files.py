"""Taxonomies on disk: JSON written and read, CSV tables and folder trees read, bundled trees by name.

Errors about a file are written FILE:LINE: message. May import `taxonomy.tree` and `taxonomy.check`.
"""

import csv
import importlib.resources
import io
import json
import os
import re
import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path

from taxonomy.check import Problem, json_lines, line_of, listed, read_document, structure_problems
from taxonomy.errors import TaxonomyError
from taxonomy.tree import Node, Taxonomy

IMAGE_ENDINGS = frozenset(
    ".jpg .jpeg .jpe .jfif .png .bmp .gif .webp .tif .tiff .avif .heic .heif .jp2 .ppm .pgm".split()
)

# ---------------------------------------------------------------- load and save


def load(name_or_path: str | PathLike[str]) -> Taxonomy:
    """Load a bundled taxonomy by name, or one of the user's by path.

    A bundled name wins over a file of that name; write ./NAME for the file. A folder is read as a tree of
    class folders, a .csv or .tsv as a table, anything else as JSON.

    Raises:
        TaxonomyError: no such name or file, or it is wrong; says which line.
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
    """Names of the taxonomies that come with the package, sorted."""
    folder = _bundled_folder()
    if not folder.is_dir():
        return ()
    return tuple(sorted(entry.name[:-5] for entry in folder.iterdir() if entry.name.endswith(".json")))


def _bundled_folder() -> importlib.resources.abc.Traversable:
    return importlib.resources.files("taxonomy") / "data" / "bundled"


def save(taxonomy: Taxonomy, path: str | PathLike[str]) -> None:
    """Write a taxonomy as JSON, one node a line, to a temporary file that is then renamed.

    Raises:
        TaxonomyError: the file cannot be written there.
    """
    path = Path(path)
    if path.suffix.lower() in (".csv", ".tsv"):
        raise TaxonomyError(f"{path}: taxonomies are saved as JSON; choose a name that ends in .json")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(dumps(taxonomy), encoding="utf-8", newline="\n")
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise TaxonomyError(f"{path}: cannot be written ({error.strerror}); choose another place") from None


def dumps(taxonomy: Taxonomy) -> str:
    """The JSON text of a taxonomy, laid out for people: one node a line, ids in wrapped lines."""
    data = taxonomy.to_dict()
    nodes = ",\n".join(f"    {_dumps(node)}" for node in data["nodes"])
    tiers = ",\n".join(f"    [\n{_wrapped(tier, 6)}\n    ]" for tier in data["tiers"])
    head = ",\n".join(f"  {_dumps(key)}: {_dumps(data[key])}" for key in ("format", "version", "name"))
    leaves = _wrapped(data["leaves"], 4)
    return f'{{\n{head},\n  "nodes": [\n{nodes}\n  ],\n  "leaves": [\n{leaves}\n  ],\n  "tiers": [\n{tiers}\n  ]\n}}\n'


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


def examine(path: str | PathLike[str]) -> tuple[Taxonomy | None, list[str]]:
    """Read a JSON or CSV file and say everything that can be found wrong with it.

    Returns:
        The taxonomy, or None where something is wrong; and one line FILE:LINE: message per problem.
    """
    path = Path(path)
    try:
        text = _read_text(path)
    except TaxonomyError as error:
        return None, [str(error)]
    if path.suffix.lower() in (".csv", ".tsv"):
        table, problems = _read_table(text)
        if problems:
            return None, [f"{path}:{line}: {message}" for line, message in problems]
        return _tree_of(table, name=path.stem), []
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        return None, [f"{path}:{error.lineno}: not valid JSON: {error.msg} (column {error.colno})"]
    except RecursionError:
        return None, [f"{path}:1: not a taxonomy: nested too deeply"]
    document, found = read_document(data)
    if document is not None:
        ids, names = [node[0] for node in document.nodes], [node[1] for node in document.nodes]
        found = structure_problems(ids, names, document.parents, document.leaves, document.tiers)
    if found:
        return None, _located(path, text, found)
    return Taxonomy.from_dict(data), []


def _located(path: Path, text: str, problems: Sequence[Problem]) -> list[str]:
    lines = json_lines(text)
    return [f"{path}:{line_of(problem.place, lines)}: {problem.message}" for problem in problems]


def _read_text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
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


# ---------------------------------------------------------------- tables


@dataclass
class _Row:
    """A leaf of a table or folder tree: its class per tier, coarse to fine, the leaf's own name last."""

    cells: tuple[str, ...]
    id: str = ""
    definition: str = ""


def from_csv(path: str | PathLike[str]) -> Taxonomy:
    """Read a table with a row per leaf and a column per tier.

    The first row names the columns: the tiers from coarse to fine, the last of them the leaf's name; a column
    `id` (the leaf's id) and a column `definition` may stand anywhere. A class repeated to its right is one node
    that serves in both tiers. Nodes without an id get the path of their names, like "animal/dog"; names that
    occur twice get their parent's name, like "food (plant)". Separators are commas, semicolons or tabs.

    Raises:
        TaxonomyError: FILE:LINE: and what is wrong.
    """
    path = Path(path)
    table, problems = _read_table(_read_text(path))
    if problems:
        line, message = problems[0]
        raise TaxonomyError(f"{path}:{line}: {message}")
    return _tree_of(table, name=path.stem)


def _read_table(text: str) -> tuple[list[_Row], list[tuple[int, str]]]:
    """Read the rows of a table; the problems are pairs of line and message."""
    records, problems = _records(text)
    if problems:
        return [], problems
    if not records:
        return [], [
            (1, "the table is empty; start with a row of tier names, coarse to fine, like: kingdom,kind,leaf")
        ]
    header_line, header = records[0]
    header = [cell.strip() for cell in header]
    special = {key: i for i, cell in enumerate(header) if (key := cell.lower()) in ("id", "definition")}
    tiers = [i for i in range(len(header)) if i not in special.values()]
    problems = _header_problems(header_line, header, tiers)
    if problems:
        return [], problems
    rows: list[_Row] = []
    first_path: dict[tuple[str, ...], int] = {}
    first_id: dict[str, int] = {}
    for line, record in records[1:]:
        if len(record) != len(header):
            hint = (
                "; put a cell that contains the separator in double quotes"
                if len(record) > len(header)
                else ""
            )
            problems.append((line, f"{len(record)} cells, but the header has {len(header)}{hint}"))
            continue
        cells = [" ".join(cell.split()) for cell in record]
        row = _Row(tuple(cells[i] for i in tiers))
        row.id = cells[special["id"]] if "id" in special else ""
        row.definition = cells[special["definition"]] if "definition" in special else ""
        messages = _row_problems(row, [header[i] for i in tiers], "id" in special)
        if first_path.setdefault(row.cells, line) != line:
            messages.append(
                f"leaf {row.cells[-1]!r} repeats line {first_path[row.cells]}; remove one of them"
            )
        elif row.id and first_id.setdefault(row.id, line) != line:
            messages.append(
                f"duplicate id {row.id!r}, already used in line {first_id[row.id]}; change one of them"
            )
        problems += [(line, message) for message in messages]
        rows.append(row)
    if not rows and not problems:
        problems.append((header_line, "the table has a header but no rows; add a row per leaf"))
    return rows, problems


def _records(text: str) -> tuple[list[tuple[int, list[str]]], list[tuple[int, str]]]:
    """Split a table into records with the line each starts on, without blank ones; and the problems met."""
    header = text.lstrip().split("\n", 1)[0]
    separator = max(",;\t", key=header.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    records: list[tuple[int, list[str]]] = []
    line = 1
    try:
        for record in reader:
            if any(cell.strip() for cell in record):
                records.append((line, record))
            line = reader.line_num + 1
    except csv.Error as error:
        return [], [(line, f"not a table: {error}; look for a double quote that is not closed")]
    return records, []


def _header_problems(line: int, header: Sequence[str], tiers: Sequence[int]) -> list[tuple[int, str]]:
    problems = []
    for i, cell in enumerate(header):
        if not cell:
            problems.append((line, f"column {i + 1} has no name; write the name of its tier"))
        elif cell.lower() in [other.lower() for other in header[:i]]:
            problems.append((line, f"two columns are called {cell!r}; rename one of them"))
    if not tiers:
        problems.append((line, "no tier columns; name at least one column for the leaves"))
    return problems


def _row_problems(row: _Row, tiers: Sequence[str], with_ids: bool) -> list[str]:
    messages = []
    if not row.cells[-1]:
        messages.append(
            f"no leaf: the last tier column ({tiers[-1]!r}) is blank; write the leaf's name there"
        )
    else:
        for tier, cell in zip(tiers, row.cells, strict=True):
            if not cell:
                text = f"leaf {row.cells[-1]!r} has no class in tier {tier!r}; write one"
                messages.append(f"{text}, or the leaf's own name where it is its own class")
    if with_ids and not row.id:
        messages.append(f"leaf {row.cells[-1]!r} has no id; fill the column or remove it")
    return messages


# ---------------------------------------------------------------- folders


def from_folder(path: str | PathLike[str]) -> Taxonomy:
    """Read a tree of class folders like animal/dog/chihuahua/*.jpg.

    A leaf is a folder that holds images, or that has no folders in it. Tier k is the k-th folder on the way; a leaf
    that ends earlier is its own class in the finer tiers. Ids are the folders' relative paths with "/", so that a
    leaf's images are found by its id; names are the folders' names with spaces for underscores. Hidden folders
    and links that lead back up are left out.

    Raises:
        TaxonomyError: not a readable folder, no class folders in it, or a folder that is leaf and group at once.
    """
    path = Path(path)
    if not path.is_dir():
        raise TaxonomyError(f"{path}: no such folder; give the folder that holds the class folders")
    leaves = _leaf_folders(path, (), (path.resolve(),))
    if leaves == [()]:
        raise TaxonomyError(
            f"{path}: no class folders in it; expected folders like {path / 'animal' / 'dog'}/*.jpg"
        )
    deepest = max(len(parts) for parts in leaves)
    rows = [_Row(parts + parts[-1:] * (deepest - len(parts)), id="/".join(parts)) for parts in leaves]
    return _tree_of(rows, name=path.resolve().name, slug=str, label=_spaced)


def _spaced(part: str) -> str:
    return " ".join(part.replace("_", " ").split()) or part


def _leaf_folders(folder: Path, parts: tuple[str, ...], chain: tuple[Path, ...]) -> list[tuple[str, ...]]:
    """Relative paths, as parts, of the leaf folders at and below a folder, sorted."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        folders = [
            e.name for e in entries if not e.name.startswith(".") and e.is_dir() and not _leads_up(e, chain)
        ]
        images = any(Path(e.name).suffix.lower() in IMAGE_ENDINGS and not e.is_dir() for e in entries)
    except OSError as error:
        raise TaxonomyError(f"{folder}: cannot be read ({error.strerror})") from None
    if not folders or (images and not parts):
        return [parts]
    if images:
        text = f"{folder}: holds images and also folders ({listed(folders)})"
        raise TaxonomyError(f"{text}; move the images into a folder of their own, or the folders elsewhere")
    found = []
    for name in folders:
        below = folder / name
        found += _leaf_folders(below, (*parts, name), (*chain, below.resolve()))
    return found


def _leads_up(entry: os.DirEntry[str], chain: tuple[Path, ...]) -> bool:
    """Whether a link leads to a folder on the way down here, or to one above it."""
    return entry.is_symlink() and chain[-1].is_relative_to(Path(entry.path).resolve())


# ---------------------------------------------------------------- from rows to a tree


@dataclass
class _Group:
    """A node in the making."""

    name: str
    parent: "_Group | None" = None
    children: dict[str, "_Group"] = field(default_factory=dict)
    row: _Row | None = None  # of a leaf
    merged: "_Group | None" = None  # the parent that took this one's place
    id: str = ""
    label: str = ""

    def final(self) -> "_Group":
        """The group itself or the one it was merged into."""
        return self if self.merged is None else self.merged.final()


def _tree_of(
    rows: Sequence[_Row],
    *,
    name: str,
    slug: Callable[[str], str] | None = None,
    label: Callable[[str], str] = str,
) -> Taxonomy:
    """Make a taxonomy of rows without blank cells; no row may repeat another."""
    root = _Group("")
    ways: list[list[_Group]] = []
    for row in rows:
        way = [root]
        for cell in row.cells:
            way.append(way[-1].children.setdefault(cell, _Group(cell, parent=way[-1])))
        way[-1].row = row
        ways.append(way[1:])
    _merge(root)
    groups = _ordered(root)
    _name_ids(groups, slug or _slug)
    _name_labels(groups, label)
    tiers = [dict.fromkeys(way[k].final().id for way in ways) for k in range(len(ways[0]))]
    index = {id(group): i for i, group in enumerate(groups)}
    return Taxonomy(
        name=name,
        nodes=[Node(group.id, group.label, group.row.definition if group.row else "") for group in groups],
        parents=[-1 if group.parent is None else index[id(group.parent)] for group in groups],
        leaves=list(tiers[-1]),
        tiers=[list(tier) for tier in tiers],
    )


def _merge(group: _Group) -> None:
    """Merge an only child of the same name into its parent: one class that serves in both tiers."""
    for child in group.children.values():
        _merge(child)
    if list(group.children) == [group.name] and group.parent is not None:
        child = group.children[group.name]
        group.children, group.row, child.merged = child.children, child.row, group
        for below in group.children.values():
            below.parent = group


def _ordered(root: _Group) -> list[_Group]:
    """The groups breadth first: parents stand before their children."""
    groups = [root]
    for group in groups:
        groups.extend(group.children.values())
    return groups


def _slug(name: str) -> str:
    return re.sub(r"\W+", "-", name.casefold()).strip("-_") or "class"


def _name_ids(groups: Sequence[_Group], slug: Callable[[str], str]) -> None:
    """Give leaves their own ids where they have one, and other groups the path of their names."""
    taken = {group.row.id for group in groups if group.row}
    for group in groups:
        if group.row and group.row.id:
            group.id = group.row.id
            continue
        above = group.parent
        prefix = f"{above.id}/" if above is not None and above.parent is not None else ""
        group.id = _free(prefix + slug(group.name) if above else "root", taken, "-")


def _name_labels(groups: Sequence[_Group], label: Callable[[str], str]) -> None:
    """Give groups unique display names: those that share one get the names of as many parents as it takes."""
    same: dict[str, list[_Group]] = {}
    for group in groups[1:]:
        same.setdefault(label(group.name), []).append(group)
    taken = {name for name, sharing in same.items() if len(sharing) == 1}
    for name, sharing in same.items():
        candidates = [name] * len(sharing)
        above = [[label(upper.name) for upper in _upper(group)] for group in sharing]
        for count in range(1, max(map(len, above)) + 1):
            if len(set(candidates)) == len(sharing):
                break
            candidates = [name + (f" ({', '.join(names[:count])})" if names else "") for names in above]
        for group, candidate in zip(sharing, candidates, strict=True):
            group.label = candidate if len(sharing) == 1 else _free(candidate, taken, " ")
    groups[0].label = _free("everything", taken, " ")


def _upper(group: _Group) -> list[_Group]:
    """The groups above one, without the root, nearest first."""
    above = group.parent
    return [] if above is None or above.parent is None else [above, *_upper(above)]


def _free(wish: str, taken: set[str], joint: str) -> str:
    """Take the wish, or the wish with the first number that makes it new."""
    number, found = 1, wish
    while found in taken:
        number += 1
        found = f"{wish}{joint}{number}"
    taken.add(found)
    return found
