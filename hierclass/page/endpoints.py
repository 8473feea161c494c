"""Endpoints for programs: names, arguments and results stay when the page changes (docs/page.md)."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

from hierclass.errors import HierclassError
from hierclass.page import endpoint_types as answers
from hierclass.page.messages import explain
from hierclass.page.model_info import search
from hierclass.page.service import NUM_AT_ONCE, NUM_JOBS, NUM_PHOTOGRAPHS, Service
from hierclass.page.widgets import takes_request, visitor_of_request

TOLD_SECONDS = 5
"""Seconds between two results that a program gets while many photographs are labelled, at least."""


def add_endpoints(service: Service) -> None:
    """Add the endpoints to the page that is being built."""

    def classify(
        request: Any, photo: Any, level: Any = None, precision: Any = None
    ) -> Iterator[answers.StageAnswer]:
        with _told():
            for stage, _ in service.classify(photo, level, precision, visitor=visitor_of_request(request)):
                yield answers.stage_answer(stage)

    def label(
        request: Any, photos: Any, level: Any = None, precision: Any = None
    ) -> Iterator[list[answers.RowAnswer]]:
        with _told():
            told, visitor = time.monotonic(), visitor_of_request(request)
            for each in service.label_batch(photos, level, precision, thumbnails=False, visitor=visitor):
                finished = not isinstance(each, int) and each.finished
                if finished or time.monotonic() - told > TOLD_SECONDS:  # each time all rows are sent
                    rows = [] if isinstance(each, int) else each.done
                    yield [answers.row_answer(row) for row in rows]
                    told = time.monotonic()

    def model() -> answers.ModelAnswer:
        return answers.model_answer(service.classifier)

    def classes(query: Any) -> list[answers.ClassAnswer]:
        with _told():
            found = search(service.classifier.taxonomy, query)
            return [answers.class_answer(service.classifier, node) for node in found]

    _endpoint(classify, answers.CLASSIFY, answers.StageAnswer, "classify", NUM_PHOTOGRAPHS)
    _endpoint(label, answers.LABEL, list[answers.RowAnswer], "label", NUM_JOBS)
    _endpoint(model, answers.MODEL, answers.ModelAnswer, "model", NUM_AT_ONCE)
    _endpoint(classes, answers.CLASSES, list[answers.ClassAnswer], "classes", NUM_AT_ONCE)


def _endpoint(function: Callable[..., Any], about: str, result: Any, name: str, at_once: int) -> None:
    """Add an endpoint; `result` is the type of its value, or of each value that a generator yields."""
    from gradio.events import api

    function.__annotations__.update({**answers.PARAMETERS[name], "return": result})
    if "request" in function.__annotations__:
        takes_request(function)
    api(function, api_name=name, api_description=about, concurrency_limit=at_once, concurrency_id=name)


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """Turn errors into Gradio's, with one sentence for programs."""
    import gradio as gr

    try:
        yield
    except HierclassError as error:
        raise gr.Error(explain(error), print_exception=False) from error
