"""Read inputs ahead of the network, in processes or in threads: processes are bounded, and faster for many images.

Pillow releases Python's lock only while it decodes; for photographs of web size that is half of the time.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from hierclass.errors import ImageError
from hierclass.labelling.inputs import Input, ParquetRows
from hierclass.labelling.read_input import InputReader, ReadOptions, ReadResult, ReadSource
from hierclass.labelling.reader_processes import ReaderPool
from hierclass.processors import num_cores

if TYPE_CHECKING:
    from hierclass.images.preprocessing import Preprocessing

NumberedInput: TypeAlias = "tuple[int, Input]"
_MANY = 256
"""From this number of inputs on, all processes read, and take several inputs at a time."""
_CHUNK = 8
"""Inputs that they then take at a time."""
_FEW = 32
"""Below `_MANY`, inputs per process: to start another one takes as long as to read about so many."""
_MOST_BYTES = 64 << 20
"""About the most bytes of rows of Parquet files that wait to be decoded, beside one row."""


class _Chunk(NamedTuple):
    """Inputs that are read together."""

    numbers: list[int]
    sources: list[ReadSource]

    @property
    def bytes(self) -> int:
        """Bytes of images that it holds in memory."""
        return sum(len(data) for _, data in self.sources if isinstance(data, bytes))


def read_ahead(
    inputs: Iterable[NumberedInput], preprocessing: Preprocessing, reading: ReadOptions
) -> Iterator[tuple[int, Input, ReadResult]]:
    """Read inputs, yield the results in their order, and keep a bounded number of them in memory."""
    inputs, rows = iter(inputs), ParquetRows(reading.image_column)
    first = list(itertools.islice(inputs, _MANY)) if reading.processes else []
    inputs = itertools.chain(first, inputs)
    readers = _Readers(reading, InputReader(preprocessing, reading.previews), len(first))
    size = _CHUNK if len(first) == _MANY else 1
    ahead = 2 * reading.batch_size // size + readers.workers
    pending: deque[tuple[_Chunk, Future[list[ReadResult]]]] = deque()
    try:
        for chunk in _chunks(inputs, rows, size):
            pending.append((chunk, readers.submit(chunk)))
            while pending and (len(pending) >= ahead or sum(each.bytes for each, _ in pending) > _MOST_BYTES):
                yield from _results(*pending.popleft())
        while pending:
            yield from _results(*pending.popleft())
    finally:
        readers.close()


def _chunks(inputs: Iterable[NumberedInput], rows: ParquetRows, size: int) -> Iterator[_Chunk]:
    """Yield chunks of up to `size` inputs, fewer where they hold many bytes."""
    chunk = _Chunk([], [])
    for number, item in inputs:
        chunk.numbers.append(number)
        chunk.sources.append(ReadSource(item, _data(rows, item)))
        if len(chunk.numbers) == size or chunk.bytes > _MOST_BYTES:
            yield chunk
            chunk = _Chunk([], [])
    if chunk.numbers:
        yield chunk


def _data(rows: ParquetRows, item: Input) -> bytes | ImageError | None:
    try:
        return rows.data(item)
    except ImageError as error:
        return error


def _results(chunk: _Chunk, future: Future[list[ReadResult]]) -> Iterator[tuple[int, Input, ReadResult]]:
    for number, (item, _), read in zip(chunk.numbers, chunk.sources, future.result(), strict=True):
        yield number, item, read


class _Readers:
    """Threads that read chunks of inputs, each itself or through a process."""

    def __init__(self, reading: ReadOptions, reader: InputReader, num_first: int) -> None:
        """Start the threads; a process starts when its thread has something to read."""
        self._reader, self._seconds = reader, reading.seconds_per_image
        self.workers = reading.workers or num_cores()
        if reading.processes and num_first < _MANY:
            self.workers = min(self.workers, 1 + num_first // _FEW)
        self._pool = ReaderPool(self.workers) if reading.processes else None
        self._threads = ThreadPoolExecutor(self.workers, thread_name_prefix="hierclass-read")

    def submit(self, chunk: _Chunk) -> Future[list[ReadResult]]:
        """Read inputs in a thread."""
        return self._threads.submit(self._read, chunk.sources)

    def close(self) -> None:
        """End at once: kill processes, and do not wait for threads that still read."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        if self._pool is not None:
            self._pool.close()

    def _read(self, sources: list[ReadSource]) -> list[ReadResult]:
        if self._pool is None:
            return [self._reader.read(source) for source in sources]
        return self._pool.read(self._reader, sources, self._seconds)
