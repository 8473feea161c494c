"""Label many images: one outcome for each input, in order, whatever is wrong with an input.

`readers` read and decode ahead, a `Crew` of climbers runs the network on dense batches. What is in flight is bounded,
so that memory does not grow with the number of inputs.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from hierclass.decisions.cascade import Crew, Done
from hierclass.decisions.exit_policy import Answers, Stopping
from hierclass.labelling.inputs import Input, Stamp
from hierclass.labelling.read_ahead import Numbered, read_ahead
from hierclass.labelling.read_input import Read, Reading
from hierclass.labelling.rows import Outcome

if TYPE_CHECKING:
    from hierclass.classifier import Classifier

_HELD_BATCHES = 16
"""Finished images wait for one before them that still climbs, up to so many batches per climber; then that one goes on
in a batch that is not full."""


def outcomes(
    classifier: Classifier, stopping: Stopping, inputs: Iterable[Numbered], reading: Reading
) -> Iterator[Outcome]:
    """Yield what became of inputs, each once, in their order; their numbers rise.

    An image that cannot be read, or on which the network fails, has an error; the others of its batch are not
    touched.
    """
    window = _Window(classifier.taxonomy.num_tiers)
    batch: list[tuple[int, NDArray[np.uint8]]] = []
    with Crew(classifier, stopping, reading.batch_size) as crew:

        def climb() -> None:
            if batch:
                numbers, pixels = zip(*batch, strict=True)
                batch.clear()
                window.close(crew.push(np.stack(pixels), np.array(numbers)))

        for number, item, read in read_ahead(inputs, classifier.preprocessing_for(stopping.last), reading):
            window.add(number, item, read)
            if not isinstance(read.pixels, str):
                batch.append((number, read.pixels))
            if len(batch) == reading.batch_size:
                climb()
            if window.num_held >= _HELD_BATCHES * len(crew) * reading.batch_size:
                climb()
                window.close(crew.finish())
            if window.num_ready >= reading.batch_size:
                yield window.take()
        climb()
        window.close(crew.finish())
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

    def add(self, number: int, item: Input, read: Read) -> None:
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
