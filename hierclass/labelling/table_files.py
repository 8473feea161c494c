"""Tables on disk, of labels or features: whose they are, and how to tell that one is as a run wrote it."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from hierclass.errors import InputError
from hierclass.files import written_at
from hierclass.images.discovery import display_name
from hierclass.labelling.bounded_parquet import BoundedParquet, UnreadableRowsError, short
from hierclass.labelling.table_writers import csv_form_of, delimiter_of, format_of, unmarked
from taxonomy.streams import plural

if TYPE_CHECKING:
    import pyarrow as pa

_OURS = re.compile(
    r"path|error|level|synset|label|score|chosen_level|stop_reason|preview|features|tier\d+_(synset|label|score)"
)
"""Names of the columns of the tables that hierclass writes."""
BEGIN_ANEW = "--update --overwrite begins anew and keeps what later updates need"
_LONGEST_LINE = 16 << 20
"""Bytes of a line of a text table that are read."""
_ROWS = 10_000
"""Rows that are read at once."""


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


def refuse_finished(table: Path, verb: str, *, can_update: bool) -> NoReturn:
    """Raise InputError that says what is in a table which is not to be replaced, and what to do.

    `verb` is the command; `can_update`: whether --update can, if the same command wrote the table.
    """
    added, writer = check_ours(table), writer_of(table)
    about = f"{_num_rows(table)}written {written_at(table)} by hierclass {writer}"
    keeps, loses = (f" and keeps your column {added[0][:40]!r}", ", without it") if added else ("", "")
    update = f"--update {verb}s what is new or changed{keeps}, " if can_update else ""
    if writer != verb:
        update = "name another file, "
    raise InputError(f"{display_name(table)} exists ({about}); {update}--overwrite begins anew{loses}")


def refuse_changed(table: Path) -> NoReturn:
    """Raise InputError for a table in the place of a run's that is not as the run wrote it."""
    refuse_to_lose(table)
    raise InputError(
        f"{display_name(table)} was changed since its run wrote it, or comes from elsewhere; move it away, and the "
        "same command writes the run's"
    )


def refuse_to_lose(table: Path) -> None:
    """Raise InputError if a file that would be replaced is no table of ours, or has columns that people added to it."""
    if added := check_ours(table):
        raise InputError(
            f"{display_name(table)} has a column {added[0][:40]!r} that would be lost; move that file away, name "
            "another, or add --overwrite"
        )


def check_ours(table: Path) -> list[str]:
    """Return the columns that people added to a table; raise InputError for a file that hierclass did not write."""
    try:
        names = _columns_of(table)
    except UnicodeDecodeError:
        names = []
        if _looks_ours(table):
            raise InputError(f"{display_name(table)} can't be read: {_not_utf8(table)}") from None
    except (OSError, ValueError, RecursionError, csv.Error):  # Arrow's errors are ValueErrors
        names = []
    if not {"path", "error"} <= set(names) or not {"chosen_level", "features"} & set(names):
        raise InputError(
            f"{display_name(table)} exists and is no table that hierclass wrote; name another file, or add --overwrite "
            "to replace it"
        )
    return [name for name in names if not _OURS.fullmatch(name)]


def writer_of(table: Path) -> str:
    """Return the command that wrote a table, "label" (or refine) or "embed"; raises InputError as `check_ours`."""
    check_ours(table)
    return "label" if "chosen_level" in _columns_of(table) else "embed"


def _columns_of(table: Path) -> list[str]:
    """Names of the columns of a table on disk; of JSON lines those of the first."""
    if format_of(table) == "parquet":
        with BoundedParquet(table) as stored:
            return list(stored.schema.names)
    with table.open(encoding="utf-8-sig", newline="") as file:
        head = file.readline(_LONGEST_LINE)
    if format_of(table) == "csv":
        return next(csv.reader([head], delimiter=delimiter_of(head)), [])
    first = json.loads(head)
    return list(first) if isinstance(first, dict) else []


def _looks_ours(table: Path) -> bool:
    """Whether a text that is not in UTF-8 begins as a table of ours, in UTF-16 or with one byte for a letter."""
    with table.open("rb") as file:
        head = file.read(1 << 12)
    encoding = "utf-16" if head.startswith((b"\xff\xfe", b"\xfe\xff")) else "latin-1"
    names = set(re.findall(r"\w+", head.decode(encoding, "replace").partition("\n")[0]))
    return {"path", "error", "chosen_level"} <= names


def _not_utf8(table: Path) -> str:
    """What is wrong with a table in another encoding than UTF-8, and what to do."""
    wanted = '"CSV UTF-8"' if format_of(table) == "csv" else "UTF-8"
    return f"its encoding is not UTF-8; save it as {wanted}"


def _num_rows(table: Path) -> str:
    """The number of rows of a table that hierclass wrote, as the beginning of a list; empty if it can't be told."""
    try:
        if format_of(table) == "parquet":
            with BoundedParquet(table) as stored:
                count = stored.num_rows
        elif format_of(table) == "csv":
            with table.open(encoding="utf-8-sig", newline="") as file:
                count = sum(1 for _ in csv.reader(file)) - 1
        else:
            with table.open("rb") as file:
                count = sum(chunk.count(b"\n") for chunk in iter(lambda: file.read(1 << 20), b""))
    except (OSError, ValueError, csv.Error):
        return ""
    return f"{plural(count, 'row')}, "


# -- reading rows back


@contextlib.contextmanager
def _taking_up(table: Path) -> Iterator[None]:
    """Turn what a table is damaged by into one line."""
    import pyarrow as pa

    try:
        yield
    except (OSError, ValueError, TypeError, KeyError, RecursionError, csv.Error, pa.ArrowException) as error:
        if isinstance(error, UnicodeDecodeError) or "invalid UTF8" in str(error):
            raise InputError(
                f"the rows of {display_name(table)} can't be taken up: {_not_utf8(table)}"
            ) from error
        raise not_taken_up(table, str(error) if isinstance(error, InputError) else short(error)) from error


def not_taken_up(table: Path, why: str) -> InputError:
    """Return the error that an update can't begin with the rows of a table."""
    added: list[str] = []
    with contextlib.suppress(InputError):
        added = check_ours(table)
    to_do = BEGIN_ANEW
    if added:
        to_do = f"mend that, or name another file (--overwrite would lose your column {added[0][:40]!r})"
    return InputError(f"the rows of {display_name(table)} can't be taken up: {why}; {to_do}")


def our_columns(table: Path) -> list[str]:
    """Return the names of the columns of a table on disk that hierclass writes."""
    with _taking_up(table):
        return [name for name in _columns_of(table) if _OURS.fullmatch(name)]


def read_rows(table: Path, wanted: pa.Schema) -> Iterator[pa.Table]:
    """Yield the columns of a schema of a table on disk, some thousands of rows at a time.

    Raises:
        InputError: a column is missing, or the file can't be read as this table.
    """
    with _taking_up(table):
        yield from _read(table, wanted)


def _read(table: Path, wanted: pa.Schema) -> Iterator[pa.Table]:
    reader = {"csv": _read_csv, "jsonl": _read_lines, "parquet": _read_parquet}[format_of(table)]
    there = _columns_of(table)
    if missing := [name for name in wanted.names if name not in there]:
        raise InputError(f"it has no column {missing[0]!r}")
    for rows in reader(table, wanted):
        yield rows.select(wanted.names).cast(wanted)


def _read_csv(table: Path, wanted: pa.Schema) -> Iterator[pa.Table]:
    import pyarrow as pa
    import pyarrow.csv

    is_marked = csv_form_of(table).for_people
    with table.open(encoding="utf-8-sig", newline="") as file:
        delimiter = delimiter_of(file.readline(_LONGEST_LINE))
    with pa.csv.open_csv(
        table,
        pa.csv.ReadOptions(block_size=_LONGEST_LINE, use_threads=False),
        pa.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
        pa.csv.ConvertOptions(
            column_types=dict.fromkeys(wanted.names, pa.string()),
            include_columns=wanted.names,
            null_values=[""],
            strings_can_be_null=True,
        ),
    ) as batches:
        for batch in batches:
            yield pa.table([_cells(batch.column(each.name), each, is_marked) for each in wanted], wanted)


def _cells(texts: pa.Array, field: pa.Field, is_marked: bool) -> pa.Array:
    """The values that the cells of a column hold, however a spreadsheet writes them: 0.5 or 0,5, True or TRUE."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_string(field.type):
        if not is_marked:
            return texts
        return pa.array([each and unmarked(each) for each in texts.to_pylist()], field.type)

    def parse(given: pa.Array) -> pa.Array:
        if pa.types.is_boolean(field.type):
            return given.cast(field.type)
        return pc.replace_substring(given, ",", ".").cast(pa.float64()).cast(field.type)

    texts = pc.utf8_trim_whitespace(texts)
    try:
        return parse(texts)
    except pa.ArrowInvalid:
        what = "is neither TRUE nor FALSE" if pa.types.is_boolean(field.type) else "is no such number"
        for number, text in enumerate(texts):
            try:
                parse(texts.slice(number, 1))
            except pa.ArrowInvalid:
                raise InputError(
                    f"its column {field.name!r} has {text.as_py()[:40]!r}, which {what}"
                ) from None
        raise


def _read_lines(table: Path, wanted: pa.Schema) -> Iterator[pa.Table]:
    import pyarrow as pa

    for records in _records(table):
        yield pa.Table.from_pylist(records, wanted)


def _records(table: Path) -> Iterator[list[dict[str, Any]]]:
    """The objects of JSON lines, some thousands at a time."""
    with table.open(encoding="utf-8-sig") as file:
        found: list[dict[str, Any]] = []
        while line := file.readline(_LONGEST_LINE):
            found.append(dict(json.loads(line)))
            if len(found) == _ROWS:
                yield found
                found = []
        yield found


def _read_parquet(table: Path, wanted: pa.Schema) -> Iterator[pa.Table]:
    import pyarrow as pa

    with BoundedParquet(table) as file:
        for _, batch in file.batches(wanted.names, most=_ROWS):
            if isinstance(batch, UnreadableRowsError):
                raise batch
            yield pa.Table.from_batches([batch])


class AddedColumns:
    """The columns that people added to a table, by the paths of its rows."""

    def __init__(self, table: Path) -> None:
        """Read them; rows where they are empty take no memory.

        Raises:
            InputError: they can't be read.
        """
        self.fields: list[pa.Field] = []
        self._values = dict[str, tuple[Any, ...]]()
        with _taking_up(table):
            self._read(table)

    def _read(self, table: Path) -> None:
        import pyarrow as pa

        names = [name for name in self._names(table) if not _OURS.fullmatch(name)]
        if not names:
            return
        if twice := [name for name in names if names.count(name) > 1]:
            raise InputError(f"it has more than one column {twice[0][:40]!r}")
        if format_of(table) == "jsonl":
            for record in (each for records in _records(table) for each in records):
                self._note(record["path"], tuple(record.get(name) for name in names))
            self.fields = [
                pa.field(name, _type_of(name, [values[at] for values in self._values.values()]))
                for at, name in enumerate(names)
            ]
            return
        if format_of(table) == "csv":
            self.fields = [pa.field(name, pa.string()) for name in names]
        else:
            with BoundedParquet(table) as file:
                self.fields = [file.schema.field(name) for name in names]
        for rows in _read(table, pa.schema([pa.field("path", pa.string()), *self.fields])):
            for path, *values in zip(*(column.to_pylist() for column in rows.columns), strict=True):
                self._note(path, tuple(values))

    @staticmethod
    def _names(table: Path) -> list[str]:
        if format_of(table) != "jsonl":
            return _columns_of(table)
        return list(dict.fromkeys(name for records in _records(table) for each in records for name in each))

    def _note(self, path: str, values: tuple[Any, ...]) -> None:
        if any(value is not None for value in values):
            self._values[path] = values

    def add_to(self, table: pa.Table) -> pa.Table:
        """Return a table with these columns, each value beside its path."""
        import pyarrow as pa

        found = [self._values.get(path) for path in table.column("path").to_pylist()]
        for at, field in enumerate(self.fields):
            values = [None if each is None else each[at] for each in found]
            table = table.append_column(field, pa.array(values, field.type))
        return table


def _type_of(name: str, values: list[Any]) -> pa.DataType:
    """The type of the values of an added column."""
    import pyarrow as pa

    try:
        return pa.array(values).type
    except (ValueError, TypeError, OverflowError, pa.ArrowException):
        raise InputError(
            f"its column {name[:40]!r} has values of several kinds, or too large numbers"
        ) from None
