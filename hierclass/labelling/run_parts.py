"""The parts of a run's table: files that hold the rows of one pass for a range of inputs."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from hierclass.errors import InputError
from hierclass.images.discovery import display_name

if TYPE_CHECKING:
    import pyarrow as pa

Range: TypeAlias = "tuple[int, int]"
"""Numbers of the first input, and of the one after the last."""
_PART = re.compile(r"(?P<generation>\d{3,})-(?P<first>\d{12})-(?P<end>\d{12})\.parquet")


@dataclass(frozen=True, slots=True, order=True)
class Part:
    """Rows of one pass for the inputs numbered `first` up to `end` (excluded); not every input needs one."""

    generation: int
    first: int
    end: int

    @property
    def name(self) -> str:
        """The name of its file."""
        return f"{self.generation:03d}-{self.first:012d}-{self.end:012d}.parquet"

    @classmethod
    def parse(cls, name: str) -> Part | None:
        """Read the name of a file; None if it is not of a part."""
        match = _PART.fullmatch(name)
        return None if match is None else cls(*map(int, match.groups()))


class PassRows:
    """Reads the rows of one pass in the order of the inputs, some thousands at a time."""

    def __init__(
        self, folder: Path, parts: Sequence[Part], wanted: pa.Schema, *, errors: bool = True
    ) -> None:
        """Read the columns of a schema from the parts of a pass; without `errors`, leave rows with an error out."""
        self._tables = self._read(folder, parts, wanted)
        if not errors:
            self._tables = map(_without_errors, self._tables)
        self._held: pa.Table | None = None

    def __iter__(self) -> Iterator[pa.Table]:
        """Yield the rows that `up_to` has not returned."""
        return self._tables

    @staticmethod
    def _read(folder: Path, parts: Sequence[Part], wanted: pa.Schema) -> Iterator[pa.Table]:
        import pyarrow as pa
        import pyarrow.compute as pc
        import pyarrow.parquet as pq

        reached = 0  # parts overlap if a cluster repeated a range
        for part in parts:
            try:
                with pq.ParquetFile(folder / part.name) as file:
                    for group in range(file.metadata.num_row_groups):
                        stored = set(file.schema_arrow.names)
                        table = file.read_row_group(group, [n for n in wanted.names if n in stored])
                        missing = [
                            pa.nulls(len(table), field.type)
                            for field in wanted
                            if field.name not in table.column_names
                        ]
                        names = [field.name for field in wanted if field.name not in table.column_names]
                        for name, column in zip(names, missing, strict=True):
                            table = table.append_column(name, column)
                        generation = pa.array([part.generation] * len(table), pa.int64())
                        table = table.select(wanted.names).append_column("_generation", generation)
                        yield table.filter(pc.field("_index") >= reached) if part.first < reached else table
                reached = max(reached, part.end)
            except (pa.ArrowException, OSError) as error:
                raise InputError(
                    f"{display_name(folder / part.name)} is damaged ({str(error)[:80]}); delete it and run the same "
                    "command again"
                ) from error

    def up_to(self, last: int) -> list[pa.Table]:
        """Return the next rows, up to input number `last`."""
        import pyarrow.compute as pc

        found: list[pa.Table] = []
        while True:
            table = self._held if self._held is not None else next(self._tables, None)
            self._held = None
            if table is None:
                return found
            inside = table.filter(pc.field("_index") <= last)
            if len(inside):
                found.append(inside)
            if len(inside) < len(table):
                self._held = table.slice(len(inside))
                return found


def _without_errors(table: pa.Table) -> pa.Table:
    import pyarrow.compute as pc

    return table.filter(pc.is_null(table.column("error")))


def concat(tables: Sequence[pa.Table], wanted: pa.Schema) -> pa.Table:
    """Return tables of `PassRows` as one, which is empty if there are none."""
    import pyarrow as pa

    empty = wanted.append(pa.field("_generation", pa.int64())).empty_table()
    return pa.concat_tables([empty, *tables]) if tables else empty


def overlay(table: pa.Table, later: Sequence[pa.Table]) -> pa.Table:
    """Return the rows of a table, with those of `later` in place of the rows of the same inputs."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if not later:
        return table
    new = pa.concat_tables(later)
    kept = table.filter(
        pc.invert(pc.is_in(table.column("_index"), value_set=new.column("_index").combine_chunks()))
    )
    return pa.concat_tables([kept, new]).sort_by("_index")
