"""Tables of classes, a row per leaf and a column per tier: read from text, and written as text."""

import csv
import io
from collections.abc import Mapping, Sequence

from taxonomy.rows import LeafRow
from taxonomy.tree import Taxonomy
from taxonomy.validation import MAX_PROBLEMS, MAX_TIERS, UNPRINTABLE

LinedProblem = tuple[int, str]


def read_table(text: str) -> tuple[list[LeafRow], list[LinedProblem]]:
    """Read the rows of a table.

    Returns:
        The rows, to be used where no problems were found; and the problems as pairs of line and message.
    """
    records, problems = _records(text)
    if problems:
        return [], problems
    if not records:
        return [], [(1, "the table is empty; start with a row of tier names, like: kingdom,kind,leaf")]
    header_line, header = records[0]
    header = [cell.strip() for cell in header]
    special = {key: i for i, cell in enumerate(header) if (key := cell.lower()) in ("id", "definition")}
    tiers = [i for i in range(len(header)) if i not in special.values()]
    problems = _header_problems(header_line, header, tiers)
    if problems:
        return [], problems
    rows = []
    first_path: dict[tuple[str, ...], int] = {}
    first_id: dict[str, int] = {}
    for line, record in records[1:]:
        if len(problems) >= MAX_PROBLEMS:
            break
        row, messages = _read_row(record, header, special)
        if row is not None:
            path_line, id_line = first_path.setdefault(row.cells, line), first_id.setdefault(row.id, line)
            if path_line != line:
                messages.append(
                    f"leaf {row.cells[-1]!r} stands in line {path_line} already; remove one of them"
                )
            elif row.id and id_line != line:
                messages.append(
                    f"duplicate id {row.id!r}, used in line {id_line} already; change one of them"
                )
            rows.append(row)
        problems += [(line, message) for message in messages]
    if not rows and not problems:
        problems.append((header_line, "the table has a header but no rows; add a row per leaf"))
    if not problems and _runs_backwards(rows):
        text = f"no two leaves share a class in tier {header[tiers[0]]!r} but some in {header[tiers[-1]]!r}"
        problems.append((header_line, f"{text}; put the columns in the order coarse to fine"))
    return rows, problems


def _runs_backwards(rows: Sequence[LeafRow]) -> bool:
    """Whether the first column tells all rows apart and the last, which should, does not."""
    return len({row.cells[0] for row in rows}) == len(rows) > len({row.cells[-1] for row in rows})


def _records(text: str) -> tuple[list[tuple[int, list[str]]], list[LinedProblem]]:
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


def _header_problems(line: int, header: Sequence[str], tiers: Sequence[int]) -> list[LinedProblem]:
    if len(tiers) > MAX_TIERS:
        return [(line, f"{len(tiers)} tier columns; a taxonomy has at most {MAX_TIERS}")]
    problems = []
    for i, cell in enumerate(header):
        if not cell:
            problems.append((line, f"column {i + 1} has no name; write the name of its tier"))
        elif cell.lower() in [other.lower() for other in header[:i]]:
            problems.append((line, f"two columns are called {cell!r}; rename one of them"))
    if not tiers:
        problems.append((line, "no tier columns; name at least one column for the leaves"))
    return problems


def _read_row(
    record: Sequence[str], header: Sequence[str], special: Mapping[str, int]
) -> tuple[LeafRow | None, list[str]]:
    """Read one record under a header; `special` holds the columns that are no tiers."""
    if len(record) != len(header):
        advice = "quote cells that contain the separator" if len(record) > len(header) else "fill them all"
        return None, [f"{len(record)} cells, but the header has {len(header)}; {advice}"]
    cells = [" ".join(cell.split()) for cell in record]
    tiers = [i for i in range(len(header)) if i not in special.values()]
    row = LeafRow(tuple(cells[i] for i in tiers))
    row.id = cells[special["id"]] if "id" in special else ""
    row.definition = cells[special["definition"]] if "definition" in special else ""
    messages = []
    if UNPRINTABLE.search("".join(cells)):
        messages.append("an unprintable character; remove it")
    leaf = row.cells[-1]
    if not leaf:
        messages.append(f"no leaf: its column {header[tiers[-1]]!r} is blank; write the leaf's name there")
        return None, messages
    for i in tiers:
        if not cells[i]:
            text = f"leaf {leaf!r} has no class in tier {header[i]!r}; write one"
            messages.append(f"{text}, or the leaf's own name where it is its own class")
    if "id" in special and not row.id:
        messages.append(f"leaf {leaf!r} has no id; fill the column or remove it")
    return row, messages


# ---------------------------------------------------------------- writing


def dumps_table(taxonomy: Taxonomy) -> str:
    """Write a taxonomy as a table that `from_csv` reads: a row per leaf, a column per tier, easy to edit.

    It leaves out nodes between the tiers and the ids of classes that are no leaves; `with_ids_of` restores the ids.
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
    """Give the classes of an edited tree the ids and definitions that classes of the same name have in the original.

    A table holds the ids of leaves alone, so reading one makes new ids for all other classes.
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
