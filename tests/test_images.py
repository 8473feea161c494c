"""Every picture is read as a person sees it, and everything else is an ImageError of one short line."""

from __future__ import annotations

import io
import os
import socket
import struct
import subprocess
import sys
import threading
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from labelling_data import with_thumbnail
from PIL import Image, ImageFile, features

from hierclass.errors import ImageError
from hierclass.images.decoding import read_image, read_preview
from hierclass.images.preprocessing import Preprocessing, preprocess, resize_side

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)
SIZE = 32


def quadrants(size: tuple[int, int] = (SIZE, SIZE * 2)) -> Image.Image:
    """Four colours, so that every turn and mirror image of it looks different."""
    image = Image.new("RGB", size, WHITE)
    half = (size[0] // 2, size[1] // 2)
    image.paste(RED, (0, 0, *half))
    image.paste(GREEN, (half[0], 0, size[0], half[1]))
    image.paste(BLUE, (0, half[1], half[0], size[1]))
    return image


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def corners(image: Image.Image) -> list[tuple[int, ...]]:
    """The colours of the four quadrants' centres, each channel rounded to 0 or 255."""
    pixels = np.asarray(image)
    height, width = pixels.shape[:2]
    spots = [(height // 4, width // 4), (height // 4, 3 * width // 4), (3 * height // 4, width // 4)]
    spots.append((3 * height // 4, 3 * width // 4))
    return [tuple(255 * (int(value) > 127) for value in pixels[spot]) for spot in spots]


def png_of_one_colour(width: int, height: int) -> bytes:
    """A black PNG, made of one compressed row repeated: a bomb should not cost its maker either."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer = zlib.compressobj(9, wbits=-15)
    size = 1 + 3 * width
    row = packer.compress(bytes(size)) + packer.flush(zlib.Z_FULL_FLUSH)
    checksum = struct.pack(">I", (size * height % 65521) << 16 | 1)  # Adler-32 of that many zeros
    data = b"\x78\xda" + row * height + packer.flush() + checksum
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


UPRIGHT = [RED, GREEN, BLUE, WHITE]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_exif_orientation_is_applied(orientation: int, kind: str) -> None:
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # how the camera stored it, as Image.Transpose values
    stored = quadrants()
    if orientation in undo:
        stored = stored.transpose(Image.Transpose(undo[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = read_image(encoded(stored, kind, exif=exif))
    assert image.size == (SIZE, SIZE * 2)
    assert corners(image) == UPRIGHT
    assert corners(read_image(image)) == UPRIGHT  # and once only


@pytest.mark.parametrize(
    ("mode", "kind"),
    [
        *[("RGB", kind) for kind in ("JPEG", "PNG", "BMP", "TIFF", "WEBP", "PPM")],
        *[("P", "PNG"), ("P", "GIF"), ("RGBA", "PNG"), ("CMYK", "JPEG"), ("CMYK", "TIFF"), ("YCbCr", "JPEG")],
    ],
)
def test_colours_survive_every_mode_and_format(mode: str, kind: str) -> None:
    image = read_image(encoded(quadrants().convert(mode), kind))  # type: ignore[arg-type]
    assert image.mode == "RGB"
    assert corners(image) == UPRIGHT


@pytest.mark.parametrize("kind", ["JPEG2000", "AVIF"])
def test_formats_that_pillow_may_lack_are_read_where_it_has_them(kind: str) -> None:
    if not features.check("jpg_2000" if kind == "JPEG2000" else "avif"):
        pytest.skip(f"this Pillow was built without {kind}")
    assert corners(read_image(encoded(quadrants(), kind))) == UPRIGHT


def test_an_inverted_cmyk_jpeg_of_photoshop_is_not_read_as_a_negative() -> None:
    data = encoded(Image.new("CMYK", (16, 16), (0, 0, 0, 0)), "JPEG")  # no ink
    assert b"Adobe" in data
    assert np.asarray(read_image(data)).min() > 250


@pytest.mark.parametrize("mode", ["I;16", "I", "F"])
def test_16_bit_grey_is_scaled_and_not_clipped(mode: str) -> None:
    ramp = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    image = Image.fromarray(ramp.astype({"I;16": "u2", "I": "i4", "F": "f4"}[mode]))
    assert image.mode == mode
    expected = np.repeat(np.arange(256, dtype=np.uint8).reshape(16, 16, 1), 3, axis=2)
    for source in (image, encoded(image, "TIFF"), encoded(image, "PNG" if mode == "I;16" else "TIFF")):
        assert np.abs(np.asarray(read_image(source)).astype(int) - expected).max() <= 1


def test_a_float_image_between_0_and_1_is_scaled() -> None:
    image = Image.fromarray(np.full((4, 4), 0.5, np.float32))
    assert np.asarray(read_image(image)).max() == 128


def test_bilevel_and_grey_are_read() -> None:
    assert np.asarray(read_image(encoded(Image.new("1", (4, 4), 1), "PNG"))).min() == 255
    assert np.asarray(read_image(encoded(Image.new("L", (4, 4), 77), "JPEG"))).mean() == 77


def transparent_palette() -> bytes:
    image = Image.new("P", (8, 8), 0)
    image.putpalette([0, 0, 0, 255, 0, 0])
    return encoded(image, "PNG", transparency=0)


@pytest.mark.parametrize(
    "data",
    [
        encoded(Image.new("RGBA", (8, 8), (0, 0, 0, 0)), "PNG"),
        encoded(Image.new("LA", (8, 8), (0, 0)), "PNG"),
        encoded(Image.new("RGBA", (8, 8), (0, 0, 0, 0)), "WEBP", lossless=True),
        encoded(Image.new("L", (8, 8), 5), "PNG", transparency=5),
        encoded(Image.new("RGB", (8, 8), (1, 2, 3)), "PNG", transparency=(1, 2, 3)),
        transparent_palette(),
    ],
    ids=["RGBA", "LA", "WebP", "grey key", "colour key", "palette"],
)
def test_transparent_pixels_lie_on_white(data: bytes) -> None:
    assert np.asarray(read_image(data)).min() == 255


def test_half_transparent_pixels_are_mixed_with_white() -> None:
    data = encoded(Image.new("RGBA", (2, 2), (255, 0, 0, 128)), "PNG")
    assert np.asarray(read_image(data))[0, 0].tolist() == [255, 127, 127]


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_an_animation_gives_its_first_frame(kind: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in (GREEN, RED, BLUE)]
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
    assert corners(read_image(data)) == [GREEN] * 4


def test_paths_bytes_pil_images_and_arrays_are_the_same_picture(tmp_path: Path) -> None:
    image = quadrants()
    file = tmp_path / "a.png"
    image.save(file)
    with Image.open(file) as opened:
        sources = [file, str(file), file.read_bytes(), image, opened, np.asarray(image)]
        pixels = [np.asarray(read_image(source)) for source in sources]
    assert all((each == pixels[0]).all() for each in pixels)


def test_a_large_jpeg_is_decoded_at_a_reduced_scale_but_not_below_twice_the_side() -> None:
    data = encoded(quadrants((800, 1600)), "JPEG")
    image = read_image(data, min_side=64)
    assert image.size == (200, 400)
    assert corners(image) == UPRIGHT
    assert read_image(data, min_side=300).size == (800, 1600)


def test_a_large_png_is_reduced_strip_by_strip() -> None:
    image = quadrants((5000, 5002)).convert("RGBA")
    reduced = read_image(encoded(image, "PNG", compress_level=1), min_side=64)
    assert 128 <= min(reduced.size) < 200
    assert corners(reduced) == UPRIGHT


def broken_files() -> dict[str, bytes]:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (256, 256, 3), dtype=np.uint8))
    jpeg, png, webp, gif = (encoded(noise, kind) for kind in ("JPEG", "PNG", "WEBP", "GIF"))
    tiff = encoded(noise, "TIFF")
    files = {"text": b"this is no picture\n" * 9, "zero bytes": b"", "one byte": b"P", "zeros": bytes(5000)}
    for name, data in {"jpeg": jpeg, "png": png, "webp": webp, "gif": gif, "tiff": tiff}.items():
        files |= {f"{name} cut at {len(data) * i // 8}": data[: len(data) * i // 8] for i in range(1, 8)}
        files[f"{name} header only"] = data[:16]
    files["jpeg without its end"] = jpeg[:-2]
    files["progressive cut"] = encoded(noise, "JPEG", progressive=True)[:20000]
    files["png with noise inside"] = png[:1000] + bytes(range(256)) * 4 + png[2024:]
    files["html"] = b"<!DOCTYPE html><html></html>"
    files["eps"] = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage\n"
    files["heic"] = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"
    files["bomb"] = png_of_one_colour(30000, 30000)[:100]
    return files


@pytest.mark.parametrize("data", broken_files().values(), ids=broken_files().keys())
@pytest.mark.parametrize("min_side", [None, 32])
def test_what_is_no_complete_picture_is_an_error_of_one_line(
    data: bytes, min_side: int | None, tmp_path: Path
) -> None:
    file = tmp_path / "broken.jpg"
    file.write_bytes(data)
    for source in (data, file):
        with pytest.raises(ImageError) as caught:
            read_image(source, min_side=min_side)
        message = str(caught.value)
        assert message
        assert "\n" not in message
        assert len(message) < 200
        assert "broken.jpg" not in message
        assert "object at 0x" not in message


def test_a_truncated_jpeg_is_an_error_even_where_another_library_told_pillow_to_fill_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (256, 256, 3), dtype=np.uint8))
    data = encoded(noise, "JPEG")
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    assert read_image(data).size == (256, 256)
    with pytest.raises(ImageError, match="truncated"):
        read_image(data[: len(data) // 2])


def test_broken_metadata_does_not_make_a_good_picture_unreadable() -> None:
    data = encoded(quadrants(), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\x7f")
    assert corners(read_image(data)) == UPRIGHT


def test_what_is_no_regular_file_is_refused_without_being_opened(tmp_path: Path) -> None:
    folder = tmp_path / "x.jpg"
    folder.mkdir()
    (tmp_path / "dangling.jpg").symlink_to(tmp_path / "nowhere")
    (tmp_path / "loop.jpg").symlink_to(tmp_path / "loop.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s.jpg"))
    cases = {
        folder: "is a folder",
        tmp_path / "missing.jpg": "no such file",
        tmp_path / "dangling.jpg": "no such file",
        tmp_path / "loop.jpg": "symbolic links",
        tmp_path / "pipe.jpg": "no regular file",
        tmp_path / "s.jpg": "no regular file",
        Path("/dev/zero"): "no regular file",
        Path("a\0b"): "null",
        Path("n" * 300): "too long",
    }
    for path, message in cases.items():
        with pytest.raises(ImageError, match=message):
            read_image(path)


def test_a_file_that_may_not_be_read_says_so(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may read everything")
    file = tmp_path / "a.png"
    quadrants().save(file)
    file.chmod(0)
    with pytest.raises(ImageError, match="permission denied"):
        read_image(file)


def test_what_can_be_no_picture_is_refused() -> None:
    empty = np.zeros((0, 4, 3), np.uint8)
    wrong: list[Any] = [
        empty,
        7,
        None,
        Image.new("RGB", (0, 5)),
    ]
    for source in wrong:
        with pytest.raises(ImageError):
            read_image(source)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the peak memory from /proc")
def test_a_bomb_costs_neither_time_nor_memory(tmp_path: Path) -> None:
    file = tmp_path / "bomb.png"
    file.write_bytes(png_of_one_colour(30000, 30000))
    script = (
        "import sys\n"
        "from hierclass.errors import ImageError\n"
        "from hierclass.images.decoding import read_image\n"
        "try: read_image(sys.argv[1], min_side=64)\n"
        "except ImageError as error: print(error)\n"
        "print(next(line for line in open('/proc/self/status') if line.startswith('VmHWM')).split()[1])\n"
    )
    command = [sys.executable, "-c", script, str(file)]
    ran = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    message, kilobytes = ran.stdout.splitlines()
    assert message == "has 30000 x 30000 pixels; up to 178 megapixels are read"
    assert int(kilobytes) < 300_000


def test_reading_warns_of_nothing_and_changes_no_setting_of_pillow(recwarn: pytest.WarningsRecorder) -> None:
    before = (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES)
    image = read_image(png_of_one_colour(10000, 9500), min_side=64)  # Pillow warns above 89 megapixels
    assert min(image.size) >= 128
    after = (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES)
    assert after == before
    assert not recwarn.list


def test_threads_read_the_same_as_one() -> None:
    kinds = ("JPEG", "PNG", "TIFF")
    sources = [encoded(quadrants((200 + 8 * i, 300)), kind) for i in range(8) for kind in kinds]
    alone = [np.asarray(read_image(source, min_side=32)) for source in sources]
    together: dict[int, np.ndarray[Any, Any]] = {}

    def read(index: int) -> None:
        together[index] = np.asarray(read_image(sources[index], min_side=32))

    threads = [threading.Thread(target=read, args=(index,)) for index in range(len(sources))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all((together[index] == pixels).all() for index, pixels in enumerate(alone))


HALF = Preprocessing(size=16, mean=(0.5, 0.5, 0.5), std=(0.5, 0.25, 1.0))


def test_preprocessing_normalises_each_channel() -> None:
    tensor = preprocess(Image.new("RGB", (40, 30), (255, 0, 255)), HALF)
    assert tensor.dtype == np.float32
    assert tensor.shape == (3, 16, 16)
    assert tensor[:, 3, 3].tolist() == [1.0, -2.0, 0.5]


def test_a_picture_of_the_right_size_is_not_resampled() -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (16, 16, 3), dtype=np.uint8)
    tensor = preprocess(Image.fromarray(pixels), Preprocessing(16, mean=(0, 0, 0), std=(1, 1, 1)))
    np.testing.assert_array_equal((tensor * 255).round().astype(np.uint8), pixels.transpose(2, 0, 1))


@pytest.mark.parametrize("size", [(90, 60), (60, 90), (500, 375)])
@pytest.mark.parametrize("crop", [1.0, 0.875])
def test_preprocessing_shows_what_resize_and_centre_crop_show(size: tuple[int, int], crop: float) -> None:
    x, y = np.meshgrid(np.linspace(0, 255, size[0]), np.linspace(0, 255, size[1]))
    image = Image.fromarray(np.stack([x, y, 255 - x], axis=2).astype(np.uint8))
    preprocessing = Preprocessing(32, crop=crop, mean=(0, 0, 0), std=(1, 1, 1))
    side = resize_side(preprocessing)
    scale = side / min(size)
    resized = image.resize((round(size[0] * scale), round(size[1] * scale)), Image.Resampling.BICUBIC)
    left, top = (resized.width - 32) // 2, (resized.height - 32) // 2
    expected = np.asarray(resized.crop((left, top, left + 32, top + 32)), dtype=np.float32).transpose(2, 0, 1)
    inside = (slice(None), slice(2, -2), slice(2, -2))
    assert np.abs(preprocess(image, preprocessing) * 255 - expected)[inside].max() < 6


@pytest.mark.parametrize("size", [(1, 1), (1, 4000), (3000, 2), (7, 5)])
def test_any_aspect_ratio_and_any_small_size_becomes_an_input(size: tuple[int, int]) -> None:
    tensor = preprocess(read_image(encoded(Image.new("RGB", size, RED), "PNG")), HALF)
    assert tensor.shape == (3, 16, 16)
    assert np.isfinite(tensor).all()


def test_a_picture_one_pixel_wide_and_ten_million_high_costs_only_its_centre() -> None:
    assert preprocess(Image.new("L", (1, 10_000_000)).convert("RGB"), HALF).shape == (3, 16, 16)


def test_the_preview_of_a_photograph_is_read_upright() -> None:
    preview = read_preview(with_thumbnail((1600, 1200), (160, 120)), 64)
    assert preview is not None
    assert preview.size == (160, 120)
    red, green, _ = preview.getpixel((80, 60))
    assert green > 150 > red
    turned = read_preview(with_thumbnail((1600, 1200), (160, 120), orientation=6), 64)
    assert turned is not None
    assert turned.size == (120, 160)


@pytest.mark.parametrize(
    "data",
    [
        with_thumbnail((1600, 1066), (160, 120)),  # bars
        with_thumbnail((1600, 1200), (80, 60)),  # too small
        with_thumbnail((1600, 1200), (160, 120), data=b"no picture"),
        with_thumbnail((1600, 1200), (160, 120), data=b""),
    ],
)
def test_a_preview_that_is_not_as_good_is_not_taken(data: bytes) -> None:
    assert read_preview(data, 64) is None
    assert read_image(data).size[0] == 1600


def test_pictures_without_a_preview_have_none() -> None:
    for kind in ("JPEG", "PNG"):
        stream = io.BytesIO()
        Image.new("RGB", (400, 300)).save(stream, kind)
        assert read_preview(stream.getvalue(), 64) is None
    with pytest.raises(ImageError, match="no image of a kind"):
        read_preview(b"no picture at all", 64)
