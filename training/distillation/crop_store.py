"""Crops and the teacher's answers on disk: made once, block by block, resumed where a run stopped.

crops.json              what the crops were made from; crops of other data, seeds, sizes or teachers are refused
pixels-80.u8            all crops at a side of 80 pixels, uint8 (N, 80, 80, 3)
answers.f16             the teacher's logits of the leaves, each row less its highest, float16 (N, leaves)
sides.u16               shorter sides in pixels of the part that a crop shows and of its photograph, uint16 (N, 2);
                        0: the photograph can't be read
NAME.done               a byte per block of a file, 1 where the block is complete

Crop p · P + i is that of pass p of photograph i of P, so that passes can be added.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hierclass.errors import InputError
from hierclass.files import locked
from training.recipe.stored_options import write_json

BLOCK = 64
"""Crops that are made, answered and written at once."""
RESERVE = 64 << 20
"""Bytes of the disk that are left free."""
HEADER, ANSWERS, SIDES = "crops.json", "answers.f16", "sides.u16"


@dataclasses.dataclass(frozen=True, slots=True)
class CropBlock:
    """Crops of one pass of the photographs ``first`` … ``stop`` - 1; ``number`` counts blocks from 0."""

    number: int
    passing: int
    first: int
    stop: int


@dataclasses.dataclass(frozen=True, slots=True)
class StoreColumn:
    """Shape and type of one crop's part of a file."""

    shape: tuple[int, ...]
    dtype: type[np.generic]

    @property
    def bytes(self) -> int:
        """Bytes per crop."""
        return int(np.prod(self.shape)) * np.dtype(self.dtype).itemsize


def pixels_name(side: int) -> str:
    """File name of the crops at a side in pixels."""
    return f"pixels-{side}.u8"


class CropStore:
    """The files of ``passes`` crops of each of ``num_photographs`` photographs, in a folder."""

    def __init__(
        self,
        folder: Path,
        made_from: Mapping[str, Any],
        columns: Mapping[str, StoreColumn],
        *,
        num_photographs: int,
        passes: int,
    ) -> None:
        """Name the files; `open` creates or checks them. ``made_from`` are JSON values that identify the crops."""
        self.folder, self.made_from, self.columns = folder, dict(made_from), dict(columns)
        self.num_photographs, self.passes = num_photographs, passes
        self._per_pass = -(-num_photographs // BLOCK)
        self._written: list[tuple[str, int]] = []

    def __len__(self) -> int:
        return self.passes * self.num_photographs

    def blocks(self) -> Iterator[CropBlock]:
        """Yield all blocks, in the order of the crops."""
        for passing in range(self.passes):
            for place in range(self._per_pass):
                first = place * BLOCK
                stop = min(first + BLOCK, self.num_photographs)
                yield CropBlock(passing * self._per_pass + place, passing, first, stop)

    @contextlib.contextmanager
    def claim(self) -> Iterator[None]:
        """Hold the folder while writing; waits for another run that does."""
        with locked(self.folder / ".lock", wait=True):
            yield

    def open(self) -> None:
        """Create the files, or check that existing ones were made from the same data.

        Raises `InputError` if they were not, or if the disk is too small.
        """
        header = self.folder / HEADER
        if header.exists():
            self._check(header)
        missing = sum(self._missing_bytes(name) for name in self.columns)
        free = shutil.disk_usage(self.folder).free
        if missing + RESERVE > free and missing:
            raise InputError(
                f"the crops need {missing / 1e9:.1f} GB in {self.folder}, and {free / 1e9:.1f} GB are free; give fewer "
                "`crops_per_photo`, or another `cache`"
            )
        write_json(header, self.made_from)
        for name, column in self.columns.items():
            _lengthen(self.folder / name, len(self) * column.bytes)
            _lengthen(self._done_file(name), self.passes * self._per_pass)

    def _check(self, header: Path) -> None:
        try:
            found = json.loads(header.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            found = None
        theirs = found if isinstance(found, dict) else {}
        ours = json.loads(json.dumps(self.made_from))
        differing = [key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key)]
        if differing:
            what = ", ".join(sorted(key.replace("_", " ") for key in differing))
            raise InputError(
                f"{self.folder} holds crops of another run (differing: {what}); delete it to make them anew, or choose "
                "another `cache` or `out`"
            )

    def _missing_bytes(self, name: str) -> int:
        left = self.passes * self._per_pass - int(self.done(name).sum())
        return left * BLOCK * self.columns[name].bytes

    def _done_file(self, name: str) -> Path:
        return self.folder / f"{name.partition('.')[0]}.done"

    def done(self, name: str) -> npt.NDArray[np.uint8]:
        """1 for each complete block of a file, else 0."""
        total = self.passes * self._per_pass
        try:
            found = np.frombuffer(self._done_file(name).read_bytes(), dtype=np.uint8)[:total]
        except FileNotFoundError:
            found = np.zeros(0, dtype=np.uint8)
        return np.concatenate([found, np.zeros(total - len(found), dtype=np.uint8)])

    def write(self, name: str, block: CropBlock, values: npt.NDArray[Any]) -> None:
        """Write a block's part of a file; it counts as done after `commit`."""
        column = self.columns[name]
        assert values.shape == (block.stop - block.first, *column.shape)
        begin = (block.passing * self.num_photographs + block.first) * column.bytes
        with _named(self.folder / name) as path, path.open("r+b") as file:
            file.seek(begin)
            file.write(np.ascontiguousarray(values, dtype=column.dtype).data)
        self._written.append((name, block.number))

    def commit(self) -> None:
        """Sync what was written and mark it as done."""
        written, self._written = self._written, []
        for name in dict.fromkeys(name for name, _ in written):
            for file in (self.folder / name, self._done_file(name)):
                with _named(file), file.open("r+b") as stream:
                    if file.suffix == ".done":
                        for number in (number for other, number in written if other == name):
                            stream.seek(number)
                            stream.write(b"\1")
                    stream.flush()
                    os.fsync(stream.fileno())

    def read(self, name: str) -> npt.NDArray[Any]:
        """All crops' part of a file, (N, …), mapped into memory."""
        column = self.columns[name]
        shape = (len(self), *column.shape)
        return np.memmap(self.folder / name, dtype=column.dtype, mode="r", shape=shape)


def _lengthen(file: Path, size: int) -> None:
    """Extend a file with zeros to at least ``size`` bytes."""
    with _named(file), file.open("ab") as stream:
        if stream.tell() < size:
            stream.truncate(size)


@contextlib.contextmanager
def _named(file: Path) -> Iterator[Path]:
    """Put the file's name into disk errors, which lack it when writing."""
    try:
        yield file
    except OSError as error:
        error.filename = error.filename or str(file)
        raise
