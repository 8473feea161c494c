"""A queue for work that takes all cores: one job at a time, and a limited number of jobs that wait."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from hierclass.errors import InputError

LOOK_SECONDS = 0.5


class JobQueue:
    """Lets one job work at a time, in the order in which jobs joined."""

    def __init__(self, most: int) -> None:
        """Let at most N = `most` jobs wait."""
        self.most = most
        self._line: deque[QueuePlace] = deque()
        self._moved = threading.Condition()

    @contextmanager
    def joined(self) -> Iterator[QueuePlace]:
        """Join the queue for as long as the context lasts.

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
    """A place in the queue."""

    def __init__(self, line: deque[QueuePlace], moved: threading.Condition) -> None:
        """Be in a queue; `moved` is notified when a job leaves it."""
        self._line, self._moved = line, moved

    def wait(self) -> Iterator[int]:
        """Yield the number of jobs before this one, at once and then about twice a second, until it is 0."""
        while True:
            with self._moved:
                before = self._line.index(self)
            if not before:
                return
            yield before
            with self._moved:
                self._moved.wait(LOOK_SECONDS)
