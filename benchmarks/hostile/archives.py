"""Tar, zip and Parquet files that claim more than they hold, or hold more than they seem to."""

from __future__ import annotations

import bz2
import os
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

from hostile import HostileFile
from hostile.tables import TABLES

__all__ = ["TABLES", "TARS", "ZIPS"]

GIB = 1 << 30
BLOCK = 512
TINY_PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d494844520000000100000001080200000090775"
    "3de0000000c49444154789c63f8ffff3f0005fe02fe0def46b80000000049454e44ae426082"
)
"""A picture of one pixel."""


def hole(path: Path, size: int) -> None:
    """Lengthen a file without writing: most file systems keep no bytes for what is skipped."""
    os.truncate(path, size)


# ---------------------------------------------------------------- tar


def header(name: str, size: int = 0, type_: bytes = b"0", **more: str) -> bytes:
    """The header of a member; a large size is written in binary."""
    info = tarfile.TarInfo(name)
    info.size, info.type = size, type_
    for key, value in more.items():
        setattr(info, key, value)
    return info.tobuf(tarfile.GNU_FORMAT)


def record(key: str, value: str) -> bytes:
    """A record of an extended header."""
    body = f" {key}={value}\n".encode()
    length = len(body) + 1
    while len(str(length)) + len(body) != length:
        length = len(str(length)) + len(body)
    return str(length).encode() + body


def padded(data: bytes) -> bytes:
    """Bytes, filled up to whole blocks."""
    return data + bytes(-len(data) % BLOCK)


def member(name: str, data: bytes, type_: bytes = b"0") -> bytes:
    """A member with its header."""
    return header(name, len(data), type_) + padded(data)


def _tar(folder: Path, *parts: bytes, end: int = 0) -> Path:
    path = folder / "hostile.tar"
    path.write_bytes(b"".join([*parts, *([] if end else [bytes(2 * BLOCK)])]))
    if end:
        hole(path, end)
    return path


def _claims(folder: Path, type_: bytes) -> Path:
    return _tar(folder, header("big.png", 6 * GIB, type_), end=6 * GIB + 10 * BLOCK)


def _old_sparse(folder: Path) -> Path:
    first = bytearray(header("sparse.png", BLOCK, b"S"))
    first[386:410] = b"%011o\0%011o\0" % (0, BLOCK)
    first[483:495] = b"\x80" + (6 * GIB).to_bytes(11, "big")
    first[148:156] = b"%06o\0 " % (sum(first[:148]) + sum(first[156:]) + 256)
    return _tar(folder, bytes(first), bytes(BLOCK))


def _sparse_map_without_end(folder: Path) -> Path:
    records = [("GNU.sparse.major", "1"), ("GNU.sparse.minor", "0"), ("GNU.sparse.realsize", str(6 * GIB))]
    head = member("x", b"".join(record(*each) for each in records), b"x")
    return _tar(folder, head, header("sparse.png", BLOCK), b"1" * BLOCK)


def _with_attribute(folder: Path, key: str, value: str) -> Path:
    return _tar(folder, member("x", record(key, value), b"x"), member("second.png", TINY_PNG))


def _chain(folder: Path) -> Path:
    return _tar(folder, member("x", b"long.png\0", b"L") * 5_000, member("second.png", TINY_PNG))


def _many_digits(folder: Path) -> Path:
    return _tar(folder, member("x", b"1" * (1 << 20), b"x"), member("second.png", TINY_PNG))


def _endless_record(folder: Path) -> Path:
    return _tar(folder, member("x", b"0 a=b\n", b"x"), member("second.png", TINY_PNG))


def _many_members(folder: Path) -> Path:
    return _tar(folder, header("empty.png") * 5_000)


_NAME, _HEADER, _NO_TAR = "has a name of ", "has a tar header of ", "is no whole tar file"
TARS = [
    HostileFile("sparse member of 6 GiB", _old_sparse, "is stored without its holes"),
    HostileFile("sparse member whose map has no end", _sparse_map_without_end, "is stored without its holes"),
    HostileFile("GNU long name of 6 GiB", partial(_claims, type_=b"L"), _NAME),
    HostileFile("GNU long link of 6 GiB", partial(_claims, type_=b"K"), _NAME),
    HostileFile("pax header of 6 GiB", partial(_claims, type_=b"x"), _HEADER),
    HostileFile("global pax header of 6 GiB", partial(_claims, type_=b"g"), _HEADER),
    HostileFile("member of 6 GiB", partial(_claims, type_=b"0"), "has 6.0 GiB"),
    HostileFile(
        "member that goes back", partial(_with_attribute, key="size", value=f"-{2 * BLOCK}"), _NO_TAR
    ),
    HostileFile("member of 2^70 bytes", partial(_with_attribute, key="size", value=str(1 << 70)), _NO_TAR),
    HostileFile("size of 5,000 digits", partial(_with_attribute, key="size", value="1" * 5000), _NO_TAR),
    HostileFile("name of 1 MiB", partial(_with_attribute, key="path", value="a" * (1 << 20) + ".png"), _NAME),
    HostileFile("5,000 long names in a row", _chain, "read"),
    HostileFile("pax header of 1 MiB of digits", _many_digits, "read"),
    HostileFile("pax record of no length", _endless_record, _NO_TAR),
    HostileFile("5,000 members without bytes", _many_members, "5000 rows: is empty"),
]


# ---------------------------------------------------------------- zip


def repeated_bzip2(times: int) -> bytes:
    """A bzip2 stream of 45,899,235 zeros for each of `times`, in 40 bytes each: its one block, repeated."""
    whole = bz2.compress(bytes(45_899_235), 9)
    crc = int.from_bytes(whole[10:14], "big")  # of the block, behind "BZh9" and six bytes of a mark
    bits = int.from_bytes(whole[4:], "big")
    length = 8 * (len(whole) - 4)
    end = 0x177245385090
    padding = next(n for n in range(8) if (bits >> (n + 32)) & ((1 << 48) - 1) == end)
    block, block_length = bits >> (padding + 80), length - padding - 80
    found = total = 0
    for _ in range(times):
        found = found << block_length | block
        total = ((total << 1 | total >> 31) & 0xFFFFFFFF) ^ crc
    found = (found << 48 | end) << 32 | total
    length = times * block_length + 80
    return whole[:4] + (found << -length % 8).to_bytes((length + 7) // 8, "big")


def deflated(size: int) -> bytes:
    """So many zeros, as a raw deflate stream."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    parts = [packer.compress(bytes(min(1 << 24, size - at))) for at in range(0, size, 1 << 24)]
    return b"".join(parts) + packer.flush()


class ZipEntry:
    """A member as the list of members has it; what its own header says may differ."""

    def __init__(
        self, name: bytes, data: bytes = b"", *, method: int = 8, size: int = 0, crc: int = 0
    ) -> None:
        """Say that `data` unpacks to so many bytes, with that checksum."""
        self.name, self.data, self.method, self.size, self.crc = name, data, method, size, crc

    def local(self) -> bytes:
        """Its own header, and the data."""
        return (
            struct.pack(
                "<4s5H3L2H",
                b"PK\x03\x04",
                *(20, 0, self.method, 0, 0x21, self.crc, len(self.data), self.size, len(self.name), 0),
            )
            + self.name
            + self.data
        )

    def listed(self, offset: int, extra: bytes = b"") -> bytes:
        """Its line of the list of members."""
        return (
            struct.pack(
                "<4s6H3L5H2L",
                *(b"PK\x01\x02", 20, 20, 0, self.method, 0, 0x21, self.crc, len(self.data), self.size),
                *(len(self.name), len(extra), 0, 0, 0, 0, offset),
            )
            + self.name
            + extra
        )


def write_zip(folder: Path, body: bytes, listed: Sequence[bytes], comment: bytes = b"") -> Path:
    """Write members and their list."""
    path = folder / "hostile.zip"
    directory, count = b"".join(listed), min(len(listed), 0xFFFF)
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, count, count, len(directory), len(body), len(comment))
    path.write_bytes(body + directory + end + comment)
    return path


def _zip_of(folder: Path, entries: Iterable[ZipEntry]) -> Path:
    body, listed = b"", []
    for entry in entries:
        listed.append(entry.listed(len(body)))
        body += entry.local()
    return write_zip(folder, body, listed)


def _bzip2(folder: Path) -> Path:
    data = repeated_bzip2(60)
    return _zip_of(folder, [ZipEntry(b"a.jpg", data, method=12, size=GIB)])


def _lzma(folder: Path) -> Path:
    path = folder / "hostile.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("a.jpg", bytes(1 << 20))
    return path


def _lies(folder: Path, size: int, real: int) -> Path:
    return _zip_of(folder, [ZipEntry(b"a.jpg", deflated(real), size=size)])


def _overlapping(folder: Path) -> Path:
    data = deflated(1 << 24)
    entry = ZipEntry(b"a.jpg", data, size=1 << 24, crc=zlib.crc32(bytes(1 << 24)))
    return write_zip(folder, entry.local(), [entry.listed(0)] * 400)


def _members(folder: Path, count: int, name: bytes, extra: bytes = b"") -> Path:
    return write_zip(folder, b"", [ZipEntry(name).listed(0, extra)] * count)


def _another_name(folder: Path) -> Path:
    return write_zip(folder, ZipEntry(b"a.txt").local(), [ZipEntry(b"a.jpg").listed(0)])


def _long_list(folder: Path) -> Path:
    """A zip64 file that claims 8 GiB of list, which a hole holds."""
    path = folder / "hostile.zip"
    path.write_bytes(b"")
    hole(path, 8 * GIB)
    end64 = struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, 1, 1, 8 * GIB, 0)
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, 8 * GIB, 1)
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    with path.open("ab") as file:
        file.write(end64 + locator + end)
    return path


ZIPS = [
    HostileFile("bzip2 member of 2.7 GB in 2.4 KB", _bzip2, "is packed in a way that is not read"),
    HostileFile("LZMA member", _lzma, "is packed in a way that is not read"),
    HostileFile(
        "member of 64 MiB that says 10 bytes",
        partial(_lies, size=10, real=1 << 26),
        "is damaged",
    ),
    HostileFile("member that says 3 GiB", partial(_lies, size=3 * GIB, real=1 << 20), "has 3.0 GiB"),
    HostileFile("400 members of 16 MiB in the same 16 KB", _overlapping, ""),
    HostileFile(
        "60,000 photographs", partial(_members, count=60_000, name=b"a.jpg"), "holds 60,000 photographs"
    ),
    HostileFile("names of 64 KB", partial(_members, count=60, name=b"a/" * 32_000 + b".jpg"), ""),
    HostileFile(
        "extra fields of 64 KB",
        partial(_members, count=15, name=b"a.txt", extra=bytes(65_532)),
        "",
    ),
    HostileFile("member whose own header has another name", _another_name, "is damaged"),
    HostileFile("list of members of 8 GiB", _long_list, "is no whole zip file"),
]
