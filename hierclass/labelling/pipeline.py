"""Label many images, or compute their features: read them ahead of the network, run dense batches, keep the order."""

from __future__ import annotations

import functools
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, cast

import numpy as np
from numpy.typing import NDArray

from hierclass.decisions.cascade import Cascade, Done, FeatureCascade, ParallelCascade
from hierclass.decisions.exit_policy import Answers, ExitPolicy, Request
from hierclass.images.discovery import PassedOver
from hierclass.labelling.inputs import Input, Shard, Stamp, list_inputs
from hierclass.labelling.read_ahead import NumberedInput, read_ahead
from hierclass.labelling.read_input import ReadOptions, ReadResult
from hierclass.labelling.rows import (
    ClassNames,
    FeatureOutcome,
    Outcome,
    ReadInputs,
    Row,
    feature_schema,
    schema,
)

if TYPE_CHECKING:
    import pyarrow as pa

    from hierclass.classifier import Classifier

_HELD_BATCHES = 16
"""Finished images wait for earlier ones that are held back, up to N batches per thread; then those that are held back
are finished in batches that are not full."""


class LabelPipeline:
    """Labels inputs with one classifier as one request asks; the CLI, Python, Ray and the page all use it.

    `policy` says when the answer to an image is final, `num_tiers` how many tiers the table of the answers has.
    """

    cascade: ClassVar[type[Cascade]] = Cascade

    def __init__(self, classifier: Classifier, request: Request, reading: ReadOptions | None = None) -> None:
        """Check a request against the model of a classifier; nothing is read yet.

        Raises:
            LevelError: the model has no such level.
            InputError: a class, a tier or thresholds that the request needs do not exist.
        """
        self.num_tiers = count_tiers(request, classifier)
        self.policy = ExitPolicy(request, classifier.taxonomy, classifier.decision)
        self._classifier, self._reading = classifier, reading or ReadOptions()

    def list_inputs(
        self,
        names: Iterable[str | os.PathLike[str]],
        shard: Shard | None = None,
        passed_over: PassedOver | None = None,
    ) -> Iterable[NumberedInput]:
        """Return the inputs that `names` lead to, numbered from 0; with a shard, a list of its part of them.

        Other files are counted in `passed_over`.

        Raises as `hierclass.labelling.inputs.list_inputs`, mostly at the end of the inputs.
        """
        reading = self._reading
        inputs = enumerate(
            list_inputs(
                names, image_column=reading.image_column, ignore=reading.ignore, passed_over=passed_over
            )
        )
        return inputs if shard is None else shard.of_all(inputs)

    def run(self, inputs: Iterable[NumberedInput]) -> Iterator[ReadInputs]:
        """Yield the outcome of every input once, in order; the numbers of the inputs rise.

        An image that cannot be read, or on which the network fails, has an error; the others of its batch are
        answered. Memory does not grow with the number of inputs.
        """
        size = self._reading.batch_size
        window = _OutcomeWindow()
        preprocessing = self._classifier.preprocessing_for(self.policy.last)
        batch: list[tuple[int, NDArray[np.uint8]]] = []
        with ParallelCascade(self._classifier, self.policy, size, self.cascade) as cascade:

            def push() -> None:
                if batch:
                    numbers, pixels = zip(*batch, strict=True)
                    batch.clear()
                    window.close(cascade.push(np.stack(pixels), np.array(numbers)))

            for number, item, read in read_ahead(inputs, preprocessing, self._reading):
                window.add(number, item, read)
                if not isinstance(read.pixels, str):
                    batch.append((number, read.pixels))
                if len(batch) == size:
                    push()
                if window.num_held >= _HELD_BATCHES * len(cascade) * size:
                    push()
                    window.close(cascade.finish())
                if window.num_ready >= size:
                    yield self._outcome(window.take())
            push()
            window.close(cascade.finish())
        if window.num_ready:
            yield self._outcome(window.take())

    def rows(self, outcome: ReadInputs) -> list[Row]:
        """Return an outcome as rows for Python."""
        return cast(Outcome, outcome).rows(self._classifier.taxonomy)

    def table(self, outcome: ReadInputs) -> pa.Table:
        """Return an outcome as an Arrow table of `num_tiers` tiers, with the columns of a part of a run."""
        return cast(Outcome, outcome).table(self._names)

    def schema(self, *, own: bool = False) -> pa.Schema:
        """Return the Arrow schema of the table; with `own`, of a part of a run."""
        return schema(self.num_tiers, own=own)

    def _outcome(self, places: Sequence[_PendingInput]) -> ReadInputs:
        none = Answers.none(1, self._classifier.taxonomy.num_tiers)
        answers = Answers.gather([place.answer or (none, 0) for place in places])
        previews = np.array([place.preview for place in places], dtype=np.bool_)
        return Outcome(**_read_inputs(places), answers=answers, previews=previews)

    @functools.cached_property
    def _names(self) -> ClassNames:
        return ClassNames(self._classifier.taxonomy, self.num_tiers)


class FeaturePipeline(LabelPipeline):
    """Computes the features of one level of inputs, as `LabelPipeline` labels them."""

    cascade = FeatureCascade

    def table(self, outcome: ReadInputs) -> pa.Table:
        """Return an outcome as an Arrow table with the columns of a part of a run."""
        return cast(FeatureOutcome, outcome).table()

    def schema(self, *, own: bool = False) -> pa.Schema:
        """Return the Arrow schema of the table; with `own`, of a part of a run."""
        return feature_schema(self._num_features, own=own)

    def _outcome(self, places: Sequence[_PendingInput]) -> ReadInputs:
        features = np.zeros((len(places), self._num_features), np.float32)
        for row, place in enumerate(places):
            if place.answer is not None:
                values, at = place.answer
                features[row] = values[at]
        return FeatureOutcome(**_read_inputs(places), features=features)

    @functools.cached_property
    def _num_features(self) -> int:
        return self._classifier.num_features(self.policy.last)


def _read_inputs(places: Sequence[_PendingInput]) -> dict[str, Any]:
    """The fields of `ReadInputs`."""
    return {
        "numbers": np.array([place.number for place in places], dtype=np.int64),
        "inputs": [place.item for place in places],
        "errors": [place.error for place in places],
        "stamps": [place.stamp for place in places],
    }


def count_tiers(request: Request, classifier: Classifier) -> int:
    """Return how many tiers the table of a request has.

    Raises:
        LevelError: the model has no such level.
    """
    if request.level == "auto":
        return classifier.taxonomy.num_tiers
    return classifier.check_level(request.level) + 1


@dataclass(slots=True)
class _PendingInput:
    """An input that was read and is not given out yet."""

    number: int
    item: Input
    stamp: Stamp | None
    preview: bool
    answer: tuple[Any, int] | None = None
    """Answers or features of a batch, and the row of this input in them."""
    error: str | None = None


class _OutcomeWindow:
    """Puts answers, which come in any order, back into the order of the inputs."""

    def __init__(self) -> None:
        """Begin empty."""
        self._held: deque[_PendingInput] = deque()
        self._ready: list[_PendingInput] = []
        self._climbing: dict[int, _PendingInput] = {}

    @property
    def num_ready(self) -> int:
        """Number of inputs that can be given out: they and all before them are finished."""
        return len(self._ready)

    @property
    def num_held(self) -> int:
        """Number of inputs from the first unfinished one on."""
        return len(self._held)

    def add(self, number: int, item: Input, read: ReadResult) -> None:
        """Take in the next input that was read."""
        place = _PendingInput(number, item, read.stamp, read.preview)
        if isinstance(read.pixels, str):
            place.error = read.pixels
        else:
            self._climbing[number] = place
        self._held.append(place)
        self._move()

    def close(self, done: Iterable[Done]) -> None:
        """Take in answers or errors of the cascade."""
        for tags, answers in done:
            for row, number in enumerate(tags.tolist()):
                place = self._climbing.pop(number)
                if isinstance(answers, str):
                    place.error = answers
                else:
                    place.answer = answers, row
        self._move()

    def take(self) -> list[_PendingInput]:
        """Give out all inputs that are ready."""
        places, self._ready = self._ready, []
        return places

    def _move(self) -> None:
        while self._held and (self._held[0].answer is not None or self._held[0].error is not None):
            self._ready.append(self._held.popleft())
