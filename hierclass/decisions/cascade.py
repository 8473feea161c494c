"""The cascade: every image is answered at the lowest level that is enough, in full batches.

A `Cascade` runs in the caller's thread, a `ParallelCascade` in several threads. In place of answers a `FeatureCascade`
gives the features of one level, a `PredictionCascade` predictions.
"""

from __future__ import annotations

import itertools
import logging
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from hierclass.decisions.exit_policy import Answers, ExitPolicy
from hierclass.decisions.named_classes import Flags
from hierclass.decisions.prediction import Prediction, Scores, combine_levels
from hierclass.errors import unexpected
from hierclass.runtime.interface import Batch, BatchState, Runtime

if TYPE_CHECKING:
    from hierclass.classifier import Classifier

_log = logging.getLogger(__name__)

Tags: TypeAlias = NDArray[np.int64]
"""Numbers (N,) by which the caller knows N images."""
Done: TypeAlias = "tuple[Tags, Answers | list[Prediction] | NDArray[np.float32] | str]"
"""Tags of N finished images, and their answers, predictions or features (N, F), or the error that all of them met."""
MOST = 4
"""Cascades that run at once, at most: each holds a batch in memory."""
Logits: TypeAlias = "list[NDArray[np.floating[Any]] | None]"


@dataclass(slots=True)
class _LevelBatch:
    """N images at one level: their state, tags, and per level the logits (N, C), None if they are not needed."""

    state: BatchState
    tags: Tags
    logits: Logits

    def __len__(self) -> int:
        return len(self.tags)


class Cascade:
    """Answers images in batches of `batch_size`, each image at the lowest level that the exit policy accepts."""

    def __init__(
        self,
        classifier: Classifier,
        policy: ExitPolicy,
        batch_size: int,
        runtime: Runtime | None = None,
    ) -> None:
        """Use a classifier and an exit policy; `runtime` is the classifier's (None), or a part of it for a thread."""
        self._classifier, self._policy, self._batch_size = classifier, policy, batch_size
        self._runtime = runtime or classifier.runtime
        self.keeps = policy.first == policy.last or self._runtime.keeps_rows
        """Whether images that change their batch keep what was computed of them."""
        self._waiting: list[list[_LevelBatch]] = [[] for _ in range(policy.last)]
        self.computed = [0] * (policy.last + 1)
        """Per level, the number of images that were judged at it: lets tests check that levels are skipped."""

    def push(self, images: NDArray[np.uint8], tags: Tags) -> list[Done]:
        """Take in images (B, S, S, 3) of `hierclass.images.preprocessing.square`; return those finished now.

        Fewer than `batch_size` images of each level but the last are held back until their batch is full.
        """
        state = self._runtime.start(images)
        done = list(self._run(_LevelBatch(state, tags, []), self._policy.first))
        for level in reversed(range(self._policy.last)):
            while sum(map(len, self._waiting[level])) >= self._batch_size:
                done += self._go_on(level)
        return done

    def finish(self) -> list[Done]:
        """Finish all images that were held back and return their answers."""
        done: list[Done] = []
        for level in range(self._policy.last):
            while self._waiting[level]:
                done += self._go_on(level)
        return done

    def _go_on(self, level: int) -> Iterator[Done]:
        """Run the next level on at most one batch of the images that wait after `level`."""
        groups, taken, count = self._waiting[level], list[tuple[_LevelBatch, int]](), 0
        while groups and count < self._batch_size:
            group = groups.pop(0)
            some = min(len(group), self._batch_size - count)
            if some < len(group):
                groups.insert(0, self._part(group, range(some, len(group))))
            taken.append((group, some))
            count += some
        yield from self._run(self._join([(group, range(some)) for group, some in taken]), level + 1)

    def _run(self, group: _LevelBatch, level: int) -> Iterator[Done]:
        """Compute a level; yield the images that are finished, let the others wait."""
        images = group.state.images
        try:
            logits = self._logits(group, level)
        except Exception as error:  # whatever a network raises: not enough memory, most often
            _log.debug("a batch of %d failed at level %d", len(group), level, exc_info=True)
            yield from self._run_halves(images, group, level, error)
            return
        self.computed[level] += len(group)
        weight, temperatures = self._classifier.lower_weight, self._classifier.temperatures
        tiers = combine_levels(logits, self._classifier.taxonomy, weight, temperatures)
        enough, answers = self._policy.judge(tiers)
        if enough.any():
            yield group.tags[enough], self._finished(tiers, answers, enough)
        if not enough.all():
            rows = np.flatnonzero(~enough).tolist()
            self._waiting[level].append(self._part(_LevelBatch(group.state, group.tags, logits), rows))

    def _finished(self, tiers: list[Scores], answers: Answers, enough: Flags) -> Answers | list[Prediction]:
        """What is given out for those of the `answers` to scores `tiers` that are `enough`."""
        return answers.take(enough)

    def _logits(self, group: _LevelBatch, level: int) -> Logits:
        """The logits of levels 0 … `level`; None for lower levels that do not count in the answer."""
        runtime, state = self._runtime, group.state
        if self._classifier.lower_weight:
            missing = range(len(group.logits), level + 1)
            return [*group.logits, *(runtime.refine(state, each) for each in missing)]
        alone = level == self._policy.last and state.level == -1
        return [*[None] * level, runtime.run(state.images, level) if alone else runtime.refine(state, level)]

    def _run_halves(self, images: Batch, group: _LevelBatch, level: int, error: Exception) -> Iterator[Done]:
        """Compute a level again from the image with half as many images at a time, down to one."""
        if len(group) == 1:
            yield group.tags, unexpected(error)
            return
        half = len(group) // 2
        for rows in (range(half), range(half, len(group))):
            logits = [None if values is None else values[list(rows)] for values in group.logits]
            state = BatchState(self._runtime.take(images, rows))
            yield from self._run(_LevelBatch(state, group.tags[list(rows)], logits), level)

    def _part(self, group: _LevelBatch, rows: Sequence[int]) -> _LevelBatch:
        return self._join([(group, rows)])

    def _join(self, parts: Sequence[tuple[_LevelBatch, Sequence[int]]]) -> _LevelBatch:
        """Make one batch of the chosen rows of several batches at the same level."""
        if len(parts) == 1 and len(parts[0][1]) == len(parts[0][0]):
            return parts[0][0]
        state = self._runtime.join_states(
            [self._runtime.take_state(group.state, rows) for group, rows in parts]
        )
        if not self.keeps:
            state = state.restarted()
        tags = np.concatenate([group.tags[list(rows)] for group, rows in parts])
        num_levels = len(parts[0][0].logits)
        return _LevelBatch(state, tags, [_joined_logits(parts, level) for level in range(num_levels)])


class FeatureCascade(Cascade):
    """Computes the features of the last level of the exit policy, in batches as they come."""

    def _run(self, group: _LevelBatch, level: int) -> Iterator[Done]:
        images = group.state.images
        try:
            features = self._runtime.run(images, level, "features")
        except Exception as error:
            _log.debug("features of a batch of %d failed", len(group), exc_info=True)
            yield from self._run_halves(images, group, level, error)
            return
        yield group.tags, features


class PredictionCascade(Cascade):
    """Gives predictions in place of answers; an error of the network is raised."""

    def predict(self, batches: Iterable[NDArray[np.uint8]]) -> list[Prediction]:
        """Return the predictions for batches of images as `push` takes them, in order."""
        done, count = list[Done](), 0
        for images in batches:
            done += self.push(images, np.arange(count, count + len(images)))
            count += len(images)
        found: dict[int, Prediction] = {}
        for tags, predictions in done + self.finish():
            found |= zip(tags.tolist(), cast("list[Prediction]", predictions), strict=True)
        return [found[number] for number in range(count)]

    def _finished(self, tiers: list[Scores], answers: Answers, enough: Flags) -> list[Prediction]:
        return self._policy.predictions([scores[enough] for scores in tiers], answers.take(enough))

    def _run_halves(self, images: Batch, group: _LevelBatch, level: int, error: Exception) -> Iterator[Done]:
        raise error


class ParallelCascade:
    """Several cascades, each in a thread with a share of the processor's cores; batches go to them in turn.

    Threads that compute batches of their own never wait for each other, as the threads of one layer do. Which images
    share a batch does not depend on speed, so answers can be repeated. On a GPU there is one cascade, in the caller's
    thread.
    """

    def __init__(
        self, classifier: Classifier, policy: ExitPolicy, batch_size: int, kind: type[Cascade] = Cascade
    ) -> None:
        """Start one thread per core that the runtime may use, at most `MOST`."""
        runtime = classifier.runtime
        size = min(MOST, runtime.threads)
        part = runtime.divided(size)
        self._cascades = [kind(classifier, policy, batch_size, part) for _ in range(size)]
        self._threads = [
            ThreadPoolExecutor(1, thread_name_prefix="hierclass-cascade")
            for _ in range(size if size > 1 else 0)
        ]
        for thread in self._threads:
            thread.submit(part.enter_thread).result()
        runtime.enter_thread()  # for this thread, and those that others start
        self._turn = itertools.cycle(range(size))
        self._running: deque[Future[list[Done]]] = deque()

    def __len__(self) -> int:
        return len(self._cascades)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for thread in self._threads:
            thread.shutdown(wait=False, cancel_futures=True)

    def push(self, images: NDArray[np.uint8], tags: Tags) -> list[Done]:
        """Take in images as `Cascade.push` does; wait while more batches than threads + 1 are under way."""
        if not self._threads:
            return self._cascades[0].push(images, tags)
        turn = next(self._turn)
        self._running.append(self._threads[turn].submit(self._cascades[turn].push, images, tags))
        return self._wait_for_all_but(len(self) + 1)

    def finish(self) -> list[Done]:
        """Finish all images and return their answers."""
        if not self._threads:
            return self._cascades[0].finish()
        for thread, cascade in zip(self._threads, self._cascades, strict=True):
            self._running.append(thread.submit(cascade.finish))
        return self._wait_for_all_but(0)

    def _wait_for_all_but(self, count: int) -> list[Done]:
        """Wait for the oldest batches until only `count` are under way; return what they finished.

        Newer batches are left even if they are finished, so that results do not depend on speed.
        """
        done: list[Done] = []
        while len(self._running) > count:
            done += self._running.popleft().result()
        return done


def _joined_logits(
    parts: Sequence[tuple[_LevelBatch, Sequence[int]]], level: int
) -> NDArray[np.floating[Any]] | None:
    """The logits of one level of the chosen rows of several batches; None if they are not needed."""
    found = [(group.logits[level], list(rows)) for group, rows in parts]
    chosen = [values[rows] for values, rows in found if values is not None]
    return np.concatenate(chosen) if chosen else None
