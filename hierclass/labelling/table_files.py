"""Tables on disk, of labels or features: whose they are, and how to tell that one is as a run wrote it."""

from __future__ import annotations

import csv
import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn

from hierclass.errors import InputError
from hierclass.files import written_at
from hierclass.images.discovery import display_name
from hierclass.labelling.table_writers import format_of

_OURS = re.compile(
    r"path|error|level|synset|label|score|chosen_level|stop_reason|preview|features|tier\d+_(synset|label|score)"
)
"""Names of the columns of the tables that hierclass writes."""
_LONGEST_HEAD = 1 << 20
"""Bytes of the first line of a text table that are looked at."""


class TableMark(NamedTuple):
    """What tells whether the file of a table is the same: size, time of the last change (ns), and SHA-256 sum."""

    size: int
    modified: int
    digest: str = ""
    """Empty for a file whose content does not matter: one that may be replaced."""

    @classmethod
    def of(cls, table: Path, *, digest: bool) -> TableMark:
        """Return the mark of a file; `digest`: with the sum of its content."""
        status = table.stat()
        return cls(status.st_size, status.st_mtime_ns, _digest(table) if digest else "")


def is_marked(table: Path, marks: Sequence[TableMark]) -> bool:
    """Return whether a file is one of those marked; one of another time (a copy) is if its content is the same."""
    now = TableMark.of(table, digest=False)
    if any(mark[:2] == now[:2] for mark in marks):
        return True
    same_size = [mark.digest for mark in marks if mark.size == now.size and mark.digest]
    return bool(same_size) and _digest(table) in same_size


def _digest(table: Path) -> str:
    with table.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def refuse_finished(table: Path) -> NoReturn:
    """Raise InputError that says what is in a table which is not to be replaced, and what to do."""
    added = _check_ours(table)
    about = f"{display_name(table)} exists ({_num_rows(table):,} rows, written {written_at(table)})"
    loses = f", but loses your column {added[0]!r}" if added else ""
    raise InputError(f"{about}; --overwrite begins anew{loses}, or name another file")


def refuse_changed(table: Path) -> NoReturn:
    """Raise InputError for a table in the place of a run's that is not as the run wrote it."""
    refuse_to_lose(table)
    raise InputError(
        f"{display_name(table)} was changed since its run wrote it, or comes from elsewhere; move it away, and the "
        "same command writes the run's"
    )


def refuse_to_lose(table: Path) -> None:
    """Raise InputError if a file that would be replaced is no table of ours, or has columns that people added to it."""
    if added := _check_ours(table):
        raise InputError(
            f"{display_name(table)} has a column {added[0]!r} that would be lost; move that file away, name another, "
            "or add --overwrite"
        )


def _check_ours(table: Path) -> list[str]:
    """Return the columns that people added to a table; raise InputError for a file that hierclass did not write."""
    try:
        names = _columns_of(table)
    except (OSError, ValueError, RecursionError, csv.Error):  # Arrow's errors are ValueErrors
        names = []
    if not {"path", "error"} <= set(names):
        raise InputError(
            f"{display_name(table)} exists and is no table that hierclass wrote; name another file, or add --overwrite "
            "to replace it"
        )
    return [name for name in names if not _OURS.fullmatch(name)]


def _columns_of(table: Path) -> list[str]:
    """Names of the columns of a table on disk."""
    if format_of(table) == "parquet":
        import pyarrow.parquet as pq

        return list(pq.read_schema(table).names)
    with table.open(encoding="utf-8-sig", newline="") as file:
        head = file.readline(_LONGEST_HEAD)
    if format_of(table) == "csv":
        return next(csv.reader([head], delimiter=delimiter_of(head)), [])
    first = json.loads(head)
    return list(first) if isinstance(first, dict) else []


def delimiter_of(head: str) -> str:
    """Return what separates the columns of a CSV table, by its first line."""
    return ";" if ";" in head else ","


def _num_rows(table: Path) -> int:
    """Number of rows of a table that hierclass wrote."""
    if format_of(table) == "parquet":
        import pyarrow.parquet as pq

        return int(pq.read_metadata(table).num_rows)
    with table.open(encoding="utf-8-sig", newline="") as file:
        if format_of(table) == "csv":
            return sum(1 for _ in csv.reader(file)) - 1
        return sum(1 for _ in file)
