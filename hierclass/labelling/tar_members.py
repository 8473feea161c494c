"""List the members of tar files that are not trusted: old, GNU and POSIX (pax) headers, each read within bounds.

Python's tarfile reads long names and extended headers whole, whatever size they claim, follows chains of them by
recursion, and goes back where a size is negative.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple

from hierclass.errors import InputError

BLOCK = 512
MAX_NAME = 1 << 15
"""Bytes of the name of a member, at most; the longest that Windows allows has 32,767 characters."""
MAX_EXTENSION = 16 << 20
"""Bytes of an extended header, at most: it also holds attributes of the file, which on a Mac are large."""
MAX_SIZE = 1 << 62
"""Bytes of a member, at most, as file systems have it."""
LINK, SPARSE = -2, -3
"""Lengths of members that have no bytes of their own, or are stored without their holes."""
_LENGTHS = {b"1": LINK, b"2": LINK, b"S": SPARSE}
_FILES = b"0\0007"
_WITHOUT_DATA = b"123456"
"""Types whose size says nothing about the bytes behind their header: links, devices, folders, pipes."""
_MARK = b"GNU.sparse."
_RECORD = re.compile(rb"(\d{1,10}) ")


class TarMember(NamedTuple):
    """A file in a tar file: its name, and where its bytes lie."""

    name: str
    offset: int
    length: int
    """Number of bytes, or `LINK` or `SPARSE`."""


class _Header(NamedTuple):
    type_: bytes
    name: bytes
    size: int


def tar_members(file: IO[bytes], size: int) -> Iterator[TarMember]:
    """Yield the files and links in a tar file of `size` bytes, which is not compressed, in their order.

    Raises:
        InputError: it is none, ends too early, or claims what no archive has; the text is the reason alone, and the
            members before it were yielded.
    """
    at, name, attributes = 0, b"", dict[bytes, bytes]()
    while (header := _read_header(file, at)) is not None:
        at += BLOCK
        if header.type_ in b"LKxgX":
            if header.type_ in b"LK" and header.size > MAX_NAME:
                raise InputError(f"has a name of {header.size:,} bytes in its tar file, which is not read")
            if header.type_ in b"xgX" and header.size > MAX_EXTENSION:
                raise InputError(f"has a tar header of {header.size:,} bytes, which is not read")
            if header.type_ == b"L":
                name = _read(file, header.size).split(b"\0", 1)[0]
            elif header.type_ in b"xX":
                attributes = _attributes(_read(file, header.size))
            at += _blocks(header.size)
            continue
        length = _attribute_size(attributes, header.size)
        if length > MAX_SIZE:
            raise _damaged()
        name = attributes.get(_MARK + b"name") or attributes.get(b"path") or name or header.name
        if len(name) > MAX_NAME:
            raise InputError(f"has a name of {len(name):,} bytes in its tar file, which is not read")
        if header.type_ == b"S":
            at = _after_sparse_map(file, at)
        is_folder = header.type_ == b"\0" and header.name.endswith(b"/")  # as folders were written once
        if header.type_ in _LENGTHS or (header.type_ in _FILES and not is_folder):
            sparse = any(key.startswith(_MARK) for key in attributes)
            stored = _LENGTHS.get(header.type_, SPARSE if sparse else length)
            yield TarMember(name.decode("utf-8", "surrogateescape"), at, stored)
        if header.type_ not in _WITHOUT_DATA:
            at += _blocks(length)
        if at > size:
            raise InputError("is truncated: the tar file ends before its last member does")
        name, attributes = b"", {}


def list_tar(path: str) -> Iterator[TarMember]:
    """Yield the members of a tar file as `tar_members` does; raises OSError too."""
    with Path(path).open("rb") as file:
        size = file.seek(0, 2)
        yield from tar_members(file, size)


def _read_header(file: IO[bytes], at: int) -> _Header | None:
    """The header at a byte; None at the end of the archive."""
    file.seek(at)
    block = file.read(BLOCK)
    if len(block) < BLOCK and (block or not at):
        raise _damaged()
    if not block.strip(b"\0"):
        return None
    total = _number(block[148:156])
    signs = block[:148] + block[156:]
    if total != sum(signs) + 256 and total != sum(signs) + 256 - 256 * sum(byte > 127 for byte in signs):
        raise _damaged()
    type_, name, prefix = block[156:157], *(_text(part) for part in (block[:100], block[345:500]))
    if prefix and type_ not in b"LKS":
        name = prefix + b"/" + name
    return _Header(type_, name, _number(block[124:136]))


def _read(file: IO[bytes], size: int) -> bytes:
    data = file.read(size)
    if len(data) < size:
        raise _damaged()
    return data


def _attributes(data: bytes) -> dict[bytes, bytes]:
    """The records of an extended header: `LENGTH KEY=VALUE` and a line end each."""
    found, at = dict[bytes, bytes](), 0
    while match := _RECORD.match(data, at):
        end = at + int(match[1])
        key, equals, value = data[match.end() : end - 1].partition(b"=")
        if not equals or not match.end() < end <= len(data):
            raise _damaged()
        if key in (b"path", b"size") or key.startswith(_MARK):
            found[key] = value
        at = end
    return found


def _attribute_size(attributes: dict[bytes, bytes], otherwise: int) -> int:
    text = attributes.get(b"size", b"")
    if not text:
        return otherwise
    if not text.isdigit() or len(text) > 20:
        raise _damaged()
    return int(text)


def _after_sparse_map(file: IO[bytes], at: int) -> int:
    """Where the data of an old sparse member begins: its header, before `at`, goes on for as many blocks as it says."""
    file.seek(at - BLOCK)
    goes_on = _read(file, BLOCK)[482]
    while goes_on:
        goes_on = _read(file, BLOCK)[504]
        at += BLOCK
    return at


def _number(field: bytes) -> int:
    """A number in octal digits, or in binary if its first bit is set; negative ones are refused."""
    if field[0] == 0o200:
        return int.from_bytes(field[1:], "big")
    text = _text(field).strip()
    if text.strip(b"01234567"):
        raise _damaged()
    return int(text or b"0", 8)


def _text(field: bytes) -> bytes:
    return field.split(b"\0", 1)[0]


def _blocks(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def _damaged() -> InputError:
    return InputError("is no whole tar file; a compressed one has to be unpacked first")
