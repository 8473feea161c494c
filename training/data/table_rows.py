"""Read the rows of a table of labels: CSV as spreadsheets write it, tab-separated text, or Parquet."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from hierclass.errors import InputError
from hierclass.images.discovery import display_name
from hierclass.labelling.bounded_parquet import BoundedParquet
from training.data.datasets import cell

TABLES = (".csv", ".tsv", ".parquet")
"""Endings of the tables that are read; a file of another ending is tried as Parquet."""
LONGEST_LINE = 1 << 20
"""Most bytes of a line of text, and of a row that has line ends in its cells; bounds memory."""
LONGEST_CELL = 1 << 15
"""Most characters of a cell that is read: no path is longer, and no label."""
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
        self._row_bytes = 0
        self.columns = self._text_columns() if self.text else self._parquet_columns()

    def read(self, columns: Sequence[str]) -> Iterator[tuple[int, Row]]:
        """Yield number and values of every row that is not empty; of text all values are text, "" where it has none."""
        for number, row in self._text_rows(columns) if self.text else self._parquet_rows(columns):
            for column, value in row.items():
                if isinstance(value, str) and len(value) > LONGEST_CELL:
                    raise InputError(
                        f"{cell(self.where, number, column)}: has {len(value):,} characters; is it a table of labels?"
                    )
            yield number, row

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
            self._row_bytes += len(line)
            if self._row_bytes >= LONGEST_LINE:
                raise InputError(
                    f"{self.where} line {number} ends a row that is longer than a mebibyte; is a quote open?"
                    if len(line) < LONGEST_LINE
                    else f"{self.where} line {number} is longer than a mebibyte; is it a table?"
                )
            try:
                yield line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError:
                raise InputError(f"{self.where} line {number} is no UTF-8; save it as CSV UTF-8") from None

    def _text_rows(self, columns: Sequence[str]) -> Iterator[tuple[int, Row]]:
        indices = {column: self.columns.index(column) for column in columns}
        number = self._row_bytes = 0
        with self.path.open("rb") as stream:
            reader = csv.reader(self._lines(stream), delimiter=self._delimiter)
            try:
                for number, cells in enumerate(reader, start=1):
                    self._row_bytes = 0
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

        try:
            with BoundedParquet(self.path) as file:
                self._schema = file.schema
        except (InputError, OSError) as error:
            other = "" if self.path.suffix.lower() == ".parquet" else f"; tables end in {', '.join(TABLES)}"
            reason = error if isinstance(error, InputError) else f"can't be read: {error.strerror or error}"
            raise InputError(f"{self.where} {reason}{other}") from error
        self._parts = {  # of images, as `datasets` writes them
            field.name: [
                f"{field.name}.{part}" for part in ("bytes", "path") if field.type.get_field_index(part) >= 0
            ]
            for field in self._schema
            if pa.types.is_struct(field.type)
        }
        return _names(self._schema.names)

    def _parquet_rows(self, columns: Sequence[str]) -> Iterator[tuple[int, Row]]:
        given = {self._schema.names[self.columns.index(column)]: column for column in columns}
        parts = [part for name in given for part in self._parts.get(name) or [name]]
        number = 0
        try:
            with BoundedParquet(self.path) as file:
                for first, batch in file.batches(parts):
                    if isinstance(batch, InputError):
                        raise batch
                    for number, row in enumerate(batch.to_pylist(), start=first):
                        yield number, {given[name]: value for name, value in row.items()}
        except (OSError, ValueError) as error:  # of text that is no UTF-8, too
            raise InputError(f"{self.where} row {number} or after it can't be read: {error}") from error


def _names(columns: Sequence[str]) -> list[str]:
    return [column.strip().casefold() for column in columns]
