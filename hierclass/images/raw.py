"""Read RAW files of cameras by `rawpy`, which is LibRaw: the preview that the camera made, or the photograph itself."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from PIL import Image

from hierclass.errors import ImageError
from hierclass.images.streams import Stream

if TYPE_CHECKING:
    import rawpy

MIN_PREVIEW = 256
"""Pixels of the shorter side of a preview that is read, where nobody says how many are needed; thumbnails have 120."""
_EXIF_OF_FLIP = (1, 2, 4, 3, 5, 8, 6, 7)
"""EXIF's orientation for each of LibRaw's."""


class RawFile:
    """An open RAW file."""

    def __init__(self, raw: rawpy.RawPy):
        """`raw` is open; whoever opened it closes it."""
        self._raw = raw
        sizes = raw.sizes
        self.size = (sizes.width, sizes.height)
        """Width and height of the photograph as stored."""
        self.sensor = (sizes.raw_width, sizes.raw_height)
        """Width and height of what the sensor saw."""
        self.turn = _EXIF_OF_FLIP[sizes.flip] if 0 <= sizes.flip < 8 else 1
        """EXIF's orientation of the photograph."""

    def preview(self) -> bytes | None:
        """The largest preview, a JPEG file; None if there is none.

        Small pictures that are not compressed do not count: rawpy believes what the file says of their size.
        """
        import rawpy

        try:
            found = self._raw.extract_thumb()
        except (rawpy.LibRawError, rawpy.NotSupportedError):
            return None
        return bytes(found.data) if found.format == rawpy.ThumbFormat.JPEG else None

    def upright_turn(self, size: tuple[int, int], own: int) -> int:
        """EXIF's orientation of a preview of this size, which says `own` of itself; 1 if it lies as it should.

        A preview that already has the shape of the upright photograph is not turned by a quarter once more.
        """
        turn = own if 2 <= own <= 8 else self.turn
        shape = _shape(self.size, self.turn)
        if _shape(size, turn) == -shape and _shape(size, 1) == shape:
            return 1
        return turn

    def develop(self) -> Image.Image:
        """The photograph itself as RGB, upright, at half its size, with the camera's white balance."""
        pixels: Any = self._raw.postprocess(half_size=True, use_camera_wb=True, output_bps=8)
        return Image.fromarray(pixels).convert("RGB")


def _shape(size: tuple[int, int], turn: int) -> int:
    """1 for a picture that is wide once it is turned, -1 for a high one, 0 for one that is about square."""
    width, height = size if turn < 5 else (size[1], size[0])
    if abs(width - height) <= 0.05 * max(width, height):
        return 0
    return int(math.copysign(1, width - height))


@contextlib.contextmanager
def open_raw(stream: Stream) -> Iterator[RawFile]:
    """Open a RAW file: by its path, if it has one, since LibRaw reads only what it needs.

    Raises:
        ImageError: LibRaw can't read it.
    """
    import rawpy

    raw = rawpy.RawPy()
    try:
        try:
            raw.open_file(stream.path) if stream.path else raw.open_buffer(stream)
        except UnicodeEncodeError:  # a path that is no text
            raw.open_buffer(stream)
        yield RawFile(raw)
    except (rawpy.LibRawError, rawpy.NotSupportedError) as error:
        raise ImageError(_reason(error)) from error
    finally:
        raw.close()


def _reason(error: Exception) -> str:
    text = error.args[0] if error.args else type(error).__name__
    said = text.decode("utf-8", "replace") if isinstance(text, bytes) else str(text)
    return f"is a RAW file that LibRaw can't read ({said}); save it as DNG with a preview, or as JPEG"
