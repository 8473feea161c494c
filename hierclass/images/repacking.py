"""Repack files that Pillow would decode value by value in Python as files that it decodes at once.

PBM, PGM and PPM files whose values are text, or range to other than 255, run-length encoded BMP files, QOI, and DDS
that is not compressed.
"""

from __future__ import annotations

import io
import os
import re
import struct
from collections.abc import Iterator
from typing import IO

import numpy as np
from numpy.typing import NDArray

from hierclass.errors import ImageError
from hierclass.images.streams import read_at

MAX_TEXT = 1 << 27
"""Bytes of a file that holds values as text: a photograph of 11 megapixels takes as much, and 3 s."""
MAX_RUNS = 1 << 25
"""Bytes of a run-length encoded BMP file: a scan of 33 megapixels that could not be compressed."""
MAX_CODES = 6_000_000
"""Codes of such a file, or of a QOI, of 1 to 255 pixels each: they take up to a microsecond."""
MAX_VALUES = 3 * 178_956_970
"""Values of a picture: more are refused by their number of pixels, so there is no need to read them."""
_MAX_HEADER = 1 << 16
"""Bytes of a header with its comments, of which programs write a line."""
_BLOCK = 1 << 22

_WORD = re.compile(rb"(?:[ \t-\r]|#[^\r\n]*[\r\n])*([^ \t-\r#]{1,10})[ \t-\r]")
_NO_NUMBER = re.compile(rb"[^0-9 \t-\r]")
_TEXT = (b"P1", b"P2", b"P3")


def repack_pnm(stream: IO[bytes], *, header_only: bool = False) -> IO[bytes]:
    """Return a PBM, PGM or PPM file as Pillow reads it fast; the stream itself if it is that, or if `header_only`.

    Raises:
        ImageError: the header or the text is too long, or a value is no number of the range.
    """
    length = stream.seek(0, os.SEEK_END)
    stream.seek(0)
    head = stream.read(_MAX_HEADER)
    magic = head[:2]
    words, place = [], 0
    for _ in range(3 if magic in (b"P1", b"P4") else 4):
        if (match := _WORD.match(head, place)) is None:
            if length > _MAX_HEADER:
                raise ImageError(f"is broken: its header is longer than {_MAX_HEADER >> 10} KiB")
            return stream  # Pillow says what is wrong
        words.append(match[1])
        place = match.end()
    if words[0] not in (*_TEXT, b"P5", b"P6") or not all(word.isdigit() for word in words[1:]):
        return stream
    width, height, top = (*map(int, words[1:]), 1)[:3]
    usual = words[0] not in _TEXT and top in ((255, 65535) if magic == b"P5" else (255,))
    if usual or not 0 < top < 65536 or not 0 < width * height <= MAX_VALUES:
        return stream
    if magic in _TEXT and length > MAX_TEXT:
        raise ImageError(f"is text of {length >> 20} MiB; up to {MAX_TEXT >> 20} are read: save it as PNG")
    if header_only:
        return stream
    stream.seek(place)
    if magic == b"P1":
        return _bilevel(stream, width, height)
    return _scaled(stream, magic, (width, height), top)


def _scaled(stream: IO[bytes], magic: bytes, size: tuple[int, int], top: int) -> IO[bytes]:
    """A grey or colour picture with values up to 255 (grey of more than 8 bits: up to 65535)."""
    deep = magic in (b"P2", b"P5") and top > 255
    white = 65535 if deep else 255
    table = np.rint(np.arange(top + 1) / top * white).astype(">u2" if deep else "u1")
    left = size[0] * size[1] * (3 if magic in (b"P3", b"P6") else 1)
    binary = io.BytesIO()
    binary.write(b"P%d %d %d %d\n" % (6 if magic in (b"P3", b"P6") else 5, *size, white))
    for values in _numbers(stream, top) if magic in _TEXT else _bytes(stream, top):
        binary.write(table[values[:left]].tobytes())
        left -= len(values)
        if left <= 0:
            break
    return binary


def _bytes(stream: IO[bytes], top: int) -> Iterator[NDArray[np.integer]]:
    while block := stream.read(_BLOCK):
        values = np.frombuffer(block[: len(block) & ~1] if top > 255 else block, ">u2" if top > 255 else "u1")
        yield np.minimum(values, top)


def _numbers(stream: IO[bytes], top: int) -> Iterator[NDArray[np.integer]]:
    for text in _without_comments(stream):
        if wrong := _NO_NUMBER.search(text):
            raise ImageError(f"is broken: {wrong.group()!r} among its numbers")
        values = np.fromstring(text, dtype=np.int64, sep=" ") if text.strip() else np.zeros(0, np.int64)
        if len(values) and values.max() > top:
            raise ImageError(f"is broken: the value {values.max()} in a range up to {top}")
        yield values


def _bilevel(stream: IO[bytes], width: int, height: int) -> IO[bytes]:
    """A picture of 0 (white) and 1 (black), with or without spaces between them."""
    digits = np.zeros(width * height, dtype=bool)
    found = 0
    for text in _without_comments(stream):
        values = np.frombuffer(text.translate(None, b" \t\n\v\f\r"), np.uint8)[: len(digits) - found]
        if len(values) and not 48 <= values.min() <= values.max() <= 49:
            raise ImageError("is broken: something else than 0 and 1 among its pixels")
        digits[found : found + len(values)] = values == 49
        found += len(values)
        if found == len(digits):
            break
    rows = np.packbits(digits.reshape(height, width), axis=1)
    return io.BytesIO(b"P4 %d %d\n" % (width, height) + rows.tobytes()[: rows.shape[1] * (found // width)])


def _without_comments(stream: IO[bytes]) -> Iterator[bytes]:
    """Yield the text of a stream in blocks that end between two numbers, without comments (# to the end of a line)."""
    rest, inside = b"", False
    while block := stream.read(_BLOCK):
        if inside or b"#" in block:
            text = np.frombuffer(b"#" * inside + block, np.uint8)
            places = np.arange(len(text), dtype=np.int32)
            ends = (text == 10) | (text == 13)
            comment = np.maximum.accumulate(np.where(text == 35, places, -1)) > np.maximum.accumulate(
                np.where(ends, places, -1)
            )
            inside = bool(comment[-1])
            comment[1:] |= comment[:-1] & ends[1:]
            block = text[~comment].tobytes()
        block = rest + block
        cut = max(block.rfind(space) for space in (b" ", b"\n", b"\r", b"\t", b"\v", b"\f")) + 1
        if len(block) - cut > _MAX_HEADER:  # pixels of 0 and 1 need no spaces
            cut = len(block)
        rest = block[cut:]
        yield block[:cut]
    yield rest


def repack_bmp(stream: IO[bytes], *, header_only: bool = False) -> IO[bytes]:
    """Return a run-length encoded BMP file decoded; the stream itself if it is no such file, or if `header_only`.

    Raises:
        ImageError: the file is too long.
    """
    stream.seek(0)
    head = bytearray(stream.read(54).ljust(54, b"\0"))
    begin, header, width, height, bits, compression, colours = struct.unpack("<10xIIii2xHI12xI", head[:50])
    height = abs(height)
    if header < 40 or compression not in (1, 2) or header_only or not 0 < width * height <= MAX_VALUES // 3:
        return stream
    length = stream.seek(0, os.SEEK_END)
    if length > MAX_RUNS:
        raise ImageError(
            f"is a run-length encoded BMP file of {length >> 20} MiB; up to {MAX_RUNS >> 20} are read: save it as PNG"
        )
    colours = min(colours or 1 << min(bits, 8), 256)
    behind = 14 + header + 4 * colours
    stream.seek(54)
    between = stream.read(behind - 54)
    begin = behind if begin in (0, 14 + header) else begin
    stream.seek(begin)
    pixels = _runs(stream.read(), begin % 2, (width, height), compression == 2)
    struct.pack_into("<HI", head, 28, 8, 0)
    struct.pack_into("<I", head, 46, colours)
    struct.pack_into("<I", head, 10, behind)
    rows = np.zeros((len(pixels) // width, -(-width // 4) * 4), np.uint8)
    rows[:, :width] = np.frombuffer(pixels, np.uint8)[: len(rows) * width].reshape(-1, width)
    return io.BytesIO(head + between + rows.tobytes())


def _runs(code: bytes, odd: int, size: tuple[int, int], halves: bool) -> bytearray:
    """The pixels of a code of runs, a byte each, as Pillow decodes it; with `halves`, two pixels are in a byte."""
    width, total = size[0], size[0] * size[1]
    runs = [bytes([value >> 4, value & 15] * 128 if halves else [value] * 255) for value in range(256)]
    pixels = bytearray()
    place = x = 0
    for _ in range(MAX_CODES):
        if len(pixels) >= total or place + 1 >= len(code):
            break
        count, value = code[place], code[place + 1]
        place += 2
        if count:
            count = min(count, max(0, width - x))
            pixels += runs[value][:count]
            x += count
        elif value == 0:  # end of a row
            pixels += bytes(-len(pixels) % width)
            x = 0
        elif value == 1:  # end of the picture
            break
        elif value == 2:  # skips pixels and rows
            right, up = code[place : place + 2].ljust(2, b"\0")
            pixels += bytes(min(right + up * width, total - len(pixels)))
            x = len(pixels) % width
            place += 2
        else:
            taken = code[place : place + (value // 2 if halves else value)]
            pixels += b"".join(runs[byte][:2] for byte in taken) if halves else taken
            x += value
            place += len(taken)
            place += (odd + place) % 2
    else:
        raise ImageError(
            f"is a run-length encoded BMP file of more than {MAX_CODES:,} codes, the most that are read: save it as PNG"
        )
    return pixels


def repack_dib(stream: IO[bytes], *, header_only: bool = False) -> IO[bytes]:
    """Return a run-length encoded DIB (a BMP without its first 14 bytes) decoded, as `repack_bmp` does."""
    if int.from_bytes(read_at(stream, 16, 4), "little") not in (1, 2) or header_only:
        return stream
    stream.seek(0)
    whole = io.BytesIO(b"BM" + bytes(12) + stream.read(MAX_RUNS + 1))
    packed = repack_bmp(whole)
    packed.seek(14)
    return io.BytesIO(packed.read())


def as_tga(size: tuple[int, int], pixels: bytes | bytearray, channels: int) -> bytes:
    """A TGA file of pixels from the upper left on: 3 (blue, green, red) or 4 bytes each (opacity as well)."""
    head = struct.pack("<2xB9x2H2B", 2, *size, 8 * channels, 0x20 + (8 if channels == 4 else 0))
    return b"".join((head, pixels, bytes(8) + b"TRUEVISION-XFILE.\0"))


def repack_qoi(stream: IO[bytes], *, header_only: bool = False) -> bytes | None:
    """Return a QOI file as TGA; None if it has too many pixels. Raises ImageError if it has too many codes."""
    width, height, channels = struct.unpack(">IIB", read_at(stream, 4, 9).ljust(9, b"\0"))
    if not 0 < width * height <= MAX_VALUES // 3 or max(width, height) > 0xFFFF:
        return None
    channels = 4 if channels == 4 else 3
    if header_only:
        return as_tga((width, height), b"", channels)
    pixels = _qoi_pixels(read_at(stream, 14, 5 * MAX_CODES), width * height * channels, channels)
    return as_tga((width, height), pixels, channels)


def _qoi_pixels(code: bytes, total: int, channels: int) -> bytearray:
    """Pixels of QOI's codes, each of one pixel or a run of up to 62; opacity is dropped with 3 channels."""
    pixels = bytearray()
    seen = [(0, 0, 0, 0, bytes(channels))] * 64
    red = green = blue = place = 0
    alpha, pixel, end = 255, bytes((0, 0, 0, 255))[:channels], len(code)
    with_alpha = channels == 4
    for _ in range(MAX_CODES):
        if place >= end or len(pixels) >= total:
            break
        value = code[place]
        place += 1
        if value < 0x40:
            red, green, blue, alpha, pixel = seen[value]
            pixels += pixel
            continue
        if value < 0x80:
            red = red + (value >> 4 & 3) - 2 & 255
            green = green + (value >> 2 & 3) - 2 & 255
            blue = blue + (value & 3) - 2 & 255
        elif value < 0xC0:
            if place >= end:
                break
            other = code[place]
            place += 1
            step = (value & 63) - 32
            red = red + step + (other >> 4) - 8 & 255
            green = green + step & 255
            blue = blue + step + (other & 15) - 8 & 255
        elif value < 0xFE:
            pixels += pixel * ((value & 63) + 1)
            continue
        else:
            taken = 3 if value == 0xFE else 4
            if place + taken > end:
                break
            red, green, blue = code[place], code[place + 1], code[place + 2]
            alpha = alpha if taken == 3 else code[place + 3]
            place += taken
        pixel = bytes((blue, green, red, alpha) if with_alpha else (blue, green, red))
        pixels += pixel
        seen[red * 3 + green * 5 + blue * 7 + alpha * 11 & 63] = (red, green, blue, alpha, pixel)
    else:
        if len(pixels) < total:
            raise ImageError(
                f"is a QOI image of more than {MAX_CODES:,} codes, the most that are read: save it as PNG"
            )
    if len(pixels) < total:
        raise ImageError("is truncated: the file ends before the picture does")
    return pixels[:total]


_DDS_HEAD = 128


def repack_dds(stream: IO[bytes], *, header_only: bool = False) -> bytes | None:
    """Return a DDS file of pixels that are not compressed as TGA; None if it is none, or has too many pixels."""
    head = read_at(stream, 0, _DDS_HEAD)
    if len(head) < _DDS_HEAD:
        return None
    height, width = struct.unpack_from("<2I", head, 12)
    flags, _, bits, *masks = struct.unpack_from("<7I", head, 80)
    if not flags & 0x40 or bits not in (8, 16, 24, 32):
        return None
    if not 0 < width * height <= MAX_VALUES // 3 or max(width, height) > 0xFFFF:
        return None
    channels = 4 if flags & 1 else 3
    if header_only:
        return as_tga((width, height), b"", channels)
    pixels = bytearray()
    size, rows = bits // 8, max(1, _BLOCK // (4 * width))
    for top in range(0, height, rows):
        wanted = min(rows, height - top) * width
        data = read_at(stream, _DDS_HEAD + top * width * size, wanted * size)
        if len(data) < wanted * size:
            raise ImageError("is truncated: the file ends before the picture does")
        values = np.zeros((wanted, 4), np.uint8)
        values[:, :size] = np.frombuffer(data, np.uint8).reshape(wanted, size)
        numbers = values.view("<u4")[:, 0]
        found = np.empty((wanted, channels), np.uint8)
        for channel, mask in zip((2, 1, 0, 3), masks[:channels], strict=False):
            lowest = (mask & -mask).bit_length() - 1 if mask else 0
            most = mask >> lowest
            found[:, channel] = (
                (numbers & mask) >> lowest
                if most == 255
                else (((numbers & mask) >> lowest) / max(most, 1) * 255)
            )
        pixels += found.tobytes()
    return as_tga((width, height), pixels, channels)
