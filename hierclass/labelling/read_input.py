"""Read one input: its pixels as the network sees them, or the reason why it can't be read."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from hierclass.errors import ImageError, InputError, unexpected
from hierclass.images.decoding import PREVIEW, read_image, read_preview
from hierclass.images.discovery import what_else
from hierclass.images.preprocessing import decode_side, read_square, square
from hierclass.labelling.inputs import SECONDS_PER_IMAGE, SECONDS_RANGE, Input, Stamp, source, stamp
from taxonomy.folders import IGNORED

if TYPE_CHECKING:
    from hierclass.images.preprocessing import Preprocessing

_log = logging.getLogger(__name__)

Pixels: TypeAlias = "NDArray[np.uint8]"
ADVICE = "; --seconds-per-image allows more"
"""End of the error of an input that takes too long."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadOptions:
    """How images are read and put into batches."""

    batch_size: int = 64
    """Images per call of the network."""
    workers: int | None = None
    """Threads or processes that read and decode; None: one per core."""
    processes: bool = False
    """Read in processes instead of threads, faster for many images; the limits of time and memory hold there alone."""
    seconds_per_image: float = SECONDS_PER_IMAGE
    """Seconds after which a process that reads an image is ended, and the image gets an error; 0.1 … 3600."""
    image_column: str | None = None
    """Column of Parquet files that holds the images; None: the first that does."""
    ignore: tuple[str, ...] = IGNORED
    """What searches of folders and tar files leave out: patterns of names or, with / in them, of paths."""
    previews: bool = False
    """Read the EXIF thumbnail of a JPEG in place of the image if it is large enough for the level."""

    def __post_init__(self) -> None:
        if self.batch_size < 1 or (self.workers is not None and self.workers < 1):
            raise InputError("the batch size and the number of workers must be at least 1")
        low, high = SECONDS_RANGE
        if not low <= self.seconds_per_image <= high:
            raise InputError(f"an image may take {low:g} to {high:g} seconds, not {self.seconds_per_image:g}")


class ReadResult(NamedTuple):
    """Pixels of an input as the network sees them, (S, S, 3), or the reason why it can't be read."""

    pixels: Pixels | str
    stamp: Stamp | None
    preview: bool = False


class ReadSource(NamedTuple):
    """An input; with its bytes, or the error met on reading them, if it is a row of a Parquet file."""

    item: Input
    data: bytes | ImageError | None


class InputReader(NamedTuple):
    """Reads inputs; can be sent to another process."""

    preprocessing: Preprocessing
    previews: bool

    def read(self, source: ReadSource) -> ReadResult:
        """Read an input."""
        before = self.stamp(source)
        try:
            return self._read(*source, before)
        except Exception as error:
            return _failed(source.item, error, before)

    @property
    def advice(self) -> str:
        """What is added to the error of an input that takes too long."""
        return ADVICE

    def stamp(self, source: ReadSource) -> Stamp | None:
        """Return the stamp of the file of an input."""
        return stamp(source.item.path)

    def fits(self, height: int, width: int) -> bool:
        """Return whether pixels have the size that the network sees."""
        return height == width == self.preprocessing.side

    def _read(self, item: Input, data: bytes | ImageError | None, before: Stamp | None) -> ReadResult:
        if isinstance(data, ImageError):
            raise data
        found, preprocessing = source(item) if data is None else data, self.preprocessing
        if self.previews:
            preview = read_preview(found, decode_side(preprocessing, margin=1))
            if preview is not None:
                return ReadResult(square(preview, preprocessing), before, preview=True)
        image = read_image(found, min_side=decode_side(preprocessing))
        return ReadResult(square(image, preprocessing), before, preview=image.info.get(PREVIEW) is True)


class PictureReader(NamedTuple):
    """Reads pictures by their paths, whole or made small; can be sent to another process."""

    preprocessing: Preprocessing | None
    """How the network sees them; None: whole."""
    side: int = 0
    """Pixels of the longer side of a whole picture, which is made small."""

    def read(self, source: str) -> ReadResult:
        """Read a picture: pixels (S, S, 3) as `read_square` returns them, or (H, W, 3) of a whole one."""
        try:
            if self.preprocessing is not None:
                return ReadResult(read_square(source, self.preprocessing), None)
            image = read_image(source, min_side=self.side)
            image.thumbnail((self.side, self.side))
            return ReadResult(np.asarray(image), None)
        except Exception as error:
            return _failed(source, error, None)

    @property
    def advice(self) -> str:
        """What is added to the error of a picture that takes too long: nothing."""
        return ""

    def stamp(self, source: str) -> Stamp | None:
        """Return None: nobody asks whether the file changes."""
        return None

    def fits(self, height: int, width: int) -> bool:
        """Return whether pixels have the size that the network sees, or that of a small picture."""
        if self.preprocessing is None:
            return 0 < height <= self.side and 0 < width <= self.side
        return height == width == self.preprocessing.side


def _failed(source: object, error: Exception, before: Stamp | None) -> ReadResult:
    if isinstance(error, ImageError):
        instead = what_else(source.path) if isinstance(source, Input) and source.offset < 0 else ""
        return ReadResult(instead or str(error), before)
    _log.debug("reading %r failed", source, exc_info=error)
    return ReadResult(unexpected(error), before)
