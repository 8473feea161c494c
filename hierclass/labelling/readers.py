"""Read inputs ahead of the network: in threads, or in processes, which is faster where images are small.

Pillow releases Python's lock while it decodes, but what surrounds that is Python: in threads, half of the time of a
photograph of web size. Processes share no lock. One that ends while it reads (a decoder that crashes, too little
memory) costs the image that it read and no other.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import os
import pickle
import queue
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from hierclass import images
from hierclass.errors import ImageError, InputError, unexpected
from hierclass.images import read_preview, read_square, resize_side, square
from hierclass.labelling.inputs import Input, ParquetRows, Stamp, source, stamp

if TYPE_CHECKING:
    from hierclass.preprocessing import Preprocessing

_log = logging.getLogger(__name__)

Numbered: TypeAlias = "tuple[int, Input]"
_CHUNK = 8
"""Inputs that a process takes at a time."""
_FEW = 256
"""For so many inputs it does not pay to start processes."""
_MOST_BYTES = 64 << 20
"""Bytes of rows of Parquet files that wait to be decoded, about."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
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


class Read(NamedTuple):
    """An input that was read: what the network sees (S, S, 3), or the reason why there is nothing."""

    pixels: NDArray[np.uint8] | str
    stamp: Stamp | None
    preview: bool = False


class _Source(NamedTuple):
    """An input, and its bytes or what is wrong with it where that is known already."""

    item: Input
    data: bytes | ImageError | None


_Chunk: TypeAlias = "tuple[list[int], list[_Source], Future[list[Read]]]"


def num_cores() -> int:
    """Return how many processor cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def read_ahead(
    inputs: Iterable[Numbered], preprocessing: Preprocessing, reading: Reading
) -> Iterator[tuple[int, Input, Read]]:
    """Read inputs, yield the results in their order, and keep a bounded number of them in memory."""
    inputs, rows = iter(inputs), ParquetRows(reading.image_column)
    few = list(itertools.islice(inputs, _FEW)) if reading.processes else []
    inputs = itertools.chain(few, inputs)
    in_processes = len(few) == _FEW
    readers = _Readers(reading, preprocessing, processes=in_processes)
    size = _CHUNK if in_processes else 1
    ahead = 2 * reading.batch_size // size + readers.workers
    pending: deque[_Chunk] = deque()
    try:
        while chunk := list(itertools.islice(inputs, size)):
            sources = [_Source(item, _data(rows, item)) for _, item in chunk]
            pending.append(([number for number, _ in chunk], sources, readers.submit(sources)))
            while pending and (len(pending) >= ahead or _bytes(pending) > _MOST_BYTES):
                yield from _results(*pending.popleft())
        while pending:
            yield from _results(*pending.popleft())
    finally:
        readers.close()


def _data(rows: ParquetRows, item: Input) -> bytes | ImageError | None:
    try:
        return rows.data(item)
    except ImageError as error:
        return error


def _bytes(pending: Iterable[_Chunk]) -> int:
    """How much the inputs on their way hold in memory."""
    return sum(len(data) for _, sources, _ in pending for _, data in sources if isinstance(data, bytes))


def _results(
    numbers: list[int], sources: list[_Source], future: Future[list[Read]]
) -> Iterator[tuple[int, Input, Read]]:
    for number, (item, _), read in zip(numbers, sources, future.result(), strict=True):
        yield number, item, read


class _Readers:
    """Threads that read chunks of inputs, themselves or each by a process of its own."""

    def __init__(self, reading: Reading, preprocessing: Preprocessing, *, processes: bool) -> None:
        """Start threads; a process starts when its thread has something to read."""
        self.workers = reading.workers or num_cores()
        self._how = _How(preprocessing, reading.previews)
        self._turn = tempfile.TemporaryFile() if processes else None  # noqa: SIM115 - closed below
        self._free: queue.SimpleQueue[_Process] = queue.SimpleQueue()
        self._started = (
            [_Process(self._how, self._turn.fileno()) for _ in range(self.workers)] if self._turn else []
        )
        for process in self._started:
            self._free.put(process)
        self._threads = ThreadPoolExecutor(self.workers, thread_name_prefix="hierclass-read")

    def submit(self, sources: Sequence[_Source]) -> Future[list[Read]]:
        """Have inputs read."""
        return self._threads.submit(self._read, sources)

    def close(self) -> None:
        """End at once; what is being read is not waited for, but by threads that read themselves."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        for process in self._started:
            process.close()
        if self._turn is not None:
            self._turn.close()

    def _read(self, sources: Sequence[_Source]) -> list[Read]:
        if not self._started:
            return self._how.read(sources)
        process = self._free.get()
        try:
            return process.read(sources)
        finally:
            self._free.put(process)


class _How(NamedTuple):
    """All that reading needs to know beside the inputs."""

    preprocessing: Preprocessing
    previews: bool

    def read(self, sources: Sequence[_Source]) -> list[Read]:
        """Read inputs here."""
        return [_read(item, data, self.preprocessing, previews=self.previews) for item, data in sources]


class _Process:
    """A process that reads inputs for this one, over its standard input and output; it ends when this one ends."""

    def __init__(self, how: _How, turn: int) -> None:
        """Start nothing yet. `turn` is the descriptor of a file whose lock tells who may decode a large picture."""
        self._how, self._turn = how, turn
        self._running: subprocess.Popen[bytes] | None = None
        self._starts = True
        self._lock = threading.Lock()
        self._closed = False

    def read(self, sources: Sequence[_Source]) -> list[Read]:
        """Read inputs; one that ends the process is told from the others, and here where no process starts."""
        for _ in range(1 if len(sources) > 1 else 2):  # it may have been ended while it had nothing to do
            if self._running is None:
                self._start()
            if self._closed:
                return []
            if not self._starts:
                return self._how.read(sources)
            try:
                found: list[Read] = self._ask(sources)
                return found
            except (OSError, EOFError, pickle.UnpicklingError):
                self._stop()
        if len(sources) > 1:
            return [read for each in sources for read in self.read([each])]
        return [Read("ends the process that reads it: a decoder crashes, or memory does not suffice", None)]

    def close(self) -> None:
        """End the process, whatever it does."""
        with self._lock:
            self._closed = True
        self._stop()

    def _start(self) -> None:
        """Start the process and wait until it is ready."""
        with self._lock:
            if self._closed:
                return
            posix: dict[str, Any] = (
                {"process_group": 0, "pass_fds": (self._turn,)} if os.name == "posix" else {}
            )
            command = [sys.executable, "-c", _PROGRAM, json.dumps(sys.path), str(self._turn)]
            pipe = subprocess.PIPE
            try:
                self._running = subprocess.Popen(
                    command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, **posix
                )
            except OSError:
                self._starts = False
                return
        try:
            self._ask(self._how)
        except (OSError, EOFError, pickle.UnpicklingError):
            self._stop()
            self._starts = False
            _log.debug("no process of its own to read in", exc_info=True)

    def _ask(self, what: Any) -> Any:
        process = self._running
        if process is None or process.stdin is None or process.stdout is None:
            raise EOFError
        pickle.dump(what, process.stdin, pickle.HIGHEST_PROTOCOL)
        process.stdin.flush()
        return pickle.load(process.stdout)

    def _stop(self) -> None:
        with self._lock:
            process, self._running = self._running, None
        if process is None:
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()


_PROGRAM = """
import json, sys
sys.path[:] = json.loads(sys.argv[1])
from hierclass.labelling.readers import serve
serve(int(sys.argv[2]))
"""


def serve(turn: int) -> None:
    """Be the process that reads: answer what comes over standard input until it ends."""
    source_, sink = sys.stdin.buffer, sys.stdout.buffer
    sys.stdout = sys.stderr  # what a library prints is no answer
    with contextlib.suppress(ImportError):
        images.take_turns_with(_Turn(turn))
    how: _How = pickle.load(source_)
    answer: Any = True
    with contextlib.suppress(EOFError, OSError):
        while True:
            pickle.dump(answer, sink, pickle.HIGHEST_PROTOCOL)
            sink.flush()
            answer = how.read(pickle.load(source_))


class _Turn:
    """A lock among processes that the system frees when its holder ends."""

    def __init__(self, descriptor: int) -> None:
        """Lock a file that is open. Raises ImportError where the system has no such locks."""
        import fcntl

        self._descriptor, self._lock = descriptor, fcntl.lockf
        self._take, self._give = fcntl.LOCK_EX, fcntl.LOCK_UN

    def __enter__(self) -> None:
        self._lock(self._descriptor, self._take)

    def __exit__(self, *_: object) -> None:
        self._lock(self._descriptor, self._give)


def _read(
    item: Input, data: bytes | ImageError | None, preprocessing: Preprocessing, *, previews: bool
) -> Read:
    before = stamp(item.path)
    try:
        if isinstance(data, ImageError):
            raise data
        found = source(item) if data is None else data
        if previews and (preview := read_preview(found, resize_side(preprocessing))) is not None:
            return Read(square(preview, preprocessing), before, preview=True)
        return Read(read_square(found, preprocessing), before)
    except ImageError as error:
        return Read(str(error), before)
    except Exception as error:
        _log.debug("reading %r failed", item, exc_info=True)
        return Read(unexpected(error), before)
