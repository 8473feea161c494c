"""How one input is read: what the network sees of it, or the reason why there is nothing."""

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
    """How images are read."""

    batch_size: int = 64
    """Images per call of the network."""
    workers: int | None = None
    """Threads or processes that read and decode; None: one per core."""
    processes: bool = False
    """Whether more than a few images are read in processes of their own."""
    image_column: str | None = None
    """Of Parquet files; None: the first that holds images."""
    previews: bool = False
    """Read the small image inside of a JPEG instead of itself, where that is as good."""

    def __post_init__(self) -> None:
        if self.batch_size < 1 or (self.workers is not None and self.workers < 1):
            raise InputError("the batch size and the number of workers must be at least 1")


class ReadResult(NamedTuple):
    """An input that was read: what the network sees (S, S, 3), or the reason why there is nothing."""

    pixels: NDArray[np.uint8] | str
    stamp: Stamp | None
    preview: bool = False


class ReadSource(NamedTuple):
    """An input, and its bytes or what is wrong with it where that is known already."""

    item: Input
    data: bytes | ImageError | None


class InputReader(NamedTuple):
    """All that reading needs to know beside the inputs."""

    preprocessing: Preprocessing
    previews: bool

    def read(self, sources: Sequence[ReadSource]) -> list[ReadResult]:
        """Read inputs here."""
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
