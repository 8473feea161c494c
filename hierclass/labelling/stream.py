"""Label many images: one outcome for each input, in order, whatever is wrong with an input.

Threads read and decode (Pillow releases Python's lock), the caller's thread runs the network on dense
batches. What is in flight is bounded, so that memory does not grow with the number of inputs.
"""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from hierclass.climbing import Climber, Done, unexpected
from hierclass.errors import ImageError, InputError
from hierclass.images import read_preview, read_square, resize_side, square
from hierclass.labelling.inputs import Input, Opener, Stamp, stamp
from hierclass.labelling.rows import Outcome
from hierclass.stopping import Answers, Stopping

if TYPE_CHECKING:
    from hierclass.checkpoint import Preprocessing
    from hierclass.classifier import Classifier

_log = logging.getLogger(__name__)

Numbered: TypeAlias = "tuple[int, Input]"
_HELD_BATCHES = 16
"""Finished images wait for one before them that still climbs, up to so many batches; then that one goes on alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """How images are read."""

    batch_size: int = 64
    """Images per call of the network."""
    workers: int | None = None
    """Threads that read and decode; None: one per core."""
    image_column: str | None = None
    """Of Parquet files; None: the first that holds images."""
    previews: bool = False
    """Read the small image inside of a JPEG instead of itself, where that is as good."""

    def __post_init__(self) -> None:
        if self.batch_size < 1 or (self.workers is not None and self.workers < 1):
            raise InputError("the batch size and the number of workers must be at least 1")


class _Read(NamedTuple):
    """An input that was read: what the network sees (S, S, 3), or the reason why there is nothing."""

    pixels: NDArray[np.uint8] | str
    stamp: Stamp | None
    preview: bool = False


def num_cores() -> int:
    """Return how many processor cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def outcomes(
    classifier: Classifier, stopping: Stopping, inputs: Iterable[Numbered], reading: Reading
) -> Iterator[Outcome]:
    """Yield what became of inputs, each once, in their order; their numbers rise.

    An image that cannot be read, or on which the network fails, has an error; the others of its batch are not
    touched.
    """
    climber = Climber(classifier, stopping, reading.batch_size)
    window = _Window(classifier.taxonomy.num_tiers)
    batch: list[tuple[int, NDArray[np.uint8]]] = []

    def climb() -> None:
        if batch:
            numbers, pixels = zip(*batch, strict=True)
            batch.clear()
            window.close(climber.push(np.stack(pixels), np.array(numbers)))

    for number, item, read in read_ahead(inputs, classifier.preprocessing, reading):
        window.add(number, item, read)
        if not isinstance(read.pixels, str):
            batch.append((number, read.pixels))
        if len(batch) == reading.batch_size:
            climb()
        if window.num_held >= _HELD_BATCHES * reading.batch_size:
            climb()
            window.close(climber.finish())
        if window.num_ready >= reading.batch_size:
            yield window.take()
    climb()
    window.close(climber.finish())
    if window.num_ready:
        yield window.take()


@dataclass(slots=True)
class _Place:
    """An input on its way through."""

    number: int
    item: Input
    stamp: Stamp | None
    preview: bool
    answer: tuple[Answers, int] | None = None
    """Answers, and which of their rows is its own."""
    error: str | None = None


class _Window:
    """The inputs that are read and not yet given out, in their order."""

    def __init__(self, num_tiers: int) -> None:
        """Begin empty; the model answers so many tiers."""
        self._none = Answers.none(1, num_tiers)
        self._held: deque[_Place] = deque()
        self._ready: list[_Place] = []
        self._climbing: dict[int, _Place] = {}

    @property
    def num_ready(self) -> int:
        """Inputs that can be given out: all before them are finished."""
        return len(self._ready)

    @property
    def num_held(self) -> int:
        """Inputs from the first one on that still climbs."""
        return len(self._held)

    def add(self, number: int, item: Input, read: _Read) -> None:
        """Take in the next input."""
        place = _Place(number, item, read.stamp, read.preview)
        if isinstance(read.pixels, str):
            place.error = read.pixels
        else:
            self._climbing[number] = place
        self._held.append(place)
        self._move()

    def close(self, done: Iterable[Done]) -> None:
        """Take in answers."""
        for tags, answers in done:
            for row, number in enumerate(tags.tolist()):
                place = self._climbing.pop(number)
                if isinstance(answers, str):
                    place.error = answers
                else:
                    place.answer = answers, row
        self._move()

    def take(self) -> Outcome:
        """Give out what is ready."""
        places, self._ready = self._ready, []
        return Outcome(
            numbers=np.array([place.number for place in places], dtype=np.int64),
            inputs=[place.item for place in places],
            answers=Answers.gather([place.answer or (self._none, 0) for place in places]),
            errors=[place.error for place in places],
            previews=np.array([place.preview for place in places], dtype=np.bool_),
            stamps=[place.stamp for place in places],
        )

    def _move(self) -> None:
        while self._held and (self._held[0].answer is not None or self._held[0].error is not None):
            self._ready.append(self._held.popleft())


def read_ahead(
    inputs: Iterable[Numbered], preprocessing: Preprocessing, reading: Reading
) -> Iterator[tuple[int, Input, _Read]]:
    """Read inputs in threads, yield the results in order, and keep a bounded number of them in memory."""
    workers = reading.workers or num_cores()
    ahead = 2 * reading.batch_size + workers
    executor = ThreadPoolExecutor(workers, thread_name_prefix="hierclass-read")
    opener = Opener(reading.image_column)
    pending: deque[tuple[int, Input, Future[_Read]]] = deque()
    try:
        for number, item in inputs:
            try:
                source: str | bytes | ImageError = opener.source(item)
            except ImageError as error:
                source = error
            future = executor.submit(_read, item, source, preprocessing, previews=reading.previews)
            pending.append((number, item, future))
            if len(pending) >= ahead:
                first, earlier, read = pending.popleft()
                yield first, earlier, read.result()
        while pending:
            first, earlier, read = pending.popleft()
            yield first, earlier, read.result()
    finally:
        executor.shutdown(wait=False, cancel_futures=True)


def _read(
    item: Input, source: str | bytes | ImageError, preprocessing: Preprocessing, *, previews: bool
) -> _Read:
    before = stamp(item.path)
    try:
        if isinstance(source, ImageError):
            raise source
        if previews and (preview := read_preview(source, resize_side(preprocessing))) is not None:
            return _Read(square(preview, preprocessing), before, preview=True)
        return _Read(read_square(source, preprocessing), before)
    except ImageError as error:
        return _Read(str(error), before)
    except Exception as error:
        _log.debug("reading %r failed", item, exc_info=True)
        return _Read(unexpected(error), before)
