"""Tables of leaves: a row per leaf, a column per tier. Works on text; problems come with their line."""

import csv
import io
from collections.abc import Mapping, Sequence

from taxonomy.check import UNPRINTABLE
from taxonomy.rows import Row

MAX_TIERS = 64  # a table with more columns is something else
LinedProblem = tuple[int, str]


def read_table(text: str) -> tuple[list[Row], list[LinedProblem]]:
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
    first_way: dict[tuple[str, ...], int] = {}
    first_id: dict[str, int] = {}
    for line, record in records[1:]:
        row, messages = _read_row(record, header, special)
        if row is not None:
            way_line, id_line = first_way.setdefault(row.cells, line), first_id.setdefault(row.id, line)
            if way_line != line:
                messages.append(
                    f"leaf {row.cells[-1]!r} stands in line {way_line} already; remove one of them"
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


def _runs_backwards(rows: Sequence[Row]) -> bool:
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
    problems = []
    for i, cell in enumerate(header):
        if not cell:
            problems.append((line, f"column {i + 1} has no name; write the name of its tier"))
        elif cell.lower() in [other.lower() for other in header[:i]]:
            problems.append((line, f"two columns are called {cell!r}; rename one of them"))
    if len(tiers) > MAX_TIERS:
        problems.append((line, f"{len(tiers)} tier columns; a taxonomy has at most {MAX_TIERS}"))
    if not tiers:
        problems.append((line, "no tier columns; name at least one column for the leaves"))
    return problems


def _read_row(
    record: Sequence[str], header: Sequence[str], special: Mapping[str, int]
) -> tuple[Row | None, list[str]]:
    """Read one record under a header; `special` holds the columns that are no tiers."""
    if len(record) != len(header):
        advice = "quote cells that contain the separator" if len(record) > len(header) else "fill them all"
        return None, [f"{len(record)} cells, but the header has {len(header)}; {advice}"]
    cells = [" ".join(cell.split()) for cell in record]
    tiers = [i for i in range(len(header)) if i not in special.values()]
    row = Row(tuple(cells[i] for i in tiers))
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
