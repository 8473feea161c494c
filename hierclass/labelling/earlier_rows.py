"""The rows that an update begins with: of a run, or of a finished table. They are known by the column `path`."""

from __future__ import annotations

import re
import sys
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, NoReturn, Protocol

import numpy as np

from hierclass.decisions.exit_policy import LevelChoice, StopReason
from hierclass.images.kinds import done_installs, kind_of
from hierclass.labelling.inputs import Stamp
from hierclass.labelling.run_folder import RunFolder
from hierclass.labelling.run_parts import Range
from hierclass.labelling.table_files import not_taken_up, our_columns, read_rows

if TYPE_CHECKING:
    import pyarrow as pa

    from hierclass.labelling.run_manifest import LabelJob
    from taxonomy import Taxonomy

UNKNOWN = -2
"""Size in place of that of a file which nobody noted when it was labelled."""


class EarlierRows(Protocol):
    """The rows that an update begins with, numbered from 0 without gaps."""

    known_at: int
    """Files that changed later (ns) and have no known size are labelled again."""

    def tables(self, within: Range | None = None) -> Iterator[pa.Table]:
        """Yield the rows in order, those of some numbers alone, with the columns of a part of a run."""
        ...


class RunRows:
    """The rows of a run, which must be complete."""

    known_at = 0

    def __init__(self, folder: RunFolder, num_passes: int, schema: pa.Schema) -> None:
        """Read columns of the first passes of a run."""
        self._folder, self._passes, self._schema = folder, range(num_passes), schema

    def tables(self, within: Range | None = None) -> Iterator[pa.Table]:
        """Yield the rows in order."""
        return self._folder.read(self._passes, self._schema, within)


class FinishedRows:
    """The rows of a finished table whose run is gone, or whose answers somebody changed."""

    def __init__(self, table: Path, schema: pa.Schema, check: Callable[[pa.Table], None]) -> None:
        """Read a table with the columns of a part of a run; `check` raises InputError for rows that do not fit.

        Raises:
            InputError: the table has other tiers than that.
        """
        self._table, self._schema, self._check = table, schema, check
        tiers, wanted = _num_tiers(our_columns(table)), _num_tiers(schema.names)
        if tiers != wanted:
            raise not_taken_up(
                table, f"it has {tiers} of the tiers of answers, of which this --level has {wanted}"
            )
        self.known_at = table.stat().st_mtime_ns

    def tables(self, within: Range | None = None) -> Iterator[pa.Table]:
        """Yield the rows in order; nobody knows the sizes of their files."""
        import pyarrow as pa

        reached, (begin, end) = 0, within or (0, sys.maxsize)
        for rows in read_rows(self._table, pa.schema([f for f in self._schema if f.name[0] != "_"])):
            if within is None:
                self._check(rows)
            first, reached = reached, reached + len(rows)
            own = {
                "_index": np.arange(first, reached),
                "_size": np.full(len(rows), UNKNOWN),
                "_modified": np.full(len(rows), UNKNOWN),
            }
            rows = pa.table({**own, **{name: rows.column(name) for name in rows.column_names}}, self._schema)
            yield rows.slice(max(0, begin - first), max(0, min(end, reached) - max(begin, first)))
            if reached >= end:
                return


class RowCheck:
    """Refuses rows of a table that other classes, another level or other options have made."""

    def __init__(self, table: Path, taxonomy: Taxonomy, job: LabelJob | None = None) -> None:
        """Check against the classes of a model, and what a job would write (None: only the classes)."""
        self._table, self._taxonomy, self._job = table, taxonomy, job

    def __call__(self, rows: pa.Table) -> None:
        """Raise InputError if one of some rows does not fit."""
        self._check_classes(rows)
        if self._job is not None:
            self._check_request(rows, self._job.request.level)
            if not self._job.reading.previews and not all(map(_may_be_raw, _previews(rows))):
                self._refuse("it was written with --previews")

    def _check_classes(self, rows: pa.Table) -> None:
        import pyarrow as pa
        import pyarrow.compute as pc

        tiers = range(_num_tiers(rows.column_names))
        classes = {f"tier{tier}_synset": [node.id for node in self._taxonomy.classes(tier)] for tier in tiers}
        classes["synset"] = [each for ids in classes.values() for each in ids]
        for name, ids in classes.items():
            given = pc.unique(rows.column(name)).drop_null()
            unknown = given.filter(pc.invert(pc.is_in(given, value_set=pa.array(ids, pa.string()))))
            if len(unknown):
                self._refuse(
                    f"it has {unknown[0].as_py()[:40]!r} in {name}, where this model has no such class"
                )

    def _check_request(self, rows: pa.Table, level: LevelChoice) -> None:
        asked = StopReason.ASKED.word
        reasons = set(rows.column("stop_reason").unique().to_pylist()) - {None, StopReason.EXCLUDED.word}
        if level == "auto":
            if asked in reasons:
                self._refuse("it was written with a --level, not with --level auto")
            return
        if reasons - {asked}:
            self._refuse("it was written with --level auto")
        wanted = self._taxonomy.num_tiers - 1 if level is None else level
        if others := set(rows.column("chosen_level").unique().to_pylist()) - {None, wanted}:
            self._refuse(f"it was written with --level {others.pop()}, not {wanted}")

    def _refuse(self, why: str) -> NoReturn:
        raise not_taken_up(self._table, why)


class EarlierIndex:
    """Finds the row of an input by its path; of a path with several rows one after the other."""

    def __init__(self, rows: EarlierRows) -> None:
        """Read paths, stamps and errors of the rows; memory for a million is about 250 MB."""
        self.rows = rows
        self._numbers = dict[str, int]()
        self._more = dict[str, deque[int]]()
        """Of paths with several rows, such as a file that was named twice, those that are still to be taken."""
        self.sizes, self.times, self.failed, self.mended = array("q"), array("q"), bytearray(), bytearray()
        """Of each row; `mended`: whether its error was that an extra is missing which is there now."""
        installs = done_installs()
        for table in rows.tables():
            first = len(self.sizes)
            self.sizes.frombytes(_numbers(table, "_size"))
            self.times.frombytes(_numbers(table, "_modified"))
            errors = table.column("error").to_pylist()
            self.failed += bytes(error is not None for error in errors)
            self.mended += bytes(bool(error) and any(each in error for each in installs) for error in errors)
            for number, path in enumerate(table.column("path").to_pylist(), start=first):
                if self._numbers.setdefault(path, number) != number:
                    self._more.setdefault(path, deque()).append(number)
        self._met = bytearray(len(self.sizes))

    def __len__(self) -> int:
        return len(self.sizes)

    def note_stamps(self, others: Iterable[pa.Table]) -> None:
        """Take sizes and times over from other rows of the same paths."""
        for table in others:
            columns = (table.column(name).to_pylist() for name in ("path", "_size", "_modified"))
            for path, size, modified in zip(*columns, strict=True):
                if (number := self._numbers.get(path)) is not None:
                    self.sizes[number], self.times[number] = size, modified

    def take(self, path: str) -> int:
        """Return the number of the row of a path, -1 without one that was not taken yet."""
        number = self._numbers.get(path, -1)
        if number >= 0 and self._met[number]:
            others = self._more.get(path)
            return others.popleft() if others else -1
        if number >= 0:
            self._met[number] = 1
        return number

    def left(self) -> Iterator[str]:
        """Yield the paths of which no row was taken, for each row."""
        for path, number in self._numbers.items():
            if not self._met[number]:
                yield path
                yield from (path for _ in self._more.get(path, ()))

    @property
    def num_spare(self) -> int:
        """Number of rows that were not taken of paths of which others were."""
        return sum(len(rest) for path, rest in self._more.items() if self._met[self._numbers[path]])

    def is_same(self, number: int, now: Stamp) -> bool:
        """Return whether the file of a row is as it was when it was labelled."""
        if self.sizes[number] == UNKNOWN:
            return now.modified <= self.rows.known_at
        return now == (self.sizes[number], self.times[number])


def _previews(rows: pa.Table) -> list[str]:
    """The paths of the images of which a preview was read."""
    import pyarrow.compute as pc

    found: list[str] = rows.filter(pc.fill_null(rows.column("preview"), False)).column("path").to_pylist()
    return found


def _may_be_raw(path: str) -> bool:
    """Whether a file may be a RAW file, by its name: of those a preview is read whatever was asked for."""
    kind = kind_of(PurePath(path).suffix)
    return kind is not None and (kind.needs == "raw" or "TIFF" in kind.formats)


def _num_tiers(names: Iterable[str]) -> int:
    return sum(re.fullmatch(r"tier\d+_synset", name) is not None for name in names)


def _numbers(table: pa.Table, name: str) -> bytes:
    return np.ascontiguousarray(table.column(name).to_numpy(), np.int64).tobytes()
