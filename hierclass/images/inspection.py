"""Look at the file of a picture before Pillow parses it: refuse what would take minutes or gigabytes.

Pillow is shown only the parts of a JPEG, PNG or GIF that make pixels. What it would do with the rest, such as gluing
8 MB of comments together byte by byte, or following 60,000 tags of EXIF to the same place, is never asked of it.
Everything is read in small pieces; what is left to the decoders grows with pixels, and those are bounded.
"""

from __future__ import annotations

import io
import re
import struct
import zlib
from collections.abc import Callable, Iterator
from typing import IO, NamedTuple

from hierclass.errors import ImageError
from hierclass.images.boxes import check_avif, check_heic, check_jpeg2000
from hierclass.images.extracting import Extracted, extract_dcx, extract_icon, extract_psd
from hierclass.images.repacking import repack_bmp, repack_dds, repack_dib, repack_pnm, repack_qoi
from hierclass.images.streams import BLOCK, Stream, only, read_at
from hierclass.images.tags import check_tiff

MAX_SCANS = 500
"""Scans of a JPEG; encoders write 10, the most thorough optimisers some dozens. Other programs refuse beyond 500."""
MAX_SCANNED = 2_500_000_000
"""Pixels times scans of a JPEG, 14 scans of the largest picture: an empty scan takes 1 ns per pixel."""
MAX_SEGMENTS = 10_000
"""Marker segments of a JPEG, and chunks beside the data of a PNG; a panorama's depth map takes hundreds."""
MAX_TABLES = 1 << 20
"""Bytes of a JPEG's tables, or of what else is kept of its header; honest ones take 2 KB."""
MAX_CHUNKS = 1 << 18
"""Chunks of a PNG or WebP: 2 GB of data in the 8 KB that libpng writes."""
MAX_COMMENT_BLOCKS = 1 << 20
"""Blocks of a GIF's comments and other extensions, of up to 255 bytes each."""
MAX_METADATA = 1 << 20
"""Bytes of EXIF or XMP that are looked at: orientation and thumbnail are in the first 64 KB."""

_HARMLESS = 1 << 12
"""Bytes of a JPEG's metadata that are left in place, since to cut them out takes longer than to read over them."""


class Inspection(NamedTuple):
    """What is known of a picture's file before Pillow parses it."""

    shown: IO[bytes]
    """What Pillow is to read."""
    exif: bytes = b""
    xmp: bytes = b""
    size: tuple[int, int] | None = None
    """Width and height, where they have to be known before Pillow opens the file, since it takes memory then."""
    pixel_bytes: float = 0
    """Memory that the decoder takes for a pixel, beside the picture that it makes."""
    fixed_bytes: int = 0
    """Memory that it takes beside."""
    format: str = ""
    """As what Pillow is to read it, if not as the format that was asked for."""
    step: int = 1
    """Columns of what Pillow reads that make a pixel, of which the first counts."""


def _find(stream: IO[bytes], pattern: re.Pattern[bytes], place: int) -> tuple[int, bytes] | None:
    """The next place of a pattern of one or two bytes and the bytes found."""
    before = b""
    stream.seek(place)
    while block := stream.read(BLOCK):
        data = before + block
        if match := pattern.search(data):
            return place - len(before) + match.start(), match.group()
        before = data[-1:]
        place += len(block)
    return None


_MARKER = re.compile(rb"\xff[\x02-\xcf\xd8-\xfe]")  # neither stuffing, fill bytes nor restarts
_NO_MARKERS = frozenset({0, 1, 0xFF, *range(0xD0, 0xD8)})
_SOI, _EOI, _SOS = 0xD8, 0xD9, 0xDA
_PEEK = 32
"""Bytes of a segment that are looked at: a frame of 4 channels takes 18, the name of XMP 29."""
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_PROGRESSIVE = frozenset({0xC2, 0xC6, 0xCA, 0xCE})
_METADATA = frozenset({*range(0xE1, 0xEE), 0xEF, 0xFE})
"""Application segments and comments, but not those of JFIF (E0) and Adobe (EE), which say what colours mean."""
_XMP_NAME = b"http://ns.adobe.com/xap/1.0/\0"


def _segments(stream: Stream) -> Iterator[tuple[int, int, int, bytes]]:
    """Yield code, begin, end and first bytes of every marker segment of a JPEG; coded data lie between them."""
    place, begin, data = 2, 0, read_at(stream, 0, BLOCK)
    for _ in range(MAX_SEGMENTS):
        at = place - begin
        if at + 4 + _PEEK > len(data) and begin + len(data) < stream.length:
            begin, data, at = place, read_at(stream, place, BLOCK), 0
        if at + 4 > len(data) or data[at] != 0xFF or data[at + 1] in _NO_MARKERS:
            if (found := _find(stream, _MARKER, place)) is None:
                return
            place = begin = found[0]
            data, at = read_at(stream, place, BLOCK).ljust(4, b"\0"), 0
        code = data[at + 1]
        if code == _EOI:
            return
        size = 2 if code == _SOI else max(4, 2 + (data[at + 2] << 8) + data[at + 3])
        yield code, place, place + size, data[at + 4 : at + 4 + _PEEK]
        place += size
    raise ImageError(f"is broken or hostile: more than {MAX_SEGMENTS:,} marker segments")


def _jpeg(stream: Stream) -> Inspection:
    parts = [(0, 2)]
    exif, xmp, frame = b"", b"", (0, b"")
    kept = scans = 0
    several = False
    for code, begin, end, head in _segments(stream):
        if code == _SOS:
            if not scans:
                parts.append((begin, stream.length))
                several = frame[0] in _PROGRESSIVE or head[:1] < frame[1][5:6]
            scans += 1
            if not several:
                break
            _check_scans(scans, frame[1])
        elif scans:
            continue
        elif code in _METADATA:
            if not exif and head.startswith(b"Exif\0\0"):
                exif = read_at(stream, begin + 4, end - begin - 4)
            elif not xmp and head.startswith(_XMP_NAME):
                xmp = read_at(stream, begin + 4, end - begin - 4)
        else:
            kept += end - begin
            parts.append((begin, end))
            if kept > MAX_TABLES:
                raise ImageError(f"is broken or hostile: its tables take more than {MAX_TABLES >> 20} MiB")
            if code in _FRAMES:
                frame = code, head
    cut = (parts[-1][0] if scans else stream.length) - 2 - kept
    shown = only(stream, parts) if cut > _HARMLESS else stream
    return Inspection(shown, exif, xmp, pixel_bytes=_coefficients(frame[1]) if several else 0)


def _check_scans(scans: int, frame: bytes) -> None:
    height, width = struct.unpack(">HH", frame[1:5].ljust(4, b"\0"))
    limit = min(MAX_SCANS, MAX_SCANNED // max(1, width * height))
    if scans > limit:
        raise ImageError(
            f"is a JPEG of more than {limit} scans of {width} x {height} pixels, the most that are read"
        )


def _coefficients(frame: bytes) -> float:
    """Bytes per pixel that libjpeg keeps of a picture in several scans: 2 for every sample of every channel."""
    factors = [(byte >> 4, byte & 15) for byte in frame[7 : 6 + 3 * (frame[5:6] or b"\0")[0] : 3]]
    across, down = (max((pair[axis] for pair in factors), default=1) or 1 for axis in (0, 1))
    return 2 * sum(pair[0] * pair[1] for pair in factors) / (across * down)


_PIXELS = {b"IHDR", b"PLTE", b"tRNS", b"IEND"}
_DATA = {b"IDAT", b"fdAT", b"fcTL"}
_TEXTS = {b"tEXt", b"zTXt", b"iTXt"}


def _png(stream: Stream) -> Inspection:
    length = stream.length
    parts, place = [(0, 8)], 8
    counts = {True: MAX_CHUNKS, False: MAX_SEGMENTS}
    exif = xmp = b""
    while place < length:
        head = read_at(stream, place, 8)
        size, kind = int.from_bytes(head[:4], "big"), head[4:]
        end = place + 12 + size
        if end > length or not kind.isalnum() or kind == b"IEND":
            parts.append((place, length))  # whole or not: Pillow says
            break
        counts[kind in _DATA] -= 1
        if min(counts.values()) < 0:
            raise ImageError(
                f"is broken or hostile: more than {MAX_CHUNKS:,} chunks, or {MAX_SEGMENTS:,} beside its data"
            )
        if kind == b"IDAT" or (kind in _PIXELS and size <= 3 * 256):
            parts.append((place, end))
        elif kind == b"eXIf" and not exif:
            exif = stream.read(min(size, MAX_METADATA))
        elif kind in _TEXTS and size <= MAX_METADATA:
            name, text = _text(kind, stream.read(size))
            if name == b"XML:com.adobe.xmp":
                xmp = text
            elif name == b"Raw profile type exif" and not exif:
                exif = exif_of_text(text.decode("latin-1"))
        place = end
    return Inspection(only(stream, parts), exif, xmp)


def _text(kind: bytes, data: bytes) -> tuple[bytes, bytes]:
    """Name and text of a PNG's chunk of text; no text if it is broken."""
    name, _, text = data.partition(b"\0")
    packed = kind == b"zTXt" or (kind == b"iTXt" and text[:1] == b"\1")
    text = text[1:] if kind == b"zTXt" else text[2:].split(b"\0", 2)[-1] if kind == b"iTXt" else text
    try:
        return name, zlib.decompressobj().decompress(text, MAX_METADATA) if packed else text
    except zlib.error:
        return name, b""


def exif_of_text(text: str) -> bytes:
    """EXIF from a PNG's text, as ImageMagick writes it: three lines that say what it is, then digits.

    Empty if it is broken.
    """
    try:
        return bytes.fromhex("".join(text.split("\n")[3:]))
    except ValueError:
        return b""


_INTRODUCER = re.compile(rb"[!,;]")


def _gif(stream: Stream) -> Inspection:
    length = stream.length
    flags = read_at(stream, 10, 1) or b"\0"
    place = 13 + ((6 << (flags[0] & 7)) if flags[0] & 0x80 else 0)
    parts, extensions, left = [(0, place)], 0, MAX_COMMENT_BLOCKS
    while (found := _find_near(stream, place)) is not None and found[1] == b"!":
        begin = found[0]
        place, left = _skip_blocks(stream, begin + 2, left)
        if read_at(stream, begin + 1, 1) == b"\xf9":  # which colour is transparent
            parts.append((begin, place))
        extensions += 1
        if extensions > MAX_SEGMENTS:
            raise ImageError(
                f"is broken or hostile: more than {MAX_SEGMENTS:,} extensions before its picture"
            )
    parts.append((found[0] if found else place, length))
    return Inspection(only(stream, parts), pixel_bytes=2)


def _skip_blocks(stream: IO[bytes], place: int, left: int) -> tuple[int, int]:
    """The end of a GIF's chain of blocks, and how many of `left` blocks are left; each is a length and its bytes."""
    begin, data = place, b""
    while left > 0:
        if place - begin >= len(data):
            begin, data = place, read_at(stream, place, BLOCK)
            if not data:
                return place, left
        size = data[place - begin]
        place += 1 + size
        left -= 1
        if not size:
            return place, left
    raise ImageError(
        f"is broken or hostile: more than {MAX_COMMENT_BLOCKS:,} blocks of comments before its picture"
    )


def _find_near(stream: IO[bytes], place: int) -> tuple[int, bytes] | None:
    byte = read_at(stream, place, 1)
    return (place, byte) if _INTRODUCER.match(byte) else _find(stream, _INTRODUCER, place)


def _webp(stream: Stream) -> Inspection:
    data = read_at(stream, 0, -1)  # as Pillow does
    place, chunks, exif, xmp = 12, 0, b"", b""
    while place + 8 <= len(data):
        kind, size = struct.unpack_from("<4sI", data, place)
        if kind == b"EXIF":
            exif = data[place + 8 : place + 8 + min(size, MAX_METADATA)]
        elif kind == b"XMP ":
            xmp = data[place + 8 : place + 8 + min(size, MAX_METADATA)]
        place += 8 + size + size % 2
        chunks += 1
        if chunks > MAX_CHUNKS:
            raise ImageError(f"is broken or hostile: more than {MAX_CHUNKS:,} chunks")
    # Two canvases, what Pillow copies from them, and a quarter of what lossless decoding keeps.
    return Inspection(
        io.BytesIO(data), exif, xmp, _webp_size(data), pixel_bytes=13, fixed_bytes=2 * len(data)
    )


def _webp_size(data: bytes) -> tuple[int, int]:
    kind, body = data[12:16], data[20:30].ljust(10, b"\0")
    if kind == b"VP8X":
        return 1 + int.from_bytes(body[4:7], "little"), 1 + int.from_bytes(body[7:10], "little")
    if kind == b"VP8L":
        bits = int.from_bytes(body[1:5], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    width, height = struct.unpack("<HH", body[6:10])
    return width & 0x3FFF, height & 0x3FFF


def _avif(stream: Stream) -> Inspection:
    data = check_avif(read_at(stream, 0, -1))  # Pillow reads all of it as well
    return Inspection(io.BytesIO(data), pixel_bytes=6, fixed_bytes=2 * len(data))


def _heif(stream: Stream) -> Inspection:
    data = check_heic(read_at(stream, 0, -1))
    return Inspection(io.BytesIO(data), pixel_bytes=6, fixed_bytes=2 * len(data))


def _psd(stream: Stream) -> Inspection:
    found = extract_psd(stream)
    return Inspection(found.shown, size=found.size, pixel_bytes=4 * (found.step - 1), step=found.step)


def _extracted(found: Extracted, header_only: bool) -> Inspection:
    inspection = inspect(found.shown, found.format, header_only=header_only)
    return inspection._replace(format=inspection.format or found.format)


def _repacked(stream: Stream, tga: bytes | None) -> Inspection:
    """The picture repacked as TGA, or as it is if it was not repacked; both are in memory."""
    if tga is None:
        return Inspection(stream)
    return Inspection(io.BytesIO(tga), fixed_bytes=len(tga), format="TGA")


_LOOKS: dict[str, Callable[[Stream, bool], Inspection]] = {
    "JPEG": lambda stream, _: _jpeg(stream),
    "PNG": lambda stream, _: _png(stream),
    "GIF": lambda stream, _: _gif(stream),
    "WEBP": lambda stream, _: _webp(stream),
    "BMP": lambda stream, header_only: Inspection(repack_bmp(stream, header_only=header_only), pixel_bytes=1),
    "TIFF": lambda stream, _: Inspection(stream, fixed_bytes=check_tiff(stream)),
    "JPEG2000": lambda stream, _: Inspection(stream, fixed_bytes=check_jpeg2000(stream)),
    "AVIF": lambda stream, _: _avif(stream),
    "PPM": lambda stream, header_only: Inspection(repack_pnm(stream, header_only=header_only)),
    "DIB": lambda stream, header_only: Inspection(repack_dib(stream, header_only=header_only), pixel_bytes=1),
    "HEIF": lambda stream, _: _heif(stream),
    "PSD": lambda stream, _: _psd(stream),
    "ICO": lambda stream, header_only: _extracted(extract_icon(stream, header_only=header_only), header_only),
    "DCX": lambda stream, header_only: _extracted(extract_dcx(stream), header_only),
    "QOI": lambda stream, header_only: _repacked(stream, repack_qoi(stream, header_only=header_only)),
    "DDS": lambda stream, header_only: _repacked(stream, repack_dds(stream, header_only=header_only)),
    "SGI": lambda stream, _: Inspection(stream, fixed_bytes=stream.length),
    **dict.fromkeys(("TGA", "PCX", "SUN", "PCD"), lambda stream, _: Inspection(stream)),
}


def inspect(stream: Stream, format_: str, *, header_only: bool = False) -> Inspection:
    """Look at a file of a format, as Pillow names it, and say what of it Pillow is to read.

    With `header_only` Pillow can read only the header of what is returned.

    Raises:
        ImageError: to read the file would take minutes or gigabytes.
    """
    inspection = _LOOKS[format_](stream, header_only)
    inspection.shown.seek(0)
    return inspection
