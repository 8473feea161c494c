"""What the page and its endpoints do: classify one photograph or label many, within limits."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from hierclass.errors import InputError
from hierclass.page.single import classify_by_level, parse_options
from hierclass.page.uploads import Uploads

if TYPE_CHECKING:
    from hierclass.classifier import Classifier
    from hierclass.page.batch_job import BatchJob
    from hierclass.page.single import AnswerOptions, Stage

LOOK_SECONDS = 0.5
"""Between two messages of a place in the queue."""
NUM_AT_ONCE = 2
"""Photographs that are classified at the same time; one visitor has one fewer, so a slow one blocks nobody else."""
NUM_WAITING = 8
"""Requests of many photographs that wait while one is worked on; further ones are refused."""
NUM_PHOTOGRAPHS_WAITING = 100
"""Requests of one photograph that wait while others are classified; further ones are refused."""
SHARE_OF_ONE = 0.5
"""Share of the places to wait that one visitor may hold."""
NUM_JOBS = NUM_WAITING + 2
"""Requests of many photographs that Gradio admits: those that wait, the one at work, and one to be refused."""
NUM_PHOTOGRAPHS = NUM_PHOTOGRAPHS_WAITING + NUM_AT_ONCE + 1
"""Requests of one photograph that Gradio admits: those that wait, those at work, and one to be refused."""
NUM_THREADS = NUM_JOBS + NUM_PHOTOGRAPHS + 2 * NUM_AT_ONCE
"""Threads that Gradio may start: one for each request that it admits, most of which wait."""


class Service:
    """Classifies what visitors send with a loaded model; requests are not trusted."""

    def __init__(self, classifier: Classifier, uploads: Uploads) -> None:
        """Use a classifier; what visitors send is in `uploads`."""
        self.classifier, self.uploads = classifier, uploads
        self._photographs = FairQueue(NUM_PHOTOGRAPHS_WAITING, NUM_AT_ONCE)
        self._jobs = FairQueue(NUM_WAITING)

    def classify(
        self, photo: Any, level: Any, precision: Any, *, visitor: str = ""
    ) -> Iterator[tuple[Stage, AnswerOptions]]:
        """Classify one photograph: yield the answer of each level, and the options of the request.

        Raises:
            HierclassError: too many wait, the photograph can't be read, or there is no such level or precision.
        """
        options = parse_options(self.classifier, level, precision)
        with self._photographs.joined(visitor) as place:
            for _ in place.wait():
                pass
            for stage in classify_by_level(self.classifier, self.uploads.find(photo), options):
                yield stage, options

    def label_batch(
        self, sent: Any, level: Any, precision: Any, *, thumbnails: bool, visitor: str = ""
    ) -> Iterator[int | BatchJob]:
        """Label many photographs: yield the number of jobs before this one, then the job whenever it has new rows.

        Raises:
            HierclassError: too many jobs wait, there are no photographs or too many, or no such level or precision.
        """
        from hierclass.page.batch_job import collect_job, run_batch_job

        options = parse_options(self.classifier, level, precision)
        with self._jobs.joined(visitor) as place, self.uploads.working_folder() as folder:
            yield from place.wait()
            job = collect_job(self.uploads, sent, folder)
            with contextlib.closing(
                run_batch_job(self.classifier, job, options, thumbnails=thumbnails)
            ) as work:
                for _ in work:
                    yield job


class FairQueue:
    """Lets few work at a time: visitors take turns, and the requests of one visitor are in order."""

    def __init__(self, most: int, at_once: int = 1) -> None:
        """Let at most `most` wait, and `at_once` work; one visitor has a share of both."""
        self.most, self.at_once = most, at_once
        self._most_of_one = max(1, int(most * SHARE_OF_ONE))
        self._at_once_of_one = max(1, at_once - 1)
        self._waiting: list[QueuePlace] = []
        self._working: list[QueuePlace] = []
        self._turn = 0
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def joined(self, visitor: str) -> Iterator[QueuePlace]:
        """Join the queue for as long as the context lasts.

        Raises:
            InputError: too many wait already, of all or of this visitor.
        """
        with self._lock:
            self._refuse_too_many(visitor)
            before = [each.turn for each in (*self._working, *self._waiting) if each.visitor == visitor]
            place = QueuePlace(self, visitor, max(before, default=self._turn - 1) + 1)
            self._waiting.append(place)
            self._start()
        try:
            yield place
        finally:
            with self._lock:
                (self._working if place in self._working else self._waiting).remove(place)
                self._start()

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
            at_work = [each.visitor for each in self._working]
            if len(at_work) < self.at_once and at_work.count(place.visitor) < self._at_once_of_one:
                self._waiting.remove(place)
                self._working.append(place)
                self._turn = max(self._turn, place.turn)
                place.starts.set()

    def _in_order(self) -> list[QueuePlace]:
        """Those that wait: first everybody's first request, then everybody's second one …"""
        return sorted(self._waiting, key=lambda each: each.turn)

    def num_before(self, place: QueuePlace) -> int:
        """Return how many are before a place, those at work included; 0 if it is at work itself."""
        with self._lock:
            if place in self._working:
                return 0
            return len(self._working) + self._in_order().index(place)


class QueuePlace:
    """A place in the queue."""

    def __init__(self, queue: FairQueue, visitor: str, turn: int) -> None:
        """Be in a queue; in each turn, every visitor has one request."""
        self.visitor, self.turn = visitor, turn
        self.starts = threading.Event()
        self._queue = queue

    def wait(self) -> Iterator[int]:
        """Yield the number of requests before this one, at once and then about twice a second, until it may work."""
        while before := self._queue.num_before(self):
            yield before
            self.starts.wait(LOOK_SECONDS)
