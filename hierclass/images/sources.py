"""What an image may be given as, and how one in memory becomes a PIL image or the bytes of a file."""

from __future__ import annotations

import inspect
import io
import math
import os
import re
import sys
from collections.abc import Iterable
from typing import IO, Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hierclass.errors import ImageError


class Tensor(Protocol):
    """A tensor of PyTorch, which is not imported for this."""

    def detach(self) -> Any:
        """Return it without its gradient."""


class ArrayLike(Protocol):
    """What NumPy can turn into an array."""

    def __array__(self) -> NDArray[Any]:
        """Return the array."""


ImageSource: TypeAlias = (
    "str | os.PathLike[str] | bytes | bytearray | memoryview | IO[bytes] | Image.Image | ArrayLike | Tensor"
)
"""An image, in any of these forms:

- a path;
- the bytes of a file (bytes, bytearray or memoryview);
- a binary file object, which is read from its start if it can seek, else from where it stands, and stays open;
- a PIL image;
- an array (H, W) or (H, W, 1) of grey, (H, W, 3) of RGB or (H, W, 4) of RGBA, of uint8, uint16, floats from 0 to 1
  or bool, in any memory layout;
- a tensor of PyTorch (H, W) or (C, H, W) of such values, on any device.
"""

_TAKEN = (
    "a path, the bytes of a file, a binary file object, a PIL image, an array (H, W, 3) or a tensor (3, H, W)"
)
_CHANNELS = (1, 2, 3, 4)
"""Grey, grey and alpha, RGB, RGBA."""
_TEXT = "is a file of text; open it in binary mode: open(path, 'rb')"
_ROUNDING = 1e-3
"""How far floats may leave 0 … 1."""
_PIECE = 1 << 20
_LONGEST = 300
"""Characters of a name that are shown: a path may be the content of a file, by mistake."""
_ROWS = 1 << 22
"""Values that are scaled at a time: a large array is not held as floats."""
_UNSHOWN = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
"""Ends of lines and other characters that are not shown as they are."""


def is_one_image(value: object) -> bool:
    """Return whether a value is one image and not several; arrays and tensors of two or three axes are one."""
    if hasattr(value, "__array__"):
        return getattr(value, "ndim", 0) in (2, 3)
    taken = (str, os.PathLike, bytes, bytearray, memoryview, Image.Image)
    return isinstance(value, taken) or hasattr(value, "read")


def name_of(image: object) -> str:
    """Return the path of an image, or the name that its file object has, in one line; "" if there is none."""
    path = image
    if isinstance(image, Image.Image) or hasattr(image, "read"):
        path = getattr(image, "filename", None) or getattr(image, "name", None)
    if not isinstance(path, (str, os.PathLike)):
        return ""
    line = _UNSHOWN.sub(lambda found: repr(found[0])[1:-1], os.fsdecode(path))
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST]}…"


def open_source(source: ImageSource, most: int) -> Image.Image | str | os.PathLike[str] | bytes:
    """Return an array or tensor as a PIL image, a buffer or file object as bytes, and others as they are.

    Raises:
        ImageError: it is no image, or a buffer or file of more than `most` bytes.
    """
    if isinstance(source, (str, os.PathLike, bytes, Image.Image)):
        return source
    if isinstance(source, (bytearray, memoryview)):
        check_length(memoryview(source).nbytes, most)
        return bytes(source)
    if isinstance(source, getattr(sys.modules.get("torch"), "Tensor", ())):
        return _from_tensor(source)
    if hasattr(source, "__array__"):
        return _from_array(np.asarray(source))
    if hasattr(source, "read"):
        return _read_all(source, most)
    name = f"{type(source).__module__}.{type(source).__name__}".removeprefix("builtins.")
    kind = "None" if source is None else f"an {name}" if name[0] in "aeiou" else f"a {name}"
    many = "; predict_batch takes many images" if isinstance(source, Iterable) else ""
    raise ImageError(f"an image is {_TAKEN}, not {kind}{many}")


def check_length(length: int, most: int) -> None:
    """Raise ImageError for a file of more than `most` bytes."""
    if length > most:
        raise ImageError(f"has {length / (1 << 30):.1f} GiB; files of up to {most >> 30} GiB are read")


def _read_all(stream: Any, most: int) -> bytes:
    """Read a file object from its start, or from where it stands if it can't seek."""
    if inspect.iscoroutinefunction(stream.read):
        raise ImageError("is read asynchronously, which is not done here; give its bytes: await file.read()")
    if isinstance(stream, io.TextIOBase):
        raise ImageError(_TEXT)
    if hasattr(stream, "seekable") and stream.seekable():
        stream.seek(0)
    found = io.BytesIO()
    while data := stream.read(_PIECE):
        if isinstance(data, str):
            raise ImageError(_TEXT)
        found.write(data)
        check_length(found.tell(), most)
    return found.getvalue()


def _from_tensor(tensor: Any) -> Image.Image:
    """Turn a tensor (H, W) or (C, H, W) into a PIL image."""
    _check_shape(
        tuple(tensor.shape), "a tensor", "(C, H, W)", 0, "put channels first: tensor.permute(2, 0, 1)"
    )
    tensor = tensor.detach().cpu()
    array = tensor.float().numpy() if tensor.is_floating_point() else tensor.numpy()  # which has no bfloat16
    return _from_pixels(np.moveaxis(array, 0, 2) if array.ndim == 3 else array)


def _from_array(array: NDArray[Any]) -> Image.Image:
    """Turn an array (H, W) or (H, W, C) into a PIL image."""
    _check_shape(array.shape, "an array", "(H, W, C)", 2, "put channels last: array.transpose(1, 2, 0)")
    return _from_pixels(array)


def _check_shape(shape: tuple[int, ...], what: str, colour: str, axis: int, turn: str) -> None:
    """Raise ImageError if a shape is not that of one image with its channels at `axis`."""
    if len(shape) == 2 or (len(shape) == 3 and shape[axis] in _CHANNELS):
        return
    if len(shape) == 1:
        advice = "; of the bytes of a file give .tobytes()"
    elif len(shape) == 3 and shape[2 - axis] in _CHANNELS:
        advice = f"; {turn}"
    else:
        advice = "; predict_batch takes several images" if len(shape) > 2 else ""
    raise ImageError(f"{what} of an image is (H, W) or {colour}, of 1 to 4 channels, not {shape}{advice}")


def _from_pixels(pixels: NDArray[Any]) -> Image.Image:
    """Turn values (H, W) or (H, W, C) of any type that is read into a PIL image."""
    if not pixels.size:
        raise ImageError("has no pixels")
    if pixels.dtype != np.uint8:
        pixels = _scaled(pixels, _white(pixels))
    return Image.fromarray(np.ascontiguousarray(pixels[:, :, 0] if pixels.shape[2:] == (1,) else pixels))


def _white(values: NDArray[Any]) -> int:
    """Return the value that means white; raise ImageError if that is not known."""
    if values.dtype.kind == "b":
        return 1
    if values.dtype.kind == "u" and values.dtype.itemsize == 2:
        return 65535
    if values.dtype.kind != "f":
        raise ImageError(
            f"values of {values.dtype} are not read; give uint8 from 0 to 255, or floats from 0 to 1"
        )
    low, high = float(values.min()), float(values.max())
    if not math.isfinite(low) or not math.isfinite(high):
        raise ImageError("holds values that are no numbers")
    if low < -_ROUNDING or high > 1 + _ROUNDING:
        cure = (
            "undo its normalisation: values * std + mean" if low < 0 else "divide them by 255, or give uint8"
        )
        raise ImageError(
            f"floats are read from 0 (black) to 1 (white), not from {low:.2g} to {high:.3g}; {cure}"
        )
    return 1


def _scaled(values: NDArray[Any], white: int) -> NDArray[np.uint8]:
    """Scale values from 0 to `white` to 0 … 255, some rows at a time."""
    scaled = np.empty(values.shape, np.uint8)
    rows = max(1, _ROWS * len(values) // values.size)
    for top in range(0, len(values), rows):
        strip = values[top : top + rows].astype(np.float32) * (255 / white)
        scaled[top : top + rows] = np.rint(strip.clip(0, 255))
    return scaled
