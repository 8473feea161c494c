"""What the page and its endpoints both do: classify one photograph, label many, each within bounds."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from hierclass.page.queue import Turns
from hierclass.page.single import climb, make_wish
from hierclass.page.uploads import Uploads

if TYPE_CHECKING:
    from hierclass.classifier import Classifier
    from hierclass.page.batch_job import Pile
    from hierclass.page.single import Stage, Wish

NUM_AT_ONCE = 2
"""Photographs that are classified at the same time."""
NUM_WAITING = 8
"""Requests of many photographs that wait while one is worked on; more are told to come again."""
NUM_PILES = NUM_WAITING + 2
"""Requests of many photographs that are taken in: those that wait, the one that is worked on, and one to be told."""


class Service:
    """A model that is loaded already, at work on what visitors send. Whatever a request says may be wrong."""

    def __init__(self, classifier: Classifier, uploads: Uploads) -> None:
        """Answer with a classifier; what visitors send is in `uploads`."""
        self.classifier, self.uploads = classifier, uploads
        self._turns = Turns(NUM_WAITING)

    def climb(self, photo: Any, level: Any, precision: Any) -> Iterator[tuple[Stage, Wish]]:
        """Classify one photograph: yield what each level answers, and what was wanted.

        Raises:
            HierclassError: the photograph can't be read, or there is no such level or precision.
        """
        wish = make_wish(self.classifier, level, precision)
        for stage in climb(self.classifier, self.uploads.find(photo), wish):
            yield stage, wish

    def work_on(self, sent: Any, level: Any, precision: Any, *, thumbnails: bool) -> Iterator[int | Pile]:
        """Label many photographs: yield how many others are before them, then the pile whenever some are done.

        Raises:
            HierclassError: too many wait already, there is nothing to label or too much, no such level or precision.
        """
        from hierclass.page.batch_job import gather, label_pile

        wish = make_wish(self.classifier, level, precision)
        with self._turns.taken() as turn, self.uploads.working_folder() as folder:
            yield from turn.wait()
            pile = gather(self.uploads, sent, folder)
            with contextlib.closing(label_pile(self.classifier, pile, wish, thumbnails=thumbnails)) as work:
                for _ in work:
                    yield pile
