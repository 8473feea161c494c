"""Every kind of picture in the table of kinds is read as it says, or refused by its name."""

from __future__ import annotations

import contextlib
import importlib
import io
import runpy
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hostile.kinds import dds, dng, icon, psd
from PIL import Image

from hierclass.errors import ImageError
from hierclass.images.decoding import read_header, read_image, read_preview
from hierclass.images.discovery import find_inputs
from hierclass.images.kinds import KINDS, kind_of, photograph_advice, scanned_endings
from hierclass.images.preprocessing import Preprocessing
from hierclass.labelling.inputs import Input
from hierclass.labelling.read_input import InputReader, ReadSource

for module in ("rawpy", "pillow_heif"):  # before tests hide them: they can't be imported twice
    with contextlib.suppress(ImportError):
        importlib.import_module(module)

DOCS = Path(__file__).parent.parent / "docs"
RED, BLUE, WHITE = (255, 0, 0), (0, 0, 255), (255, 255, 255)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def gradient(size: tuple[int, int] = (61, 47)) -> Image.Image:
    turned = [Image.linear_gradient("L").rotate(90 * turn).resize(size) for turn in range(3)]
    return Image.merge("RGB", turned)


def corner(size: tuple[int, int] = (640, 400)) -> Image.Image:
    """Red, with a blue upper left quarter."""
    image = Image.new("RGB", size, RED)
    image.paste(BLUE, (0, 0, size[0] // 2, size[1] // 2))
    return image


def blue_corner(image: Image.Image) -> tuple[int, int]:
    """Where the blue quarter lies: (column, row), each 0 or 1."""
    width, height = image.size
    at = {
        (x, y): image.getpixel((width * (1 + 2 * x) // 4, height * (1 + 2 * y) // 4))
        for x in (0, 1)
        for y in (0, 1)
    }
    (found,) = [place for place, pixel in at.items() if isinstance(pixel, tuple) and pixel[2] > pixel[0]]
    return found


CORNERS = {1: (0, 0), 2: (1, 0), 3: (1, 1), 4: (0, 1), 5: (0, 0), 6: (1, 0), 7: (1, 1), 8: (0, 1)}
"""Where EXIF's orientations take the upper left corner."""


def refusal(source: Any) -> str:
    with pytest.raises(ImageError) as caught:
        read_image(source)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---- the table


def test_the_page_of_kinds_is_that_of_the_table() -> None:
    written = runpy.run_path(str(DOCS / "kinds.py"))["kinds_page"]()
    assert (DOCS / "kinds.md").read_text(encoding="utf-8") == written, "run python docs/kinds.py"


def test_every_format_that_pillow_knows_has_its_line() -> None:
    Image.init()
    known = {name: kind for kind in KINDS for name in kind.formats}
    assert not [name for name in Image.OPEN if name not in known and name != "HEIF"]
    assert all(kind.note for kind in KINDS if not kind.read)


def test_an_ending_is_of_one_kind() -> None:
    endings = [ending for kind in KINDS for ending in kind.endings]
    assert len(endings) == len(set(endings))
    assert all(ending == ending.lower() and ending[0] == "." for ending in endings)
    assert kind_of(".NEF") is kind_of(".dng") is not None
    assert kind_of(".docx") is None


def test_raw_files_are_searched_for_where_they_can_be_read(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("a.jpg", "b.nef", "c.heic", "d.pcd", "e.pdf"):
        (tmp_path / name).touch()
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "rawpy", None)
        patch.setitem(sys.modules, "pillow_heif", None)
        assert [Path(found).name for found in find_inputs([tmp_path])] == ["a.jpg", "c.heic"]
    pytest.importorskip("rawpy")
    assert [Path(found).name for found in find_inputs([tmp_path])] == ["a.jpg", "b.nef", "c.heic"]
    assert ".tif" in scanned_endings()


def test_advice_is_for_photographs_that_are_not_read_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rawpy", None)
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    assert photograph_advice([".jpg", ".pdf", ".docx"]) == ""
    assert photograph_advice([".NEF", ".cr2", ".mov"]) == "pip install 'hierclass[raw]' reads .cr2, .nef"
    assert photograph_advice([".jxl"]) == "convert to JPEG or PNG: .jxl"
    assert "hierclass[heic]' reads .heic" in photograph_advice([".nef", ".heic"])


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"%PDF-1.7\n", "PDF"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "PostScript"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
        (b"8BPS\0\2" + bytes(40), "PSB"),
        (b"\0\0\0\x18ftypqt  \0\0\0\0qt  ", "video"),
        (b"icns\0\0\0\x08", "ICNS"),
    ],
)
def test_what_is_not_read_is_named(data: bytes, said: str) -> None:
    assert said in refusal(data)


def test_a_file_of_a_kind_without_a_signature_is_named_by_its_ending(tmp_path: Path) -> None:
    file = tmp_path / "protein.spi"
    file.write_bytes(bytes(2000))
    assert "SPIDER" in refusal(file)
    assert refusal(bytes(2000)) == "is no image of a kind that is read"


# ---- what editors and programs write


@pytest.mark.parametrize(
    ("kind", "mode", "options"),
    [
        ("DIB", "RGB", {}),
        ("DIB", "P", {}),
        ("TGA", "RGB", {"rle": True}),
        ("TGA", "P", {}),
        ("TGA", "LA", {"orientation": 1}),
        ("SGI", "RGB", {}),
        ("SGI", "L", {"bpc": 2}),
        ("QOI", "RGB", {}),
        ("QOI", "RGBA", {}),
        ("PCX", "RGB", {}),
        ("PCX", "P", {}),
        ("PCX", "1", {}),
        ("DDS", "RGBA", {}),
        ("DDS", "RGB", {}),
        ("DDS", "L", {}),
        ("DDS", "RGBA", {"pixel_format": "DXT5"}),
        ("PNG", "RGB", {}),
    ],
)
def test_pixels_are_those_of_pillow(kind: str, mode: str, options: dict[str, Any], tmp_path: Path) -> None:
    image = gradient().quantize(16) if mode == "P" else gradient().convert(mode)
    data = encoded(image, kind, **options)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    file = tmp_path / f"picture.{kind.lower()}"
    file.write_bytes(data)
    for source in (data, file):
        assert np.array_equal(np.asarray(read_image(source)), expected)
    assert read_header(data).size == image.size


@pytest.mark.parametrize("kind", ["TGA", "SGI", "QOI", "DDS", "ICO"])
def test_transparent_pixels_lie_on_white_in_every_kind(kind: str) -> None:
    image = Image.new("RGBA", (32, 32), (*RED, 255))
    image.paste((*BLUE, 0), (0, 0, 16, 16))
    read = read_image(encoded(image, kind))
    assert read.getpixel((2, 2)) == WHITE
    assert read.getpixel((30, 30)) == RED


def test_opacity_that_is_nowhere_more_than_nothing_counts_as_none() -> None:
    image = Image.new("RGBA", (32, 32), (*RED, 0))
    assert read_image(encoded(image, "TGA")).getpixel((1, 1)) == RED
    pixels = bytes((0, 0, 255, 0)) * 64
    assert read_image(dds((8, 8), 32, (0xFF0000, 0xFF00, 0xFF, 0xFF000000), pixels)).getpixel((1, 1)) == RED


def test_a_dds_of_16_bits_is_scaled_as_pillow_scales_it() -> None:
    values = np.arange(64 * 64, dtype="<u2").reshape(64, 64) * 16
    data = dds((64, 64), 16, (0xF800, 0x7E0, 0x1F), values.tobytes())
    assert np.array_equal(np.asarray(read_image(data)), np.asarray(Image.open(io.BytesIO(data))))


def test_run_length_encoded_dib_is_decoded() -> None:
    head = struct.pack("<IiiHHIIiiII", 40, 4, 2, 1, 8, 1, 0, 0, 0, 2, 0) + bytes((0, 0, 255, 0, 255, 0, 0, 0))
    image = read_image(head + b"\4\0\0\0\2\0\2\1\0\1")
    assert [image.getpixel((x, y)) for x, y in ((0, 0), (3, 0), (0, 1))] == [RED, BLUE, RED]


def test_a_tga_without_a_footer_is_known_by_its_ending_or_its_length(tmp_path: Path) -> None:
    data = encoded(corner((64, 48)), "TGA")[:-26]
    for name in ("old.tga", "old.TGA"):
        (tmp_path / name).write_bytes(data)
        assert blue_corner(read_image(tmp_path / name)) == (0, 0)
    assert blue_corner(read_image(data)) == (0, 0)
    (tmp_path / "old.bin").write_bytes(data)
    assert "no image of a kind" in refusal(tmp_path / "old.bin")
    (tmp_path / "jpeg.tga").write_bytes(encoded(corner(), "JPEG"))
    assert read_image(tmp_path / "jpeg.tga").size == (640, 400)


def planes(image: Image.Image) -> bytes:
    return b"".join(channel.tobytes() for channel in image.split())


def test_a_fourth_channel_of_photoshop_is_opacity_only_where_the_layers_say_so() -> None:
    rgba = corner((64, 48)).convert("RGBA")
    rgba.putalpha(Image.new("L", rgba.size, 0))
    channels = planes(rgba)
    assert read_image(psd(channels=channels, count=4, layers=-1)).getpixel((60, 40)) == WHITE
    assert blue_corner(read_image(psd(channels=channels, count=4))) == (0, 0)
    assert blue_corner(read_image(psd(channels=channels + channels[:3072], count=5, layers=2))) == (0, 0)


def test_packed_rows_of_photoshop_are_read_whatever_further_channels_there_are() -> None:
    row = {value: bytes((129 + 64, value)) for value in (0, 255)}  # 64 pixels
    rows = [row[255]] * 48 + [row[0]] * 48 * 2 + [row[0]] * 48 * 2
    counts = b"".join(struct.pack(">H", len(each)) for each in rows)
    image = read_image(psd(count=5, packed=counts + b"".join(rows)))
    assert (image.size, image.getpixel((5, 5))) == ((64, 48), RED)


def test_photoshop_of_16_bits_inks_and_lab_is_read() -> None:
    deep = np.stack([np.asarray(channel, dtype=">u2") * 257 for channel in corner((64, 48)).split()])
    sixteen = psd(channels=deep.tobytes(), bits=16)
    assert blue_corner(read_image(sixteen)) == (0, 0)
    assert read_image(sixteen).size == read_header(sixteen).size == (64, 48)
    inks = Image.new("CMYK", (64, 48), (255, 255, 255, 255))  # stored inverted
    assert read_image(psd(channels=planes(inks), count=4, mode=4)).getpixel((5, 5)) == WHITE
    lab = bytes((255,)) * 3072 + bytes((128,)) * 6144
    assert min(read_image(psd(channels=lab, mode=9)).getpixel((5, 5))) > 250  # type: ignore[type-var, operator]
    assert "32 bits" in refusal(psd(bits=32))


def test_an_icon_gives_its_largest_picture_of_the_most_colours() -> None:
    small, large = (
        encoded(Image.new("RGB", (side, side), colour), "PNG") for side, colour in ((16, BLUE), (48, RED))
    )
    poor = encoded(Image.new("RGB", (48, 48), BLUE), "PNG")
    read = read_image(icon([(16, 32, small), (48, 4, poor), (48, 32, large)]))
    assert (read.size, read.getpixel((5, 5))) == ((48, 48), RED)
    assert "without a picture" in refusal(icon([]))


def test_what_the_mask_of_an_icon_hides_is_white() -> None:
    head = struct.pack("<IiiHHIIiiII", 40, 8, 16, 1, 24, 0, 0, 0, 0, 0, 0)
    bitmap = bytes((0, 0, 255)) * 64 + (b"\xf0\0\0\0" * 8)
    read = read_image(icon([(8, 24, head + bitmap)]))
    assert (read.size, read.getpixel((1, 1)), read.getpixel((6, 1))) == ((8, 8), WHITE, RED)


def test_a_dcx_gives_its_first_page() -> None:
    pages = [encoded(Image.new("RGB", (16, 12), colour), "PCX") for colour in (RED, BLUE)]
    places = struct.pack("<4I", 0x3ADE68B1, 16, 16 + len(pages[0]), 0)
    assert read_image(places + pages[0] + pages[1]).getpixel((3, 3)) == RED


def test_a_sun_raster_is_read() -> None:
    head = struct.pack(">8I", 0x59A66A95, 4, 2, 24, 24, 1, 0, 0)
    assert read_image(head + bytes((0, 0, 255)) * 8).getpixel((1, 1)) == RED


# ---- RAW


def jpeg(image: Image.Image, orientation: int | None = None) -> bytes:
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    return encoded(image, "JPEG", **({} if orientation is None else {"exif": exif}))


@pytest.mark.parametrize("orientation", CORNERS)
def test_the_preview_of_a_raw_file_is_turned_once_whoever_says_how(orientation: int) -> None:
    pytest.importorskip("rawpy")
    for own in (None, 1, orientation):
        read = read_image(dng(jpeg(corner(), own), orientation=orientation))
        assert blue_corner(read) == CORNERS[orientation]
        assert read.size == ((640, 400) if orientation < 5 else (400, 640))
        assert read.info == {"preview": True}


def test_a_preview_that_is_upright_already_is_not_turned_again() -> None:
    pytest.importorskip("rawpy")
    read = read_image(dng(jpeg(corner((400, 640))), orientation=6))
    assert (read.size, blue_corner(read)) == ((400, 640), (0, 0))


def test_without_a_large_enough_preview_the_photograph_itself_is_read() -> None:
    pytest.importorskip("rawpy")
    for preview in (
        None,
        jpeg(corner((128, 80))),
        corner((320, 200)),
        b"\xff\xd8\xff" + jpeg(corner())[3:50],
    ):
        if isinstance(preview, bytes) and len(preview) < 99:
            data = dng(jpeg(corner())).replace(jpeg(corner())[50:200], bytes(150))
        else:
            data = dng(preview)
        read = read_image(data)
        assert (read.size, read.info) == ((80, 48), {})
        assert min(read.getpixel((10, 10))) > 200 > max(read.getpixel((70, 10)))  # type: ignore[type-var, operator]
    assert read_image(dng(None, orientation=6)).size == (48, 80)
    small = dng(jpeg(corner((128, 80))))
    assert read_image(small, min_side=64).size == (128, 80)
    assert read_image(small, min_side=100).size == (80, 48)


def test_a_raw_file_is_never_read_as_its_thumbnail_in_silence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    thumbnail = dng(corner((160, 100)))
    tiff = encoded(corner(), "TIFF")
    for name in ("photo.dng", "photo.NEF", "photo.tif", "photo"):
        (tmp_path / name).write_bytes(thumbnail)
    (tmp_path / "no sensor.arw").write_bytes(tiff)
    monkeypatch.setitem(sys.modules, "rawpy", None)
    for source in (thumbnail, *tmp_path.iterdir()):
        assert refusal(source) == "is a RAW photograph; pip install 'hierclass[raw]' makes it readable"
    assert read_image(tiff).size == (640, 400)


@pytest.mark.parametrize(
    "head",
    [
        b"FUJIFILMCCD-RAW 0201",
        b"IIRO\x08\0\0\0",
        b"IIU\0\x18\0\0\0",
        b"II*\0\x10\0\0\0CR\2\0",
        b"\0\0\0\x18ftypcrx \0\0\0\1crx isom",
        b"II\x1a\0\0\0HEAPCCDR",
        b"\0MRM\0\0\0\0",
        b"FOVb\0\0\2\0",
        b"II*\0\x08\0\0\0IIIITwaR",
    ],
)
def test_raw_files_in_memory_are_known_by_their_content(head: bytes) -> None:
    pytest.importorskip("rawpy")
    assert "is a RAW file that LibRaw can't read" in refusal(head.ljust(3000, b"\0"))


def test_the_row_of_a_raw_file_says_that_its_preview_was_read(tmp_path: Path) -> None:
    pytest.importorskip("rawpy")
    (tmp_path / "photo.dng").write_bytes(dng(jpeg(corner())))
    (tmp_path / "sensor.dng").write_bytes(dng(None))
    (tmp_path / "caf\udce9.dng").write_bytes(dng(jpeg(corner())))
    for previews in (False, True):
        reader = InputReader(Preprocessing(size=64, mean=(0.5,) * 3, std=(0.5,) * 3), previews=previews)
        for name, preview in (("photo.dng", True), ("sensor.dng", False), ("caf\udce9.dng", True)):
            result = reader.read(ReadSource(Input(str(tmp_path / name)), None))
            assert not isinstance(result.pixels, str), result.pixels
            assert result.preview is preview
    assert read_preview(tmp_path / "photo.dng", 64) is None
    assert read_header(tmp_path / "photo.dng").size == (160, 96)


# ---- HEIC


def heic(image: Image.Image, **options: Any) -> bytes:
    pillow_heif = pytest.importorskip("pillow_heif")
    stream = io.BytesIO()
    pillow_heif.from_pillow(image).save(stream, quality=90, **options)
    return stream.getvalue()


@pytest.mark.parametrize("orientation", CORNERS)
def test_a_heic_is_upright_once(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    read = read_image(heic(corner((160, 100)), exif=exif.tobytes()))
    assert blue_corner(read) == CORNERS[orientation]
    assert read.size == ((160, 100) if orientation < 5 else (100, 160))


def test_a_heic_lies_on_white_has_8_bits_and_is_the_main_picture_of_several() -> None:
    pillow_heif = pytest.importorskip("pillow_heif")
    rgba = Image.new("RGBA", (64, 64), (*RED, 255))
    rgba.paste((*BLUE, 0), (0, 0, 32, 64))
    read = read_image(heic(rgba))
    assert min(read.getpixel((5, 5))) > 240  # type: ignore[type-var, operator]
    deep = np.full((64, 64, 3), 60_000, np.uint16)
    file = pillow_heif.from_bytes("RGB;16", (64, 64), deep.tobytes())
    stream = io.BytesIO()
    file.save(stream, quality=90)
    assert abs(read_image(stream.getvalue()).getpixel((5, 5))[0] - 233) < 4  # type: ignore[index, operator]
    several = pillow_heif.from_pillow(Image.new("RGB", (64, 64), BLUE))
    several.add_from_pillow(corner((96, 64)))
    stream = io.BytesIO()
    several.save(stream, quality=90, primary_index=1)
    assert read_image(stream.getvalue()).size == (96, 64)


def test_reading_heic_makes_no_plugin_known_to_pillow() -> None:
    before = sorted(Image.OPEN)
    assert read_image(heic(corner((96, 64)))).size == (96, 64)
    assert sorted(Image.OPEN) == before


def test_without_its_extra_a_heic_says_how_to_read_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    for head in (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", b"\0\0\0\x18ftypmif1\0\0\0\0mif1heix"):
        assert refusal(head) == "is a HEIC photograph; pip install 'hierclass[heic]' makes it readable"
