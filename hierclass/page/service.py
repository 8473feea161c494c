"""What the page and its endpoints do: classify one photograph or label many, within limits."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from hierclass.page.fair_queue import FairQueue
from hierclass.page.single import classify_by_level, parse_options
from hierclass.page.uploads import Uploads

if TYPE_CHECKING:
    from hierclass.classifier import Classifier
    from hierclass.page.batch_job import BatchJob
    from hierclass.page.single import AnswerOptions, Stage

NUM_AT_ONCE = 2
"""Photographs that are classified at the same time; one visitor has one fewer, so a slow one blocks nobody else."""
NUM_WAITING = 8
"""Requests of many photographs that wait while one is worked on; further ones are refused."""
NUM_PHOTOGRAPHS_WAITING = 100
"""Requests of one photograph that wait while others are classified; further ones are refused."""
NUM_JOBS = NUM_WAITING + 2
"""Requests of many photographs that Gradio admits: those that wait, the one at work, and one to be refused."""
NUM_PHOTOGRAPHS = NUM_PHOTOGRAPHS_WAITING + 2 * NUM_AT_ONCE
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
