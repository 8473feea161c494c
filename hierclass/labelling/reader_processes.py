"""Processes that read inputs within limits: they cost no more than the image that is slow, crashes or wants memory.

They do not compete for Python's lock either. `hierclass.labelling.reader_child` is what runs in them.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import pickle
import queue
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any, Protocol, Self

import numpy as np

from hierclass.errors import ImageError
from hierclass.labelling.inputs import Stamp
from hierclass.labelling.read_input import Pixels, ReadResult
from hierclass.labelling.reader_child import BEGINS, ERROR, FRAME, MAX_ERROR, PIXELS, READY, WAITS
from hierclass.processors import num_cores

_log = logging.getLogger(__name__)

START_SECONDS = 60.0
"""Seconds that a process may take to start, on a busy machine; it usually takes 0.2."""
_STEP = 1.0
"""Seconds after which a process that says nothing is looked at."""
_NUM_STARTS = 3
"""A process that could not be started so often is not started again."""
_POLLS = hasattr(select, "poll")
_very_large = threading.Lock()
"""Very large pictures are decoded one at a time, so that memory is bounded by one of them."""


class Reader(Protocol):
    """Reads one kind of sources; can be sent to another process."""

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

    def start(self) -> Self:
        """Start one process now, beside what this program does meanwhile."""
        self._processes[-1].start()
        return self

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
        self._pipes: _Pipes | None = None
        self._failures = 0
        self._begun: Stamp | None = None
        self._lock = threading.Lock()
        self._using = threading.Lock()
        self._closed = False

    def start(self) -> None:
        """Start the process without waiting until it is ready."""
        with self._lock:
            if self._pipes is None and not self._closed and self._failures < _NUM_STARTS:
                try:
                    self._pipes = _Pipes()
                except OSError as error:
                    self._failed(error)

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
                    found.append(ReadResult(f"takes longer than {seconds:g} s to read", self._begun))
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
        """Kill the process; what reads it ends soon."""
        with self._lock:
            self._closed = True
            if self._pipes is not None:
                self._pipes.process.kill()
        if self._using.acquire(timeout=_STEP):
            self._stop()
            self._using.release()

    def _ready(self) -> bool:
        """Return whether the process runs, after starting it where it does not."""
        self.start()
        pipes = self._pipes
        if pipes is None or pipes.ready:
            return pipes is not None
        try:
            pipes.begin(START_SECONDS)
            pipes.ready = pipes.head()[0] == READY
        except (OSError, EOFError) as error:
            if self._closed:
                return False
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
        pickle.dump((reader, sources, seconds), pipes, pickle.HIGHEST_PROTOCOL)
        for _ in sources:
            yield self._answer(pipes, reader, seconds)

    def _answer(self, pipes: _Pipes, reader: Reader, seconds: float) -> ReadResult:
        pipes.begin(seconds)
        kind, preview, stamp, height, width, length = pipes.head()
        if kind == BEGINS:
            self._begun = stamp
            kind, preview, stamp, height, width, length = pipes.head()
        with contextlib.ExitStack() as turn:
            if kind == WAITS:
                turn.enter_context(_very_large)
                pipes.begin(seconds)  # waiting for others does not count
            while kind == WAITS:
                pipes.write(b"!")
                kind, preview, stamp, height, width, length = pipes.head()
            if kind == ERROR and length <= MAX_ERROR:
                text = pipes.read(length).decode("utf-8", "replace")
                return ReadResult(" ".join(text.split()) or "can't be read", stamp)
            if kind != PIXELS or length != 3 * height * width or not reader.fits(height, width):
                raise EOFError("a reading process says what none should")
            pixels = np.frombuffer(pipes.read(length), np.uint8).reshape(height, width, 3)
            return ReadResult(pixels, stamp, preview)

    def _stop(self) -> None:
        with self._lock:
            pipes, self._pipes = self._pipes, None
        if pipes is not None:
            pipes.close()


_CRASHES = "ends the process that reads it: a decoder crashes, or memory does not suffice"


class _Pipes:
    """A process and the pipes to it. Neither reading nor writing waits longer than the time that was begun."""

    def __init__(self) -> None:
        """Start the process. Raises OSError if that is not possible."""
        posix: dict[str, Any] = {"process_group": 0} if os.name == "posix" else {}
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, json.dumps(sys.path)],
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, **_ENVIRONMENT},
            **posix,
        )
        self.ready = False
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self._files = self.process.stdin, self.process.stdout
        self._to, self._from = (file.fileno() for file in self._files)
        self._left = 0.0
        self._timer: threading.Timer | None = None
        if _POLLS:
            for each in (self._to, self._from):
                os.set_blocking(each, False)

    def begin(self, seconds: float) -> None:
        """Allow so much time from now on; time in which this program itself is stopped does not count."""
        self._left = seconds
        if not _POLLS:  # Windows: a pipe can't be waited for, but ending the process ends the waiting
            self._cancel()
            self._timer = threading.Timer(seconds, self._expire)
            self._timer.daemon = True
            self._timer.start()

    def head(self) -> tuple[bytes, bool, Stamp | None, int, int, int]:
        """Read the head of a frame: kind, preview, stamp, height, width, and the number of bytes that follow."""
        kind, preview, size, modified, *sizes = FRAME.unpack(self.read(FRAME.size))
        height, width, length = sizes
        return kind, preview, None if size < 0 else Stamp(size, modified), height, width, length

    def read(self, count: int) -> bytearray:
        """Read so many bytes. Raises TimeoutError; EOFError where the process has ended."""
        data = bytearray()
        while len(data) < count:
            self._wait(self._from, writing=False)
            part = os.read(self._from, min(count - len(data), 1 << 20))
            if not part:
                if self._left <= 0:
                    raise TimeoutError
                raise EOFError
            data += part
        return data

    def write(self, data: Any) -> int:
        """Write bytes; pickle calls it. Raises TimeoutError; OSError where the process has ended."""
        rest = memoryview(data)
        with _broken_pipes_are_errors():
            while rest:
                self._wait(self._to, writing=True)
                rest = rest[os.write(self._to, rest) :]
        return len(data)

    def close(self) -> None:
        """Kill the process, whatever it does."""
        self._cancel()
        self.process.kill()
        for file in self._files:
            with contextlib.suppress(OSError):
                file.close()
        with contextlib.suppress(subprocess.TimeoutExpired):  # one that waits for a broken disk cannot even be killed
            self.process.wait(_STEP)

    def _wait(self, descriptor: int, *, writing: bool) -> None:
        """Wait until a pipe can be used."""
        if not _POLLS:
            return
        pipe = select.poll()
        pipe.register(descriptor, select.POLLOUT if writing else select.POLLIN)
        while True:
            step, began = max(0.0, min(_STEP, self._left)), time.monotonic()
            ready = bool(pipe.poll(step * 1000))
            self._left -= min(step, time.monotonic() - began) if ready else step
            if ready or pipe.poll(0):  # it may have answered while this program was stopped
                return
            if _is_stopped(self.process.pid):
                raise EOFError
            if self._left <= 0:
                raise TimeoutError

    def _expire(self) -> None:
        self._left = 0
        self.process.kill()

    def _cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()


def _is_stopped(process: int) -> bool:
    """Return whether a child was stopped by a signal (SIGSTOP), where the system can tell."""
    with contextlib.suppress(AttributeError, ChildProcessError):
        return os.waitid(os.P_PID, process, os.WSTOPPED | os.WNOHANG | os.WNOWAIT) is not None
    return False


@contextlib.contextmanager
def _broken_pipes_are_errors() -> Iterator[None]:
    """Turn writing to a closed pipe into an error of this thread, not a signal that ends the program."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGPIPE})
    try:
        yield
    finally:
        if signal.SIGPIPE not in before:
            if signal.SIGPIPE in signal.sigpending():
                signal.sigwait({signal.SIGPIPE})
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}
"""A process reads one image at a time, on one core; threads that wait would only take addresses."""

PROGRAM = """
import json, sys
sys.path[:] = json.loads(sys.argv[1])
from hierclass.labelling.reader_child import serve
serve()
"""
