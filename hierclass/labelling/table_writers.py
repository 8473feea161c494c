"""Write a table of labels as CSV, JSON lines or Parquet, or one of features as Parquet."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeAlias, cast

from hierclass.errors import InputError
from hierclass.files import replacing, why_unwritable
from hierclass.images.discovery import display_name
from hierclass.labelling.rows import FORMATS, SCORE_DIGITS, Value

if TYPE_CHECKING:
    import pyarrow as pa

_ROW_GROUP = 10_000
_ROW_GROUP_BYTES = 16 << 20

Record: TypeAlias = "dict[str, Value]"


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
        self._emit(self._header())

    def write(self, rows: pa.Table) -> None:
        records = [_rounded(row) for row in rows.select(self.schema.names).to_pylist()]
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
    def _header(self) -> str:
        return ",".join(self.schema.names) + "\n"

    def _line(self, record: Record) -> str:
        text = io.StringIO(newline="")
        # Before Python 3.13, only what ends the writer's own lines is quoted: "a\rb.jpg" would be two rows.
        csv.writer(text, lineterminator="\r\n").writerow(record.values())
        return text.getvalue().removesuffix("\r\n") + "\n"


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
    "csv": _CsvWriter,
    "jsonl": _JsonWriter,
    "parquet": _ParquetWriter,
}


def open_writer(file: IO[bytes], format_: str, schema: pa.Schema) -> TableWriter:
    """Return a writer for an open, empty file; `format_` is one of `FORMATS`."""
    return _TABLES[format_](file, schema)


def write_table(
    path: Path,
    tables: Iterable[pa.Table],
    schema: pa.Schema,
    *,
    check: Callable[[Path], object] | None = None,
) -> None:
    """Write the columns of a schema of Arrow tables as one file in the format of its ending, whole or not at all.

    `check` is called with the file when it is written, before it gets its name; if it raises, that stays undone.

    Raises:
        OSError: writing failed; what `path` held before is still there.
    """
    with replacing(path) as temporary, open(temporary, "wb", buffering=0) as file:
        table = open_writer(file, format_of(path), schema)
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


def _rounded(row: Record) -> Record:
    return {
        name: round(value, SCORE_DIGITS) if isinstance(value, float) else value for name, value in row.items()
    }
