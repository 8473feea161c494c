"""Ctrl-C and SIGTERM while training: the first signal saves after the current update, a second one stops at once."""

from __future__ import annotations

import os
import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any, Self

STOPPING = (signal.SIGINT, signal.SIGTERM)
ONE_WISH = 1.0
"""Signals within this many seconds count as one, since a terminal and a launcher may both send theirs."""


class Interrupts:
    """Context in which a signal to stop sets ``asked``; a later second one raises `KeyboardInterrupt`.

    Use `abrupt` where stopping at once loses nothing. Does nothing outside the main thread, which alone gets signals.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        """``quiet`` prints nothing on Ctrl-C."""
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
        """Context in which the first signal raises `KeyboardInterrupt`; an earlier one raises on entering."""
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
