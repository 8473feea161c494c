"""Read the rows of a table of labels: CSV as spreadsheets write it, tab-separated text, or Parquet."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from hierclass.errors import InputError
from hierclass.images.discovery import display_name

TABLES = (".csv", ".tsv", ".parquet")
"""Endings of the tables that are read; a file of another ending is tried as Parquet."""
LONGEST_LINE = 1 << 20
"""Most bytes of a line of text; bounds memory."""
PARQUET_ROWS = 1024
"""Rows of a Parquet file that are read at once; bounds memory."""
Row = dict[str, Any]


class TableRows:
    """The rows of a table with their numbers; ``columns`` are the names of its columns, in small letters.

    Rows of text are counted as a spreadsheet shows them, the header being row 1, those of Parquet from 0. Raises
    `InputError` for a file that is no such table, when it is made or while it is read.
    """

    def __init__(self, path: Path) -> None:
        """Open a table and read the names of its columns."""
        self.path, self.where = path, display_name(path.name)
        self.text = path.suffix.lower() in (".csv", ".tsv")
        self._delimiter = ","
        self.columns = self._text_columns() if self.text else self._parquet_columns()

    def read(self, columns: Sequence[str]) -> Iterator[tuple[int, Row]]:
        """Yield number and values of every row that is not empty; of text all values are text, "" where it has none."""
        return self._text_rows(columns) if self.text else self._parquet_rows(columns)

    # -- text

    def _text_columns(self) -> list[str]:
        try:
            with self.path.open("rb") as stream:
                first = next(self._lines(stream), "")
        except OSError as error:
            raise InputError(f"{self.where} can't be read: {error.strerror or error}") from error
        heads = {mark: _names(next(csv.reader([first], delimiter=mark), [])) for mark in ("\t", ";", ",")}
        marks = ("\t",) if self.path.suffix.lower() == ".tsv" else (",", ";", "\t")
        self._delimiter = max(marks, key=lambda mark: len(heads[mark]))
        return heads[self._delimiter]

    def _lines(self, stream: IO[bytes]) -> Iterator[str]:
        """Lines as text; the position is that of the line, which a field with line ends makes differ from the row."""
        number = 0
        while line := stream.readline(LONGEST_LINE):
            number += 1
            if number == 1 and line[:2] in (b"\xff\xfe", b"\xfe\xff"):
                raise InputError(f"{self.where} is UTF-16 text; save it as CSV UTF-8")
            if len(line) == LONGEST_LINE:
                raise InputError(f"{self.where} line {number} is longer than a mebibyte; is it a table?")
            try:
                yield line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError:
                raise InputError(f"{self.where} line {number} is no UTF-8; save it as CSV UTF-8") from None

    def _text_rows(self, columns: Sequence[str]) -> Iterator[tuple[int, Row]]:
        indices = {column: self.columns.index(column) for column in columns}
        number = 0
        with self.path.open("rb") as stream:
            reader = csv.reader(self._lines(stream), delimiter=self._delimiter)
            try:
                for number, cells in enumerate(reader, start=1):
                    if number > 1 and any(cell.strip() for cell in cells):
                        yield (
                            number,
                            {column: cells[at] if at < len(cells) else "" for column, at in indices.items()},
                        )
            except csv.Error as error:
                raise InputError(
                    f"{self.where} row {number + 1} can't be read: {error}; is a quote open?"
                ) from error

    # -- Parquet

    def _parquet_columns(self) -> list[str]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            self._schema = pq.read_schema(self.path)
        except (pa.ArrowInvalid, OSError) as error:
            other = "" if self.path.suffix.lower() == ".parquet" else f"; tables end in {', '.join(TABLES)}"
            reason = str(error).splitlines()[0]
            raise InputError(f"{self.where} is no readable Parquet file{other}: {reason}") from error
        return _names(self._schema.names)

    def _parquet_rows(self, columns: Sequence[str]) -> Iterator[tuple[int, Row]]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        given = {self._schema.names[self.columns.index(column)]: column for column in columns}
        number = 0
        try:
            with pq.ParquetFile(self.path) as file:
                for batch in file.iter_batches(PARQUET_ROWS, columns=list(given)):
                    for row in batch.to_pylist():
                        yield number, {given[name]: value for name, value in row.items()}
                        number += 1
        except (pa.ArrowException, OSError) as error:
            reason = str(error).splitlines()[0]
            raise InputError(f"{self.where} row {number} or after it can't be read: {reason}") from error


def _names(columns: Sequence[str]) -> list[str]:
    return [column.strip().casefold() for column in columns]
