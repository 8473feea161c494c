"""Label many images: one row for each input, in order, whatever is wrong with an input.

Threads read and decode (Pillow releases Python's lock), the caller's thread runs the network on dense
batches. What is in flight is bounded, so that memory does not grow with the number of inputs.
"""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from hierclass.errors import ImageError, InputError
from hierclass.images import read_input
from hierclass.tables import Row

if TYPE_CHECKING:
    from hierclass.checkpoint import Preprocessing
    from hierclass.classifier import Classifier
    from hierclass.decisions import Step

_log = logging.getLogger(__name__)

# An input that was read: its path, and the network's input (3, S, S) or the reason why there is none.
_Item: TypeAlias = "tuple[str, NDArray[np.float32] | str]"


def label_rows(
    classifier: Classifier,
    paths: Iterable[str],
    *,
    level: int | None = None,
    batch_size: int = 64,
    workers: int | None = None,
) -> Iterator[Row]:
    """Yield exactly one row per path, in the order of `paths`.

    `level` is the level that answers (None: the finest), `batch_size` the number of images per call of the
    network, `workers` the number of threads that decode (None: one per core). An image that cannot be read,
    or on which the network fails, gives a row with an error; the others of its batch are not touched.

    Raises LevelError and InputError at the call, before anything is read.
    """
    classifier.check_level(level)
    if batch_size < 1 or (workers is not None and workers < 1):
        raise InputError("the batch size and the number of workers must be at least 1")
    return _rows(classifier, paths, level, batch_size, workers or num_cores())


def num_cores() -> int:
    """Return how many processor cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _rows(
    classifier: Classifier, paths: Iterable[str], level: int | None, batch_size: int, workers: int
) -> Iterator[Row]:
    waiting: list[_Item] = []
    num_ready = 0
    for item in _read_ahead(paths, classifier.preprocessing, workers, ahead=2 * batch_size + workers):
        waiting.append(item)
        num_ready += not isinstance(item[1], str)
        # Rows come in order, so broken inputs wait for the batch; a long run of them must not grow without
        # bound.
        if num_ready == batch_size or len(waiting) >= 4 * batch_size:
            yield from _label(classifier, waiting, level)
            waiting, num_ready = [], 0
    yield from _label(classifier, waiting, level)


def _read_ahead(
    paths: Iterable[str], preprocessing: Preprocessing, workers: int, *, ahead: int
) -> Iterator[_Item]:
    """Read the paths in threads, yield the results in order, and keep at most `ahead` of them in memory."""
    executor = ThreadPoolExecutor(workers, thread_name_prefix="hierclass-read")
    pending: deque[tuple[str, Future[NDArray[np.float32] | str]]] = deque()
    try:
        for path in paths:
            pending.append((path, executor.submit(_read, path, preprocessing)))
            if len(pending) >= ahead:
                first, future = pending.popleft()
                yield first, future.result()
        while pending:
            first, future = pending.popleft()
            yield first, future.result()
    finally:
        executor.shutdown(wait=False, cancel_futures=True)


def _read(path: str, preprocessing: Preprocessing) -> NDArray[np.float32] | str:
    try:
        return read_input(path, preprocessing)
    except ImageError as error:
        return str(error)
    except Exception as error:
        _log.debug("reading %r failed", path, exc_info=True)
        return _unexpected(error)


def _label(classifier: Classifier, items: list[_Item], level: int | None) -> Iterator[Row]:
    tensors = [tensor for _, tensor in items if not isinstance(tensor, str)]
    answers = iter(_predict(classifier, tensors, level))
    for path, tensor in items:
        answer = tensor if isinstance(tensor, str) else next(answers)
        yield Row(path, error=answer) if isinstance(answer, str) else Row(path, answer)


def _predict(
    classifier: Classifier, tensors: list[NDArray[np.float32]], level: int | None
) -> list[tuple[Step, ...] | str]:
    """Return the path or the error of every tensor; a batch that fails is halved, down to one image."""
    if not tensors:
        return []
    try:
        return [prediction.path for prediction in classifier.predict_tensors(np.stack(tensors), level)]
    except Exception as error:
        _log.debug("a batch of %d failed", len(tensors), exc_info=True)
        if len(tensors) == 1:
            return [_unexpected(error)]
    half = len(tensors) // 2
    return _predict(classifier, tensors[:half], level) + _predict(classifier, tensors[half:], level)


def _unexpected(error: Exception) -> str:
    if isinstance(error, MemoryError):
        return "needs more memory than there is"
    return f"failed unexpectedly ({type(error).__name__}: {' '.join(str(error).split())[:160]})"
