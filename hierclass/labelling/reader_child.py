"""The end of a reading process that reads: asked over standard input, it answers over standard output, within limits.

Questions are pickles, since they come from the program that trusts itself. Answers are frames of known lengths, since
a decoder that was taken over by a picture may write them. It imports nothing of the program that starts it, so that
any program may start one.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import numpy as np
from PIL import AvifImagePlugin

from hierclass.errors import unexpected
from hierclass.images import decoding
from hierclass.labelling.inputs import Stamp
from hierclass.labelling.read_input import ReadResult
from hierclass.labelling.reader_pipes import BEGINS, ERROR, FRAME, MAX_ERROR, PIXELS, READY, WAITS

MEMORY_LIMIT = 6 << 30
"""Bytes of addresses that a reading process may take beyond those of Python and its libraries."""
_OUT_OF_MEMORY = unexpected(MemoryError())
_TOO_MUCH = f"needs more memory than the {MEMORY_LIMIT >> 30} GiB that reading an image may take"


def serve() -> None:
    """Read what is asked for until standard input is closed."""
    asked, answers = os.fdopen(0, "rb", closefd=False), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no answer
    limit_memory(MEMORY_LIMIT)
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # this process has one core
    decoding.set_large_image_lock(_Turn(asked, answers))
    with contextlib.suppress(EOFError, OSError):
        _send(answers, READY)
        while True:
            folder, reader, sources, seconds = pickle.load(asked)
            with contextlib.suppress(OSError):  # what relative paths lead to then is not there
                os.chdir(folder)
            for source in sources:
                _send(answers, BEGINS, reader.stamp(source))
                with _ends_by_itself(seconds):
                    result = reader.read(source)
                _answer(answers, result)


def serve_as_fork(asked: int, answers: int) -> NoReturn:
    """Serve over two descriptors in a process that was forked, and keep nothing else of the one that it copies."""
    try:
        os.setpgid(0, 0)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        os.dup2(asked, 0)
        os.dup2(answers, 1)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        os.closerange(3, os.sysconf("SC_OPEN_MAX"))
        serve()
    finally:
        os._exit(0)


def limit_memory(count: int) -> None:
    """Let this process take `count` bytes of addresses more than it has, on Linux, and write no core files."""
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
        most = pages * resource.getpagesize() + count
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        if hard == resource.RLIM_INFINITY or most < hard:
            resource.setrlimit(resource.RLIMIT_AS, (most, most))


def _answer(answers: BinaryIO, result: ReadResult) -> None:
    if isinstance(result.pixels, str):
        text = _TOO_MUCH if result.pixels == _OUT_OF_MEMORY else result.pixels
        _send(answers, ERROR, result.stamp, text.encode("utf-8", "backslashreplace")[:MAX_ERROR])
    else:
        data, (height, width, _) = np.ascontiguousarray(result.pixels).data, result.pixels.shape
        _send(answers, PIXELS, result.stamp, data, height, width, preview=result.preview)


def _send(
    answers: BinaryIO,
    kind: bytes,
    stamp: Stamp | None = None,
    data: Any = b"",
    height: int = 0,
    width: int = 0,
    *,
    preview: bool = False,
) -> None:
    size, modified = stamp or (-1, 0)
    answers.write(FRAME.pack(kind, preview, size, modified, height, width, memoryview(data).nbytes))
    answers.write(data)
    answers.flush()


@contextlib.contextmanager
def _ends_by_itself(seconds: float) -> Iterator[None]:
    """End this process if reading takes processor time without end, and nobody is left who would end it."""
    if not hasattr(signal, "setitimer"):
        yield
        return
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_PROF, 2 * seconds + 5)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


class _Turn:
    """The turn to decode a very large picture, which the program gives; it ends with the answer."""

    def __init__(self, asked: BinaryIO, answers: BinaryIO) -> None:
        """Ask for it and be given it over these pipes."""
        self._asked, self._answers = asked, answers

    def __enter__(self) -> None:
        _send(self._answers, WAITS)
        self._asked.read(1)

    def __exit__(self, *_: object) -> None:
        pass
