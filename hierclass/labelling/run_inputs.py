"""The list of a run's inputs on disk, and what tells whether two lists are the same."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from hierclass.errors import InputError
from hierclass.files import replacing
from hierclass.images.discovery import display_name
from hierclass.labelling.inputs import Input

GROUP = 10_000
"""Rows of a group of a Parquet file, which are read and written at once."""


class Fingerprint:
    """Counts and hashes inputs, to tell whether two lists of inputs are the same."""

    def __init__(self) -> None:
        """Begin with no inputs."""
        self.count = 0
        self._digest = hashlib.sha256()

    def of(self, inputs: Iterable[Input]) -> Iterator[Input]:
        """Pass inputs on, and count them."""
        for item in inputs:
            self.count += 1
            self._digest.update(os.fsencode(f"{item.path}\0{item.member}\0"))
            yield item

    @property
    def digest(self) -> str:
        """A SHA-256 sum of the inputs so far."""
        return self._digest.hexdigest()


def write_inputs(file: Path, inputs: Iterable[Input], listed: Callable[[int], None]) -> tuple[int, str]:
    """Write inputs to a Parquet file, whole or not at all; return their number and digest.

    `listed` is called with their growing number. Raises what listing them raises, and OSError.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    kinds = pa.schema(
        [("path", pa.binary()), ("member", pa.string())]
        + [(name, pa.int64()) for name in ("offset", "length", "size", "modified")]
    )
    found = Fingerprint()
    with replacing(file) as temporary, pq.ParquetWriter(temporary, kinds, compression="zstd") as writer:
        for group in _groups(found.of(inputs), GROUP):
            paths = [os.fsencode(item.path) for item in group]
            members = [display_name(item.member) for item in group]
            rest = zip(*(item[2:] for item in group), strict=True)
            writer.write_table(pa.table([paths, members, *map(list, rest)], schema=kinds))
            listed(found.count)
    return found.count, found.digest


def read_inputs(file: Path, first: int = 0) -> Iterator[tuple[int, Input]]:
    """Yield the inputs that `write_inputs` wrote from number `first` on, each with its number.

    Raises:
        InputError: the file is damaged.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(file) as stored:
            for group in range(first // GROUP, stored.metadata.num_row_groups):
                columns = (column.to_pylist() for column in stored.read_row_group(group).columns)
                for number, (path, *rest) in enumerate(zip(*columns, strict=True), start=group * GROUP):
                    if number >= first:
                        yield number, Input(os.fsdecode(path), *rest)
    except (pa.ArrowException, OSError) as error:
        raise damaged(file, error) from error


def damaged(file: Path, error: Exception) -> InputError:
    """Return the error that a file of a run is damaged."""
    return InputError(f"{display_name(file)} is damaged ({str(error)[:80]}); --overwrite starts the run anew")


def _groups(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    group: list[Any] = []
    for item in items:
        group.append(item)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group
