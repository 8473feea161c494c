"""Read Parquet files that are not trusted: memory and time follow the size of the file, whatever it claims.

Arrow believes what a file says of itself. So the footer is measured before it is parsed, and the headers of the pages
before these are unpacked (https://parquet.apache.org/docs/file-format/).
"""

from __future__ import annotations

import bisect
import functools
import itertools
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple, TypeAlias

from hierclass.errors import InputError

if TYPE_CHECKING:
    import pyarrow as pa

MAX_FOOTER, FOOTER_SHARE = 2 << 20, 1 / 32
"""Bytes of the footer, at most, and as a share of the file: parsed, each takes up to 400 bytes of memory. Those of real
files are a hundredth of them, or some kilobytes."""
MAX_PARTS = 100_000
"""Columns, and groups of rows, at most."""
MAX_ROWS, BYTES_PER_ROW = 10_000, 8
"""More rows than this have this many bytes of the file each, at least. Real photographs have thousands."""
MAX_PAGE, PAGE_RATIO = 128 << 20, 8
"""Bytes of a page, unpacked, at most; beyond, this many times its packed bytes. Writers make pages of a
mebibyte, or of a thousand images, which hardly pack."""
MAX_UNPACKED, UNPACKED_RATIO = 1 << 30, 200
"""Bytes that a file may unpack to, pages and values together, at most; beyond, this many times its own bytes."""
_BATCH_BYTES = 64 << 20
"""Rows that are read at once hold no more, unless one row does."""
_BUFFER = 1 << 20
_HEADER = 16 << 20
"""Bytes of the header of a page, at most, as Arrow has it."""
_STEPS = 10_000
"""Bytes of such a header that are looked at, at most; values are passed over."""
_I32, _I64, _BINARY, _LIST, _SET, _MAP, _STRUCT = 5, 6, 8, 9, 10, 11, 12
_Fields: TypeAlias = "Mapping[int, int | _Fields]"
_PAGE_HEADER: _Fields = {2: _I32, 3: _I32}
"""Bytes of a page unpacked, and packed."""
_FOOTER: _Fields = {4: {1: {3: {7: _I64, 9: _I64, 11: _I64}}}}
"""Of groups of rows the columns: packed bytes, and where their pages and their dictionary begin."""


class UnreadableRowsError(InputError):
    """Rows of a Parquet file can't be read: those up to `end`, which is excluded."""

    def __init__(self, reason: str, end: int) -> None:
        """Give the reason, without the name of the file."""
        super().__init__(reason)
        self.end = end


class _SpentError(InputError):
    """A file unpacks to more than it may."""


class _Budget:
    """Bytes that may still be read of a file, each of which is read once, and that these may unpack to."""

    def __init__(self, size: int) -> None:
        self._packed, self._unpacked = size, max(MAX_UNPACKED, UNPACKED_RATIO * size)

    def read(self, size: int) -> None:
        self._packed -= size
        if self._packed < 0:
            raise _SpentError("holds the same bytes more than once")

    def unpack(self, size: int) -> None:
        self._unpacked -= size
        if self._unpacked < 0:
            raise _SpentError(f"unpacks to more than {UNPACKED_RATIO} times its size")


class Page(NamedTuple):
    """Bytes of a page, or of several."""

    packed: int
    unpacked: int


class BoundedParquet:
    """A Parquet file that is open for reading, and whose claims are checked before they are believed."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Open a file and read its footer; use it in a `with` block.

        Raises:
            InputError: it is no Parquet file, or claims too much; the text is the reason alone, such as "is no whole
                Parquet file".
            OSError: it can't be read.
        """
        import pyarrow.parquet as pq

        if not stat.S_ISREG(Path(path).stat().st_mode):
            raise InputError("is no regular file (a folder, pipe, socket or device)")
        self._raw = Path(path).open("rb")  # noqa: SIM115 - closed by __exit__
        try:
            self._size = os.fstat(self._raw.fileno()).st_size
            self._check_footer()
            self._file = pq.ParquetFile(
                path, pre_buffer=False, buffer_size=_BUFFER, thrift_container_size_limit=MAX_PARTS
            )
            self._metadata = self._file.metadata
            self.schema: pa.Schema = self._file.schema_arrow
            _ = self.schema.names  # which may be no UTF-8
            self._groups = self._group_sizes()
        except BaseException as error:
            self._raw.close()
            if _is_own(error):
                raise
            raise InputError(f"is no whole Parquet file: {short(error)}") from error
        self.num_rows = sum(self._groups)

    def __enter__(self) -> BoundedParquet:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._file.close()
        self._raw.close()

    def batches(
        self, columns: Sequence[str], *, first: int = 0, most: int = 1024
    ) -> Iterator[tuple[int, pa.RecordBatch | UnreadableRowsError]]:
        """Yield rows of columns from row `first` on, up to `most` at once, with the number of the first of them.

        In place of rows that can't be read, or unpack to too much, comes the error; the rows after its `end` follow. A
        column may be a field of a struct, as "image.bytes". Lists, which can be endless, are refused. Rows before
        `first` are read only where they lie in its group of rows.
        """
        budget = _Budget(self._size)
        ends = list(itertools.accumulate(self._groups))
        try:
            _ = self._parts
        except (InputError, IndexError):
            yield first, UnreadableRowsError("its list of contents is damaged", self.num_rows)
            return
        for group in range(bisect.bisect_right(ends, first), len(ends)):
            count, end = self._groups[group], ends[group]
            begin = end - count
            try:
                rows = min(most, self._rows_at_once(group, columns, budget)) if count else 0
                for batch in (
                    self._file.iter_batches(
                        rows, row_groups=[group], columns=list(columns), use_threads=False
                    )
                    if count
                    else ()
                ):
                    budget.unpack(batch.nbytes)
                    begin += len(batch)
                    if begin > first:
                        skipped = max(0, first - (begin - len(batch)))
                        yield begin - len(batch) + skipped, batch.slice(skipped)
                if begin != end:
                    raise InputError("holds fewer rows than it says")
            except _SpentError as error:
                yield max(begin, first), UnreadableRowsError(f"it {error}", self.num_rows)
                return
            except InputError as error:
                yield max(begin, first), UnreadableRowsError(f"it {error}", end)
            except (
                Exception
            ) as error:  # Arrow raises what its parsers meet: its own, OSError, UnicodeDecodeError …
                yield max(begin, first), UnreadableRowsError(short(error), end)

    def _rows_at_once(self, group: int, columns: Sequence[str], budget: _Budget) -> int:
        """How many rows of a group may be read at once; raises InputError for what unpacks to too much."""
        largest, packed = 1, 0
        for chunk, width in self._chunks(group, columns):
            total, at_once = self._measure(chunk)
            largest, packed = largest + at_once + width, packed + total.packed
            budget.unpack(total.unpacked)
        budget.read(packed)
        if largest > max(2 * MAX_PAGE, PAGE_RATIO * packed):
            raise InputError("has too many pages that have to be unpacked at once")
        return max(1, _BATCH_BYTES // largest)

    def _check_footer(self) -> None:
        if self._size < 12:
            raise InputError("is no whole Parquet file")
        self._raw.seek(-8, os.SEEK_END)
        tail = self._raw.read(8)
        length = int.from_bytes(tail[:4], "little")
        if tail[4:] != b"PAR1" or length > self._size - 12:
            raise InputError("is no whole Parquet file")
        if length > max(MAX_FOOTER, self._size * FOOTER_SHARE):
            raise InputError(f"has a list of contents of {length >> 20} MiB, which is not read")
        self._footer = length

    def _group_sizes(self) -> list[int]:
        """Rows of each group; refuse more than the file's size can hold."""
        counts = [self._metadata.row_group(group).num_rows for group in range(self._metadata.num_row_groups)]
        rows = self._metadata.num_rows
        if min([rows, *counts]) < 0 or sum(counts) != rows:
            raise InputError("is no whole Parquet file: its numbers of rows contradict each other")
        if rows > max(MAX_ROWS, self._size // BYTES_PER_ROW):
            raise InputError(f"claims {rows:,} rows in {self._size:,} bytes, which is not read")
        return counts

    def _chunks(self, group: int, columns: Sequence[str]) -> Iterator[tuple[dict[int, int], int]]:
        """The parts of a group that hold columns, or fields of them, and how many bytes a missing value takes."""
        schema = self._metadata.schema
        for number in range(len(schema)):
            about = schema.column(
                number
            )  # Arrow goes by the schema: names and types beside the pages may differ
            if found := [column for column in columns if f"{about.path}.".startswith(f"{column}.")]:
                if about.max_repetition_level:
                    raise InputError(f"holds lists in column {found[0][:40]!r}, which are not read")
                width = about.length if about.physical_type == "FIXED_LEN_BYTE_ARRAY" else 0
                if width > MAX_PAGE:
                    raise InputError(f"has values of {width >> 20} MiB, which are not read")
                yield self._parts[group][1][number][3], width

    @functools.cached_property
    def _parts(self) -> list[dict[int, Any]]:
        """The groups of the footer with their parts.

        They are read here, since Arrow ends the process if it is asked for a part whose statistics are wrong.
        """
        self._raw.seek(self._size - 8 - self._footer)
        found = _CompactThrift(self._raw.read(self._footer), self._footer).read_struct(_FOOTER)
        parts: list[dict[int, Any]] = found.get(4, [])
        return parts

    def _measure(self, part: dict[int, int]) -> tuple[Page, int]:
        """Return the bytes of all pages of a part, and the largest unpacked; refuse one that unpacks to too much."""
        packed, at, dictionary = part[7], part[9], part.get(11, 0)
        if 0 < dictionary < at:
            at = dictionary
        end = at + packed
        if at < 0 or packed < 0 or end > self._size:
            raise InputError("is damaged: its pages lie outside of it")
        unpacked = largest = 0
        while at < end:
            length, page = _page_header(self._raw, at)
            at += length + page.packed
            if at > self._size:
                raise InputError("is damaged: a page is longer than the file")
            if page.unpacked > max(MAX_PAGE, PAGE_RATIO * page.packed):
                raise InputError(f"has a page of {page.unpacked >> 20} MiB unpacked, which is not read")
            unpacked, largest = unpacked + page.unpacked, max(largest, page.unpacked)
        return Page(packed, unpacked), largest


def _is_own(error: BaseException) -> bool:
    """Whether an error is a refusal, of the system, or none of the file's: a signal, say."""
    of_system = isinstance(error, OSError) and error.errno is not None
    return isinstance(error, InputError) or of_system or not isinstance(error, Exception)


def short(error: BaseException) -> str:
    """What Arrow says of a file, in a short line."""
    return " ".join(str(error)[:1000].split())[:120] or type(error).__name__


def _page_header(file: IO[bytes], at: int) -> tuple[int, Page]:
    """Length of the header of a page that begins at a byte, and what it says."""
    window = 1 << 10
    while True:
        file.seek(at)
        data = file.read(window)
        try:
            header = _CompactThrift(data, _STEPS)
            fields = header.read_struct(_PAGE_HEADER)
        except IndexError:
            if len(data) < window or window >= _HEADER:
                break
            window <<= 4
            continue
        page = Page(fields.get(3, -1), fields.get(2, -1))
        if min(page) < 0:
            break
        return header.at, page
    raise _no_header()


class _CompactThrift:
    """Reads Thrift's compact protocol as Arrow's reader does; what ends too early is an IndexError."""

    def __init__(self, data: bytes, steps: int) -> None:
        """Read bytes; not more than so many of them are looked at, values being passed over."""
        self._data, self.at, self._steps = data, 0, steps

    def read_struct(self, wanted: _Fields, depth: int = 0) -> dict[int, Any]:
        """Read a struct; return the fields that are wanted: integers of a type, structs and lists of structs."""
        found: dict[int, Any] = {}
        field = 0
        while head := self._byte():
            kind, step = head & 15, head >> 4
            field = _wrapped(field + step if step else _signed(self._varint()), 16)
            what = wanted.get(field)
            if kind == what:
                bits = 32 if kind == _I32 else 64
                found[field] = _wrapped(_signed(self._varint() & ((1 << bits) - 1)), bits)
            elif isinstance(what, Mapping) and kind == _STRUCT:  # given twice, the second adds to the first
                found[field] = {**found.get(field, {}), **self.read_struct(what, depth + 1)}
            elif isinstance(what, Mapping) and kind == _LIST:
                head = self._byte()
                if head & 15 != _STRUCT:
                    raise _no_header()
                count = self._varint() if head >> 4 == 15 else head >> 4
                found[field] = [self.read_struct(what, depth + 1) for _ in range(count)]
            else:
                self._skip(kind, depth)
        return found

    def _byte(self) -> int:
        self.at += 1
        self._steps -= 1
        if self._steps < 0:
            raise _no_header()
        return self._data[self.at - 1]

    def _varint(self) -> int:
        value = 0
        for shift in range(0, 70, 7):
            byte = self._byte()
            value |= (byte & 127) << shift
            if byte < 128:
                return value
        raise _no_header()

    def _skip(self, kind: int, depth: int) -> None:
        if depth > 16:  # nothing in a footer or a header is half as deep
            raise _no_header()
        if kind in (1, 2):  # true and false, which have no bytes
            return
        if kind in (4, _I32, 6):
            self._varint()
        elif kind == 3:
            self._byte()
        elif kind == 7:
            self.at += 8
        elif kind == _BINARY:
            length = self._varint()
            self.at += length
        elif kind == _STRUCT:
            self.read_struct({}, depth + 1)
        elif kind in (_LIST, _SET):
            head = self._byte()
            self._skip_all([head & 15], self._varint() if head >> 4 == 15 else head >> 4, depth)
        elif kind == _MAP:
            if count := self._varint():
                head = self._byte()
                self._skip_all([head >> 4, head & 15], count, depth)
        else:
            raise _no_header()

    def _skip_all(self, kinds: Sequence[int], count: int, depth: int) -> None:
        for _ in range(count):
            for kind in kinds:
                self._skip(3 if kind in (1, 2) else kind, depth + 1)  # in a list, truth values have a byte


def _no_header() -> InputError:
    return InputError("is damaged: a page has no header")


def _wrapped(value: int, bits: int) -> int:
    """A number as a signed integer of so many bits holds it."""
    half = 1 << (bits - 1)
    return (value + half) % (2 * half) - half


def _signed(value: int) -> int:
    return (value >> 1) ^ -(value & 1)
