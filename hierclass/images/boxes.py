"""Check the boxes of AVIF, HEIC and JPEG 2000 files, which say how much a decoder has to set up before a pixel is seen.

They are ISO media files: boxes of a length, a name and a content, which may be boxes. JPEG 2000 can also be a bare
codestream. A decoder takes memory for each item, tile, code block and packet that is announced, whether it comes or
not.
"""

from __future__ import annotations

import math
import os
import re
import struct
from collections.abc import Iterator
from typing import IO, NamedTuple

from hierclass.errors import ImageError

MAX_BOXES = 10_000
"""Boxes of a file; entries of the lists in them as well. A picture of a camera has dozens, one in a grid hundreds."""
MAX_MARKERS = 10_000
"""Marker segments in all headers of a JPEG 2000 codestream, beside one per part of a tile."""
MAX_TILE_PARTS = 1 << 16
"""Parts of tiles; the format numbers up to 65,535 tiles, tiles of 256 pixels make 2,700 in the largest picture."""
MAX_CODE_BLOCKS = 1 << 24
"""Code blocks and precincts of all tiles of a JPEG 2000 picture; those of 64 pixels make 200,000 in the largest."""
MAX_PACKETS = 1 << 23
"""Packets of all tiles: layers times precincts. A scan in an archive of 25 layers has some hundred thousand."""
_BYTES_OF_BLOCK = 300
"""Memory that a decoder takes for a code block or a precinct with its trees, measured."""
_BYTES_OF_TILE = 6_000
"""Memory that a decoder takes for the settings of a tile, and about a fifth of that for each channel."""

_CONTAINERS = {
    b"meta": 4,
    **dict.fromkeys(
        (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"iprp", b"ipco", b"dinf", b"jp2h", b"res "), 0
    ),
    b"iref": 4,
    b"iinf": 6,
}
"""Boxes that hold boxes, behind so many bytes."""


def _boxes(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield name, begin and end of the content of every box, those inside boxes too; ImageError beyond MAX_BOXES."""
    todo, count = [(0, len(data))], 0
    while todo:
        place, limit = todo.pop()
        while place + 8 <= limit:
            size, name = struct.unpack_from(">I4s", data, place)
            begin = place + 8
            if size == 1 and place + 16 <= limit:
                size, begin = int.from_bytes(data[place + 8 : place + 16], "big"), place + 16
            end = min(limit, place + size) if size else limit
            if end < begin:
                break
            yield name, begin, end
            count += 1
            if count > MAX_BOXES:
                raise ImageError(f"is broken or hostile: more than {MAX_BOXES:,} boxes")
            if name in _CONTAINERS:
                todo.append((begin + _CONTAINERS[name], end))
            place = end


_EXIF_ITEM = re.compile(rb"(infe(?:\x02.{7}|\x03.{9}))Exif", re.DOTALL)


def check_avif(data: bytes) -> bytes:
    """Check an AVIF file; return it without the name of its EXIF, which Pillow would follow wherever it points.

    How an AVIF lies is said by the boxes `irot` and `imir`; its EXIF does not count.

    Raises:
        ImageError: there are more boxes, items or their places than honest files have.
    """
    for name, begin, end in _boxes(data):
        entries = 0
        if name == b"iloc":
            wide = data[begin : begin + 1] == b"\2"
            entries = int.from_bytes(data[begin + 6 : begin + (10 if wide else 8)], "big")
            entries += (end - begin) >> 5  # extents of items take as much
        elif name in (b"ipma", b"stts", b"stsc", b"stco", b"co64", b"stss", b"sbgp"):
            entries = int.from_bytes(data[begin + 4 : begin + 8], "big")
        elif name == b"stsz":
            entries = int.from_bytes(data[begin + 8 : begin + 12], "big")
        limit = MAX_BOXES if name in (b"iloc", b"ipma") else 100 * MAX_BOXES
        if entries > limit:
            raise ImageError(f"is broken or hostile: {entries:,} entries in a list of its header")
    return _EXIF_ITEM.sub(rb"\1free", data) if _EXIF_ITEM.search(data) else data


MAX_SPARE = 1 << 26
"""Pixels by which the tiles of a HEIC may be more than four times the picture: the last ones reach beyond its edge."""
_MOST_PARTS = 1 << 16
"""Pictures that make a HEIC, tiles and planes of opacity each time that they are used."""


def check_heic(data: bytes) -> bytes:
    """Check a HEIC file, as `check_avif` does, and return it.

    Raises:
        ImageError: items share their bytes, or the picture is put together from more pixels than it has.
    """
    check_avif(data)
    items = _Items(data)
    if items.num_bytes > 4 * len(data):
        raise ImageError(
            f"is truncated or hostile: its items take {items.num_bytes:,} bytes of a file of {len(data):,}"
        )
    shown = items.areas.get(items.main, 0)
    coded = items.coded(items.main, 0) + sum(
        items.coded(item, 0) for kind, item, of in items.references if kind == b"auxl" and items.main in of
    )
    if coded > 4 * shown + MAX_SPARE:
        raise ImageError(f"is broken or hostile: {coded:,} pixels are decoded for {shown:,} that are shown")
    return data


class _Items:
    """What the boxes of a HEIC say of its items: which is shown, their pixels, bytes and references."""

    def __init__(self, data: bytes):
        self.main, self.num_bytes = -1, 0
        self.areas: dict[int, int] = {}
        self.references: list[tuple[bytes, int, tuple[int, ...]]] = []
        self._left = _MOST_PARTS
        properties, spans, wide = (0, 0), list[tuple[bytes, int, int]](), False
        for name, begin, end in _boxes(data):
            if name == b"pitm":
                self.main = int.from_bytes(
                    data[begin + 4 : begin + (8 if data[begin : begin + 1] > b"\0" else 6)], "big"
                )
            elif name == b"ipco":
                properties = begin, end
            elif name == b"iref":
                wide = data[begin : begin + 1] > b"\0"
            elif name == b"iloc":
                self.num_bytes += sum(_extents(data[begin:end]))
            spans.append((name, begin, end))
        sizes = [
            math.prod(struct.unpack_from(">2I", data[begin + 4 : begin + 12].ljust(8, b"\0")))
            if name == b"ispe"
            else 0
            for name, begin, end in spans
            if properties[0] <= begin and end <= properties[1] and name != b"ipco"
        ]
        for name, begin, end in spans:
            if name == b"ipma":
                self._note_areas(data[begin:end], sizes)
            elif name in (b"dimg", b"auxl"):
                step = 4 if wide else 2
                numbers = [
                    int.from_bytes(data[at : at + step], "big") for at in range(begin + step + 2, end, step)
                ]
                self.references.append(
                    (name, int.from_bytes(data[begin : begin + step], "big"), tuple(numbers))
                )
        self._parts = {item: of for kind, item, of in self.references if kind == b"dimg"}

    def _note_areas(self, box: bytes, sizes: list[int]) -> None:
        """Note the pixels of each item, by which of the properties are its."""
        wide, large = box[:1] > b"\0", len(box) > 3 and box[3] & 1
        place, step = 8, 4 if wide else 2
        while place + step < len(box):
            item, count = int.from_bytes(box[place : place + step], "big"), box[place + step]
            place += step + 1
            for _ in range(count):
                number = (
                    (
                        int.from_bytes(box[place : place + 2], "big") & 0x7FFF
                        if large
                        else box[place : place + 1][0] & 0x7F
                    )
                    if place < len(box)
                    else 0
                )
                place += 2 if large else 1
                if 0 < number <= len(sizes) and sizes[number - 1]:
                    self.areas[item] = sizes[number - 1]

    def coded(self, item: int, depth: int) -> int:
        """Pixels that are decoded for an item. Raises ImageError if it is put together from too many."""
        self._left -= 1
        if self._left < 0 or depth > 4:
            raise ImageError("is broken or hostile: it is put together from more pictures than are read")
        parts = self._parts.get(item)
        return sum(self.coded(part, depth + 1) for part in parts) if parts else self.areas.get(item, 0)


def _extents(box: bytes) -> Iterator[int]:
    """Yield how many bytes each place of each item takes, as a box `iloc` says."""
    if len(box) < 8:
        return
    version, sizes = box[0], (box[4] >> 4, box[4] & 15, box[5] >> 4, box[5] & 15)
    wide = 4 if version == 2 else 2
    place = 6 + wide
    for _ in range(int.from_bytes(box[6 : 6 + wide], "big")):
        place += wide + (2 if version else 0) + 2 + sizes[2]
        count = int.from_bytes(box[place : place + 2], "big")
        place += 2
        for _ in range(count):
            place += (sizes[3] if version else 0) + sizes[0]
            yield int.from_bytes(box[place : place + sizes[1]], "big")
            place += sizes[1]
            if place > len(box):
                return


class _Coding(NamedTuple):
    """How a tile's channel is coded: sides are powers of two."""

    layers: int
    levels: int
    block: tuple[int, int]
    precincts: bytes

    def counts(self, width: int, height: int) -> tuple[int, int]:
        """Code blocks and precincts, and packets, of a tile's channel of this size."""
        blocks = packets = 0
        for level in range(min(self.levels, 32) + 1):
            across, down = (max(1, -(-side >> (self.levels - level))) for side in (width, height))
            sides = self.precincts[level] if level < len(self.precincts) else 0xFF
            longest = (sides & 15, sides >> 4)
            half = 1 if level else 0
            least = [max(0, min(block, side - half)) for block, side in zip(self.block, longest, strict=True)]
            precincts = -(-across >> longest[0]) * -(-down >> longest[1])
            blocks += 3 * precincts + math.prod(
                -(-side >> power) for side, power in zip((across, down), least, strict=True)
            )
            packets += precincts * self.layers
        return blocks, packets


_SIZ, _COD, _COC, _SOT, _SOD, _EOC = 0xFF51, 0xFF52, 0xFF53, 0xFF90, 0xFF93, 0xFFD9


def check_jpeg2000(stream: IO[bytes]) -> int:
    """Check a JPEG 2000 file; return the bytes of memory that its decoder takes beside the picture.

    Raises:
        ImageError: there are more boxes, markers, tiles, code blocks or packets than honest files have.
    """
    begin = _codestream(stream)
    stream.seek(begin + 4)
    siz = stream.read(40)
    if len(siz) < 40:
        raise ImageError("is truncated: the file ends before the picture does")
    fields: tuple[int, ...] = struct.unpack(">8IH", siz[4:38])
    right, bottom, left, top, width, height, x, y, channels = fields
    if channels > 4 or min(width, height) < 1:
        raise ImageError(f"is a JPEG 2000 image of {channels} channels; up to 4 are read")
    tiles = max(0, -(-(right - x) // width)) * max(0, -(-(bottom - y) // height))
    size = (min(width, max(0, right - left)), min(height, max(0, bottom - top)))
    depth = max(1, -(-((siz[38] & 0x7F) + 1) // 8))
    blocks = packets = 0
    for coding in _codings(stream, begin + 2):
        found = coding.counts(*size)
        blocks, packets = max(blocks, found[0]), max(packets, found[1])
    for count, limit, of in (
        (tiles, MAX_TILE_PARTS, "tiles"),
        (tiles * channels * blocks, MAX_CODE_BLOCKS, "code blocks"),
        (tiles * channels * packets, MAX_PACKETS, "packets"),
    ):
        if count > limit:
            raise ImageError(f"is a JPEG 2000 image of {count:,} {of}; up to {limit:,} are read")
    settings: int = tiles * (_BYTES_OF_TILE + channels * _BYTES_OF_TILE // 5)
    return settings + channels * (size[0] * size[1] * (4 + depth) + blocks * _BYTES_OF_BLOCK)


def _codestream(stream: IO[bytes]) -> int:
    """Where the codestream begins: at once, or in a box. Raises ImageError without one."""
    length = stream.seek(0, os.SEEK_END)
    stream.seek(0)
    place = 0
    for _ in range(MAX_BOXES):
        stream.seek(place)
        head = stream.read(16)
        if head.startswith(b"\xff\x4f\xff\x51"):
            return place
        if len(head) < 8:
            break
        size, name = struct.unpack_from(">I4s", head)
        begin = 8
        if size == 1:
            size, begin = int.from_bytes(head[8:16], "big"), 16
        end = place + size if size else length
        if name == b"jp2c":
            place += begin
            continue
        if name == b"jp2h":
            stream.seek(place + begin)
            for _box in _boxes(stream.read(min(end, length) - place - begin)):
                pass  # counted
        if end <= place:
            break
        place = end
    raise ImageError("is broken: a JPEG 2000 file without a picture")


def _codings(stream: IO[bytes], place: int) -> Iterator[_Coding]:
    """Yield how channels are coded, as the headers of a codestream and of its tiles say from `place` on."""
    layers, markers, parts, next_part = 1, 0, 0, 0
    length = stream.seek(0, os.SEEK_END)
    while True:
        stream.seek(place)
        head = stream.read(12)
        if len(head) < 4:
            return
        marker, size = struct.unpack_from(">HH", head)
        if marker == _SOT:
            parts += 1
            taken = int.from_bytes(head[6:10].ljust(4, b"\0"), "big")
            next_part = place + taken if taken else length
        elif marker == _SOD:
            if next_part <= place:
                return
            place = next_part
            continue
        elif marker == _EOC:
            return
        elif marker in (_COD, _COC):
            stream.seek(place + 4)
            body = stream.read(min(size, 64))
            if marker == _COD:
                layers = max(layers, int.from_bytes(body[2:4], "big"))
                style, body = body[:1], body[5:]
            else:
                style, body = body[1:2], body[2:]
            body = body.ljust(5, b"\0")
            sides = body[5:] if style and style[0] & 1 else b""
            yield _Coding(layers, body[0], ((body[1] & 15) + 2, (body[2] & 15) + 2), sides)
        else:
            markers += 1
        if markers > MAX_MARKERS or parts > MAX_TILE_PARTS:
            raise ImageError("is broken or hostile: a JPEG 2000 image of more markers than are read")
        place += 2 + max(2, size)
