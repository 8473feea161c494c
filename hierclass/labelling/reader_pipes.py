"""A process that reads, the pipes to it, and processes that are kept for whoever reads next.

It imports neither NumPy nor Pillow, so that a command can start a process before it loads anything.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import struct
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

from hierclass.processors import num_cores

FRAME = struct.Struct("<c?qqIII")
"""Head of an answer: the fields of `Head`; a size of -1 says that there is no file."""
READY, BEGINS, WAITS, PIXELS, ERROR = b"R", b"B", b"W", b"P", b"E"
"""Kinds of answers: the process has started; it begins with a source; it asks for the turn to decode a very large
picture; RGB pixels; the text of an error."""
MAX_ERROR = 2000
"""Bytes of the text of an error, at most."""
MOST_READY = 4
"""Processes that are kept for whoever reads next."""
_STEP = 1.0
"""Seconds after which a process that says nothing is looked at."""
_POLLS = hasattr(select, "poll")
_WITH_THREADS = {"torch", "onnxruntime", "pyarrow", "ray"}
"""Packages that start threads, after which this process must not be copied; those of NumPy's OpenBLAS end before."""


class Head(NamedTuple):
    """Head of an answer."""

    kind: bytes
    preview: bool
    size: int
    modified: int
    height: int
    width: int
    length: int
    """Bytes that follow."""


class ReaderPipes:
    """A process and the pipes to it. Neither reading nor writing waits longer than the time that was begun."""

    def __init__(self, process: subprocess.Popen[bytes] | _Fork, to: int, from_: int) -> None:
        """Talk to a process by the descriptors of the pipes to and from it."""
        self.process, self._to, self._from = process, to, from_
        self.ready = False
        """Whether it is known to have started."""
        self._left = 0.0
        self._timer: threading.Timer | None = None
        if _POLLS:
            for each in (to, from_):
                os.set_blocking(each, False)

    @classmethod
    def spawn(cls) -> ReaderPipes:
        """Start a process, which is ready after about 0.2 s. Raises OSError if that is not possible."""
        posix: dict[str, Any] = {"process_group": 0} if os.name == "posix" else {}
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, json.dumps(sys.path)],
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, **_ENVIRONMENT},
            **posix,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        to, from_ = _duplicate(process.stdin.fileno()), _duplicate(process.stdout.fileno())
        process.stdin.close()
        process.stdout.close()
        return cls(process, to, from_)

    @classmethod
    def fork(cls) -> ReaderPipes:
        """Start a process as a copy of this one, which must have no other thread: it is ready after 2 ms."""
        from hierclass.labelling.reader_child import serve_as_fork

        ends = [*os.pipe(), *os.pipe()]
        its_input, to, from_, its_output = map(_duplicate, ends)
        for each in ends:
            os.close(each)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of threads that OpenBLAS has ended by then
            process = os.fork()
        if not process:
            serve_as_fork(its_input, its_output)
        os.close(its_input)
        os.close(its_output)
        return cls(_Fork(process), to, from_)

    def begin(self, seconds: float) -> None:
        """Allow so much time from now on; time in which this program itself is stopped does not count."""
        self._left = seconds
        if not _POLLS:  # Windows: a pipe can't be waited for, but ending the process ends the waiting
            self._cancel()
            self._timer = threading.Timer(seconds, self._expire)
            self._timer.daemon = True
            self._timer.start()

    def head(self) -> Head:
        """Read the head of an answer."""
        return Head(*FRAME.unpack(self.read(FRAME.size)))

    def read(self, count: int) -> bytearray:
        """Read so many bytes. Raises TimeoutError; EOFError where the process has ended or is stopped."""
        data = bytearray()
        while len(data) < count:
            self._wait(self._from, writing=False)
            part = os.read(self._from, min(count - len(data), 1 << 20))
            if not part:
                raise TimeoutError if self._left <= 0 else EOFError
            data += part
        return data

    def write(self, data: Any) -> int:
        """Write bytes. Raises TimeoutError; OSError or EOFError where the process has ended or is stopped."""
        rest = memoryview(data)
        with _broken_pipes_are_errors():
            while rest:
                self._wait(self._to, writing=True)
                rest = rest[os.write(self._to, rest) :]
        return len(data)

    def rest(self) -> None:
        """Stop counting time until there is more to do."""
        self._cancel()

    def close(self) -> None:
        """Kill the process, whatever it does."""
        self._cancel()
        self.process.kill()
        for each in (self._to, self._from):
            os.close(each)
        with contextlib.suppress(
            subprocess.TimeoutExpired
        ):  # one that waits for a broken disk can't be killed
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


class _Fork:
    """A process by its number, with what is used of `subprocess.Popen`."""

    def __init__(self, pid: int) -> None:
        """Know a child of this process."""
        self.pid, self._ended = pid, False

    def kill(self) -> None:
        """Kill it, if it has not been waited for."""
        if not self._ended:
            os.kill(self.pid, signal.SIGKILL)

    def wait(self, timeout: float) -> None:
        """Wait until it has ended. Raises subprocess.TimeoutExpired."""
        until = time.monotonic() + timeout
        while not self._ended:
            try:
                self._ended = os.waitpid(self.pid, os.WNOHANG)[0] == self.pid
            except ChildProcessError:
                self._ended = True
            if not self._ended:
                if time.monotonic() > until:
                    raise subprocess.TimeoutExpired("", timeout)
                time.sleep(0.001)


_spare: list[ReaderPipes] = []
_num_kept = 0
_spare_lock = threading.Lock()


@contextlib.contextmanager
def kept_ready(count: int = MOST_READY, *, start: bool = False) -> Iterator[None]:
    """Keep up to `count` processes that have nothing to do for whoever reads next; with `start`, start some now.

    They are copies of this process where that is possible (Linux, and no other thread yet), else one new process.
    """
    global _num_kept
    before, _num_kept = _num_kept, count
    try:
        _close_spare(count)
        if start and not _spare:
            _start_some(count)
        yield
    finally:
        _num_kept = before
        _close_spare(before)


def _close_spare(keep: int) -> None:
    while (pipes := _take_spare(more_than=keep)) is not None:
        pipes.close()


def _start_some(count: int) -> None:
    with contextlib.suppress(OSError):  # whoever reads meets the error again, and says so
        alone = (
            sys.platform == "linux" and threading.active_count() == 1 and not _WITH_THREADS & {*sys.modules}
        )
        for _ in range(min(count, num_cores()) if alone else 1):
            put_back(ReaderPipes.fork() if alone else ReaderPipes.spawn())


def take() -> ReaderPipes:
    """Return a process that was kept, or start one. Raises OSError if that is not possible."""
    return _take_spare() or ReaderPipes.spawn()


def put_back(pipes: ReaderPipes) -> None:
    """Keep a process that has nothing to do, or kill it."""
    with _spare_lock:
        keeps = len(_spare) < _num_kept
        if keeps:
            _spare.append(pipes)
    if not keeps:
        pipes.close()


def _take_spare(more_than: int = 0) -> ReaderPipes | None:
    with _spare_lock:
        return _spare.pop() if len(_spare) > more_than else None


def _duplicate(descriptor: int) -> int:
    """Return a copy that never takes the number of a standard stream, where one of those is closed."""
    if os.name != "posix":
        return os.dup(descriptor)
    import fcntl

    return fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 3)


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
