"""The one table of labels: its rows, its columns, and how it is written as CSV, JSON lines or Parquet.

A table appears under its name when it is complete, never before: it is written beside the target under
another name.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, ClassVar, TypeAlias, cast

from hierclass.errors import InputError
from hierclass.inputs import display_name

if TYPE_CHECKING:
    from hierclass.decisions import Step

Value: TypeAlias = "str | int | float | None"

_SCORE_DIGITS = 4
_ROW_GROUP = 10_000


@dataclass(frozen=True, slots=True)
class Row:
    """What became of one input: either `steps`, one per tier from 0 down to the level, or an `error`.

    Scores are in 0..1 and never rise from one step to the next.
    """

    path: str
    steps: tuple[Step, ...] = ()
    error: str | None = None

    def to_dict(self, level: int) -> dict[str, Value]:
        """Return the row as the columns of a table up to `level`; what a broken input lacks is None."""
        values: dict[str, Value] = dict.fromkeys(columns(level))
        values["path"] = display_name(self.path)
        values["error"] = self.error
        if self.error is None:
            last = self.steps[-1]
            values |= {"level": len(self.steps) - 1, "synset": last.synset, "label": last.label}
            values["score"] = round(last.score, _SCORE_DIGITS)
            for tier, step in enumerate(self.steps):
                values[f"tier{tier}_synset"] = step.synset
                values[f"tier{tier}_label"] = step.label
                values[f"tier{tier}_score"] = round(step.score, _SCORE_DIGITS)
        return values


def columns(level: int) -> tuple[str, ...]:
    """Return the names of the columns of a table whose rows reach down to `level`, in order."""
    tiers = (f"tier{tier}_{field}" for tier in range(level + 1) for field in ("synset", "label", "score"))
    return ("path", "error", "level", "synset", "label", "score", *tiers)


class Table(ABC):
    """A table being written: `write` rows, then `close`; or, after a failure, `recover` what was written."""

    def __init__(self, file: IO[bytes], level: int) -> None:
        """Begin a table of rows down to `level` in an empty file."""
        self.level = level
        self.num_rows = 0
        self._file = file

    def write(self, rows: Sequence[Row]) -> None:
        """Append rows and hand them to the operating system (Parquet: when a row group is full)."""
        self._append([row.to_dict(self.level) for row in rows])
        self.num_rows += len(rows)

    @abstractmethod
    def close(self) -> None:
        """Write what is still held back; the file itself stays open."""

    @abstractmethod
    def recover(self) -> None:
        """After a failure, make the file a complete table of the rows written so far, or raise."""

    @abstractmethod
    def _append(self, rows: list[dict[str, Value]]) -> None: ...


class _TextTable(Table):
    """Lines of text. What is complete ends at `_complete`, so that a torn write can be cut off."""

    def __init__(self, file: IO[bytes], level: int) -> None:
        super().__init__(file, level)
        self._complete = 0
        self._emit(self._header())

    def close(self) -> None:
        pass  # every write was flushed

    def recover(self) -> None:
        self._file.truncate(self._complete)

    def _append(self, rows: list[dict[str, Value]]) -> None:
        self._emit(self._lines(rows))

    def _emit(self, text: str) -> None:
        data = text.encode()
        view = memoryview(data)
        while view:  # an unbuffered file may take a part
            view = view[self._file.write(view) or 0 :]
        self._file.flush()
        self._complete += len(data)

    def _header(self) -> str:
        return ""

    @abstractmethod
    def _lines(self, rows: list[dict[str, Value]]) -> str: ...


class _CsvTable(_TextTable):
    def _header(self) -> str:
        return ",".join(columns(self.level)) + "\n"

    def _lines(self, rows: list[dict[str, Value]]) -> str:
        return "".join(self._line(row) for row in rows)

    def _line(self, row: dict[str, Value]) -> str:
        text = io.StringIO(newline="")
        # Before Python 3.13, only what ends the writer's own lines is quoted: "a\rb.jpg" would be two rows.
        csv.writer(text, lineterminator="\r\n").writerow(row.values())
        return text.getvalue().removesuffix("\r\n") + "\n"


class _JsonTable(_TextTable):
    def _lines(self, rows: list[dict[str, Value]]) -> str:
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


class _ParquetTable(Table):
    def __init__(self, file: IO[bytes], level: int) -> None:
        super().__init__(file, level)
        import pyarrow as pa
        import pyarrow.parquet as pq

        types = {"level": pa.int32(), "score": pa.float32()}
        kinds = {name: types.get(name.split("_")[-1], pa.string()) for name in columns(level)}
        self._schema: Any = pa.schema(list(kinds.items()))
        self._buffer = io.BufferedWriter(
            cast("io.RawIOBase", file)
        )  # pyarrow ignores that a write may be short
        self._writer: Any = pq.ParquetWriter(self._buffer, self._schema)
        self._held: list[dict[str, Value]] = []

    def close(self) -> None:
        self._flush()
        self._writer.close()
        self._buffer.flush()

    def recover(self) -> None:
        self.close()

    def _append(self, rows: list[dict[str, Value]]) -> None:
        self._held += rows
        if len(self._held) >= _ROW_GROUP:
            self._flush()

    def _flush(self) -> None:
        import pyarrow as pa

        if self._held:
            self._writer.write_table(pa.Table.from_pylist(self._held, schema=self._schema))
        self._held = []


_TABLES: dict[str, Callable[[IO[bytes], int], Table]] = {
    ".csv": _CsvTable,
    ".jsonl": _JsonTable,
    ".parquet": _ParquetTable,
}


class Output:
    """Where a table goes: a file that is either complete or absent, or standard output as CSV.

    Made before the work begins, so that a wrong ending or a folder that cannot be written is found at once
    (InputError). After `open_table` failed, `kept` is the file that holds the rows written until then, or
    None.
    """

    MESSAGE: ClassVar[str] = "the output must end in .csv, .jsonl or .parquet"

    def __init__(self, path: Path | None) -> None:
        """Check that a table can be written to `path` (None: standard output)."""
        self.path = path
        self.kept: Path | None = None
        if path is None:
            return
        if path.suffix.lower() not in _TABLES:
            raise InputError(f"{self.MESSAGE}, not {display_name(path.name)!r}")
        # Through a link, the file it points at is replaced and not the link.
        self._target = Path(os.path.realpath(path))
        # os.path: unlike Path, it raises nothing where a name is too long
        if os.path.exists(self._target) and not os.path.isfile(self._target):  # noqa: PTH110, PTH113
            raise InputError(f"the output {display_name(path)} is no file; name a file that may be replaced")
        self._temporary = self._target.with_name(f".{self._target.name}.{os.getpid()}.part")
        try:
            self._create().close()
            self._temporary.unlink()
        except OSError as error:
            reason = error.strerror or str(error)
            raise InputError(
                f"cannot write {display_name(path)}: {reason} (folder {self._target.parent})"
            ) from error

    @contextlib.contextmanager
    def open_table(self, level: int) -> Iterator[Table]:
        """Yield a table of rows down to `level`; it gets its name when the block ends without exception."""
        if self.path is None:
            yield _CsvTable(sys.stdout.buffer, level)
            return
        table: Table | None = None
        file = self._create()
        try:
            table = _TABLES[self._target.suffix.lower()](file, level)
            yield table
            table.close()
            os.fsync(file.fileno())
            file.close()
            os.replace(self._temporary, self._target)
        except BaseException:
            self.kept = self._keep(table)
            file.close()
            with contextlib.suppress(OSError):
                self._temporary.unlink()
            raise

    def _create(self) -> IO[bytes]:
        with contextlib.suppress(FileNotFoundError):
            self._temporary.unlink()
        return open(self._temporary, "xb", buffering=0)

    def _keep(self, table: Table | None) -> Path | None:
        """Save the rows of a broken-off table as `name.partial.ending`, if there are any and they can be."""
        if table is None or table.num_rows == 0:
            return None
        partial = self._target.with_name(f"{self._target.stem}.partial{self._target.suffix}")
        try:
            table.recover()
            os.replace(self._temporary, partial)
        except (
            Exception
        ):  # whatever the writer does on a full disk, the failure that led here is the one to report
            return None
        return partial
