"""The tab for many photographs: files or zip files in, a table out that can be sorted and downloaded."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from hierclass.errors import HierclassError
from hierclass.images.kinds import scanned_endings
from hierclass.page.batch_job import (
    HEADERS,
    KINDS,
    MAX_PHOTOGRAPHS,
    ORDERS,
    BatchJob,
    draw_progress,
    table_rows,
    write_tables,
)
from hierclass.page.drawing import draw_trouble
from hierclass.page.messages import explain
from hierclass.page.service import NUM_JOBS, Service
from hierclass.page.widgets import (
    ANNOUNCED,
    BUSY,
    build_controls,
    line,
    share,
    takes_request,
    visitor_of_request,
)

if TYPE_CHECKING:
    import gradio as gr

MAX_FILE = "200mb"
"""Size of one uploaded file, at most."""
SHOWN_SECONDS = 1
"""Seconds between two updates of the growing table, at least."""
WAITING = "Waiting for its turn …"

SORTING = """(order, table) => {
  const [column, way] = (%s)[order], missing = value => value === null || value === '';
  const compare = (a, b) => typeof a === 'number' ? a - b : String(a).localeCompare(String(b));
  const data = [...table.data].sort(({[column]: a}, {[column]: b}) =>
    missing(a) || missing(b) ? missing(a) - missing(b) : way * compare(a, b));
  return {...table, data};
}"""
"""Sorts a table in the browser."""


def build_batch_tab(service: Service) -> None:
    """Add the tab's widgets and connect them."""
    import gradio as gr

    gr.Markdown(
        f"Drop up to {MAX_PHOTOGRAPHS} photographs, or zip files of photographs, of {MAX_FILE.upper()} each at most. "
        "For more, and for work that survives a crash, there is the command `hierclass label`."
    )
    with gr.Row():
        with gr.Column(min_width=280):
            files = gr.File(
                label="Photographs or zip files",
                file_count="multiple",
                file_types=["image", ".zip", *sorted(scanned_endings())],
                height=220,
                elem_id="pile",
            )
        with gr.Column(min_width=280):
            controls = build_controls(service.classifier)
    with gr.Row():
        go = gr.Button("Label them", variant="primary")
        stop = gr.Button("Stop")
    status = gr.HTML(line("Nothing is labelled yet."), elem_id="status", js_on_load=ANNOUNCED)
    order = gr.Dropdown(list(ORDERS), value="as sent", label="Order of the answers", elem_id="order")
    table = _place_table()
    with gr.Row():
        names = ("CSV", "Parquet")
        downloads = [gr.DownloadButton(f"Download as {name}", interactive=False) for name in names]
    sorting = SORTING % json.dumps(ORDERS)
    order.change(None, [order, table], table, js=sorting, api_visibility="private")
    work = _BatchActions(service)
    go.click(None, None, status, js=f"() => {json.dumps(line(WAITING))}", api_visibility="private")
    run = go.click(
        work.fill,
        [files, *controls],
        [status, table, *downloads],
        preprocess=False,
        show_progress="hidden",
        trigger_mode="once",
        api_visibility="private",
        concurrency_limit=NUM_JOBS,
        concurrency_id="label",
    )
    run.then(None, [order, table], table, js=sorting, api_visibility="private")
    run.failure(None, None, status, js=f"() => {json.dumps(draw_trouble(BUSY))}", api_visibility="private")
    stop.click(work.halt, queue=False, api_visibility="private")


def _place_table() -> gr.Dataframe:
    import gradio as gr

    return gr.Dataframe(
        headers=list(HEADERS),
        datatype=list(KINDS),
        value=[],
        interactive=False,
        label="Answers",
        max_height=560,
        column_widths=["56px", "90px", "160px", "120px", "220px", "280px", "240px"],
        wrap=True,
        buttons=["fullscreen"],
        elem_id="answers",
    )


class _BatchActions:
    """What the buttons do; each visitor can stop only their own job."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._stops: dict[str, threading.Event] = {}

        def fill(
            sent: Any, level: Any, sure: Any, precision: Any, request: gr.Request
        ) -> Iterator[tuple[Any, ...]]:
            session, stopped = str(request.session_hash), threading.Event()
            self._stops[session] = stopped
            try:
                asked = (sent, level, share(precision) if sure else None)
                yield from self._label(asked, visitor_of_request(request), stopped)
            finally:
                self._stops.pop(session, None)

        def halt(request: gr.Request) -> None:
            if stopped := self._stops.get(str(request.session_hash)):
                stopped.set()

        for function in (fill, halt):
            takes_request(function)
        self.fill, self.halt = fill, halt

    def _label(
        self, asked: tuple[Any, Any, Any], visitor: str, stopped: threading.Event
    ) -> Iterator[tuple[Any, ...]]:
        """Yield the contents of the tab while photographs are labelled."""
        import gradio as gr

        off = gr.DownloadButton(interactive=False)
        yield line(WAITING), [], off, off
        try:
            job: BatchJob | None = None
            shown = 0.0
            for each in self._service.label_batch(*asked, thumbnails=True, visitor=visitor):
                if stopped.is_set():
                    break
                if isinstance(each, int):
                    yield line(f"Waiting for its turn: {each} before it …"), gr.skip(), off, off
                    continue
                job, table = each, gr.skip()
                if time.monotonic() - shown > SHOWN_SECONDS:  # a table is long
                    table, shown = table_rows(job), time.monotonic()
                yield draw_progress(job), table, off, off
            if job is None or not job.done:
                yield line("Stopped before anything was labelled."), [], off, off
                return
            num_tiers = self._service.classifier.taxonomy.num_tiers
            paths = write_tables(job, num_tiers, self._service.uploads.result_folder())
            ready = (gr.DownloadButton(value=str(path), interactive=True) for path in paths)
            yield draw_progress(job, stopped=not job.finished), table_rows(job), *ready
        except HierclassError as error:
            yield draw_trouble(explain(error)), [], off, off
