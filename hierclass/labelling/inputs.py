"""List the images to label, in files, folders and archives, and read their bytes."""

from __future__ import annotations

import itertools
import os
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, BinaryIO, NamedTuple

from hierclass.errors import HierclassError, ImageError, InputError
from hierclass.images.decoding import MAX_BYTES
from hierclass.images.discovery import (
    PassedOver,
    but_ignored,
    check_named,
    display_name,
    ending_of,
    find_inputs,
    nothing_to_do,
)
from hierclass.images.kinds import kind_of, scanned_endings
from hierclass.images.path_lists import PATH_COLUMNS
from hierclass.labelling.bounded_parquet import BoundedParquet, UnreadableRowsError, short
from hierclass.labelling.tar_members import LINK, SPARSE, list_tar
from taxonomy.folders import IGNORED, Ignore

TAR_ENDINGS = (".tar",)
PARQUET_ENDINGS = (".parquet",)
IMAGE_COLUMNS = ("image", "img", "jpg", "jpeg", "png", "webp", "bytes", "content")
"""Names of columns that are taken for images, in this order."""
SECONDS_PER_IMAGE = 20.0
"""Seconds after which an image is given up; ordinary ones take hundredths, one of 178 megapixels a few."""
SECONDS_RANGE = (0.1, 3600.0)
"""From how few to how many may be asked for."""
_UNREADABLE = {
    LINK: "is a link inside of its tar file; unpack the file to label what it leads to",
    SPARSE: "is stored without its holes (sparse) in its tar file; unpack the file to label it",
}
"""Why a member of a tar file can't be read, by what its input has for a length."""
_BATCH = 64
"""Rows of a Parquet file that are read at once, at most."""
_MAX_SHOWN = 12


class Input(NamedTuple):
    """One image to label: a file, a member of a tar file, or a row of a Parquet file."""

    path: str
    member: str = ""
    """Its name in a tar file, or its row in a Parquet file."""
    offset: int = -1
    """Its first byte in a tar file, or its row in a Parquet file."""
    length: int = -1
    """Its number of bytes in a tar file, or `LINK` or `SPARSE`."""
    size: int = -1
    """Bytes of the archive when it was listed."""
    modified: int = -1
    """Time of the archive's last change when it was listed, in nanoseconds."""

    @property
    def name(self) -> str:
        """The value in the column `path`; in an archive, the archive's path, / and the name inside."""
        return display_name(f"{self.path}/{self.member}" if self.member else self.path)


def list_inputs(
    names: Iterable[str | os.PathLike[str]],
    *,
    stdin: BinaryIO | None = None,
    image_column: str | None = None,
    ignore: Collection[str] = IGNORED,
    passed_over: PassedOver | None = None,
) -> Iterator[Input]:
    """Yield every image that `names` lead to, as `hierclass.images.discovery.find_inputs` does, and those in archives.

    A tar file (.tar, uncompressed, in folders too) yields its members with the ending of an image, in their order (the
    layout of WebDataset); links among them can't be read. Members are ignored as files in folders are, and those of
    other kinds counted in `passed_over`, but for what describes an image (`0.json` beside `0.jpg`). A Parquet file
    (.parquet) that is named yields every row of `image_column`: bytes, or a struct with a field `bytes`. An archive
    that can't be listed is yielded as an input; reading it gives the error.

    Raises:
        InputError: a name is that of a list, of a table or of something packed (on the call, if `names` is a
            sequence); there is nothing to label (at the end), or a Parquet file has no column of images.
    """
    for name in names if isinstance(names, Sequence) else ():
        check_named(name)
    passed_over = PassedOver() if passed_over is None else passed_over
    paths = find_inputs(names, stdin=stdin, also=TAR_ENDINGS, ignore=ignore, passed_over=passed_over)
    return _inputs(paths, image_column, ignore, passed_over)


def _inputs(
    paths: Iterable[str], image_column: str | None, ignore: Collection[str], passed_over: PassedOver
) -> Iterator[Input]:
    empty, archive = True, ""
    for path in paths:
        ending = PurePath(path).suffix.lower()
        if ending in TAR_ENDINGS and os.path.isfile(path):  # noqa: PTH113 - raises nothing where a name is too long
            archive, found = path, _tar_members(path, Ignore(ignore, path), passed_over)
        elif ending in PARQUET_ENDINGS and os.path.isfile(path):  # noqa: PTH113
            archive, found = path, _parquet_rows(path, image_column)
        else:
            found = iter((Input(path),))
        for item in found:
            empty = False
            yield item
    if empty:
        is_tar = PurePath(archive).suffix.lower() in TAR_ENDINGS
        first = next(_tar_members(archive, Ignore(()), PassedOver()), None) if is_tar else None
        what = f"no images in {display_name(archive)}{but_ignored(first.name if first else '')}"
        raise nothing_to_do(what, passed_over)


def _tar_members(path: str, ignore: Ignore, passed_over: PassedOver) -> Iterator[Input]:
    """Yield the images in a tar file, and the file itself if it can't be read to its end."""
    listed = stamp(path) or ()
    endings, sample, others, has_image = scanned_endings(), "", PassedOver(), True
    try:
        for member in list_tar(path):
            if ignore.any_part(member.name):
                continue
            if (name := _sample(member.name)) != sample:
                if not has_image:
                    passed_over.update(others)
                sample, others, has_image = name, PassedOver(), False
            ending = ending_of(member.name)
            if ending in endings:
                has_image = True
                yield Input(path, *member, *listed)
            elif (kind := kind_of(ending)) is not None and kind.photographs:
                passed_over.add(member.name)
            else:
                others.add(member.name)
    except (InputError, OSError):
        yield Input(path)
    if not has_image:
        passed_over.update(others)


def _sample(member: str) -> str:
    """What the files of one sample of a WebDataset have in common: all up to the first dot of the name."""
    folder, slash, name = member.rpartition("/")
    return f"{folder}{slash}{name.partition('.')[0]}"


def _parquet_rows(path: str, image_column: str | None) -> Iterator[Input]:
    listed = stamp(path) or Stamp(-1, -1)
    try:
        with BoundedParquet(path) as file:
            schema, rows = file.schema, file.num_rows
    except (InputError, OSError):
        yield Input(path)
        return
    find_column(path, schema, image_column)
    for row in range(rows):
        yield Input(path, str(row), row, size=listed.size, modified=listed.modified)


def find_column(path: str, schema: Any, wanted: str | None) -> str:
    """Return the name of the column of images in an Arrow schema.

    Raises:
        InputError: there is none, or the column `wanted` holds no bytes.
    """
    import pyarrow as pa

    def holds_bytes(kind: Any, *, alone: bool = False) -> bool:
        if pa.types.is_struct(kind):
            return (
                not alone
                and kind.get_field_index("bytes") >= 0
                and holds_bytes(kind.field("bytes").type, alone=True)
            )
        if pa.types.is_dictionary(kind):
            return holds_bytes(kind.value_type)
        kinds = (
            pa.types.is_binary,
            pa.types.is_large_binary,
            pa.types.is_binary_view,
            pa.types.is_fixed_size_binary,
        )
        return any(is_one(kind) for is_one in kinds)

    columns = {field.name: holds_bytes(field.type) for field in schema}
    if wanted is not None:
        if not columns.get(wanted):
            what = "holds no bytes of images" if wanted in columns else "does not exist"
            raise InputError(f"{display_name(path)}: column {wanted[:40]!r} {what}; it has {_shown(columns)}")
        return wanted
    found = [name for name in IMAGE_COLUMNS if columns.get(name)] or [
        n for n, holds in columns.items() if holds
    ]
    if not found:
        raise InputError(
            f"{display_name(path)} has no column of images (bytes); it has {_shown(columns)}{_as_list(path, schema)}"
        )
    return found[0]


def _as_list(path: str, schema: Any) -> str:
    """How to label what a Parquet file without images names; empty if it has no column of paths."""
    column = next((name for name in PATH_COLUMNS if name in schema.names), None)
    if column is None:
        return ""
    code = f"import pyarrow.parquet as p; print(*p.read_table({path!r})[{column!r}], sep='\\n')"
    return f'; as a list: python -c "{code}" | hierclass label -'


def _shown(names: Iterable[str]) -> str:
    """The first names of columns, cut where they are long."""
    first = list(itertools.islice(names, _MAX_SHOWN + 1))
    return ", ".join([name[:40] for name in first[:_MAX_SHOWN]] + ["…"] * (len(first) > _MAX_SHOWN)) or "none"


@dataclass(frozen=True, slots=True)
class Shard:
    """Part `number` (from 1) of `of` consecutive parts of the inputs, of equal size."""

    number: int
    of: int

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Read "2/8". Raises InputError for anything else."""
        first, _, second = str(text).partition("/")
        if first.isdecimal() and second.isdecimal() and 1 <= int(first) <= int(second):
            return cls(int(first), int(second))
        raise InputError(f"--shard {text}: give which of how many, from 1/8 to 8/8 for eight machines")

    def range(self, count: int) -> tuple[int, int]:
        """Return the numbers of its first input and of the one after its last, of `count` inputs."""
        return count * (self.number - 1) // self.of, count * self.number // self.of

    def of_all(self, inputs: Iterable[tuple[int, Input]]) -> list[tuple[int, Input]]:
        """Return its part of all inputs, which are listed to the end first."""
        everything = list(inputs)
        return everything[slice(*self.range(len(everything)))]


class Stamp(NamedTuple):
    """Bytes of a file and time of its last change in nanoseconds: tells whether it has changed."""

    size: int
    modified: int


def stamp(path: str) -> Stamp | None:
    """Return the stamp of a file, None if there is no file."""
    try:
        status = Path(path).stat()
    except (OSError, ValueError):
        return None
    return Stamp(status.st_size, status.st_mtime_ns)


def source(item: Input) -> str | bytes:
    """Return the path of an image file, or the bytes of a member of a tar file (`ParquetRows` reads Parquet rows).

    Raises:
        ImageError: the archive can't be listed, has changed or is truncated.
    """
    if item.offset < 0:
        _refuse_archive(item.path)
        return item.path
    if item.length in _UNREADABLE:
        raise ImageError(_UNREADABLE[item.length])
    check_archive(item)
    return _read_part(item)


def check_archive(item: Input) -> None:
    """Raise ImageError if the archive of an image is gone or has changed since it was listed."""
    listed, now = Stamp(item.size, item.modified), stamp(item.path)
    if now is None:
        raise ImageError("is gone: its archive does not exist any more")
    if item.modified >= 0 and now != listed:
        raise ImageError("lies in an archive that has changed since it was listed; --overwrite lists it anew")


class ParquetRows:
    """Reads the bytes of images in Parquet files; fast if the rows that are asked for rise."""

    def __init__(self, image_column: str | None = None) -> None:
        """Read `image_column`, None for the first that holds images."""
        self._column = image_column
        self._file: tuple[str, Iterator[tuple[int, Any]]] | None = None

    def data(self, item: Input) -> bytes | None:
        """Return the bytes of an input, None if it is no row of a Parquet file.

        Raises:
            ImageError: the file can't be read or has changed, or the row has no bytes, or more than an image may have.
        """
        if item.offset < 0 or item.length != -1:
            return None
        check_archive(item)
        if self._file is not None and self._file[0] == item.path:
            for row, value in self._file[1]:
                if row == item.offset:
                    return _image_bytes(value)
                if row > item.offset:
                    break
        self._file = (item.path, _rows_of(item.path, self._column, item.offset))
        return _image_bytes(next(self._file[1])[1])


def _image_bytes(value: Any) -> bytes:
    import pyarrow as pa

    if isinstance(value, Exception):
        raise ImageError(f"can't be read from its Parquet file: {short(value)}") from value
    if isinstance(value, pa.StructScalar) and value.is_valid:
        value = value["bytes"]
    if isinstance(value, pa.DictionaryScalar):
        value = value.value
    if not value.is_valid:
        raise ImageError("is missing: the row of its Parquet file has no bytes")
    _check_size(value.as_buffer().size)
    found: bytes = value.as_py()
    return found


def _rows_of(path: str, column: str | None, first: int) -> Iterator[tuple[int, Any]]:
    """Yield number and value of the rows of a Parquet file from `first` on, without end.

    Instead of a value that can't be read, or does not exist, comes the error.
    """
    import pyarrow as pa

    missing: Exception = InputError("it has no such row")
    try:
        with BoundedParquet(path) as file:
            name = find_column(path, file.schema, column)
            if pa.types.is_struct(file.schema.field(name).type):
                name = f"{name}.bytes"
            for begin, batch in file.batches([name], first=first, most=_BATCH):
                values: Iterable[Any] = (
                    itertools.repeat(batch, batch.end - begin)
                    if isinstance(batch, UnreadableRowsError)
                    else batch.column(0)
                )
                for first, value in enumerate(values, start=begin + 1):
                    yield first - 1, value
    except (HierclassError, OSError) as error:
        missing = error
    yield from zip(itertools.count(first), itertools.repeat(missing), strict=False)


def _check_size(size: int) -> None:
    if size > MAX_BYTES:
        raise ImageError(f"has {size / (1 << 30):.1f} GiB; files of up to {MAX_BYTES >> 30} GiB are read")


def _read_part(item: Input) -> bytes:
    """Return the bytes of a member of a tar file."""
    _check_size(item.length)
    if 0 <= item.size < item.offset + item.length:
        raise ImageError("is truncated: its tar file ends before the picture does")
    try:
        with open(item.path, "rb") as file:
            file.seek(item.offset)
            data = file.read(item.length)
    except OSError as error:
        raise ImageError(f"can't be read from its tar file: {error.strerror}") from error
    if len(data) < item.length:
        raise ImageError("is truncated: its tar file ends before the picture does")
    return data


def _refuse_archive(path: str) -> None:
    """Raise ImageError with the reason if a path is an archive, which then could not be listed."""
    ending = PurePath(path).suffix.lower()
    if ending not in TAR_ENDINGS + PARQUET_ENDINGS or not os.path.isfile(path):  # noqa: PTH113
        return
    try:
        with open(path, "rb") as file:
            empty = not file.read(1)
        if not empty and ending in TAR_ENDINGS:
            deque(list_tar(path), maxlen=0)
        elif not empty:
            BoundedParquet(path).close()
    except InputError as error:
        raise ImageError(str(error)) from error
    except OSError as error:
        raise ImageError(f"can't be read: {error.strerror or short(error)}") from error
    if empty:
        raise ImageError("is empty (0 bytes)")
    raise ImageError("has changed since it was listed; --overwrite lists it anew")
