"""Processes that read inputs: they do not compete for Python's lock, and a crash costs one image at most.

Each exchanges pickles with this process over its standard input and output. It imports nothing of the program that
starts it, so that any program may start one.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import Any

from hierclass.images import decoding as images
from hierclass.labelling.read_input import InputReader, ReadResult, ReadSource

_log = logging.getLogger(__name__)


class ReaderProcess:
    """A child process that reads inputs; it ends when this process ends."""

    def __init__(self, how: InputReader, lock_file: int) -> None:
        """Start nothing yet. Processes that share the descriptor `lock_file` decode very large pictures in turn."""
        self._how, self._lock_file = how, lock_file
        self._running: subprocess.Popen[bytes] | None = None
        self._starts = True
        self._lock = threading.Lock()
        self._closed = False

    def read(self, sources: Sequence[ReadSource]) -> list[ReadResult]:
        """Read inputs; those that crash the process get an error. Read here if no process can be started."""
        for _ in range(1 if len(sources) > 1 else 2):  # it may have been ended while it had nothing to do
            if self._running is None:
                self._start()
            if self._closed:
                return []
            if not self._starts:
                return self._how.read(sources)
            try:
                found: list[ReadResult] = self._ask(sources)
                return found
            except (OSError, EOFError, pickle.UnpicklingError):
                self._stop()
        if len(sources) > 1:
            return [read for each in sources for read in self.read([each])]
        return [
            ReadResult("ends the process that reads it: a decoder crashes, or memory does not suffice", None)
        ]

    def close(self) -> None:
        """Kill the process."""
        with self._lock:
            self._closed = True
        self._stop()

    def _start(self) -> None:
        """Start the process and wait until it is ready."""
        with self._lock:
            if self._closed:
                return
            posix: dict[str, Any] = (
                {"process_group": 0, "pass_fds": (self._lock_file,)} if os.name == "posix" else {}
            )
            command = [sys.executable, "-c", PROGRAM, json.dumps(sys.path), str(self._lock_file)]
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
        with _broken_pipes_are_errors():
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


PROGRAM = """
import json, sys
sys.path[:] = json.loads(sys.argv[1])
from hierclass.labelling.reader_processes import serve
serve(int(sys.argv[2]))
"""


def serve(lock_file: int) -> None:
    """Run in the child process: read the inputs that come over standard input until it is closed."""
    source_, sink = sys.stdin.buffer, sys.stdout.buffer
    sys.stdout = sys.stderr  # what a library prints is no answer
    with contextlib.suppress(ImportError):
        images.set_large_image_lock(_FileLock(lock_file))
    how: InputReader = pickle.load(source_)
    answer: Any = True
    with contextlib.suppress(EOFError, OSError):
        while True:
            pickle.dump(answer, sink, pickle.HIGHEST_PROTOCOL)
            sink.flush()
            answer = how.read(pickle.load(source_))


class _FileLock:
    """A lock among processes; the system frees it when its holder ends."""

    def __init__(self, descriptor: int) -> None:
        """Lock a file that is open. Raises ImportError where the system has no such locks."""
        import fcntl

        self._descriptor, self._lock = descriptor, fcntl.lockf
        self._take, self._give = fcntl.LOCK_EX, fcntl.LOCK_UN

    def __enter__(self) -> None:
        self._lock(self._descriptor, self._take)

    def __exit__(self, *_: object) -> None:
        self._lock(self._descriptor, self._give)
