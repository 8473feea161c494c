"""Write a table of labels as CSV, JSON lines or Parquet, or one of features as Parquet."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple, TypeAlias, cast

from hierclass.errors import InputError
from hierclass.files import replacing, why_unwritable
from hierclass.images.discovery import display_name
from hierclass.labelling.rows import FORMATS, SCORE_DIGITS, Value

if TYPE_CHECKING:
    import pyarrow as pa

_ROW_GROUP = 10_000
_ROW_GROUP_BYTES = 16 << 20

_FORMULA = re.compile(r"[\s\"']*[=+\-@＝＋－＠\t\r\n\0]")
"""The beginning of a text that spreadsheets take for a formula; some of them skip spaces and quotes."""
_BOM = "\ufeff"

Record: TypeAlias = "dict[str, Value]"


class CsvForm(NamedTuple):
    """How a CSV table is written: plain, or for a spreadsheet that people open it with."""

    for_people: bool = False
    """Whether it begins with a byte order mark, has lines that end as on Windows, and its texts are no formulas."""
    delimiter: str = ","
    decimal: str = "."
    """What numbers have before their fraction."""


PLAIN = CsvForm()
EXCEL = CsvForm(for_people=True)
EXCEL_SEMICOLON = CsvForm(for_people=True, delimiter=";", decimal=",")
"""For Excel in languages that write 0,5: it divides cells at semicolons, and would read 0.1234 as 1234."""


def marked_as_text(text: str) -> str:
    """Return a text with an apostrophe before it if a spreadsheet would compute it.

    Source: https://owasp.org/www-community/attacks/CSV_Injection
    """
    return f"'{text}" if _FORMULA.match(text) else text


def unmarked(text: str) -> str:
    """Return the text that `marked_as_text` returned `text` for."""
    return text[1:] if text.startswith("'") and _FORMULA.match(text) else text


class TableWriter(ABC):
    """Writes a table: `write` rows, then `close`."""

    def __init__(self, file: IO[bytes], schema: pa.Schema) -> None:
        """Begin a table of an Arrow schema in an empty file."""
        self.schema = schema
        self._file = file

    @abstractmethod
    def write(self, rows: pa.Table) -> None:
        """Append rows, an Arrow table; columns that this table does not have are left out."""

    @abstractmethod
    def close(self) -> None:
        """Write the rows that are still held back; the file stays open."""


class _TextWriter(TableWriter):
    """Writes lines of text, flushed with every call."""

    def __init__(self, file: IO[bytes], schema: pa.Schema) -> None:
        super().__init__(file, schema)
        self._scores = {field.name for field in schema if str(field.type) == "float"}
        self._emit(self._header())

    def write(self, rows: pa.Table) -> None:
        records = [_rounded(row, self._scores) for row in rows.select(self.schema.names).to_pylist()]
        self._emit("".join(self._line(record) for record in records))

    def close(self) -> None:
        pass  # every write was handed on

    def _emit(self, text: str) -> None:
        view = memoryview(text.encode())
        while view:  # an unbuffered file may take a part
            view = view[self._file.write(view) or 0 :]
        self._file.flush()

    def _header(self) -> str:
        return ""

    @abstractmethod
    def _line(self, record: Record) -> str: ...


class _CsvWriter(_TextWriter):
    def __init__(self, file: IO[bytes], schema: pa.Schema, form: CsvForm = PLAIN) -> None:
        self._form, self._end = form, "\r\n" if form.for_people else "\n"
        super().__init__(file, schema)

    def _header(self) -> str:
        start = _BOM if self._form.for_people else ""
        return start + self._form.delimiter.join(self.schema.names) + self._end

    def _line(self, record: Record) -> str:
        text = io.StringIO(newline="")
        values = map(self._for_people, record.values()) if self._form.for_people else record.values()
        # Before Python 3.13, only what ends the writer's own lines is quoted: "a\rb.jpg" would be two rows.
        csv.writer(text, delimiter=self._form.delimiter, lineterminator="\r\n").writerow(values)
        return text.getvalue().removesuffix("\r\n") + self._end

    def _for_people(self, value: Value) -> Value:
        if isinstance(value, float):
            return str(value).replace(".", self._form.decimal)
        return marked_as_text(value) if isinstance(value, str) else value


class _JsonWriter(_TextWriter):
    def _line(self, record: Record) -> str:
        return json.dumps(record, ensure_ascii=False) + "\n"


class _ParquetWriter(TableWriter):
    def __init__(self, file: IO[bytes], schema: pa.Schema) -> None:
        super().__init__(file, schema)
        import pyarrow.parquet as pq

        # pyarrow ignores that a write may be short
        self._buffer = io.BufferedWriter(cast("io.RawIOBase", file))
        self._writer: Any = pq.ParquetWriter(self._buffer, schema)
        self._held: list[pa.Table] = []
        self._rows = self._bytes = 0

    def write(self, rows: pa.Table) -> None:
        self._held.append(rows.select(self.schema.names).cast(self.schema))
        self._rows += len(rows)
        self._bytes += self._held[-1].nbytes
        if self._rows >= _ROW_GROUP or self._bytes >= _ROW_GROUP_BYTES:
            self._flush()

    def close(self) -> None:
        self._flush()
        self._writer.close()
        self._buffer.flush()

    def _flush(self) -> None:
        import pyarrow as pa

        if self._held:
            self._writer.write_table(pa.concat_tables(self._held))
        self._held, self._rows, self._bytes = [], 0, 0


_TABLES: dict[str, Callable[[IO[bytes], Any], TableWriter]] = {
    "jsonl": _JsonWriter,
    "parquet": _ParquetWriter,
}


def open_writer(file: IO[bytes], format_: str, schema: pa.Schema, csv_form: CsvForm = PLAIN) -> TableWriter:
    """Return a writer for an open, empty file; `format_` is one of `FORMATS`, and `csv_form` is of CSV alone."""
    return _CsvWriter(file, schema, csv_form) if format_ == "csv" else _TABLES[format_](file, schema)


def write_table(
    path: Path,
    tables: Iterable[pa.Table],
    schema: pa.Schema,
    csv_form: CsvForm = PLAIN,
    *,
    check: Callable[[Path], object] | None = None,
) -> None:
    """Write the columns of a schema of Arrow tables as one file in the format of its ending, whole or not at all.

    `check` is called with the file when it is written, before it gets its name; if it raises, that stays undone.

    Raises:
        OSError: writing failed; what `path` held before is still there.
    """
    with replacing(path) as temporary, open(temporary, "wb", buffering=0) as file:
        table = open_writer(file, format_of(path), schema, csv_form)
        try:
            for rows in tables:
                table.write(rows)
        except BaseException:
            with contextlib.suppress(Exception):  # what led here is what counts
                table.close()
            raise
        table.close()
        if check:
            check(temporary)


def format_of(path: Path) -> str:
    """Return the format, one of `FORMATS`, that a file's ending names.

    Raises:
        InputError: the ending names none.
    """
    ending = path.suffix.lower().removeprefix(".")
    if ending not in FORMATS:
        raise InputError(
            f"the output must end in .csv, .jsonl or .parquet, or be a folder (with / at its end), not "
            f"{display_name(path.name)!r}"
        )
    return ending


def delimiter_of(head: str) -> str:
    """Return what separates the columns of a CSV table, by its first line."""
    return max(",;\t", key=head.count)


def csv_form_of(table: Path) -> CsvForm:
    """Return the form of a CSV table that was written here, or saved by a spreadsheet; `PLAIN` if there is none.

    One with semicolons or tabs is for people even without the byte order mark, which spreadsheets drop. The first of
    its cells that is a number with a fraction tells what numbers have before it.
    """
    try:
        with table.open("rb") as file:
            head, _, rows = file.read(1 << 16).decode("utf-8", "replace").partition("\n")
    except OSError:
        return PLAIN
    delimiter = delimiter_of(head)
    if delimiter == ",":
        return EXCEL if head.startswith(_BOM) else PLAIN
    number = re.search(rf"{delimiter}\d+([,.])\d+(?=[{delimiter}\r\n])", rows)
    return CsvForm(for_people=True, delimiter=delimiter, decimal=number[1] if number else ",")


def check_target(path: Path) -> Path:
    """Return the file that writing to `path` would replace; that of a link is the one it points at.

    Raises:
        InputError: its ending names no format, it is no file, or it can't be written.
    """
    format_of(path)
    target = Path(os.path.realpath(path))
    # os.path: unlike Path, it raises nothing where a name is too long
    if os.path.exists(target) and not os.path.isfile(target):  # noqa: PTH110, PTH113
        raise InputError(f"the output {display_name(path)} is no file; name a file that may be replaced")
    if reason := why_unwritable(target):
        raise InputError(f"cannot write {display_name(path)}: {reason} (folder {target.parent})")
    return target


def _rounded(row: Record, names: Collection[str]) -> Record:
    """A row with the scores under `names` as short as they are said."""
    return {
        name: round(value, SCORE_DIGITS) if name in names and isinstance(value, float) else value
        for name, value in row.items()
    }
