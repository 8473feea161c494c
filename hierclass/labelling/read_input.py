"""Read one input: its pixels as the network sees them, or the reason why it can't be read."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hierclass.errors import ImageError, InputError, unexpected
from hierclass.images.decoding import read_preview
from hierclass.images.preprocessing import decode_side, read_square, square
from hierclass.labelling.inputs import Input, Stamp, source, stamp

if TYPE_CHECKING:
    from hierclass.images.preprocessing import Preprocessing

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadOptions:
    """How images are read and put into batches."""

    batch_size: int = 64
    """Images per call of the network."""
    workers: int | None = None
    """Threads or processes that read and decode; None: one per core."""
    processes: bool = False
    """Read in processes instead of threads if there are more than a few hundred images."""
    image_column: str | None = None
    """Column of Parquet files that holds the images; None: the first that does."""
    previews: bool = False
    """Read the EXIF thumbnail of a JPEG in place of the image if it is large enough for the level."""

    def __post_init__(self) -> None:
        if self.batch_size < 1 or (self.workers is not None and self.workers < 1):
            raise InputError("the batch size and the number of workers must be at least 1")


class ReadResult(NamedTuple):
    """Pixels of an input as the network sees them, (S, S, 3), or the reason why it can't be read."""

    pixels: NDArray[np.uint8] | str
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

    def read(self, sources: Sequence[ReadSource]) -> list[ReadResult]:
        """Read inputs, in order."""
        return [_read(item, data, self.preprocessing, previews=self.previews) for item, data in sources]


def _read(
    item: Input, data: bytes | ImageError | None, preprocessing: Preprocessing, *, previews: bool
) -> ReadResult:
    before = stamp(item.path)
    try:
        if isinstance(data, ImageError):
            raise data
        found = source(item) if data is None else data
        if previews and (preview := read_preview(found, decode_side(preprocessing, margin=1))) is not None:
            return ReadResult(square(preview, preprocessing), before, preview=True)
        return ReadResult(read_square(found, preprocessing), before)
    except ImageError as error:
        return ReadResult(str(error), before)
    except Exception as error:
        _log.debug("reading %r failed", item, exc_info=True)
        return ReadResult(unexpected(error), before)
