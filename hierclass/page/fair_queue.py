"""A queue in which visitors take turns: one with many or slow requests keeps nobody else from working."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator

from hierclass.errors import InputError

LOOK_SECONDS = 0.5
"""Between two messages of a place in the queue."""
SHARE_OF_ONE = 0.5
"""Share of the places to wait that one visitor may hold."""
HALF_LIFE = 60.0
"""Seconds after which half of the time that a visitor worked is forgotten."""
HEAVY_SECONDS = 5.0
"""Seconds of work after which visitors share all places but one, which is for others; a photograph takes 0.05."""
LONG_SECONDS = 1.0
"""Seconds of work after which a request holds up nobody: others start beside it, one fewer than work at once."""
_MOST_REMEMBERED = 10_000


class FairQueue:
    """Lets few work at a time: first who has fewest requests before, then who worked least, then who came first."""

    def __init__(self, most: int, at_once: int = 1) -> None:
        """Let at most `most` wait, and `at_once` work; one visitor has a share of the first, and one of these fewer."""
        self.most, self.at_once = most, at_once
        self._most_of_one = max(1, int(most * SHARE_OF_ONE))
        self._at_once_of_one = max(1, at_once - 1)
        self._waiting: list[QueuePlace] = []
        self._working: list[QueuePlace] = []
        self._worked: dict[str, tuple[float, float]] = {}
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def joined(self, visitor: str) -> Iterator[QueuePlace]:
        """Join the queue for as long as the context lasts.

        Raises:
            InputError: too many wait already, of all or of this visitor.
        """
        with self._lock:
            self._refuse_too_many(visitor)
            place = QueuePlace(self, visitor)
            self._waiting.append(place)
            self._start()
        try:
            yield place
        finally:
            with self._lock:
                self._leave(place)
                self._start()

    def num_before(self, place: QueuePlace) -> int:
        """Return how many are before a place, those at work included; 0 if it is at work itself."""
        with self._lock:
            self._start()  # another may work long by now
            if place in self._working:
                return 0
            return len(self._working) + self._in_order().index(place)

    def _refuse_too_many(self, visitor: str) -> None:
        if len(self._waiting) >= self.most:
            raise InputError(f"{self.most} others wait for their turn; please try again in a minute")
        mine = sum(each.visitor == visitor for each in self._waiting)
        if mine >= self._most_of_one:
            raise InputError(
                f"{mine} requests from your address wait for their turn; please send more when they are answered"
            )

    def _start(self) -> None:
        """Let as many work as may; the caller holds the lock."""
        for place in self._in_order():
            if not self._has_room():
                return
            if self._at_work(place.visitor) >= self._at_once_of_one:
                continue
            heavy = sum(self._is_heavy(each.visitor) for each in self._working)
            if self._is_heavy(place.visitor) and heavy >= max(1, self.at_once - 1):
                continue
            self._waiting.remove(place)
            self._working.append(place)
            place.began = time.monotonic()
            place.starts.set()

    def _has_room(self) -> bool:
        long = sum(time.monotonic() - each.began > LONG_SECONDS for each in self._working)
        return len(self._working) - min(long, self.at_once - 1) < self.at_once

    def _leave(self, place: QueuePlace) -> None:
        if place not in self._working:
            self._waiting.remove(place)
            return
        self._working.remove(place)
        now = time.monotonic()
        self._worked[place.visitor] = (self._seconds(place.visitor) + now - place.began, now)
        if len(self._worked) > _MOST_REMEMBERED:
            self._worked.pop(next(iter(self._worked)))

    def _in_order(self) -> list[QueuePlace]:
        """Those that wait, as they will start if all take as long."""
        before = {each.visitor: self._at_work(each.visitor) for each in self._waiting}
        keys = []
        for number, place in enumerate(self._waiting):
            keys.append((before[place.visitor], self._seconds(place.visitor), number))
            before[place.visitor] += 1
        return [self._waiting[number] for *_, number in sorted(keys)]

    def _is_heavy(self, visitor: str) -> bool:
        return self._seconds(visitor) > HEAVY_SECONDS

    def _at_work(self, visitor: str) -> int:
        return sum(each.visitor == visitor for each in self._working)

    def _seconds(self, visitor: str) -> float:
        """Seconds that a visitor worked lately."""
        now = time.monotonic()
        seconds, noted = self._worked.get(visitor, (0.0, now))
        return float(seconds * 0.5 ** ((now - noted) / HALF_LIFE))


class QueuePlace:
    """A place in the queue; `starts` is set when it may work."""

    def __init__(self, queue: FairQueue, visitor: str) -> None:
        """Be in a queue for a visitor."""
        self.visitor = visitor
        self.starts = threading.Event()
        self.began = 0.0
        self._queue = queue

    def wait(self) -> Iterator[int]:
        """Yield the number of requests before this one, at once and then about twice a second, until it may work."""
        while before := self._queue.num_before(self):
            yield before
            self.starts.wait(LOOK_SECONDS)
