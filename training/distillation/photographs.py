"""List unlabelled photographs in folders, archives and Parquet files, and read them one by one."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image

from hierclass.errors import ImageError, InputError
from hierclass.images.decoding import read_image
from hierclass.images.discovery import display_name
from hierclass.labelling.bounded_parquet import BoundedParquet
from hierclass.labelling.inputs import Input, ParquetRows, find_column, list_inputs, source, stamp


class Photographs(Sequence[Input]):
    """Photographs in the order listed; files are read on demand."""

    def __init__(self, inputs: Sequence[Input], passed_over: Sequence[Path] = ()) -> None:
        """Take what `list_photographs` found; ``passed_over`` are Parquet files without images."""
        self._inputs = tuple(inputs)
        self.passed_over = tuple(passed_over)
        self._rows = ParquetRows()

    def __len__(self) -> int:
        return len(self._inputs)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        return self._inputs[index]

    def name(self, index: int) -> str:
        """Name of a photograph for messages."""
        return self._inputs[index].name

    def image(self, index: int, min_side: int | None = None) -> Image.Image:
        """The RGB image at an index; raises `ImageError` if it can't be read."""
        item = self._inputs[index]
        data = self._rows.data(item)
        return read_image(source(item) if data is None else data, min_side=min_side)

    @property
    def digest(self) -> str:
        """Checksum of the names, sizes and modification times of all photographs."""
        total = hashlib.sha256()
        for item in self._inputs:
            now = (item.size, item.modified) if item.modified >= 0 else stamp(item.path)
            total.update(f"{item.name}\0{now}\n".encode("utf-8", "backslashreplace"))
        return total.hexdigest()

    def reasons(self, indices: Sequence[int]) -> Iterator[tuple[str, str]]:
        """Yield name and reason for each of the unreadable photographs at ``indices``."""
        for index in indices:
            try:
                self.image(index, min_side=8)
            except ImageError as error:
                yield self.name(index), str(error)
            else:
                yield self.name(index), "could not be read when its crops were made"


def list_photographs(paths: Sequence[str | Path]) -> Photographs:
    """List the images of files and folders, with the tar files and Parquet files in them.

    Raises `InputError` for a missing path, and if there is no image.
    """
    names: list[Path] = []
    passed_over: list[Path] = []
    for path in map(Path, paths):
        if not path.exists():
            raise InputError(f"`images` {display_name(path)} does not exist")
        found = sorted(path.glob("**/*.parquet")) if path.is_dir() else []
        tables = [table for table in found if _has_images(table)]
        passed_over += [table for table in found if table not in tables]
        names += [*([path] if not tables or _has_photographs(path) else []), *tables]
    try:
        return Photographs(list(list_inputs(names)), passed_over)
    except InputError as error:
        reason = str(error).removeprefix("nothing to do: ").partition(";")[0]
        raise InputError(
            f"`images`: {reason}; give folders of photographs, or Parquet files with a column image"
        ) from error


def _has_images(table: Path) -> bool:
    """Whether a Parquet file has a column of images; True if it can't be read, which is reported later."""
    try:
        with BoundedParquet(table) as file:
            schema = file.schema
    except (InputError, OSError):
        return True
    try:
        find_column(str(table), schema, None)
    except InputError:
        return False
    return True


def _has_photographs(folder: Path) -> bool:
    """Whether a folder holds images or tar files."""
    try:
        return Path(next(list_inputs([folder])).path) != folder  # an empty folder is an input itself
    except InputError:
        return False
