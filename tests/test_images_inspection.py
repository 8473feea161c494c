"""Hostile pictures cost neither time nor memory, and what they do is never mistaken in an honest one."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hostile import HostileFile
from hostile.kinds import OTHER_PICTURES
from hostile.pictures import (
    PICTURES,
    bmp_of_codes,
    gif_with_comment,
    jpeg2000_of_blocks,
    jpeg_of_scans,
    jpeg_with_thumbnail,
    png_with,
    ppm_with_comments,
    tiff_of_tags,
    webp_of_size,
)
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from hierclass.errors import ImageError
from hierclass.images import decoding, inspection
from hierclass.images.decoding import read_header, read_image, read_preview

LARGE = (
    "64 MB",
    "64 megapixels",
    "100 megabytes",
    "100 megapixels",
    "skips",
    "idle codes",
    "7,000,000 codes",
)
ALL = [*PICTURES, *OTHER_PICTURES]
SMALL = [hostile for hostile in ALL if not any(words in hostile.name for words in LARGE)]
READS_ALL = """
import sys, tempfile
from pathlib import Path
from hierclass.errors import ImageError
from hierclass.images.decoding import read_image
from hostile.kinds import OTHER_PICTURES
from hostile.pictures import PICTURES
for hostile in [*PICTURES, *OTHER_PICTURES]:
    if hostile.name in sys.argv[1:]:
        with tempfile.TemporaryDirectory() as folder:
            file = hostile.write(Path(folder))
            try: read_image(file)
            except ImageError as error: print(hostile.name, error, sep="|")
            else: print(hostile.name, "", sep="|")
print("peak", next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1], sep="|")
"""


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def picture(size: tuple[int, int] = (60, 40)) -> Image.Image:
    return Image.merge(
        "RGB", [Image.linear_gradient("L").resize(size).rotate(90 * turn) for turn in range(3)]
    )


def pixels(source: Any) -> np.ndarray[Any, Any]:
    return np.asarray(read_image(source))


def refusal(read: Callable[[bytes], object], data: bytes) -> str:
    try:
        read(data)
    except ImageError as error:
        return str(error)
    return ""


def said_of(files: list[HostileFile]) -> dict[str, str]:
    """What is said of each file, and the peak of memory in kilobytes, of a process that reads them all."""
    command = [sys.executable, "-c", READS_ALL, *(hostile.name for hostile in files)]
    ran = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120, env=environment())
    return dict(line.split("|", 1) for line in ran.stdout.splitlines())


def environment() -> dict[str, str]:
    return {"PYTHONPATH": ":".join(path for path in sys.path if path), "PYTHONWARNINGS": "ignore"}


@pytest.fixture(scope="module")
def said() -> dict[str, str]:
    if not sys.platform.startswith("linux"):
        pytest.skip("reads the peak memory from /proc")
    return said_of(SMALL)


@pytest.mark.parametrize("hostile", SMALL, ids=[hostile.name for hostile in SMALL])
def test_a_hostile_picture_is_refused_in_a_line_or_read_like_any_other(
    hostile: HostileFile, said: dict[str, str]
) -> None:
    if hostile.says:
        assert hostile.says in said[hostile.name]
        assert len(said[hostile.name]) < 200
    else:
        assert said[hostile.name] == ""


def test_all_hostile_pictures_together_take_less_than_half_a_gigabyte(said: dict[str, str]) -> None:
    assert int(said["peak"]) < 500_000


@pytest.mark.full
def test_hostile_pictures_that_are_large_are_bounded_as_well() -> None:
    large = [hostile for hostile in ALL if hostile not in SMALL]
    said = said_of(large)
    assert all(
        (hostile.says in said[hostile.name]) if hostile.says else not said[hostile.name] for hostile in large
    )
    assert int(said["peak"]) < 2_000_000


def test_scans_of_a_jpeg_are_counted_where_libjpeg_sees_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspection, "MAX_SCANS", 12)
    progressive = encoded(picture((400, 300)), "JPEG", progressive=True, subsampling=0)
    assert read_image(progressive).size == (400, 300)  # of 10 scans
    with pytest.raises(ImageError, match="more than 12 scans of 80 x 80 pixels"):
        read_header(jpeg_of_scans(13, (80, 80)))
    # What looks like a scan in a comment, or behind the end, is none; and a comment hides none.
    place = progressive.index(b"\xff\xda")
    comment = b"\xff\xfe" + struct.pack(">H", 102) + b"\xff\xda" * 30 + b"\xff\xd9" * 20
    between = progressive[:place] + comment + progressive[place:]
    assert np.array_equal(pixels(between), pixels(progressive))
    assert np.array_equal(pixels(progressive + progressive[2:] * 3), pixels(progressive))
    many = jpeg_of_scans(13, (80, 80)).replace(b"\xff\xda", comment + b"\xff\xda", 2)
    with pytest.raises(ImageError, match="scans"):
        read_image(many)


def test_the_larger_a_jpeg_the_fewer_scans_it_may_have(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspection, "MAX_SCANNED", 80 * 80 * 3)
    assert read_image(jpeg_of_scans(3, (80, 80))).size == (80, 80)
    with pytest.raises(ImageError, match="more than 3 scans"):
        read_image(jpeg_of_scans(4, (80, 80)))


def test_metadata_of_megabytes_are_no_obstacle() -> None:
    jpeg, png = (encoded(picture(), kind) for kind in ("JPEG", "PNG"))
    pieces = [b"\xff\xe2" + struct.pack(">H", 65_002) + bytes([index % 256]) * 65_000 for index in range(300)]
    assert np.array_equal(pixels(jpeg[:2] + b"".join(pieces) + jpeg[2:]), pixels(jpeg))
    text = PngInfo()
    for index in range(40):
        text.add_text(f"Comment {index}", "x" * 900_000, zip=True)
    assert np.array_equal(pixels(encoded(picture(), "PNG", pnginfo=text)), pixels(png))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_is_found_wherever_programs_write_it(orientation: int) -> None:
    image = picture()
    exif = Image.Exif()
    exif[0x0112] = orientation
    expected = (40, 60) if orientation > 4 else (60, 40)
    xmp = f'<x tiff:Orientation="{orientation}"/>'.encode()
    in_text, in_profile = PngInfo(), PngInfo()
    in_text.add_itxt("XML:com.adobe.xmp", xmp, zip=True)
    in_profile.add_text(
        "Raw profile type exif", f"\nexif\n{len(exif.tobytes())}\n{exif.tobytes().hex()}\n", zip=True
    )
    behind = encoded(image, "PNG", exif=exif)
    place = behind.index(b"eXIf") - 4
    chunk = behind[place : place + 12 + struct.unpack(">I", behind[place : place + 4])[0]]
    sources = [
        *(encoded(image, kind, exif=exif) for kind in ("JPEG", "WEBP", "TIFF", "PNG")),
        encoded(image, "AVIF", exif=exif.tobytes()),
        encoded(image, "MPO", exif=exif.tobytes(), save_all=True, append_images=[image]),
        *(encoded(image, kind, xmp=xmp) for kind in ("JPEG", "WEBP")),
        encoded(image, "PNG", pnginfo=in_text),
        encoded(image, "PNG", pnginfo=in_profile),
        encoded(image, "PNG")[:-12] + chunk + encoded(image, "PNG")[-12:],
        encoded(image, "JPEG", exif=exif.tobytes() + bytes(30_000)),
    ]
    assert [read_image(source).size for source in sources] == [expected] * len(sources)
    for source in sources:
        with Image.open(io.BytesIO(source)) as opened:
            assert read_image(opened).size == expected


def test_what_a_gif_makes_transparent_stays_so_behind_a_comment() -> None:
    image = Image.new("P", (8, 8), 0)
    image.putpalette([0, 0, 0, 255, 0, 0])
    gif = encoded(image, "GIF", transparency=0)
    begin = 13 + (6 << (gif[10] & 7))
    assert pixels(gif).min() == 255
    assert pixels(gif[:begin] + b"!\xfe" + b"\xff" + b"x" * 255 + b"\0" + b"junk" + gif[begin:]).min() == 255
    assert read_image(gif_with_comment(10_000)).size == (64, 48)


@pytest.mark.parametrize(
    ("magic", "top"), [("P1", 1), ("P2", 255), ("P2", 9), ("P2", 4095), ("P3", 255), ("P3", 1023)]
)
def test_text_and_odd_ranges_of_pnm_are_scaled_as_bytes(magic: str, top: int) -> None:
    channels = 3 if magic == "P3" else 1
    values = np.arange(13 * 7 * channels).reshape(13, 7 * channels) * 37 % (top + 1)
    space = "" if magic == "P1" else " "
    rows = [f"{space.join(map(str, row))} # {space.join(map(str, row))}\r\n" for row in values]
    header = f"{magic} # seven\n#\n 7 13\n" + ("" if magic == "P1" else f"{top}\n")
    white = np.rint(values / top * (65535 if magic == "P2" and top > 255 else 255)) / (
        257 if top == 4095 else 1
    )
    expected = (255 - white if magic == "P1" else white).reshape(13, 7, channels)
    assert np.abs(pixels((header + "".join(rows)).encode()) - expected).max() <= 0.5
    if top > 1:
        binary = f"{'P6' if magic == 'P3' else 'P5'} 7 13 {top}\n".encode()
        assert (
            np.abs(pixels(binary + values.astype(">u2" if top > 255 else "u1").tobytes()) - expected).max()
            <= 0.5
        )


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"P2 2 2 255\n1 2 3 256", "256"),
        (b"P2 2 2 255\n1 -2 3 4", "'-'"),
        (b"P2 2 2 255\n1 2 3", "truncated"),
        (b"P1 2 2\n0 1 2 0", "0 and 1"),
        (b"P1 2 2\n0 1 0", "truncated"),
        (b"P6 2 2 1023\n123", "truncated"),
    ],
)
def test_broken_pnm_is_an_error(data: bytes, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        read_image(data)


@pytest.mark.parametrize("compression", [1, 2])
def test_a_run_length_encoded_bmp_is_read_as_pillow_reads_it(compression: int) -> None:
    codes = b"\3\x12\0\4\1\2\3\4\0\0" + b"\7\1" + b"\0\0\0\2\2\1" + b"\0\5\1\2\3\4\5\0" + b"\0\0\0\1"
    bmp = bytearray(bmp_of_codes(7, 4, codes, 1))
    bmp[28], bmp[30], bmp[46] = 8 if compression == 1 else 4, compression, 16
    bmp[10] = 54 + 64
    bmp[54:62] = bytes(value * 3 for value in range(64))
    bmp += b"\x55\1" * 12
    with Image.open(io.BytesIO(bmp)) as opened:
        assert np.array_equal(pixels(bytes(bmp)), np.asarray(opened.convert("RGB")))


def test_how_large_a_picture_may_be_is_what_its_decoder_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "MAX_MEMORY", 4_000_000)
    sources = {
        "RGB JPEG": (encoded(Image.new("RGB", (990, 990)), "JPEG"), True),
        "progressive JPEG": (encoded(Image.new("RGB", (990, 990)), "JPEG", progressive=True), False),
        "RGB PNG": (encoded(Image.new("RGB", (990, 990)), "PNG"), True),
        "RGBA PNG": (encoded(Image.new("RGBA", (990, 990)), "PNG"), False),
        "WebP": (webp_of_size(480), True),
        "larger WebP": (webp_of_size(490), False),
        "JPEG 2000": (encoded(Image.new("RGB", (490, 490)), "JPEG2000"), False),
        "JPEG 2000 in tiles": (encoded(Image.new("RGB", (490, 490)), "JPEG2000", tile_size=(64, 64)), True),
        "small code blocks": (jpeg2000_of_blocks(400), False),
    }
    for name, (data, fits) in sources.items():
        for read in (read_header, read_image):
            said = refusal(read, data)
            assert ("GB to decode; up to" in said) is not fits, name


def test_a_huge_thumbnail_is_no_preview() -> None:
    assert read_preview(jpeg_with_thumbnail(jpeg_of_scans(1, (4000, 3000), 1)), 64) is None


@pytest.mark.parametrize(
    "data", [png_with(), ppm_with_comments(40), tiff_of_tags(40, 1000), jpeg_of_scans(9, (64, 64))]
)
def test_small_ones_of_the_hostile_kinds_are_read(data: bytes, tmp_path: Path) -> None:
    file = tmp_path / "picture"
    file.write_bytes(data)
    assert np.array_equal(pixels(data), pixels(file))
