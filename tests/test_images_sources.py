"""An image in memory is the same picture in whatever form it is given, and what is no image says what is."""

from __future__ import annotations

import asyncio
import dataclasses
import io
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from hierclass.errors import ImageError
from hierclass.images import decoding
from hierclass.images.decoding import read_image
from hierclass.images.sources import is_one_image, name_of

RGB = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)
GREY = RGB[:, :, 0]


def pixels(source: Any) -> NDArray[np.uint8]:
    return np.asarray(read_image(source))


def of_grey(values: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.stack([values] * 3, axis=2)


def png(image: NDArray[np.uint8] = RGB) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "PNG")
    return stream.getvalue()


# ---------------------------------------------------------------- arrays

ARRAYS: dict[str, NDArray[Any]] = {
    "not contiguous": np.asfortranarray(RGB),
    "a view": RGB[:, ::-1][:, ::-1],
    "16 bits": RGB.astype(np.uint16) * 257,
    "big-endian": RGB.astype(">u2") * 257,
    "float64": RGB / 255,
    "float32": RGB.astype(np.float32) / 255,
    "float16": (RGB / 255).astype(np.float16),
    "big-endian floats": (RGB / 255).astype(">f8"),
    "floats that a filter has left": np.clip(RGB / 255, 0, 1) * 1.0005,
}


@pytest.mark.parametrize("name", ARRAYS)
def test_an_array_of_any_type_and_layout_is_the_same_picture(name: str) -> None:
    np.testing.assert_array_equal(pixels(ARRAYS[name]), RGB)


def test_an_array_that_is_only_to_be_read_is_read_and_stays_as_it_is() -> None:
    array = RGB.copy()
    array.flags.writeable = False
    np.testing.assert_array_equal(pixels(array), RGB)
    np.testing.assert_array_equal(array, RGB)


def test_grey_arrays_are_grey_pictures() -> None:
    for array in (GREY, GREY[:, :, None], GREY.astype(np.uint16) * 257, GREY / 255):
        np.testing.assert_array_equal(pixels(array), of_grey(GREY))
    black_and_white = GREY > 127
    np.testing.assert_array_equal(pixels(black_and_white), of_grey(black_and_white * np.uint8(255)))


def test_transparent_pixels_of_an_array_lie_on_white() -> None:
    alpha = np.full((*RGB.shape[:2], 1), 255, np.uint8)
    alpha[0] = 0
    for array in (np.concatenate([RGB, alpha], axis=2), np.concatenate([RGB, alpha], axis=2) / 255):
        found = pixels(array)
        assert (found[0] == 255).all()
        np.testing.assert_array_equal(found[1:], RGB[1:])
    assert (pixels(np.concatenate([GREY[:, :, None], alpha], axis=2))[0] == 255).all()


def test_what_numpy_can_turn_into_an_array_is_one() -> None:
    class Other:
        def __array__(self, dtype: Any = None, copy: Any = None) -> NDArray[np.uint8]:
            return RGB

    np.testing.assert_array_equal(pixels(Other()), RGB)


def test_a_large_array_is_reduced_as_a_large_picture_is() -> None:
    large = np.zeros((5000, 5000), np.uint8)
    assert read_image(large, min_side=64).size == read_image(Image.fromarray(large), min_side=64).size
    assert read_image(large, min_side=64).width < 5000


# ---------------------------------------------------------------- tensors


def test_a_tensor_is_the_same_picture_with_its_channels_first() -> None:
    tensor = torch.from_numpy(RGB).permute(2, 0, 1)
    floats = tensor / 255
    kinds = [tensor, tensor.contiguous(), floats, floats.double(), floats.half(), floats.requires_grad_()]
    for kind in kinds:
        np.testing.assert_array_equal(pixels(kind), RGB)
    assert np.abs(pixels(floats.bfloat16()).astype(int) - RGB).max() <= 1
    grey = torch.from_numpy(GREY.copy())
    for kind in (grey, grey[None], grey / 255):
        np.testing.assert_array_equal(pixels(kind), of_grey(GREY))
    assert (pixels(torch.cat([tensor, torch.zeros_like(tensor[:1])])) == 255).all()


def test_torch_is_not_imported_to_read_an_array(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch")
    np.testing.assert_array_equal(pixels(RGB), RGB)
    assert "torch" not in sys.modules


# ---------------------------------------------------------------- bytes and files


class Pipe(io.RawIOBase):
    """Gives a few bytes at a time and can't seek, as a connection does."""

    def __init__(self, data: bytes) -> None:
        super().__init__()
        self._stream = io.BytesIO(data)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._stream.read(min(7, len(buffer)))
        buffer[: len(data)] = data
        return len(data)


def test_buffers_and_file_objects_are_the_same_picture(tmp_path: Path) -> None:
    data = png()
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a.png", data)
    (tmp_path / "a.png").write_bytes(data)
    with (
        open(tmp_path / "a.png", "rb") as file,
        zipfile.ZipFile(tmp_path / "a.zip") as archive,
        archive.open("a.png") as member,
    ):
        for source in (bytearray(data), memoryview(data), io.BytesIO(data), file, member, Pipe(data)):
            np.testing.assert_array_equal(pixels(source), RGB)
        assert not file.closed
        np.testing.assert_array_equal(pixels(file), RGB)  # from its start again


def test_a_file_object_is_read_from_its_start_wherever_it_stands() -> None:
    stream = io.BytesIO()
    Image.fromarray(RGB).save(stream, "PNG")
    np.testing.assert_array_equal(pixels(stream), RGB)


def test_no_more_of_a_file_object_is_read_than_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    class Endless(io.RawIOBase):
        given = 0

        def readable(self) -> bool:
            return True

        def read(self, size: int = -1) -> bytes:
            self.given += size
            return bytes(size)

    monkeypatch.setattr(decoding, "MAX_BYTES", 5 << 20)
    endless = Endless()
    for source in (endless, bytearray(6 << 20), memoryview(bytes(6 << 20))):
        with pytest.raises(ImageError, match="files of up to 0 GiB are read"):
            read_image(source)
    assert endless.given <= 6 << 20


# ---------------------------------------------------------------- what is not taken

TAKEN = "an image is a path, the bytes of a file, a binary file object, a PIL image, an array"


class Upload:
    """Is read as uploads of FastAPI are."""

    async def read(self, size: int = -1) -> bytes:
        await asyncio.sleep(0)
        return b""


@dataclasses.dataclass
class Photo:
    path: str


WRONG: list[tuple[Callable[[], Any], str]] = [
    (lambda: ["a.jpg"], rf"^{TAKEN} .*, not a list; predict_batch takes many images$"),
    (lambda: (each for each in "ab"), "not a generator; predict_batch takes many images$"),
    (lambda: None, "not None$"),
    (lambda: 7, "not an int$"),
    (lambda: Photo("a.jpg"), r"not a test_images_sources\.Photo$"),
    (lambda: io.StringIO("a"), r"^is a file of text; open it in binary mode: open\(path, 'rb'\)$"),
    (lambda: io.BytesIO(), r"^is empty \(0 bytes\)$"),
    (Upload, r"give its bytes: await file\.read\(\)$"),
    (lambda: "https://example.org/a.jpg", "^is a URL; nothing is fetched: download it and name the file$"),
    (lambda: Path("http://example.org/a.jpg"), "^is a URL"),
    (lambda: "data:image/png;base64,AAAA" + 5000 * "A", "^is a URL"),
    (lambda: RGB.transpose(2, 0, 1), r"not \(3, 6, 9\); put channels last: array\.transpose\(1, 2, 0\)$"),
    (lambda: RGB[None], r"not \(1, 6, 9, 3\); predict_batch takes several images$"),
    (lambda: np.zeros((5, 6, 9), np.uint8), r"not \(5, 6, 9\); predict_batch takes several images$"),
    (lambda: np.frombuffer(png(), np.uint8), r"of the bytes of a file give \.tobytes\(\)$"),
    (lambda: np.zeros((0, 4), np.uint8), "^has no pixels$"),
    (
        lambda: RGB.astype(int),
        "^values of int64 are not read; give uint8 from 0 to 255, or floats from 0 to 1$",
    ),
    (lambda: RGB.astype(object), "^values of object are not read"),
    (lambda: np.array([[0.0, 255.0]]), "not from 0 to 255; divide them by 255, or give uint8$"),
    (
        lambda: np.array([[-2.1, 2.64]]),
        r"not from -2\.1 to 2\.64; undo its normalisation: values \* std \+ mean$",
    ),
    (lambda: RGB * np.nan, "^holds values that are no numbers$"),
    (lambda: torch.zeros(6, 9, 3), r"not \(6, 9, 3\); put channels first: tensor\.permute\(2, 0, 1\)$"),
    (lambda: torch.zeros(2, 3, 6, 9), "predict_batch takes several images$"),
    (lambda: torch.randn(3, 6, 9), "undo its normalisation"),
    (lambda: torch.zeros(3, 6, 9, dtype=torch.int64), "^values of int64 are not read"),
]


@pytest.mark.parametrize("number", range(len(WRONG)))
def test_what_is_no_image_is_refused_in_one_line_that_says_what_to_do(number: int) -> None:
    source, said = WRONG[number]
    with pytest.raises(ImageError, match=said) as caught:
        read_image(source())
    assert "\n" not in str(caught.value)


def test_one_image_is_told_from_many() -> None:
    tensor = torch.zeros(3, 6, 9)
    one = ["a.jpg", Path("a.jpg"), b"", bytearray(), memoryview(b""), io.BytesIO(), Image.new("L", (1, 1))]
    assert all(map(is_one_image, [*one, RGB, GREY, tensor, tensor[0]]))
    many = [["a.jpg"], ("a.jpg",), iter(()), RGB[None], tensor[None], np.array(["a.jpg"]), None, 7]
    assert not any(map(is_one_image, many))


def test_an_image_is_called_by_its_path_or_the_name_of_its_file(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png())
    with open(tmp_path / "a.png", "rb") as file, Image.open(tmp_path / "a.png") as opened:
        assert name_of(file) == name_of(opened) == name_of(tmp_path / "a.png") == str(tmp_path / "a.png")
    assert name_of("two\nlines, \udcff, \ud800.jpg") == r"two\nlines, \udcff, \ud800.jpg"
    assert len(name_of(5000 * "A")) == 301
    assert not any(map(name_of, [b"", RGB, io.BytesIO(), torch.zeros(1, 1), Image.new("L", (1, 1)), None, 7]))
