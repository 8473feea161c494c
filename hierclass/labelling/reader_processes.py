"""Processes that read inputs within limits: they cost no more than the image that is slow, crashes or wants memory.

They do not compete for Python's lock either. `hierclass.labelling.reader_child` is what runs in them.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import pickle
import queue
import threading
from collections.abc import Iterator, Sequence
from typing import Any, Protocol, Self

import numpy as np

from hierclass.errors import ImageError
from hierclass.labelling import reader_pipes
from hierclass.labelling.inputs import Stamp
from hierclass.labelling.read_input import Pixels, ReadResult
from hierclass.labelling.reader_pipes import BEGINS, ERROR, MAX_ERROR, PIXELS, READY, WAITS, ReaderPipes
from hierclass.processors import num_cores

_log = logging.getLogger(__name__)

START_SECONDS = 60.0
"""Seconds that a process may take to start, on a busy machine; it usually takes 0.2."""
_NUM_STARTS = 3
"""A process that could not be started so often is not started again."""
_very_large = threading.Lock()
"""Very large pictures are decoded one at a time, so that memory is bounded by one of them."""


class Reader(Protocol):
    """Reads one kind of sources; can be sent to another process."""

    @property
    def advice(self) -> str:
        """What is added to the error of a source that takes too long."""
        ...

    def read(self, source: Any) -> ReadResult:
        """Read a source."""
        ...

    def stamp(self, source: Any) -> Stamp | None:
        """Return the stamp of its file, which the result has as well; None if there is none."""
        ...

    def fits(self, height: int, width: int) -> bool:
        """Return whether pixels of this size may be the result."""
        ...


class ReaderPool:
    """Processes that read inputs. Each starts when it has something to read, then waits for more."""

    def __init__(self, workers: int | None = None) -> None:
        """Start nothing yet; None: a process per core."""
        self.workers = workers or num_cores()
        self._processes = [ReaderProcess() for _ in range(self.workers)]
        self._free: queue.LifoQueue[ReaderProcess] = queue.LifoQueue()  # one that has started before others
        for process in self._processes:
            self._free.put(process)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def read(self, reader: Reader, sources: Sequence[Any], seconds: float) -> list[ReadResult]:
        """Read sources in one process, at most `seconds` each; wait until a process is free. [] after `close`."""
        process = self._free.get()
        try:
            return process.read(reader, sources, seconds)
        finally:
            self._free.put(process)

    def pixels(self, reader: Reader, source: Any, seconds: float) -> Pixels:
        """Read one source.

        Raises:
            ImageError: it can't be read, within the limits or at all.
        """
        found = self.read(reader, [source], seconds)
        pixels = found[0].pixels if found else "was not read: the program ends"
        if isinstance(pixels, str):
            raise ImageError(pixels)
        return pixels

    def close(self) -> None:
        """Kill the processes."""
        for process in self._processes:
            process.close()


class ReaderProcess:
    """A child process that reads; it ends when this process ends."""

    def __init__(self) -> None:
        """Start nothing yet."""
        self._pipes: ReaderPipes | None = None
        self._failures = 0
        self._begun: Stamp | None = None
        self._lock = threading.Lock()
        self._using = threading.Lock()
        self._closed = False

    def read(self, reader: Reader, sources: Sequence[Any], seconds: float) -> list[ReadResult]:
        """Read sources; one that takes longer than `seconds`, or ends the process twice, gets an error.

        Read here, without limits, if no process can be started; but never what was being read when one ended.
        """
        found: list[ReadResult] = []
        again = False  # whether a process has ended on the next source, maybe for reasons of its own
        with self._using:
            while len(found) < len(sources) and not self._closed:
                if not again and not self._ready():
                    return found + [reader.read(source) for source in sources[len(found) :]]
                self._begun = None
                try:
                    for result in self._ask(reader, sources[len(found) :], seconds):
                        found.append(result)
                        again, self._begun = False, None
                except TimeoutError:
                    self._stop()
                    late = f"takes longer than {seconds:g} s to read{reader.advice}"
                    found.append(ReadResult(late, self._begun))
                    again = False
                except (OSError, EOFError):
                    self._stop()
                    again = not again and self._ready()
                    if not again:
                        found.append(ReadResult(_CRASHES, self._begun))
            if self._closed:
                self._stop()
                return []
        return found

    def close(self) -> None:
        """Give the process up: it is kept for others if it has nothing to do, or killed."""
        with self._lock:
            self._closed = True
            if self._pipes is not None and self._using.locked():
                self._pipes.process.kill()
        if self._using.acquire(timeout=1):
            with self._lock:
                pipes, self._pipes = self._pipes, None
            if pipes is not None:
                reader_pipes.put_back(pipes)
            self._using.release()

    def _ready(self) -> bool:
        """Return whether the process runs, after starting it where it does not."""
        with self._lock:
            if self._pipes is None and not self._closed and self._failures < _NUM_STARTS:
                try:
                    self._pipes = reader_pipes.take()
                except OSError as error:
                    self._failed(error)
            pipes = self._pipes
        if pipes is None or pipes.ready:
            return pipes is not None
        try:
            pipes.begin(START_SECONDS)
            pipes.ready = pipes.head().kind == READY
        except (OSError, EOFError) as error:
            if not self._closed:
                self._failed(error)
        if not pipes.ready:
            self._stop()
        return pipes.ready

    def _failed(self, error: Exception) -> None:
        self._failures += 1
        if self._failures == 1:
            _log.warning(
                "no process can be started to read images in, so that nothing ends a slow one: %s", error
            )

    def _ask(self, reader: Reader, sources: Sequence[Any], seconds: float) -> Iterator[ReadResult]:
        """Yield results as they come. Raises TimeoutError, or OSError and EOFError where the process ended."""
        pipes = self._pipes
        assert pipes is not None
        pipes.begin(seconds)
        pickle.dump((_working_folder(), reader, sources, seconds), pipes, pickle.HIGHEST_PROTOCOL)
        for _ in sources:
            yield self._answer(pipes, reader, seconds)
        pipes.rest()

    def _answer(self, pipes: ReaderPipes, reader: Reader, seconds: float) -> ReadResult:
        pipes.begin(seconds)
        head = pipes.head()
        if head.kind == BEGINS:
            self._begun = _stamp(head)
            head = pipes.head()
        with contextlib.ExitStack() as turn:
            if head.kind == WAITS:
                pipes.rest()
                turn.enter_context(_very_large)
                pipes.begin(seconds)  # waiting for others does not count
            while head.kind == WAITS:
                pipes.write(b"!")
                head = pipes.head()
            if head.kind == ERROR and head.length <= MAX_ERROR:
                text = pipes.read(head.length).decode("utf-8", "replace")
                return ReadResult(" ".join(text.split()) or "can't be read", _stamp(head))
            shape = head.height, head.width, 3
            if head.kind != PIXELS or head.length != math.prod(shape) or not reader.fits(*shape[:2]):
                raise EOFError("a reading process says what none should")
            pixels = np.frombuffer(pipes.read(head.length), np.uint8).reshape(shape)
            return ReadResult(pixels, _stamp(head), head.preview)

    def _stop(self) -> None:
        with self._lock:
            pipes, self._pipes = self._pipes, None
        if pipes is not None:
            pipes.close()


_CRASHES = "ends the process that reads it: a decoder crashes, or memory does not suffice"


def _stamp(head: reader_pipes.Head) -> Stamp | None:
    return None if head.size < 0 else Stamp(head.size, head.modified)


def _working_folder() -> str:
    """Return the folder that relative paths are in, which may change while a process waits; "" if it was deleted."""
    with contextlib.suppress(OSError):
        return os.getcwd()  # noqa: PTH109 - a name, not a path
    return ""
