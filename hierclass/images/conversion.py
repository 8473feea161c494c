"""Bring a decoded picture to what networks see: RGB, upright, transparent pixels on white, 8 bits."""

from __future__ import annotations

import math
import re

import numpy as np
from PIL import Image

from hierclass.errors import ImageError
from hierclass.images.inspection import exif_of_text
from hierclass.images.tags import read_orientation

_STRIP_PIXELS = 1 << 22
_XMP_ORIENTATION = re.compile(rb'tiff:Orientation(?:="|>)([0-9])')
TRANSPOSES = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""How to turn a picture, by its EXIF orientation; those that lie as they should are not among them."""


def as_upright_rgb(image: Image.Image, *, factor: int = 1, turn: int | None = None) -> Image.Image:
    """Convert a loaded picture to RGB, at 1/factor of its size, and turn it upright.

    `turn` is its EXIF orientation, if not what the picture says of itself. Raises ImageError if it holds no numbers.
    """
    rgb = _to_rgb(image, factor)
    if (transpose := TRANSPOSES.get(orientation_of(image) if turn is None else turn)) is None:
        return rgb
    upright = rgb.transpose(transpose)
    upright.info = {}  # what still said how to turn it; read again, it stays as it is
    return upright


def orientation_of(image: Image.Image) -> int:
    """The orientation that EXIF, or else XMP, gives a picture; of TIFF and HEIC, the decoder has applied it."""
    if image.format in ("TIFF", "HEIF"):
        return 1
    info = image.info
    orientation = read_orientation(info.get("exif") or exif_of_text(info.get("Raw profile type exif", "")))
    if orientation is None:
        xmp = info.get("xmp") or info.get("XML:com.adobe.xmp") or b""
        found = _XMP_ORIENTATION.search(xmp.encode() if isinstance(xmp, str) else xmp)
        orientation = int(found[1]) if found else 1
    return orientation


def without_unused_opacity(image: Image.Image) -> Image.Image:
    """Drop the opacity of a loaded picture that is 0 everywhere: some writers leave it at that where they mean none."""
    if image.mode in ("RGBA", "LA") and image.getextrema()[-1] == (0, 0):
        return image.convert(image.mode[:-1])
    return image


def _to_rgb(image: Image.Image, factor: int) -> Image.Image:
    """Convert to RGB at 1/factor of the size, strip by strip: large pictures are not held twice."""
    if factor == 1 and image.mode == "RGB" and not image.has_transparency_data:
        return image
    levels = _grey_levels(image)
    width, height = image.size
    rgb = Image.new("RGB", (-(-width // factor), -(-height // factor)))
    rows = max(1, _STRIP_PIXELS // width // factor) * factor
    for top in range(0, height, rows):
        strip = image.crop((0, top, width, min(top + rows, height)))
        strip = _on_white(strip) if levels is None else _scaled_grey(strip, levels)
        rgb.paste(strip.reduce(factor) if factor > 1 else strip, (0, top // factor))
    return rgb


def _on_white(image: Image.Image) -> Image.Image:
    if image.mode == "LAB":
        return _of_lab(image)
    if not image.has_transparency_data:
        return image.convert("RGB")
    rgba = image.convert("RGBA")
    white = Image.new("RGB", image.size, "white")
    white.paste(rgba, mask=rgba.getchannel("A"))
    return white


def _of_lab(image: Image.Image) -> Image.Image:
    from PIL import ImageCms

    lab, rgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    return ImageCms.buildTransform(lab, rgb, "LAB", "RGB").apply(image)


def _grey_levels(image: Image.Image) -> tuple[float, float] | None:
    """Return the values that mean black and white for modes of more than 8 bits, None for the others."""
    if image.mode.startswith("I;16"):
        return 0, 65535
    if image.mode not in ("I", "F"):
        return None
    low, high = (float(value) for value in image.getextrema() if not isinstance(value, tuple))
    if not math.isfinite(low) or not math.isfinite(high):
        raise ImageError("holds values that are no numbers")
    ceilings = (1, 255, 65535) if image.mode == "F" else (255, 65535)
    white = next((ceiling for ceiling in ceilings if high <= ceiling), None)
    return (0, white) if low >= 0 and white is not None else (low, max(high, low + 1))


def _scaled_grey(image: Image.Image, levels: tuple[float, float]) -> Image.Image:
    black, white = levels
    grey = (np.asarray(image).astype(np.float32) - black) * (255 / (white - black))
    return Image.fromarray(np.nan_to_num(grey).clip(0, 255).round().astype(np.uint8)).convert("RGB")
