"""Parquet files that claim more than they hold, or hold more than they seem to, written page by page."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from hostile import HostileFile

MIB = 1 << 20
BYTE_ARRAY, FIXED = 6, 7
PLAIN, RLE, DELTA, DICTIONARY = 0, 3, 7, 8
UNCOMPRESSED, ZSTD = 0, 6
I32, I64, BINARY, LIST, STRUCT = 5, 6, 8, 9, 12
"""Types of Thrift's compact protocol."""


def varint(value: int) -> bytes:
    """A number in groups of 7 bits, the lowest first."""
    found = bytearray()
    while value > 127:
        found.append(value & 127 | 128)
        value >>= 7
    return bytes([*found, value])


def number(value: int) -> bytes:
    """A signed number of Thrift's compact protocol."""
    return varint((value << 1) ^ (value >> 63))


def text(value: bytes) -> bytes:
    """A string of Thrift's compact protocol."""
    return varint(len(value)) + value


def items(kind: int, values: Sequence[bytes]) -> bytes:
    """A list of Thrift's compact protocol."""
    return bytes([0xF0 | kind]) + varint(len(values)) + b"".join(values)


def record(*fields: tuple[int, int, bytes]) -> bytes:
    """A struct of Thrift's compact protocol: numbers of fields, which rise, their types and values."""
    found, last = b"", 0
    for field, kind, value in fields:
        found += bytes([(field - last) << 4 | kind]) + value
        last = field
    return found + b"\0"


def column(name: bytes = b"image", kind: int = BYTE_ARRAY, width: int = 0) -> bytes:
    """An optional column of a schema."""
    sized = [(2, I32, number(width))] if width else []
    return record((1, I32, number(kind)), *sized, (3, I32, number(1)), (4, BINARY, text(name)))


def page(values: bytes, count: int, encoding: int = PLAIN, unpacked: int = 0, kind: int = 0) -> bytes:
    """A data page, or a page of a dictionary (`kind` 2); `values` are packed already."""
    about = [(1, I32, number(count)), (2, I32, number(encoding))]
    about += [] if kind else [(3, I32, number(RLE)), (4, I32, number(RLE))]
    sizes = [(1, I32, number(kind)), (2, I32, number(unpacked or len(values))), (3, I32, number(len(values)))]
    return record(*sizes, (7 if kind else 5, STRUCT, record(*about))) + values


def levels(count: int, *, present: bool) -> bytes:
    """Which of so many values are present: all or none."""
    run = varint(count << 1) + bytes([present])
    return struct.pack("<I", len(run)) + run


def chunk(
    size: int,
    count: int,
    *,
    at: int = 4,
    pages: int = 0,
    codec: int = UNCOMPRESSED,
    kind: int = BYTE_ARRAY,
    name: bytes = b"image",
) -> bytes:
    """Where the pages of the column `image` lie in a file; those of data begin at `pages`, if a dictionary is first."""
    about = [
        (1, I32, number(kind)),
        (2, LIST, items(I32, [number(PLAIN), number(RLE), number(DICTIONARY)])),
        (3, LIST, items(BINARY, [text(name)])),
        (4, I32, number(codec)),
        (5, I64, number(count)),
        (6, I64, number(size)),
        (7, I64, number(size)),
        (9, I64, number(pages or at)),
        *([(11, I64, number(at))] if pages else []),
    ]
    return record((2, I64, number(at)), (3, STRUCT, record(*about)))


def group(rows: int, *chunks: bytes) -> bytes:
    """A group of rows."""
    return record((1, LIST, items(STRUCT, chunks)), (2, I64, number(0)), (3, I64, number(rows)))


def write(
    folder: Path, body: bytes, rows: int, groups: Sequence[bytes], columns: Sequence[bytes] = ()
) -> Path:
    """Write pages, which begin at byte 4, and the footer."""
    path = folder / "hostile.parquet"
    leaves = list(columns or [column()])
    root = record((4, BINARY, text(b"schema")), (5, I32, number(len(leaves))))
    footer = record(
        (1, I32, number(1)),
        (2, LIST, items(STRUCT, [root, *leaves])),
        (3, I64, number(rows)),
        (4, LIST, items(STRUCT, groups)),
    )
    path.write_bytes(b"PAR1" + body + footer + struct.pack("<I", len(footer)) + b"PAR1")
    return path


def packed_zeros(before: bytes, size: int) -> bytes:
    """Bytes and then so many zeros, packed by Zstandard in frames of 16 MiB at most."""
    import pyarrow as pa

    def pack(data: bytes) -> bytes:
        return bytes(pa.Codec("zstd").compress(data, asbytes=True))

    frames, rest = divmod(size, 16 * MIB)
    return pack(before) + pack(bytes(16 * MIB)) * frames + (pack(bytes(rest)) if rest else b"")


def one_dictionary_value(folder: Path, size: int, rows: int, filler: int = 0) -> Path:
    """One value of so many zeros, which every row has."""
    length = struct.pack("<I", size)
    first = page(packed_zeros(length, size), 1, unpacked=4 + size, kind=2)
    indices = levels(rows, present=True) + b"\x01" + varint(rows << 1) + b"\0"
    data = page(packed_zeros(indices, 0), rows, DICTIONARY, unpacked=len(indices))
    about = chunk(len(first) + len(data), rows, pages=4 + len(first), codec=ZSTD)
    return write(folder, first + data + bytes(filler), rows, [group(rows, about)])


def null_rows(folder: Path, rows: int, filler: int) -> Path:
    """So many rows without a value, in a file that is made longer."""
    data = page(levels(rows, present=False), rows)
    return write(folder, data + bytes(filler), rows, [group(rows, chunk(len(data), rows))])


def shared_prefixes(folder: Path, size: int, rows: int) -> Path:
    """One value of so many zeros; the others are its beginning, of the same length (DELTA_BYTE_ARRAY)."""

    def deltas(first: int, step: int) -> bytes:
        """DELTA_BINARY_PACKED: `first`, then always `first + step`."""
        head = varint(128) + varint(4) + varint(rows) + number(first)
        low = min(step, 0)
        wide = [step - low] + [-low] * 31
        bits = 32
        block = number(low) + bytes([bits, bits, bits, bits])
        block += b"".join(struct.pack("<32I", *(wide if at == 0 else [-low] * 32)) for at in range(4))
        flat = number(0) + bytes(4)
        return head + block + flat * max(0, -(-(rows - 1 - 128) // 128))

    values = levels(rows, present=True) + deltas(0, size) + deltas(size, -size)
    data = page(packed_zeros(values, size), rows, DELTA, unpacked=len(values) + size)
    return write(folder, data, rows, [group(rows, chunk(len(data), rows, codec=ZSTD))])


def large_page(folder: Path, size: int, times: int = 1, name: bytes = b"image") -> Path:
    """Pages of one value of so many zeros each, in a few kilobytes."""
    head = levels(1, present=True) + struct.pack("<I", size)
    data = page(packed_zeros(head, size), 1, unpacked=len(head) + size) * times
    return write(folder, data, times, [group(times, chunk(len(data), times, codec=ZSTD, name=name))])


def _claims_to_unpack(folder: Path) -> Path:
    data = page(b"\0" * 100, 10, unpacked=(1 << 31) - 1)
    return write(folder, data, 10, [group(10, chunk(len(data), 10, codec=ZSTD))])


def _wide_values(folder: Path) -> Path:
    data = page(levels(100, present=False), 100)
    about = chunk(len(data), 100, kind=FIXED)
    return write(folder, data, 100, [group(100, about)], [column(kind=FIXED, width=1 << 30)])


def _same_pages(folder: Path) -> Path:
    data = page(levels(1, present=True) + struct.pack("<I", MIB) + bytes(MIB), 1)
    return write(folder, data, 9000, [group(1, chunk(len(data), 1))] * 9000)


def _missing_rows(folder: Path) -> Path:
    data = page(levels(1, present=True) + struct.pack("<I", 8 * MIB) + bytes(8 * MIB), 1)
    return write(folder, data, 9000, [group(9000, chunk(len(data), 9000))])


def _far_pages(folder: Path) -> Path:
    return write(folder, b"", 10, [group(10, chunk(1 << 40, 10))])


def _empty_groups(folder: Path) -> Path:
    data = page(levels(1, present=False), 1)
    return write(folder, data, 1, [*[group(0)] * 90_000, group(1, chunk(len(data), 1))])


def _groups_of_parts(folder: Path, count: int) -> Path:
    return write(folder, b"", 0, [group(0, *[record((2, I64, number(0)))] * 90_000)] * count)


def _deep(folder: Path) -> Path:
    inner = record((3, I32, number(0)), (4, BINARY, text(b"a")), (5, I32, number(1)))
    return write(folder, b"", 0, [], [inner] * 100_000)


def _columns(folder: Path, names: Sequence[bytes], kind: int) -> Path:
    return write(folder, b"", 0, [], [column(name, kind) for name in names])


TABLES = [
    HostileFile(
        "one dictionary value of 60 MB in 10,000 rows",
        partial(one_dictionary_value, size=60_000_000, rows=10_000),
        "10000 rows: ",
    ),
    HostileFile(
        "one dictionary value of 1.1 GB",
        partial(one_dictionary_value, size=1_100_000_000, rows=10),
        "10 rows: ",
    ),
    HostileFile(
        "10^9 rows without a value in 2 MB",
        partial(null_rows, rows=10**9, filler=2_000_000),
        "claims 1,000,000,000 rows",
    ),
    HostileFile(
        "10,000 rows without a value in 200 bytes",
        partial(null_rows, rows=10_000, filler=0),
        "10000 rows: is missing",
    ),
    HostileFile(
        "10,000 values of 60 MB by their common beginning",
        partial(shared_prefixes, size=60_000_000, rows=10_000),
        "10000 rows: ",
    ),
    HostileFile("page of 2 GB", partial(large_page, size=2_000_000_000), "has a page of"),
    HostileFile(
        "page of 2 GB of another name", partial(large_page, size=2_000_000_000, name=b"x"), "has a page of"
    ),
    HostileFile("1,000 pages of 60 MB", partial(large_page, size=60_000_000, times=1000), "1000 rows: "),
    HostileFile("page that claims to unpack to 2 GB", _claims_to_unpack, "has a page of"),
    HostileFile("100 missing values of 1 GiB each", _wide_values, "has values of 1024 MiB"),
    HostileFile("9,000 groups of the same rows", _same_pages, "9000 rows: "),
    HostileFile("9,000 rows of which one is there", _missing_rows, "9000 rows: "),
    HostileFile("pages of a tebibyte", _far_pages, "its pages lie outside of it"),
    HostileFile("90,000 groups without rows", _empty_groups, "is missing"),
    HostileFile("180,000 parts of groups", partial(_groups_of_parts, count=2), ""),
    HostileFile(
        "5 million parts of groups", partial(_groups_of_parts, count=56), "has a list of contents of"
    ),
    HostileFile("100,000 structs in one another", _deep, "is no whole Parquet file"),
    HostileFile("20,000 columns", partial(_columns, names=[b"image"] * 20_000, kind=BYTE_ARRAY), ""),
    HostileFile(
        "name of a column of 1 MiB", partial(_columns, names=[b"a" * MIB], kind=1), "has no column of images"
    ),
]
