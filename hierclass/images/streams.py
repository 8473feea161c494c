"""Streams of pictures' files: of known length, and of parts of a file as if they were all of it."""

from __future__ import annotations

import bisect
import io
import os
from typing import IO

BLOCK = 1 << 16
"""Bytes that are read at once."""


class Stream(io.BufferedReader):
    """A file of known length."""

    def __init__(self, raw: io.RawIOBase | io.BytesIO, length: int = 0, path: str = ""):
        """`length` is that of the file in bytes, where it is known, `path` its path, if it has one."""
        super().__init__(raw)
        self.length = length
        self.path = path


class _Parts(io.RawIOBase):
    """Parts of a file as if they were all of it."""

    def __init__(self, stream: Stream, parts: list[tuple[int, int]], head: bytes):
        """`parts` are beginnings and ends in `stream`, which this reads and moves; `head` comes before them."""
        self._stream = stream
        self._head = head
        self._parts = [(0, 0), *parts]
        self._begins = [0, len(head)]
        for begin, end in parts:
            self._begins.append(self._begins[-1] + end - begin)
        self._place = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        origin = {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self._begins[-1]}[whence]
        self._place = max(0, origin + offset)
        return self._place

    def tell(self) -> int:
        return self._place

    def readinto(self, buffer: bytearray | memoryview, /) -> int:  # type: ignore[override]
        index = bisect.bisect_right(self._begins, self._place) - 1
        if index >= len(self._parts):
            return 0
        if index == 0:
            data = self._head[self._place : self._place + len(buffer)]
        else:
            begin, end = self._parts[index]
            begin += self._place - self._begins[index]
            data = read_at(self._stream, begin, min(len(buffer), end - begin))
        buffer[: len(data)] = data
        self._place += len(data)
        return len(data)


def only(stream: Stream, parts: list[tuple[int, int]], head: bytes = b"") -> Stream:
    """Show `head` and these parts of a stream, neighbours joined; the stream itself if they are all of it.

    Parts begin and end within the stream.
    """
    joined: list[tuple[int, int]] = []
    for begin, end in parts:
        if joined and joined[-1][1] == begin:
            begin = joined.pop()[0]
        joined.append((begin, end))
    if joined == [(0, stream.length)] and not head:
        return stream
    if stream.length <= BLOCK:
        data = read_at(stream, 0, BLOCK)
        shown = b"".join([head, *(data[begin:end] for begin, end in joined)])
        return Stream(io.BytesIO(shown), len(shown))
    return Stream(_Parts(stream, joined, head), len(head) + sum(end - begin for begin, end in joined))


def read_at(stream: IO[bytes], place: int, count: int) -> bytes:
    """Read `count` bytes, or fewer at the end, from a place on."""
    stream.seek(place)
    return stream.read(count)
