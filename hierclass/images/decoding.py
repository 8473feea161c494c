"""Read any picture that a user may have as RGB, upright, within bounds of memory.

Every broken, hostile or unsupported file ends in an `ImageError` of one short line without the path, which the caller
knows. Pillow's global settings are neither used nor changed.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
import math
import os
import stat
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    Jpeg2KImagePlugin,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from hierclass.errors import ImageError
from hierclass.images.conversion import TRANSPOSES, as_upright_rgb, orientation_of, without_unused_opacity
from hierclass.images.inspection import Inspection, inspect
from hierclass.images.path_lists import is_url, why_missing
from hierclass.images.raw import MIN_PREVIEW, RawFile, open_raw
from hierclass.images.recognition import recognise
from hierclass.images.sources import ImageSource, check_length, open_source
from hierclass.images.streams import Stream
from hierclass.images.tags import read_thumbnail

# Twice Pillow's MAX_IMAGE_PIXELS, where Pillow itself refuses; checked in the header, before decoding.
MAX_PIXELS = 178_956_970
# Bytes that a picture and its decoder may take: a progressive JPEG of MAX_PIXELS takes 1.8e9, as does a WebP of 107
# megapixels.
MAX_MEMORY = 2_000_000_000
# An uncompressed 16-bit RGB picture of MAX_PIXELS; some decoders read the whole file at once.
MAX_BYTES = 1 << 30

_PLUGINS: dict[str, type[ImageFile.ImageFile]] = {
    "JPEG": JpegImagePlugin.JpegImageFile,  # also for a JPEG of several pictures (MPO): the first is read
    "PNG": PngImagePlugin.PngImageFile,
    "WEBP": WebPImagePlugin.WebPImageFile,
    "GIF": GifImagePlugin.GifImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
    "DIB": BmpImagePlugin.DibImageFile,
    "TIFF": TiffImagePlugin.TiffImageFile,
    "JPEG2000": Jpeg2KImagePlugin.Jpeg2KImageFile,
    "AVIF": AvifImagePlugin.AvifImageFile,
    "PPM": PpmImagePlugin.PpmImageFile,
}
"""Pillow's classes, by format. The usual ones are imported here, so that threads need not; others when they are met."""

# Pictures are decoded at no less than this many times the requested side. Against a full decode, 100
# ImageNet photographs brought to 64 pixels differ by 1.3 grey levels on average (of 255; bicubic against
# Lanczos: 1.2), where a margin of 1 differs by 3.3; it costs 0.6 of a full decode's time (12 megapixels:
# 0.2), a margin of 1 costs 0.5.
_MARGIN = 2
# Above this many pixels other formats than JPEG are reduced as well, and pictures are decoded one at a time,
# so that memory is bounded by one large picture and not by one per thread.
_LARGE = 24_000_000
_large_image_lock: contextlib.AbstractContextManager[Any] = threading.Lock()

_BYTES = {"1": 1, "L": 1, "P": 1, "LA": 4, "I;16": 2, "I;16B": 2, "I;16L": 2}
"""Bytes that Pillow takes for a pixel, by mode; 4 for all others."""
_MAX_PREVIEW = 1 << 22
"""Pixels of a thumbnail that is read: cameras write 160 x 120, some 640 x 480."""
_SAME_RATIO = 0.02
"""Aspect ratios that differ by no more than this share are the same: sides of thumbnails are rounded."""
_RAW = "RAW"
_UNUSED_OPACITY = ("BMP", "DDS", "DIB", "ICO", "TGA")
"""Formats whose writers may leave opacity at 0 everywhere, where they mean none."""
PREVIEW = "preview"
"""Key of `info` that is True in a picture which `read_image` returns if it is a preview inside of a RAW file."""


def read_image(source: ImageSource, *, min_side: int | None = None) -> Image.Image:
    """Read a picture as RGB, upright.

    `source` is one of the forms of `hierclass.images.sources.ImageSource`. EXIF orientation is applied; transparent
    pixels lie on white; 16-bit grey is scaled to 8 bits; an animation gives its first frame. With `min_side`, the
    side in pixels that the shorter side will be resized to, a large picture is decoded at a reduced scale where that
    is cheaper, never below twice `min_side`.

    Raises:
        ImageError: the source is no complete picture of at most 178 megapixels, or no regular file.
    """
    try:
        found = open_source(source, MAX_BYTES)
        if isinstance(found, Image.Image):
            _check_size(found.size)
            found.load()
            return _finish(found, min_side)
        with _open_stream(found) as stream:
            return _decode(stream, min_side)
    except ImageError:
        raise
    except Exception as error:
        # Pillow's plugins raise what their parsers meet: OSError, SyntaxError, ValueError, struct.error,
        # MemoryError …
        raise ImageError(_reason(error)) from error


def set_large_image_lock(lock: contextlib.AbstractContextManager[Any]) -> None:
    """Decode very large pictures one at a time among all processes that share this lock."""
    global _large_image_lock
    _large_image_lock = lock


class ImageHeader(NamedTuple):
    """What is known of a picture before it is decoded."""

    size: tuple[int, int]
    """Width and height in pixels as stored, before EXIF orientation is applied."""
    whole: bool
    """Whether the file has the ending of its format; False if only decoding could tell."""


def read_header(source: str | os.PathLike[str] | bytes) -> ImageHeader:
    """Read the header and the last bytes of a picture: a path, or the bytes of a file.

    Much faster than decoding; finds what is no picture, too large or of an unsupported format, and most truncated
    files, but no damage in the middle. Raises ImageError as `read_image`.
    """
    try:
        with _open_stream(source) as stream:
            if (format_ := _format(stream)) == _RAW:
                with open_raw(stream) as raw:
                    return ImageHeader(raw.size, False)
            whole = _ends_whole(stream, format_)
            image, inspection = _open_image(stream, format_, header_only=True)
            with image:
                return ImageHeader(inspection.size or image.size, whole)
    except ImageError:
        raise
    except Exception as error:
        raise ImageError(_reason(error)) from error


def _ends_whole(stream: Stream, format_: str) -> bool:
    length = stream.length
    stream.seek(max(0, length - 12))
    tail = stream.read(12)
    if format_ == "WEBP":
        stream.seek(4)
        return int.from_bytes(stream.read(4), "little") + 8 <= length
    ends = {"JPEG": b"\xff\xd9", "PNG": b"\x00\x00\x00\x00IEND\xaeB`\x82", "GIF": b";"}
    return format_ in ends and tail.endswith(ends[format_])


def read_preview(source: str | os.PathLike[str] | bytes, min_side: int) -> Image.Image | None:
    """Read the EXIF thumbnail of a JPEG as RGB, upright.

    Returns None if there is none, it is broken, its shorter side has fewer than `min_side` pixels, or its aspect
    ratio is another one (bars at its edges). Whether it shows the same as the picture is not checked; programs that
    edit a picture may leave an old thumbnail behind.

    Raises ImageError as `read_image` does, for faults in the header.
    """
    try:
        with _open_stream(source) as stream:
            if (format_ := _format(stream)) != "JPEG":
                return None
            with _open_image(stream, format_, header_only=True)[0] as image:
                size, turn = image.size, TRANSPOSES.get(orientation_of(image))
                data = read_thumbnail(image.info.get("exif", b""))
    except ImageError:
        raise
    except Exception as error:
        raise ImageError(_reason(error)) from error
    try:
        preview = read_image(data) if math.prod(read_header(data).size) <= _MAX_PREVIEW else None
    except ImageError:
        return None
    if preview is None:
        return None
    ratio = preview.width * size[1] / (preview.height * size[0])
    if min(preview.size) < min_side or abs(ratio - 1) > _SAME_RATIO:
        return None
    return preview if turn is None else preview.transpose(turn)


class _Endless:
    """A file whose end is an error while a JPEG is decoded, since Pillow may be set to fill the rest with grey."""

    def __init__(self, stream: IO[bytes]):
        self.seek, self._read = stream.seek, stream.read

    def read(self, size: int = -1) -> bytes:
        if not (data := self._read(size)):
            raise OSError("truncated")
        return data


@contextlib.contextmanager
def _open_stream(source: str | bytes | os.PathLike[str]) -> Iterator[Stream]:
    if isinstance(source, bytes):
        size = len(source)
        raw: io.BytesIO | io.FileIO = io.BytesIO(source)
    else:
        # Ask before opening: to open a device can do something, to open a pipe can block for ever.
        if not os.fspath(source):
            raise ImageError("an empty text is no path; name an image file")
        _check_regular(Path(source).stat().st_mode)
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        raw = io.FileIO(os.open(source, flags), "r")
        size = os.fstat(raw.fileno()).st_size
    path = "" if isinstance(source, bytes) else os.fsdecode(source)
    with raw, Stream(raw, size, path) as stream:
        if isinstance(raw, io.FileIO):
            _check_regular(os.fstat(raw.fileno()).st_mode)
        if size == 0:
            raise ImageError("is empty (0 bytes)")
        check_length(size, MAX_BYTES)
        yield stream


def _check_regular(mode: int) -> None:
    if stat.S_ISDIR(mode):
        raise ImageError("is a folder, not an image")
    if not stat.S_ISREG(mode):
        raise ImageError("is no regular file (a pipe, socket or device)")


def _decode(stream: Stream, min_side: int | None) -> Image.Image:
    format_ = _format(stream)
    return _decode_raw(stream, min_side) if format_ == _RAW else _decode_as(format_, stream, min_side)


def _decode_as(format_: str, stream: Stream, min_side: int | None, turn: int | None = None) -> Image.Image:
    """Decode a picture of a format; `turn` is its orientation, if not what it says of itself."""
    image, inspection = _open_image(stream, format_)
    with image:
        pixels = image.width * image.height
        if min_side is not None and image.format == "JPEG":
            scale = _MARGIN * min_side / min(image.size)
            if scale < 1:
                image.draft(None, (math.ceil(image.width * scale), math.ceil(image.height * scale)))
        if not inspection.pixel_bytes:  # a JPEG in several scans is held at full size, whatever the scale
            pixels = image.width * image.height
        with _large_image_lock if pixels > _LARGE else contextlib.nullcontext():
            image.load()
            loaded: Image.Image = image
            if inspection.step > 1:
                half = (image.width // inspection.step, image.height)
                loaded = image.transform(half, Image.Transform.AFFINE, (2, 0, -1, 0, 1, 0))
            elif format_ in _UNUSED_OPACITY:
                loaded = without_unused_opacity(image)
            return _finish(loaded, min_side, turn)


def _decode_raw(stream: Stream, min_side: int | None) -> Image.Image:
    """Read the preview of a RAW file, if it is large enough, else the photograph itself at half its size."""
    with open_raw(stream) as raw:
        preview = _read_raw_preview(raw, min_side)
        if preview is not None and min(preview.size) >= (min_side or MIN_PREVIEW):
            return preview
        try:
            _check_size(raw.sensor, Inspection(stream, pixel_bytes=8))
            with _large_image_lock if math.prod(raw.sensor) > _LARGE else contextlib.nullcontext():
                return raw.develop()
        except Exception:
            if preview is None:
                raise
            return preview


def _read_raw_preview(raw: RawFile, min_side: int | None) -> Image.Image | None:
    """The preview of a RAW file, upright; marked as such in `info`. None if there is none, or it is broken."""
    found = raw.preview()
    if found is None:
        return None
    try:
        stream = Stream(io.BytesIO(found), len(found))
        with _open_image(stream, "JPEG", header_only=True)[0] as image:
            turn = raw.upright_turn(image.size, orientation_of(image))
        preview = _decode_as("JPEG", stream, min_side, turn)
    except Exception:
        return None
    preview.info = {PREVIEW: True}
    return preview


def _format(stream: Stream) -> str:
    """The format of a file as Pillow names it, `HEIF`, or `RAW`. Raises ImageError if it is not read."""
    kind = recognise(stream)
    return kind.formats[0] if kind.formats else {"heic": "HEIF", "raw": _RAW}[kind.needs]


@functools.cache
def _plugin(format_: str) -> type[ImageFile.ImageFile]:
    """Pillow's class for a format, or ours."""
    if format_ == "HEIF":
        from hierclass.images.heif import HeifPicture

        return HeifPicture
    if format_ == "AVIF" and not AvifImagePlugin.SUPPORTED:
        raise ImageError("is an AVIF image, and this Pillow was built without AVIF")
    if format_ in _PLUGINS:
        return _PLUGINS[format_]
    name = format_.capitalize()
    plugin: type[ImageFile.ImageFile] = getattr(
        importlib.import_module(f"PIL.{name}ImagePlugin"), f"{name}ImageFile"
    )
    return plugin


def _open_image(
    stream: Stream, format_: str, *, header_only: bool = False
) -> tuple[ImageFile.ImageFile, Inspection]:
    """Read the header, by what of the file Pillow is to see: Image.open without its global limits."""
    plugin = _plugin(format_)
    inspection = inspect(stream, format_, header_only=header_only)
    if inspection.size is not None:
        _check_size(inspection.size, inspection)
    plugin = _plugin(inspection.format) if inspection.format else plugin
    image = plugin(inspection.shown, "")
    if image.format == "JPEG":
        image.fp = _Endless(inspection.shown)  # type: ignore[assignment]
    _check_size(image.size, inspection, image.mode)
    image.decodermaxblock = max(
        image.decodermaxblock, 8 * image.width
    )  # rows in pieces take a square of the time
    image.info |= {
        name: value for name, value in (("exif", inspection.exif), ("xmp", inspection.xmp)) if value
    }
    return image, inspection


def _check_size(size: tuple[int, int], inspection: Inspection | None = None, mode: str = "RGB") -> None:
    """Refuse a picture of no pixels, of too many, or one for which the decoder takes too much memory."""
    if min(size) < 1:
        raise ImageError("has no pixels")
    pixels = size[0] * size[1]
    pixel_bytes: float = _BYTES.get(mode, 4) + (0 if mode == "RGB" else 4)  # as it is decoded, and as RGB
    fixed_bytes = 0
    if inspection is not None:
        pixel_bytes, fixed_bytes = pixel_bytes + inspection.pixel_bytes, inspection.fixed_bytes
    if pixels > MAX_PIXELS:
        limit = MAX_PIXELS // 1_000_000
        raise ImageError(f"has {size[0]} x {size[1]} pixels; up to {limit} megapixels are read")
    taken = pixels * pixel_bytes + fixed_bytes
    if taken > MAX_MEMORY:
        limit = int(pixels * MAX_MEMORY / taken / 1_000_000)
        of_these = f", {limit} megapixels of such a picture" if limit else ""
        raise ImageError(
            f"has {size[0]} x {size[1]} pixels, which take {taken / 1e9:.1f} GB to decode; "
            f"up to {MAX_MEMORY / 1e9:.0f} GB are taken{of_these}"
        )


def _finish(image: Image.Image, min_side: int | None, turn: int | None = None) -> Image.Image:
    """Convert a loaded picture to RGB, smaller if `min_side` allows and it is very large, and upright."""
    factor = 1
    if min_side is not None and image.width * image.height > _LARGE:
        factor = max(1, min(image.size) // (_MARGIN * min_side))
    return as_upright_rgb(image, factor=factor, turn=turn)


def _reason(error: Exception) -> str:
    """Say in one short line, without the path, why a picture cannot be read."""
    path = os.fsdecode(error.filename or "") if isinstance(error, OSError) else ""
    if isinstance(error, FileNotFoundError) or is_url(path):  # some are too long for a path
        return why_missing(path)
    if isinstance(error, MemoryError):
        return "needs more memory than there is"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror[0].lower() + error.strerror[1:]
    text = " ".join(str(error).split())[:160]
    if isinstance(error, ImportError):  # of an extra that is there
        return f"can't be read here: what reads it can't be loaded ({text}); install that anew"
    if text.startswith(("Unsupported", "Unimplemented", "unsupported")):
        return f"is of a variant that is not read ({text})"
    if isinstance(error, struct.error) or any(
        word in text.lower() for word in ("truncated", "unexpected end")
    ):
        return "is truncated: the file ends before the picture does"
    return f"is broken: {text or type(error).__name__}"
