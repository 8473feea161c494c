"""Hostile pictures of cameras and editors: RAW, HEIC, Photoshop, icons, and what editors and games wrote.

`dng` and `heic_of_boxes` also write what tests read.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterable
from functools import partial

from PIL import Image

from hostile import HostileFile
from hostile.pictures import _chunk, _file, jpeg_of_scans

# ---- RAW


def _directory(place: int, entries: list[tuple[int, int, bytes]], more: int = 0) -> bytes:
    """A directory of a TIFF at a place: tags (number, type, value), longer values behind it."""
    sizes = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 10: 8}
    packed, tail = b"", b""
    behind = place + 2 + 12 * len(entries) + 4
    for number, kind, value in sorted(entries):
        packed += struct.pack("<HHI", number, kind, len(value) // sizes[kind])
        if len(value) <= 4:
            packed += value.ljust(4, b"\0")
        else:
            packed += struct.pack("<I", behind + len(tail))
            tail += value + bytes(len(value) % 2)
    return struct.pack("<H", len(entries)) + packed + struct.pack("<I", more) + tail


def _longs(*values: int) -> bytes:
    return struct.pack(f"<{len(values)}I", *values)


def _shorts(*values: int) -> bytes:
    return struct.pack(f"<{len(values)}H", *values)


def dng(
    preview: bytes | Image.Image | None,
    *,
    orientation: int = 1,
    size: tuple[int, int] = (160, 96),
    pixels: bytes | None = None,
    announced: tuple[int, int] | None = None,
) -> bytes:
    """A DNG that LibRaw reads: a sensor's pixels, half of them bright, and a preview.

    `preview` is a JPEG file, or RGB that is not compressed; `pixels` are 2 bytes each; `announced` is the size that
    the file gives its sensor, if not `size`.
    """
    width, height = size
    if pixels is None:
        pixels = _shorts(*(60_000 if x < width // 2 else 2_000 for x in range(width))) * height
    sensor_size = announced or size
    one = struct.pack("<2i", 1, 1)
    matrix = b"".join(one if at % 4 == 0 else struct.pack("<2i", 0, 1) for at in range(9))
    first = [
        (254, 4, _longs(1)),
        (271, 2, b"Maker\0"),
        (272, 2, b"Model\0"),
        (274, 3, _shorts(orientation)),
        (330, 4, _longs(0)),
        (50706, 1, bytes((1, 4, 0, 0))),
        (50708, 2, b"Maker Model\0"),
        (50721, 10, matrix),
        (50728, 5, one * 3),
        (50778, 3, _shorts(21)),
    ]
    data = b""
    if preview is not None:
        image = Image.open(io.BytesIO(preview)) if isinstance(preview, bytes) else preview
        data = preview if isinstance(preview, bytes) else image.tobytes()
        first += [
            (256, 4, _longs(image.width)),
            (257, 4, _longs(image.height)),
            (258, 3, _shorts(8, 8, 8)),
            (259, 3, _shorts(7 if isinstance(preview, bytes) else 1)),
            (262, 3, _shorts(6 if isinstance(preview, bytes) else 2)),
            (273, 4, _longs(0)),
            (277, 3, _shorts(3)),
            (278, 4, _longs(image.height)),
            (279, 4, _longs(len(data))),
        ]
    raw_at = 8 + len(_directory(8, first))

    def sensor(at: int) -> bytes:
        return _directory(
            raw_at,
            [
                (254, 4, _longs(0)),
                (256, 4, _longs(sensor_size[0])),
                (257, 4, _longs(sensor_size[1])),
                (258, 3, _shorts(16)),
                (259, 3, _shorts(1)),
                (262, 3, _shorts(32803)),
                (273, 4, _longs(at)),
                (277, 3, _shorts(1)),
                (278, 4, _longs(sensor_size[1])),
                (279, 4, _longs(len(pixels))),
                (33421, 3, _shorts(2, 2)),
                (33422, 1, bytes((0, 1, 1, 2))),
                (50717, 4, _longs(65535)),
            ],
        )

    behind = raw_at + len(sensor(0))
    places = {330: raw_at, 273: behind}
    first = [
        (number, kind, _longs(places.get(number, 0)) if number in places else value)
        for number, kind, value in first
    ]
    return b"II*\0" + _longs(8) + _directory(8, first) + sensor(behind + len(data)) + data + pixels


# ---- HEIC


def box(name: bytes, *contents: bytes) -> bytes:
    """A box of an ISO media file."""
    return struct.pack(">I", 8 + sum(map(len, contents))) + name + b"".join(contents)


def heic_of_boxes(extents: list[tuple[int, int]], parts: list[int], side: int = 4096) -> bytes:
    """A HEIC of items with their places and lengths; item 1 is shown, a grid of other items, all of the same side."""
    count = len(extents)
    items = [
        box(
            b"infe",
            bytes((2, 0, 0, 0)),
            struct.pack(">HH", 1 + at, 0),
            b"grid" if at == 0 else b"hvc1",
            b"\0",
        )
        for at in range(count)
    ]
    places = b"".join(struct.pack(">HHHII", 1 + at, 0, 1, *extent) for at, extent in enumerate(extents))
    size = box(b"ispe", bytes(4), struct.pack(">II", side, side))
    of = b"".join(struct.pack(">HBB", 1 + at, 1, 1) for at in range(count))
    meta = box(
        b"meta",
        bytes(4),
        box(b"hdlr", bytes(8), b"pict", bytes(13)),
        box(b"pitm", bytes(4), b"\0\1"),
        box(b"iinf", bytes(4), struct.pack(">H", count), *items),
        box(b"iloc", bytes(4), b"\x44\0", struct.pack(">H", count), places),
        box(b"iref", bytes(4), box(b"dimg", struct.pack(f">HH{len(parts)}H", 1, len(parts), *parts))),
        box(b"iprp", box(b"ipco", size), box(b"ipma", bytes(4), struct.pack(">I", count), of)),
    )
    return box(b"ftyp", b"heic", bytes(4), b"mif1heic") + meta + box(b"mdat", bytes(1000))


# ---- what editors, programs and games write


def psd(
    size: tuple[int, int] = (64, 48),
    *,
    channels: bytes | None = None,
    count: int = 3,
    layers: int = 0,
    resources: bytes = b"",
    bits: int = 8,
    mode: int = 3,
    packed: bytes = b"",
) -> bytes:
    """A Photoshop file of channels that are not compressed, or of packed rows.

    `layers` is the number of layers, negative if the fourth channel says what is transparent; they are empty.
    """
    width, height = size
    channels = bytes(width * height * count * -(-bits // 8)) if channels is None else channels
    info = struct.pack(">Ih", 2, layers) if layers else b""
    head = b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", count, height, width, bits, mode)
    sections = b"".join(struct.pack(">I", len(part)) + part for part in (b"", resources, info))
    return head + sections + (b"\0\1" + packed if packed else b"\0\0" + channels)


def icon(entries: list[tuple[int, int, bytes]], count: int | None = None) -> bytes:
    """A Windows icon of pictures: side, bits per pixel, and the file inside."""
    place = 6 + 16 * len(entries)
    head, data = b"", b""
    for side, bits, inside in entries:
        head += struct.pack("<4B2H2I", side % 256, side % 256, 0, 0, 1, bits, len(inside), place + len(data))
        data += inside
    return struct.pack("<3H", 0, 1, len(entries) if count is None else count) + head + data


def dds(size: tuple[int, int], bits: int, masks: tuple[int, ...], pixels: bytes) -> bytes:
    """A DDS file of pixels that are not compressed."""
    flags = 0x41 if len(masks) == 4 else 0x40
    form = struct.pack("<8I", 32, flags, 0, bits, *masks, *[0] * (4 - len(masks)))
    return (
        b"DDS "
        + struct.pack("<7I", 124, 0x100F, size[1], size[0], 0, 0, 0)
        + bytes(44)
        + form
        + bytes(20)
        + pixels
    )


def _psd_of_runs(side: int) -> Iterable[bytes]:
    row = b"\x81\x55" * -(-side // 128)
    yield psd((side, side), packed=struct.pack(">H", len(row)) * (3 * side))
    yield row * (3 * side)


def _tga_of_runs(side: int) -> bytes:
    return struct.pack("<3B9x2H2B", 0, 0, 10, side, side, 24, 0x20) + b"\xff\1\2\3" * -(-side * side // 128)


def _sgi_of_one_row(side: int) -> bytes:
    row = b"\x7f\x55" * -(-side // 127) + b"\0"
    begin = 512 + 2 * 4 * 3 * side
    head = struct.pack(">h2B4H", 474, 1, 1, 3, side, side, 3).ljust(512, b"\0")
    return head + struct.pack(">I", begin) * (3 * side) + struct.pack(">I", len(row)) * (3 * side) + row


def _pcx_of_runs(side: int) -> bytes:
    head = struct.pack("<4B4H", 10, 5, 1, 8, 0, 0, side - 1, side - 1).ljust(65, b"\0") + struct.pack(
        "<BH", 3, side
    )
    return head.ljust(128, b"\0") + (b"\xff\x55" * -(-side // 63)) * (3 * side)


def _sun_of_runs(side: int) -> bytes:
    return struct.pack(">8I", 0x59A66A95, side, side, 24, 0, 2, 0, 0) + b"\x80\xff\x55" * -(
        -3 * side * side // 256
    )


def _qoi(size: tuple[int, int], code: bytes) -> bytes:
    return b"qoif" + struct.pack(">IIBB", *size, 3, 0) + code


def _png_of_a_gigapixel() -> bytes:
    head = _chunk(b"IHDR", struct.pack(">IIBBBBB", 32_000, 32_000, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + _chunk(b"IDAT", b"")


_HOSTILE = "hostile"
_SMALL_PREVIEW = Image.new("RGB", (64, 40))
_WIDE = (13_000, 13_000)

OTHER_PICTURES: list[HostileFile] = [
    _file(
        "DNG of a sensor of 3.6 gigapixels",
        "dng",
        lambda: dng(None, announced=(60_000, 60_000)),
        "megapixels",
    ),
    _file("DNG with a preview of 400 scans", "dng", lambda: dng(jpeg_of_scans(400, _WIDE))),
    _file(
        "DNG with a preview of 1.2 gigabytes that are not there",
        "dng",
        lambda: dng(_SMALL_PREVIEW).replace(_longs(64), _longs(20_000)).replace(_longs(40), _longs(20_000)),
    ),
    _file(
        "HEIC whose items share their bytes",
        "heic",
        lambda: heic_of_boxes([(0, 20_000)] * 1_000, [2]),
        _HOSTILE,
    ),
    _file(
        "HEIC of 60,000 uses of one tile", "heic", lambda: heic_of_boxes([(0, 9)] * 2, [2] * 60_000), _HOSTILE
    ),
    _file("HEIC that is made of itself", "heic", lambda: heic_of_boxes([(0, 9)] * 2, [1, 1, 2]), _HOSTILE),
    _file("PSD of 1,000,000 resources", "psd", lambda: psd(resources=(b"8BIM\0\1" + bytes(6)) * 1_000_000)),
    _file("PSD of 100 megapixels in runs", "psd", partial(_psd_of_runs, 10_000)),
    _file("PSD of 4 gigapixels", "psd", lambda: psd((64_000, 64_000), channels=b"1"), "megapixels"),
    _file("icon of 65,535 pictures", "ico", lambda: icon([], 65_535) + bytes(16) * 65_535, "icon"),
    _file("icon of a gigapixel", "ico", lambda: icon([(0, 32, _png_of_a_gigapixel())]), "megapixels"),
    _file(
        "icon of a bitmap of a gigapixel",
        "ico",
        lambda: icon([(0, 32, struct.pack("<Iii2H", 40, 32_000, 64_000, 1, 32).ljust(99))]),
        "icon",
    ),
    _file(
        "DDS of 170 megapixels that are not there",
        "dds",
        lambda: dds(_WIDE, 32, (255, 255, 255), b"1"),
        "truncated",
    ),
    _file(
        "DDS of 4 gigapixels", "dds", lambda: dds((65_000, 65_000), 32, (255, 255, 255), b"1"), "megapixels"
    ),
    _file("QOI of 7,000,000 codes", "qoi", lambda: _qoi((10_000, 10_000), b"\0" * 7_000_000), "codes"),
    _file("QOI of 100 megapixels in runs", "qoi", lambda: _qoi((10_000, 10_000), b"\xfd" * 1_700_000)),
    _file("QOI of 4 gigapixels", "qoi", lambda: _qoi((65_000, 65_000), b""), "megapixels"),
    _file("TGA of 100 megapixels in runs", "tga", partial(_tga_of_runs, 128 * 78)),
    _file("SGI of 100 megapixels in one row", "sgi", partial(_sgi_of_one_row, 127 * 78)),
    _file("PCX of 100 megapixels in runs", "pcx", partial(_pcx_of_runs, 63 * 160)),
    _file("Sun raster of 100 megapixels in runs", "ras", partial(_sun_of_runs, 10_000)),
]
