"""Find the one picture that is read in files that hold several things: icons, DCX and Photoshop files.

Pillow is shown that picture alone: it would read thousands of entries, layers and resources that do not matter, and
opens what is inside without bounds.
"""

from __future__ import annotations

import io
import math
import struct
from typing import NamedTuple

from PIL import BmpImagePlugin, Image

from hierclass.errors import ImageError
from hierclass.images.repacking import as_tga
from hierclass.images.streams import Stream, only, read_at

MAX_ICON = 1 << 20
"""Pixels of an icon that is no PNG: the format names sides up to 256."""
_PNG = b"\x89PNG\r\n\x1a\n"
_TRUNCATED = "is truncated: the file ends before the picture does"


class Extracted(NamedTuple):
    """A picture inside of a file."""

    shown: Stream
    """What Pillow is to read."""
    format: str
    """Its format, as Pillow names it."""


def extract_icon(stream: Stream, *, header_only: bool = False) -> Extracted:
    """Return the largest picture of a Windows icon, of the most colours: a PNG, or a bitmap made a TGA.

    Raises:
        ImageError: there is none, or it is larger than icons are.
    """
    count = int.from_bytes(read_at(stream, 4, 2), "little")
    entries = list(struct.iter_unpack("<4B2H2I", _whole(stream.read(16 * count), 16)))
    if not entries:
        raise ImageError("is an icon without a picture")

    def rank(entry: tuple[int, ...]) -> tuple[int, int]:
        depth = entry[5] or (math.ceil(math.log2(entry[2])) if entry[2] else 256)
        return (entry[0] or 256) * (entry[1] or 256), depth

    *_, size, begin = max(entries, key=rank)
    if begin >= stream.length:
        raise ImageError(_TRUNCATED)
    end = min(stream.length, begin + size)
    if read_at(stream, begin, 8) == _PNG:
        return Extracted(only(stream, [(begin, end)]), "PNG")
    return Extracted(Stream(io.BytesIO(_icon_bitmap(stream, begin, end, header_only))), "TGA")


def _icon_bitmap(stream: Stream, begin: int, end: int, header_only: bool) -> bytes:
    """The TGA of a bitmap whose height counts its mask as well."""
    head = read_at(stream, begin, 40)
    if len(head) < 40:
        raise ImageError(_TRUNCATED)
    header, width, height, _, bits = struct.unpack("<Iii2H", head[:16])
    height = abs(height) // 2
    if header < 40:
        raise ImageError("is an icon of OS/2, which is not read; save it as PNG")
    if not 0 < width * height <= MAX_ICON:
        raise ImageError(f"is an icon of {width} x {height} pixels; bitmaps of up to {MAX_ICON:,} are read")
    if header_only:
        return as_tga((width, height), b"", 4)
    data = read_at(stream, begin, min(end - begin, 16 * MAX_ICON))
    image = BmpImagePlugin.DibImageFile(io.BytesIO(data))
    image._size = (width, height)
    offset = image.tile[0].offset
    image.tile = [image.tile[0]._replace(extents=(0, 0, width, height))]
    rgba = image.convert("RGBA")
    row = -(-width // 32) * 4  # of the mask, a bit per pixel
    if bits == 32:
        mask, kind = data[offset : offset + 4 * width * height][3::4], ("L", 0, -1)
    else:
        place = offset + -(-width * bits // 32) * 4 * height
        mask, kind = data[place : place + row * height], ("1;I", row, -1)
    if len(mask) >= (width if bits == 32 else row) * height:
        rgba.putalpha(Image.frombytes("L" if bits == 32 else "1", (width, height), mask, "raw", kind))
    return as_tga((width, height), rgba.tobytes("raw", "BGRA"), 4)


def extract_dcx(stream: Stream) -> Extracted:
    """Return the first PCX of a DCX file. Raises ImageError if there is none."""
    first, second = struct.unpack("<2I", read_at(stream, 4, 8).ljust(8, b"\0"))
    end = second if first < second <= stream.length else stream.length
    if not 0 < first < end:
        raise ImageError(_TRUNCATED)
    return Extracted(only(stream, [(first, end)]), "PCX")


_PSD_CHANNELS = {0: 1, 1: 1, 2: 1, 3: 3, 4: 4, 7: 1, 8: 1, 9: 3}
"""Channels of the picture, by Photoshop's number of the colour mode."""


class PsdPicture(NamedTuple):
    """The picture of all layers of a Photoshop file."""

    shown: Stream
    """A PSD file of that picture alone; with 16 bits, one of 8 bits in which every pixel takes two columns."""
    size: tuple[int, int]
    step: int
    """Columns per pixel, of which the first counts."""


def extract_psd(stream: Stream) -> PsdPicture:
    """Return the picture of all layers, with a fourth channel only where it says what is transparent.

    Raises:
        ImageError: the file is truncated, or of colours that are not read.
    """
    head = read_at(stream, 0, 26)
    if len(head) < 26:
        raise ImageError(_TRUNCATED)
    channels, height, width, bits, mode = struct.unpack(">12xHIIHH", head)
    needed = _PSD_CHANNELS.get(mode)
    if needed is None or bits not in (1, 8, 16) or (bits == 1) != (mode == 0) or (mode == 2 and bits != 8):
        raise ImageError(
            f"is a Photoshop file of {bits} bits in colour mode {mode}, which is not read; save it in RGB with 8 bits"
        )
    if channels < needed:
        raise ImageError("is broken: it has fewer channels than its colours need")
    sections = []
    place = 26
    for _ in range(3):  # colours, resources, layers
        size = int.from_bytes(read_at(stream, place, 4), "big")
        sections.append((place, place + 4 + size))
        place += 4 + size
    if place + 2 >= stream.length:
        raise ImageError(_TRUNCATED)
    layers = read_at(stream, sections[2][0] + 4, 6)
    transparent = len(layers) == 6 and struct.unpack(">Ih", layers)[1] < 0 < struct.unpack(">Ih", layers)[0]
    used = needed + 1 if mode == 3 and channels > 3 and transparent else needed
    step = 2 if bits == 16 else 1
    colours = read_at(stream, *_span(sections[0])) if mode == 2 else bytes(4)
    head = head[:12] + struct.pack(">HIIHH", used, height, width * step, min(bits, 8), mode)
    parts = [(place, stream.length)]
    compression = read_at(stream, place, 2)
    if compression == b"\0\1":
        counts = place + 2
        begin = counts + 2 * height * channels
        if begin >= stream.length:
            raise ImageError(_TRUNCATED)
        parts = [(place, counts + 2 * height * used), (begin, stream.length)]
    elif compression != b"\0\0":
        raise ImageError("is a Photoshop file packed in a way that is not read; save it as TIFF or JPEG")
    return PsdPicture(only(stream, parts, head + colours + bytes(8)), (width, height), step)


def _span(section: tuple[int, int]) -> tuple[int, int]:
    return section[0], min(section[1] - section[0], 4 + 768)


def _whole(data: bytes, size: int) -> bytes:
    return data[: len(data) // size * size]
