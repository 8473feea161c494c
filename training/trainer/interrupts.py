"""Ctrl-C and SIGTERM while a run trains: the first lets the update end and the state be saved, a second does not."""

from __future__ import annotations

import os
import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any, Self

STOPPING = (signal.SIGINT, signal.SIGTERM)
ONE_WISH = 1.0
"""Signals within so many seconds are one wish to stop: a terminal and a launcher may both send theirs."""


class Interrupts:
    """While entered, a signal to stop sets ``asked``; one more, later, raises `KeyboardInterrupt`.

    Where nothing is lost by stopping at once, enter `abrupt` instead. In threads other than the main one, which get no
    signals, this does nothing.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        """``quiet`` does not say on stderr that Ctrl-C was heard."""
        self.asked = False
        self.quiet = quiet
        self._patient = True
        self._first = 0.0
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._hear) for number in STOPPING}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def abrupt(self) -> _StopAtOnce:
        """A context in which the first signal raises `KeyboardInterrupt`; one heard before raises on entering."""
        return _StopAtOnce(self)

    def _hear(self, number: int, _: FrameType | None) -> None:
        now = time.monotonic()
        if not self.asked:
            self.asked, self._first = True, now
        elif now - self._first < ONE_WISH:
            return
        else:
            raise KeyboardInterrupt
        if not self._patient:
            raise KeyboardInterrupt
        if number == signal.SIGINT and not self.quiet:  # print() must not be called in a handler
            os.write(2, b"\nstopping after this update, to save it; Ctrl-C again leaves at once\n")


class _StopAtOnce:
    def __init__(self, interrupts: Interrupts) -> None:
        self.interrupts = interrupts

    def __enter__(self) -> None:
        self.interrupts._patient = False
        if self.interrupts.asked:
            self.interrupts._patient = True
            raise KeyboardInterrupt

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.interrupts._patient = True
