"""Tags of EXIF and TIFF, read from the bytes within bounds: orientation and thumbnail, and whether a TIFF is harmless.

Parsers of tags read whatever a tag points at: thousands of tags that share one region of a small file take gigabytes.
"""

from __future__ import annotations

import io
import os
import re
import struct
from typing import IO, NamedTuple

from hierclass.errors import ImageError
from hierclass.images.streams import read_at

MAX_TAGS = 4096
"""Tags of one directory that are read; cameras and scanners write dozens, scientific TIFF some hundred."""
MAX_VALUES = 1 << 20
"""Numbers that all tags of a directory may hold, without places and lengths of strips: each becomes a Python object."""
MAX_FRACTIONS = 1 << 14
"""Fractions that all tags of a directory may hold: each takes microseconds. Cameras write dozens."""
MAX_STRIPS = 1 << 18
"""Strips or tiles of a TIFF: as many as rows of pixels, at the most, or tiles of 32 pixels in the largest picture."""
MAX_SPARE = 1 << 26
"""Pixels by which the tiles of a TIFF may be more than four times the picture: small ones lie in one large tile."""
_SLACK = 1 << 20
"""Bytes by which values may be longer than their file: small ones are shared by honest writers too."""

_ORIENTATION = 0x0112
_THUMBNAIL = (0x0201, 0x0202)
"""Tags of the place and length of an EXIF thumbnail."""
_DIRECTORIES = (0x8769, 0x8825, 0xA005)
"""Tags that lead to further directories which Pillow reads: EXIF, GPS, interoperability."""
_COLOURS = 320
_REDUCED, _COLOURS_OF_PIXELS, _SUB_DIRECTORIES, _DNG_VERSION = 254, 262, 330, 50706
_STRIPS = (273, 279, 324, 325)
"""Tags of where strips and tiles are, and of how many bytes they take."""
_TYPES = {
    **{1: (1, "B"), 2: (1, "B"), 3: (2, "H"), 4: (4, "I"), 5: (8, "2I"), 6: (1, "b"), 7: (1, "B")},
    **{8: (2, "h"), 9: (4, "i"), 10: (8, "2i"), 11: (4, "f"), 12: (8, "d"), 13: (4, "I"), 16: (8, "Q")},
}
"""Bytes and struct's code of one value, by the number of its type."""
_TEXT, _FRACTIONS, _WHOLE = (1, 2, 7), (5, 10), (3, 4, 8, 9, 13, 16)
"""Types that stay bytes; fractions; whole numbers."""


class _Tag(NamedTuple):
    number: int
    kind: int
    num_values: int
    field: bytes
    """The value, if it fits; else where it is."""


class _Directories:
    """Directories of tags in a stream that begins with a TIFF header (EXIF has one as well)."""

    def __init__(self, stream: IO[bytes]):
        self.stream = stream
        self.length = stream.seek(0, os.SEEK_END)
        stream.seek(0)
        head = stream.read(16)
        self.order = {b"II": "<", b"MM": ">"}.get(head[:2], "")
        self.big = head[2:3] == b"\x2b"
        self.first = 0
        if self.order and len(head) == 16:
            self.first = self._place(head[8:16] if self.big else head[4:8])

    def tags(self, place: int) -> tuple[list[_Tag], int]:
        """The tags of the directory at `place`, and the place of the next directory (0: none).

        Raises ImageError if it has more than `MAX_TAGS`.
        """
        if not 0 < place < self.length:
            return [], 0
        self.stream.seek(place)
        size, code = (20, "HHQ8s") if self.big else (12, "HHI4s")
        count = self._place(self.stream.read(8 if self.big else 2))
        if count > MAX_TAGS:
            raise ImageError(
                f"is broken or hostile: a directory of {count:,} tags; up to {MAX_TAGS:,} are read"
            )
        data = self.stream.read(count * size)
        whole = len(data) // size * size
        found = (_Tag(*entry) for entry in struct.iter_unpack(self.order + code, data[:whole]))
        return [tag for tag in found if tag.kind in _TYPES], self._place(
            self.stream.read(8 if self.big else 4)
        )

    def _place(self, data: bytes) -> int:
        return int.from_bytes(data, "little" if self.order == "<" else "big")

    def span(self, tag: _Tag) -> tuple[int, int]:
        """Where the value of a tag begins (-1: in the tag itself), and how many bytes it takes."""
        size = tag.num_values * _TYPES[tag.kind][0]
        return (-1 if size <= len(tag.field) else self._place(tag.field)), size

    def number(self, tags: list[_Tag], number: int, default: int = 0) -> int:
        """The first whole number that the last tag of that number holds in itself."""
        for tag in reversed(tags):
            if tag.number == number and tag.kind in _WHOLE and tag.num_values and self.span(tag)[0] < 0:
                (value,) = struct.unpack_from(self.order + _TYPES[tag.kind][1], tag.field)
                return int(value)
        return default

    def numbers(self, tag: _Tag) -> list[int]:
        """The whole numbers of a tag, up to 16."""
        if tag.kind not in _WHOLE:
            return []
        begin, size = self.span(tag)
        each, code = _TYPES[tag.kind]
        size = min(size, 16 * each)
        data = tag.field[:size] if begin < 0 else read_at(self.stream, begin, size)
        return [
            int(number)
            for (number,) in struct.iter_unpack(self.order + code, data[: len(data) // each * each])
        ]


def _exif(data: bytes) -> _Directories:
    prefix = re.match(rb"(?:Exif\0\0)*", data)
    return _Directories(io.BytesIO(data[prefix.end() if prefix else 0 :]))


def read_orientation(exif: bytes) -> int | None:
    """The EXIF orientation (1 to 8, or what else a writer put there); None without one, or if EXIF is broken."""
    if not exif:
        return None
    try:
        directories = _exif(exif)
        tags = directories.tags(directories.first)[0]
    except ImageError:
        return None
    return directories.number(tags, _ORIENTATION) if any(tag.number == _ORIENTATION for tag in tags) else None


def read_thumbnail(exif: bytes) -> bytes:
    """The file that EXIF holds as thumbnail, a JPEG; empty without one, or if EXIF is broken."""
    try:
        directories = _exif(exif)
        tags = directories.tags(directories.tags(directories.first)[1])[0]
    except ImageError:
        return b""
    begin, length = (directories.number(tags, number) for number in _THUMBNAIL)
    directories.stream.seek(max(0, begin))
    return directories.stream.read(max(0, length)) if begin > 0 else b""


_RAW_COLOURS = (32803, 34892)
"""What the tag of colours says of pixels of a sensor, as they are or with every colour at every pixel."""
_MOST_DIRECTORIES = 64


def is_raw(stream: IO[bytes]) -> bool:
    """Whether a TIFF is a RAW file: a directory holds what a sensor saw, or the first holds a preview alone."""
    directories = _Directories(stream)
    stream.seek(8)
    if stream.read(4) in (b"CR\2\0", b"IIII", b"MMMM"):  # Canon, Phase One
        return True
    todo, seen = [directories.first], set[int]()
    while todo and len(seen) < _MOST_DIRECTORIES:
        place = todo.pop()
        try:
            tags, following = directories.tags(place)
        except ImageError:
            return False
        if directories.number(tags, _COLOURS_OF_PIXELS) in _RAW_COLOURS:
            return True
        if any(tag.number == _DNG_VERSION for tag in tags) and directories.number(tags, _REDUCED) & 1:
            return True
        below = [
            number for tag in tags if tag.number == _SUB_DIRECTORIES for number in directories.numbers(tag)
        ]
        seen.add(place)
        todo += [at for at in (following, *below) if at and at not in seen]
    return False


def check_tiff(stream: IO[bytes]) -> int:
    """Check the directories of a TIFF that Pillow and libtiff read; return the bytes of memory that a tile takes.

    Raises:
        ImageError: there are more tags, values, strips or tiles than honest files have, or they share a region.
    """
    directories = _Directories(stream)
    first, _ = directories.tags(directories.first)
    _check_strips(directories, first)
    todo, seen = [first], {0, directories.first}
    while todo:
        tags = todo.pop()
        _check_tags(directories, tags)
        for place in {directories.number(tags, number) for number in _DIRECTORIES} - seen:
            seen.add(place)
            todo.append(directories.tags(place)[0])
    width, height, across, down, samples, bits = (
        max(0, directories.number(first, number, default))
        for number, default in ((256, 0), (257, 0), (322, 0), (323, 0), (277, 4), (258, 16))
    )
    tiles = max((tag.num_values for tag in first if tag.number == 324), default=0)
    if tiles * across * down > 4 * width * height * samples + MAX_SPARE:
        raise ImageError(
            f"is broken or hostile: {tiles:,} tiles of {across:,} x {down:,} for {width:,} x {height:,} pixels"
        )
    return across * down * samples * -(-bits // 8)


def _check_tags(directories: _Directories, tags: list[_Tag]) -> None:
    total = values = fractions = 0
    for tag in tags:
        begin, size = directories.span(tag)
        if begin >= 0 and begin + size <= directories.length:  # others end Pillow's reading of tags
            total += size
            if tag.kind in _FRACTIONS:
                fractions += tag.num_values
            elif (tag.kind not in _TEXT and tag.number not in _STRIPS) or tag.number == _COLOURS:
                values += tag.num_values
    if total > directories.length + _SLACK:
        raise ImageError(
            f"is broken or hostile: its tags take {total >> 20:,} MiB, more than the file: they share a region"
        )
    if values > MAX_VALUES or fractions > MAX_FRACTIONS:
        raise ImageError(
            f"is broken or hostile: its tags hold {values + fractions:,} numbers; up to {MAX_VALUES:,} are read, "
            f"{MAX_FRACTIONS:,} of them fractions"
        )


def _check_strips(directories: _Directories, tags: list[_Tag]) -> None:
    count = max((tag.num_values for tag in tags if tag.number in _STRIPS), default=0)
    if count > MAX_STRIPS:
        raise ImageError(f"has {count:,} strips or tiles; up to {MAX_STRIPS:,} are read")
