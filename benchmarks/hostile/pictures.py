"""Hostile pictures: small files that take a decoder minutes or gigabytes, of every format that is read.

What is written is as large as it has to be for that: most are below a megabyte, some sparse.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

from PIL import Image

from hostile import HostileFile

_Tag: TypeAlias = "tuple[int, int, int, int | bytes]"


def _small(format_: str, size: tuple[int, int] = (64, 48), mode: str = "RGB", **options: Any) -> bytes:
    stream = io.BytesIO()
    Image.linear_gradient("L").resize(size).convert(mode).save(stream, format_, **options)
    return stream.getvalue()


def _write(ending: str, make: Callable[[], bytes | Iterable[bytes]], folder: Path) -> Path:
    file = folder / f"picture.{ending}"
    made = make()
    with file.open("wb") as stream:
        for piece in (made,) if isinstance(made, bytes) else made:
            stream.write(piece)
    return file


def _file(name: str, ending: str, make: Callable[[], bytes | Iterable[bytes]], says: str = "") -> HostileFile:
    return HostileFile(name, partial(_write, ending, make), says)


# ---- JPEG


def _segment(code: int, data: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, code, len(data) + 2) + data


def jpeg_of_scans(scans: int, size: tuple[int, int] = (1024, 1024), channels: int = 3) -> bytes:
    """A progressive JPEG whose scans say of every block that nothing changes, in two bytes per 32,767 blocks."""
    width, height = size
    frame = struct.pack(">BHHB", 8, height, width, channels)
    frame += b"".join(bytes([index + 1, 0x11, 0]) for index in range(channels))
    blocks = -(-width // 8) * -(-height // 8)
    bits = "011111111111111" * (1 + blocks // 32767)
    bits += "1" * (-len(bits) % 8)
    coded = int(bits, 2).to_bytes(len(bits) // 8, "big").replace(b"\xff", b"\xff\0")
    table = bytes(
        [0x10, 1, *[0] * 15, 0xE0]
    )  # one code of one bit: this block and up to 32,766 more end here
    body = b"".join(
        _segment(0xDA, bytes([1, 1 + index % channels, 0, 1, 63, 0x10])) + coded for index in range(scans)
    )
    head = _segment(0xDB, bytes([0, *[1] * 64])) + _segment(0xC2, frame) + _segment(0xC4, table)
    return b"\xff\xd8" + head + body + b"\xff\xd9"


def _jpeg_of_sequential_scans(scans: int) -> bytes:
    """A baseline JPEG that comes channel by channel, again and again."""
    frame = struct.pack(">BHHB", 8, 2048, 2048, 3) + bytes([1, 0x11, 0, 2, 0x11, 0, 3, 0x11, 0])
    tables = _segment(0xC4, bytes([0, 1, *[0] * 15, 0])) + _segment(0xC4, bytes([0x10, 1, *[0] * 15, 0]))
    head = _segment(0xDB, bytes([0, *[1] * 64])) + _segment(0xC0, frame) + tables
    coded = bytes(2 * 256 * 256 // 8)
    body = b"".join(_segment(0xDA, bytes([1, 1 + index % 3, 0, 0, 63, 0])) + coded for index in range(scans))
    return b"\xff\xd8" + head + body + b"\xff\xd9"


def _jpeg_with(*pieces: bytes) -> bytes:
    jpeg = _small("JPEG")
    return jpeg[:2] + b"".join(pieces) + jpeg[2:]


def exif_of_tags(tags: int, shared: int = 65_000, order: str = "<") -> bytes:
    """EXIF (without its name) with tags that all point at the same bytes."""
    entries = b"".join(struct.pack(order + "HHII", 1000 + tag % 60_000, 7, shared, 8) for tag in range(tags))
    head = b"II*\0" if order == "<" else b"MM\0*"
    data = head + struct.pack(order + "IH", 8, tags) + entries + bytes(4)
    return data.ljust(shared + 8, b"\0")


def _jpeg_of_exif_pieces() -> bytes:
    exif = exif_of_tags(60_000)
    pieces = [exif[begin : begin + 60_000] for begin in range(0, len(exif), 60_000)]
    return _jpeg_with(*(_segment(0xE1, b"Exif\0\0" + piece) for piece in pieces))


def jpeg_with_thumbnail(thumbnail: bytes) -> bytes:
    """A JPEG with EXIF that holds a thumbnail of less than 64 KB."""
    ifd1 = struct.pack("<HHHIIHHIII", 2, 0x0201, 4, 1, 44, 0x0202, 4, 1, len(thumbnail), 0)
    return _jpeg_with(_segment(0xE1, b"Exif\0\0II*\0" + struct.pack("<IHI", 8, 0, 14) + ifd1 + thumbnail))


def _jpeg_of_a_large_thumbnail() -> bytes:
    return jpeg_with_thumbnail(jpeg_of_scans(20, (13_370, 13_370), 1))


def _jpeg_of_pictures() -> bytes:
    """A JPEG whose index (MPF) names 65,000 tags of the same place."""
    return _jpeg_with(*(_segment(0xE2, b"MPF\0" + exif_of_tags(5_000, 60_000)[:65_000]) for _ in range(2)))


# ---- PNG


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_with(*chunks: bytes) -> bytes:
    """A PNG with chunks behind its header."""
    png = _small("PNG")
    return png[:33] + b"".join(chunks) + png[33:]


def _png_of_profiles() -> bytes:
    profile = _chunk(b"iCCP", b"x\0\0" + zlib.compress(bytes(1_000_000)))
    return png_with(*[profile] * 5_000)


# ---- TIFF


def tiff(entries: list[_Tag], tail: bytes = b"", more: int = 0) -> bytes:
    """A TIFF of tags (number, type, count, value or place), `tail` behind its directory, which begins at 8."""
    packed = [
        struct.pack("<HHI", *entry[:3])
        + (entry[3] if isinstance(entry[3], bytes) else struct.pack("<I", entry[3]))
        for entry in entries
    ]
    return b"II*\0" + struct.pack("<IH", 8, len(packed)) + b"".join(packed) + struct.pack("<I", more) + tail


def _tiff_tags(width: int = 16, height: int = 16, compression: int = 1, offset: int = 8) -> list[_Tag]:
    return [
        (256, 4, 1, width),
        (257, 4, 1, height),
        (258, 3, 1, 8),
        (259, 3, 1, compression),
        (262, 3, 1, 1),
        (273, 4, 1, offset),
        (277, 3, 1, 1),
        (278, 4, 1, height),
        (279, 4, 1, width * height),
    ]


def tiff_of_tags(tags: int, shared: int = 65_000) -> bytes:
    """A TIFF of 16 x 16 pixels with tags that all point at the same bytes."""
    more: list[_Tag] = [(2000 + tag, 7, shared, 8) for tag in range(tags) if 2000 + tag != 0xBC01]
    return tiff(_tiff_tags() + more, bytes(shared))


def _tiff_of_exif() -> bytes:
    tags = _tiff_tags()
    place = 8 + 2 + 12 * (len(tags) + 1) + 4
    entries = b"".join(struct.pack("<HHII", 1000 + tag, 7, 65_000, 8) for tag in range(60_000))
    return tiff([*tags, (0x8769, 4, 1, place)], struct.pack("<H", 60_000) + entries + bytes(65_000))


def tiff_of_strips(strips: int, compression: int = 8) -> bytes:
    """A TIFF of one row of 64 pixels per strip, all of which are the same bytes."""
    data = zlib.compress(bytes(64), 9) if compression == 8 else bytes(64)
    tags = [tag for tag in _tiff_tags(64, strips, compression) if tag[0] not in (273, 278, 279)]
    begin = 8 + 2 + 12 * (len(tags) + 3) + 4
    places = struct.pack("<I", begin + 8 * strips) * strips + struct.pack("<I", len(data)) * strips
    tags += [(273, 4, strips, begin), (278, 4, 1, 1), (279, 4, strips, begin + 4 * strips)]
    return tiff(tags, places + data)


def _tiff_of_fractions(count: int) -> bytes:
    tags = [*_tiff_tags(), (282, 5, count, 8), (283, 5, count, 8)]
    return tiff(tags, struct.pack("<II", 3, 7) * count)


def _big_tiff_of_tags() -> Iterable[bytes]:
    yield b"II\x2b\0" + struct.pack("<HHQQ", 8, 0, 16, 1 << 40)
    yield from [struct.pack("<HHQQ", 2000, 3, 1, 1) * 50_000] * 40


def tiff_of_tiles(width: int, height: int, across: int, down: int) -> bytes:
    """A TIFF in tiles of `across` x `down` pixels, all of which are the same bytes; large ones end too early."""
    tiles = -(-width // across) * -(-height // down)
    tags = [tag for tag in _tiff_tags(width, height, 8) if tag[0] not in (273, 278, 279)]
    packed = zlib.compress(bytes(min(across * down, 1 << 24)), 9)
    place = 8 + 2 + 12 * (len(tags) + 4) + 4
    places, lengths = struct.pack("<I", place + 8 * tiles) * tiles, struct.pack("<I", len(packed)) * tiles
    single = (place, len(packed)) if tiles == 1 else (place, place + 4 * tiles)
    tags += [(322, 4, 1, across), (323, 4, 1, down), (324, 4, tiles, single[0]), (325, 4, tiles, single[1])]
    return tiff(tags, packed if tiles == 1 else places + lengths + packed)


def _tiff_of_colours() -> bytes:
    tags = [tag for tag in _tiff_tags() if tag[0] != 262] + [(262, 3, 1, 3), (320, 1, 30_000_000, 8)]
    return tiff(tags, bytes(30_000_000))


# ---- GIF, WebP, BMP


def _gif_of_blocks(block: bytes, count: int) -> bytes:
    gif = _small("GIF")
    begin = 13 + (6 << (gif[10] & 7))
    return gif[:begin] + block * count + gif[begin:]


def gif_with_comment(size: int) -> bytes:
    """A GIF with a comment of so many bytes, a byte per block."""
    gif = _small("GIF")
    begin = 13 + (6 << (gif[10] & 7))
    return gif[:begin] + b"!\xfe" + b"\1x" * (size // 2) + b"\0" + gif[begin:]


def webp_of_size(side: int) -> bytes:
    """A lossless WebP of one colour, in 40 bytes: a code of no bits for every pixel."""
    bits = (side - 1) | (side - 1) << 14
    body = b"\x2f" + struct.pack("<I", bits) + (0b0001_0001_0001_0001_0001_000).to_bytes(15, "little")
    return b"RIFF" + struct.pack("<I", 12 + len(body)) + b"WEBPVP8L" + struct.pack("<I", len(body)) + body


def _webp_of_chunks(count: int) -> bytes:
    inner = _small("WEBP")[12:]
    body = b"VP8X" + struct.pack("<IB3x", 10, 0) + struct.pack("<I", 63)[:3] + struct.pack("<I", 47)[:3]
    body += b"abcd\0\0\0\0" * count + inner
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WEBP" + body


def bmp_of_codes(width: int, height: int, codes: bytes, count: int) -> bytes:
    """A run-length encoded BMP."""
    body = codes * count
    head = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(body), 0, 0, 2, 0) + bytes(8)
    return b"BM" + struct.pack("<IHHI", 14 + len(head) + len(body), 0, 0, 14 + len(head)) + head + body


def _bmp_of_a_row() -> bytes:
    head = struct.pack("<IiiHHIIiiII", 40, 100_000_000, 1, 1, 8, 0, 100_000_000, 0, 0, 2, 0) + bytes(8)
    return b"BM" + struct.pack("<IHHI", 100_000_062, 0, 0, 62) + head + bytes(100_000_000)


# ---- PNM


def ppm_with_comments(values: int) -> bytes:
    """A grey picture as text, with a comment behind every value."""
    return b"P2\n%d 1\n255\n" % values + b"7#\n " * values


def _ppm_with_long_header() -> Iterable[bytes]:
    yield b"P5\n#"
    yield from [b"x" * (1 << 20)] * 64
    yield b"\n4 4\n255\n" + bytes(16)


# ---- JPEG 2000, AVIF


def jpeg2000(size: tuple[int, int] = (64, 48), **options: Any) -> bytes:
    """A JPEG 2000 codestream as Pillow writes it."""
    return _small("JPEG2000", size, no_jp2=True, **options)


def _jpeg2000_of_channels(count: int) -> bytes:
    """A JP2 that says 3 channels in its header and more in its codestream, in 4,096 tiles."""
    file = _small("JPEG2000", (64, 64))
    place = file.index(b"\xff\x4f\xff\x51")
    siz = bytearray(file[place + 4 : place + 42])
    siz[:2] = struct.pack(">H", 38 + 3 * count)
    siz[20:28] = struct.pack(">II", 1, 1)
    siz[-2:] = struct.pack(">H", count)
    code = file[place : place + 4] + bytes(siz) + b"\7\1\1" * count + file[place + 51 :]
    return file[: place - 8] + struct.pack(">I4s", 8 + len(code), b"jp2c") + code


def jpeg2000_of_blocks(side: int, exponent: int = 0, layers: int = 1, precinct: int | None = None) -> bytes:
    """A JPEG 2000 of `side` x `side` pixels in code blocks of 4 x 4, whose data end at once."""
    code = bytearray(jpeg2000(num_resolutions=1, codeblock_size=(4, 4)))
    siz = code.index(b"\xff\x51")
    for place in (6, 22):
        code[siz + place : siz + place + 8] = struct.pack(">II", side, side)
    cod = code.index(b"\xff\x52")
    code[cod + 6 : cod + 8] = struct.pack(">H", layers)
    if precinct is not None:
        code[cod + 2 : cod + 4] = struct.pack(">H", 13)
        code[cod + 4] |= 1
        code[cod + 14 : cod + 14] = bytes([precinct * 17])
    return bytes(code)


def _jpeg2000_of_markers() -> bytes:
    code = jpeg2000()
    place = code.index(b"\xff\x52")
    return code[:place] + b"\xff\x55\0\2" * 2_000_000 + code[place:]


def avif_with_exif(exif: bytes) -> bytes:
    """An AVIF whose EXIF is this."""
    mark = b"II*\0\10\0\0\0\0\0".ljust(len(exif), b"\xa5")  # Pillow parses what it writes
    return _small("AVIF", exif=b"Exif\0\0" + mark).replace(mark, exif)


def _avif_of_items(count: int) -> bytes:
    avif = _small("AVIF")
    place = avif.index(b"iloc") - 4
    size = struct.unpack(">I", avif[place : place + 4])[0]
    items = b"".join(struct.pack(">IHHH", 10 + item, 0, 0, 0) for item in range(count))
    box = b"iloc" + bytes([2, 0, 0, 0, 0, 0]) + struct.pack(">I", count) + items
    meta = avif.index(b"meta") - 4
    length = struct.unpack(">I", avif[meta : meta + 4])[0]
    changed = avif[:place] + struct.pack(">I", 4 + len(box)) + box + avif[place + size :]
    grown = struct.pack(">I", length + 4 + len(box) - size)
    return changed[:meta] + grown + changed[meta + 4 :]


_HOSTILE = "broken or hostile"
_TABLE = _segment(0xDB, bytes([0, *[1] * 64]))
_LARGE_SCANS = partial(jpeg_of_scans, 400, (13_000, 13_000))
_LAYERS = partial(jpeg2000_of_blocks, 2_000, layers=65_535, precinct=5)
_TIMINGS = partial(_gif_of_blocks, b"!\xf9\4\0\0\0\0\0", 1_000_000)

_JPEG = [
    _file("progressive JPEG of 2,000 scans", "jpg", partial(jpeg_of_scans, 2_000, (4096, 4096)), "scans"),
    _file("progressive JPEG of 400 scans of 170 megapixels", "jpg", _LARGE_SCANS, "scans"),
    _file("JPEG of 2,000 sequential scans", "jpg", partial(_jpeg_of_sequential_scans, 2_000), "scans"),
    _file("JPEG whose EXIF of 60,000 tags comes in pieces", "jpg", _jpeg_of_exif_pieces),
    _file("JPEG with an index of pictures in 5,000 tags", "jpg", _jpeg_of_pictures),
    _file("JPEG of 100,000 tables", "jpg", lambda: _jpeg_with(_TABLE * 100_000), _HOSTILE),
    _file("JPEG of 1,000,000 comments", "jpg", lambda: _jpeg_with(_segment(0xFE, b"") * 1_000_000), _HOSTILE),
    _file(
        "JPEG with 64 MB of nothing in its header",
        "jpg",
        lambda: _jpeg_with(_segment(0xFE, b""), bytes(1 << 26)),
    ),
    _file("JPEG with a thumbnail of 178 megapixels", "jpg", _jpeg_of_a_large_thumbnail),
]
_PNG = [
    _file("PNG with eXIf of 60,000 tags", "png", lambda: png_with(_chunk(b"eXIf", exif_of_tags(60_000)))),
    _file("PNG of 5,000 colour profiles", "png", _png_of_profiles),
    _file(
        "PNG of 1,000,000 empty chunks", "png", lambda: png_with(_chunk(b"abCd", b"") * 1_000_000), _HOSTILE
    ),
    _file(
        "PNG of 1,000,000 pieces of data", "png", lambda: png_with(_chunk(b"IDAT", b"") * 1_000_000), _HOSTILE
    ),
]
_TIFF = [
    _file("TIFF of 60,000 tags", "tif", partial(tiff_of_tags, 60_000), _HOSTILE),
    _file("TIFF of 4,000 tags that share 1 MB", "tif", partial(tiff_of_tags, 4_000, 1_000_000), _HOSTILE),
    _file("TIFF with EXIF of 60,000 tags", "tif", _tiff_of_exif, _HOSTILE),
    _file("TIFF of 2,000,000 strips", "tif", partial(tiff_of_strips, 2_000_000, 1), "strips"),
    _file(
        "TIFF with a resolution of 1,000,000 fractions",
        "tif",
        partial(_tiff_of_fractions, 1_000_000),
        _HOSTILE,
    ),
    _file("BigTIFF of 2^40 tags", "tif", _big_tiff_of_tags, _HOSTILE),
    _file(
        "TIFF of one tile of 2 gigapixels", "tif", partial(tiff_of_tiles, 16, 16, 46_000, 46_000), _HOSTILE
    ),
    _file(
        "TIFF of 1,000 tiles wider than it", "tif", partial(tiff_of_tiles, 16, 800_000, 20_000, 800), _HOSTILE
    ),
    _file("TIFF of 30,000,000 colours", "tif", _tiff_of_colours, _HOSTILE),
]
_OTHERS = [
    _file("GIF with a comment of 8 MB", "gif", partial(gif_with_comment, 8_000_000), _HOSTILE),
    _file("GIF with a comment of 1 MB", "gif", partial(gif_with_comment, 1_000_000)),
    _file("GIF of 1,000,000 timings", "gif", _TIMINGS, _HOSTILE),
    _file("GIF with 64 MB of nothing in its header", "gif", partial(_gif_of_blocks, bytes(1 << 20), 64)),
    _file("WebP of 176 megapixels in 40 bytes", "webp", partial(webp_of_size, 13_270), "GB"),
    _file("WebP of 4,000,000 chunks", "webp", partial(_webp_of_chunks, 4_000_000), _HOSTILE),
    _file("BMP of one row of 100 megapixels", "bmp", _bmp_of_a_row),
    _file("BMP that skips 255 rows", "bmp", partial(bmp_of_codes, 100_000_000, 1, b"\0\2\xff\xff", 9)),
    _file("BMP of ends of rows", "bmp", partial(bmp_of_codes, 6_000, 5_500, b"\1\0\0\0", 5_500)),
    _file("BMP of idle codes", "bmp", partial(bmp_of_codes, 4, 9, b"\4\0", 12_000_000), "codes"),
    _file("plain PPM with comments", "ppm", partial(ppm_with_comments, 1_000_000)),
    _file("plain PPM of 100 megabytes", "ppm", lambda: b"P2\n10000 5000\n255\n" + b"7 " * 50_000_000),
    _file(
        "PPM of 16 bits and 64 megapixels", "ppm", lambda: b"P6\n8000 8000\n60000\n" + bytes(6 * 64_000_000)
    ),
    _file("PPM with a comment of 64 MB in its header", "ppm", _ppm_with_long_header, "header"),
    _file("JPEG 2000 of 32 million code blocks", "j2k", partial(jpeg2000_of_blocks, 13_000), "code blocks"),
    _file(
        "JPEG 2000 of 75 million precincts",
        "j2k",
        partial(jpeg2000_of_blocks, 5_000, precinct=0),
        "code blocks",
    ),
    _file("JPEG 2000 of 65,535 layers", "j2k", _LAYERS, "packets"),
    _file("JPEG 2000 of 16,384 channels", "jp2", partial(_jpeg2000_of_channels, 16_384), "channels"),
    _file("JPEG 2000 of 2,000,000 markers", "j2k", _jpeg2000_of_markers, _HOSTILE),
    _file("AVIF with EXIF of 60,000 tags", "avif", lambda: avif_with_exif(exif_of_tags(60_000))),
    _file("AVIF of 500,000 items", "avif", partial(_avif_of_items, 500_000), _HOSTILE),
]

PICTURES: list[HostileFile] = [*_JPEG, *_PNG, *_TIFF, *_OTHERS]
