"""Recognise which kind of picture a file is: by what it begins with, and by its ending where that tells nothing."""

from __future__ import annotations

import functools
import re
import struct
from pathlib import PurePath

from hierclass.errors import ImageError
from hierclass.images.kinds import KINDS, Kind, install_command, is_installed, kind_of
from hierclass.images.streams import Stream, read_at
from hierclass.images.tags import is_raw

_HEAD = 64
_TIFF, _TGA, _PCD, _AVIF, _HEIC, _RAW, _VIDEO = (
    next(kind for kind in KINDS if kind.name.startswith(name))
    for name in ("TIFF", "Targa", "Photo CD", "AVIF", "HEIC", "RAW", "video")
)
_AVIF_BRANDS = {b"avif", b"avis"}
_HEIC_BRANDS = {
    b"heic",
    b"heix",
    b"heim",
    b"heis",
    b"hevc",
    b"hevx",
    b"hevm",
    b"hevs",
    b"mif1",
    b"mif2",
    b"msf1",
}
_MOST_BRANDS = 64
_RAW_SIGNATURE = re.compile(
    rb"FUJIFILMCCD-RAW|II(?:RO|RS|U\0)|MMOR|\0MRM|FOVb|(?:II|MM).{4}HEAPCCDR|.{4}ftypcrx |.{25}ARECOYK",
    re.DOTALL,
)
_TGA_END = b"TRUEVISION-XFILE.\0"


def recognise(stream: Stream) -> Kind:
    """Return the kind of a picture's file that can be read here.

    What a file begins with decides; its ending, if it has a path, only among what begins alike: RAW files of cameras
    and TIFF, and TGA, which begins like anything.

    Raises:
        ImageError: it is of no kind that is read, or of one that needs an extra which is not installed; says which.
    """
    head = read_at(stream, 0, _HEAD)
    kind = _by_content(stream, head, kind_of(PurePath(stream.path).suffix))
    stream.seek(0)
    if kind is None:
        raise ImageError("is no image of a kind that is read")
    if not kind.read:
        raise ImageError(f"is no image of a kind that is read ({kind.name}): {kind.note}")
    if not is_installed(kind.needs):
        raise ImageError(
            f"is a {kind.needs.upper()} photograph; {install_command(kind.needs)} makes it readable"
        )
    return kind


def _by_content(stream: Stream, head: bytes, named: Kind | None) -> Kind | None:
    if named is _TGA and _may_be_tga(head):
        return _TGA
    if _RAW_SIGNATURE.match(head):
        return _RAW
    if head[4:8] == b"ftyp":
        return _of_brands(stream, head)
    for kind, signature in _signatures():
        if signature.match(head):
            return _RAW if kind is _TIFF and (named is _RAW or is_raw(stream)) else kind
    if named is _RAW:
        return _RAW
    if read_at(stream, 2048, 4) == b"PCD_":
        return _PCD
    if _may_be_tga(head) and _is_tga(stream, head):
        return _TGA
    return None if named is None or named.read else named


@functools.cache
def _signatures() -> tuple[tuple[Kind, re.Pattern[bytes]], ...]:
    return tuple((kind, re.compile(kind.signature, re.DOTALL)) for kind in KINDS if kind.signature)


def _of_brands(stream: Stream, head: bytes) -> Kind:
    """The kind of an ISO media file, by the brands that it names."""
    size = min(int.from_bytes(head[:4], "big"), 16 + 4 * _MOST_BRANDS)
    named = head[8:12] + read_at(stream, 16, max(0, size - 16))
    brands = {named[place : place + 4] for place in range(0, len(named), 4)}
    return _AVIF if brands & _AVIF_BRANDS else _HEIC if brands & _HEIC_BRANDS else _VIDEO


def _may_be_tga(head: bytes) -> bool:
    """Whether the first bytes fit those of a TGA file, which has no signature."""
    if len(head) < 18:
        return False
    mapped, kind, map_bits = head[1], head[2], head[7]
    width, height, bits, flags = struct.unpack_from("<2H2B", head, 12)
    colours = map_bits in (15, 16, 24, 32) if mapped == 1 else mapped == 0 and kind & 7 != 1
    depths = {1: (8,), 2: (15, 16, 24, 32), 3: (1, 8, 16)}.get(kind & 7, ())
    return colours and kind & ~8 < 4 and bits in depths and min(width, height) > 0 and flags & 0xC0 == 0


def _is_tga(stream: Stream, head: bytes) -> bool:
    """Whether a file that begins like TGA ends like TGA, or, without a name, is as long as an uncompressed one."""
    if read_at(stream, max(0, stream.length - 18), 18) == _TGA_END:
        return True
    first, colours, map_bits = struct.unpack_from("<2HB", head, 3)
    width, height, bits = struct.unpack_from("<2HB", head, 12)
    taken = 18 + head[0] + head[1] * colours * (map_bits + 7 >> 3) + height * (width * bits + 7 >> 3)
    return not stream.path and not first and head[2] < 8 and stream.length == taken
