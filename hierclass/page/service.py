"""What the page and its endpoints do: classify one photograph or label many, within limits."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
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
"""Between two messages of a job's place in the queue."""
NUM_AT_ONCE = 2
"""Photographs that are classified at the same time."""
NUM_WAITING = 8
"""Requests of many photographs that wait while one is worked on; further ones are refused."""
NUM_JOBS = NUM_WAITING + 2
"""Requests of many photographs that Gradio admits: those that wait, the one at work, and one to be refused."""


class Service:
    """Classifies what visitors send with a loaded model; requests are not trusted."""

    def __init__(self, classifier: Classifier, uploads: Uploads) -> None:
        """Use a classifier; what visitors send is in `uploads`."""
        self.classifier, self.uploads = classifier, uploads
        self._queue = JobQueue(NUM_WAITING)

    def classify(self, photo: Any, level: Any, precision: Any) -> Iterator[tuple[Stage, AnswerOptions]]:
        """Classify one photograph: yield the answer of each level, and the options of the request.

        Raises:
            HierclassError: the photograph can't be read, or there is no such level or precision.
        """
        options = parse_options(self.classifier, level, precision)
        for stage in classify_by_level(self.classifier, self.uploads.find(photo), options):
            yield stage, options

    def label_batch(
        self, sent: Any, level: Any, precision: Any, *, thumbnails: bool
    ) -> Iterator[int | BatchJob]:
        """Label many photographs: yield the number of jobs before this one, then the job whenever it has new rows.

        Raises:
            HierclassError: too many jobs wait, there are no photographs or too many, or no such level or precision.
        """
        from hierclass.page.batch_job import collect_job, run_batch_job

        options = parse_options(self.classifier, level, precision)
        with self._queue.joined() as place, self.uploads.working_folder() as folder:
            yield from place.wait()
            job = collect_job(self.uploads, sent, folder)
            with contextlib.closing(
                run_batch_job(self.classifier, job, options, thumbnails=thumbnails)
            ) as work:
                for _ in work:
                    yield job


class JobQueue:
    """Lets one job work at a time, in the order in which jobs joined."""

    def __init__(self, most: int) -> None:
        """Let at most N = `most` jobs wait."""
        self.most = most
        self._line: deque[QueuePlace] = deque()
        self._moved = threading.Condition()

    @contextlib.contextmanager
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
