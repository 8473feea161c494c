"""Taxonomies on disk: JSON written and read, CSV tables and folder trees read, bundled trees by name.

Errors about a file are written FILE:LINE: message. `Taxonomy.load`, `.save`, `.from_csv` and
`.from_folder` lead here.
"""

import csv
import importlib.resources
import io
import json
import os
import textwrap
from collections.abc import Iterable, Sequence
from importlib.resources.abc import Traversable
from os import PathLike
from pathlib import Path

from taxonomy.check import Problem, json_lines, line_of, read_document, structure_problems
from taxonomy.errors import TaxonomyError
from taxonomy.folders import leaf_folders
from taxonomy.rows import tree_of, tree_of_ways
from taxonomy.table import read_table
from taxonomy.tree import Taxonomy

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


def _bundled_folder() -> Traversable:
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
    except ValueError as error:  # a path that no file can have
        raise TaxonomyError(f"{str(path)!r}: cannot be written ({error})") from None


def dumps(taxonomy: Taxonomy) -> str:
    """The JSON text of a taxonomy, laid out for people: one node a line, ids in wrapped lines."""
    data = taxonomy.to_dict()
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


def dumps_table(taxonomy: Taxonomy) -> str:
    """The text of a taxonomy as a table that `from_csv` reads: a row per leaf, a column per tier, easy to edit.

    Nodes between the tiers, and the ids of classes that are no leaves, are not in it: see `with_ids_of`.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    tiers = [f"tier {tier}" for tier in range(taxonomy.num_tiers - 1)]
    writer.writerow([*tiers, "class", "id", "definition"])
    for leaf in taxonomy.leaves:
        names = [node.name for node in taxonomy.path(leaf)]
        writer.writerow([*names, leaf, taxonomy.node(leaf).definition])
    return text.getvalue()


def with_ids_of(edited: Taxonomy, original: Taxonomy) -> Taxonomy:
    """The edited tree, in which classes that are called as in the original have its ids and definitions again.

    A table of classes holds no ids but those of the leaves, so that reading one makes new ones.
    """
    known = {node.name: node for node in original.nodes if node.id not in original.leaves}
    kept = {node.id for node in edited.nodes if node.name not in known or node.id in edited.leaves}
    data = edited.to_dict()
    new = {
        node["id"]: known[node["name"]].id
        for node in data["nodes"]
        if node["id"] not in kept and known[node["name"]].id not in kept
    }
    for node in data["nodes"]:
        if node["id"] in new:
            node["definition"] = known[node["name"]].definition
        node["id"], node["parent"] = new.get(node["id"], node["id"]), new.get(node["parent"], node["parent"])
    data["tiers"] = [[new.get(node_id, node_id) for node_id in tier] for tier in data["tiers"]]
    return Taxonomy.from_dict({**data, "name": original.name})


def examine(path: str | PathLike[str]) -> tuple[Taxonomy | None, list[str]]:
    """Read a JSON or CSV file and say everything that can be found wrong with it.

    Returns:
        The taxonomy, or None where something is wrong; and one line FILE:LINE: message per problem.
    """
    path = Path(path)
    try:
        text = read_text(path)
    except TaxonomyError as error:
        return None, [str(error)]
    if path.suffix.lower() in (".csv", ".tsv"):
        return _from_table(path, text)
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


def read_text(path: Path) -> str:
    """Read a UTF-8 text, with or without a byte order mark; raises TaxonomyError where it cannot be."""
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


# ---------------------------------------------------------------- tables and folders


def from_csv(path: str | PathLike[str]) -> Taxonomy:
    """Read a table with a row per leaf and a column per tier.

    The first row names the columns: the tiers from coarse to fine, the last of them the leaf's name; a
    column `id` (the leaf's id) and a column `definition` may stand anywhere. A class repeated to its right
    is one node that serves in both tiers. Nodes without an id get the path of their names, like
    "animal/dog"; names that occur twice get their parent's name, like "food (plant)". Separators are
    commas, semicolons or tabs.

    Raises:
        TaxonomyError: FILE:LINE: and what is wrong.
    """
    taxonomy, problems = _from_table(Path(path), read_text(Path(path)))
    if taxonomy is None:
        raise TaxonomyError(problems[0])
    return taxonomy


def _from_table(path: Path, text: str) -> tuple[Taxonomy | None, list[str]]:
    rows, problems = read_table(text)
    if problems:
        return None, [f"{path}:{line}: {message}" for line, message in problems]
    return tree_of(rows, name=path.stem), []


def from_folder(path: str | PathLike[str]) -> Taxonomy:
    """Read a tree of class folders like animal/dog/chihuahua/*.jpg.

    A leaf is a folder that holds images, or that has no folders in it. Tier k is the k-th folder on the
    way; a leaf that ends earlier is its own class in the finer tiers. Ids are the folders' relative paths
    with "/", so that a leaf's images are found by its id; names are the folders' names with spaces for
    underscores. Hidden folders and links that lead back up are left out.

    Raises:
        TaxonomyError: not a readable folder, no class folders in it, or a folder that is leaf and group at
            once.
    """
    path = Path(path)
    if not path.is_dir():
        raise TaxonomyError(f"{path}: no such folder; give the folder that holds the class folders")
    leaves = leaf_folders(path, (), (path.resolve(),))
    if leaves == [()]:
        raise TaxonomyError(
            f"{path}: no class folders in it; expected folders like {path / 'animal' / 'dog'}/*.jpg"
        )
    return tree_of_ways(leaves, name=path.resolve().name)
