"""Read inputs ahead of the network, in threads or in processes; processes are faster for small images.

Pillow releases Python's lock only while it decodes; for photographs of web size that is half of the time.
"""

from __future__ import annotations

import itertools
import queue
import tempfile
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeAlias

from hierclass.errors import ImageError
from hierclass.labelling.inputs import Input, ParquetRows
from hierclass.labelling.read_input import InputReader, ReadOptions, ReadResult, ReadSource
from hierclass.labelling.reader_processes import ReaderProcess
from hierclass.processors import num_cores

if TYPE_CHECKING:
    from hierclass.images.preprocessing import Preprocessing

NumberedInput: TypeAlias = "tuple[int, Input]"
_CHUNK = 8
"""Inputs that a process takes at a time."""
_FEW = 256
"""Below this number of inputs threads read them: starting processes would take longer."""
_MOST_BYTES = 64 << 20
"""About the most bytes of rows of Parquet files that wait to be decoded."""


_Chunk: TypeAlias = "tuple[list[int], list[ReadSource], Future[list[ReadResult]]]"


def read_ahead(
    inputs: Iterable[NumberedInput], preprocessing: Preprocessing, reading: ReadOptions
) -> Iterator[tuple[int, Input, ReadResult]]:
    """Read inputs, yield the results in their order, and keep a bounded number of them in memory."""
    inputs, rows = iter(inputs), ParquetRows(reading.image_column)
    few = list(itertools.islice(inputs, _FEW)) if reading.processes else []
    inputs = itertools.chain(few, inputs)
    in_processes = len(few) == _FEW
    readers = _ReaderPool(reading, preprocessing, processes=in_processes)
    size = _CHUNK if in_processes else 1
    ahead = 2 * reading.batch_size // size + readers.workers
    pending: deque[_Chunk] = deque()
    try:
        while chunk := list(itertools.islice(inputs, size)):
            sources = [ReadSource(item, _data(rows, item)) for _, item in chunk]
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
    """Bytes of images that wait in memory to be decoded."""
    return sum(len(data) for _, sources, _ in pending for _, data in sources if isinstance(data, bytes))


def _results(
    numbers: list[int], sources: list[ReadSource], future: Future[list[ReadResult]]
) -> Iterator[tuple[int, Input, ReadResult]]:
    for number, (item, _), read in zip(numbers, sources, future.result(), strict=True):
        yield number, item, read


class _ReaderPool:
    """Threads that read chunks of inputs, each itself or through a process."""

    def __init__(self, reading: ReadOptions, preprocessing: Preprocessing, *, processes: bool) -> None:
        """Start the threads; a process starts when its thread has something to read."""
        self.workers = reading.workers or num_cores()
        self._how = InputReader(preprocessing, reading.previews)
        self._lock_file = tempfile.TemporaryFile() if processes else None  # noqa: SIM115 - closed below
        self._free: queue.SimpleQueue[ReaderProcess] = queue.SimpleQueue()
        self._started = (
            [ReaderProcess(self._how, self._lock_file.fileno()) for _ in range(self.workers)]
            if self._lock_file
            else []
        )
        for process in self._started:
            self._free.put(process)
        self._threads = ThreadPoolExecutor(self.workers, thread_name_prefix="hierclass-read")

    def submit(self, sources: Sequence[ReadSource]) -> Future[list[ReadResult]]:
        """Read inputs in a thread."""
        return self._threads.submit(self._read, sources)

    def close(self) -> None:
        """End at once: kill processes, and do not wait for threads that still read."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        for process in self._started:
            process.close()
        if self._lock_file is not None:
            self._lock_file.close()

    def _read(self, sources: Sequence[ReadSource]) -> list[ReadResult]:
        if not self._started:
            return self._how.read(sources)
        process = self._free.get()
        try:
            return process.read(sources)
        finally:
            self._free.put(process)
