"""One after the other: work that takes all cores waits for its turn, and only so much of it waits."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from hierclass.errors import InputError

LOOK_SECONDS = 0.5


class JobQueue:
    """Gives turns in the order in which they were asked for, one at a time."""

    def __init__(self, most: int) -> None:
        """Let at most so many wait."""
        self.most = most
        self._line: deque[QueuePlace] = deque()
        self._moved = threading.Condition()

    @contextmanager
    def joined(self) -> Iterator[QueuePlace]:
        """Stand in line for as long as the context lasts.

        Raises:
            InputError: too many wait already.
        """
        with self._moved:
            if len(self._line) > self.most:
                raise InputError(f"{self.most} others wait for their turn; please try again in a minute")
            place = QueuePlace(self._line, self._moved)
            self._line.append(place)
        try:
            yield place
        finally:
            with self._moved:
                self._line.remove(place)
                self._moved.notify_all()


class QueuePlace:
    """A place in the line."""

    def __init__(self, line: deque[QueuePlace], moved: threading.Condition) -> None:
        """Stand in a line; `moved` tells when somebody has left it."""
        self._line, self._moved = line, moved

    def wait(self) -> Iterator[int]:
        """Yield how many are before this one, at once and then about twice a second, until there is none."""
        while True:
            with self._moved:
                before = self._line.index(self)
            if not before:
                return
            yield before
            with self._moved:
                self._moved.wait(LOOK_SECONDS)
