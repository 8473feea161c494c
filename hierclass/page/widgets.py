"""The page's widgets: where they are, and what they call; with `app.py` the only place that knows Gradio.

What the widgets show and do is in the files beside this one. Gradio is imported when a page is built.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from hierclass.errors import HierclassError
from hierclass.page.turns import Turns
from hierclass.page.uploads import Uploads

if TYPE_CHECKING:
    import gradio as gr

    from hierclass.classifier import Classifier
    from hierclass.page.pile import Pile
    from hierclass.page.stages import Stage, Wish

MAX_FILE = "200mb"
QUEUE_LENGTH = 100
"""Requests that wait at most; the next is told that the page is busy."""
NUM_AT_ONCE = 2
"""Photographs that are classified at the same time."""
NUM_WAITING = 8
"""Requests of many photographs that wait while one is worked on; more are told to come again."""
NUM_PILES = NUM_WAITING + 2
TOLD_SECONDS = 5
"""Programs that have many photographs labelled hear at most so often of those that are done."""
SHOWN_SECONDS = 1
"""The table of many photographs is shown anew at most so often while it grows."""

TITLE = "hierclass: from coarse to fine"
PRIVACY = (
    "What you drop goes to the computer that runs this page and nowhere else. "
    "It is deleted within an hour, or when the page stops."
)
BUSY = "The page is busy or can't be reached. Please try again in a minute."
ANNOUNCED = "element.setAttribute('aria-live', 'polite')"
"""Screen readers read out what changes in such an element."""

NAMED = """() => document.querySelectorAll('[aria-label="common.upload"]')
  .forEach(each => each.setAttribute('aria-label', 'Upload photographs or zip files'))"""
"""Gradio leaves the name of a text where the text should be."""
SORTING = """(order, table) => {
  const [column, way] = (%s)[order], missing = value => value === null || value === '';
  const compare = (a, b) => typeof a === 'number' ? a - b : String(a).localeCompare(String(b));
  const data = [...table.data].sort(({[column]: a}, {[column]: b}) =>
    missing(a) || missing(b) ? missing(a) - missing(b) : way * compare(a, b));
  return {...table, data};
}"""
"""Sorts a table in the browser."""


class Controls(NamedTuple):
    """How fine, and how sure: the same three widgets for one photograph and for many."""

    level: gr.Radio
    sure: gr.Checkbox
    precision: gr.Slider


class Page:
    """The page around a model that is loaded already: its widgets, what they do, and its endpoints for programs."""

    def __init__(
        self, classifier: Classifier, uploads: Uploads, *, card: str = "", examples: Sequence[Path] = ()
    ) -> None:
        """Show a classifier, its card (Markdown) and photographs to try; what visitors send is in `uploads`."""
        self.classifier, self.uploads = classifier, uploads
        self.card, self.examples = card, examples
        self._turns = Turns(NUM_WAITING)
        self._stops: dict[str, threading.Event] = {}

    def build(self) -> gr.Blocks:
        """Lay the page out; nothing is started."""
        import gradio as gr

        page: gr.Blocks = gr.Blocks(title=TITLE, analytics_enabled=False)
        with page:
            self._endpoints()  # first: what the page itself calls must not take their names
            gr.Markdown("# From coarse to fine")
            with gr.Tab("One photograph"):
                self._one()
            with gr.Tab("Many photographs"):
                self._many()
            with gr.Tab("The model"):
                self._about()
            gr.Markdown(PRIVACY, elem_classes="privacy")
            page.load(None, js=NAMED)
        page.queue(max_size=QUEUE_LENGTH, api_open=False)
        return page

    # -- one photograph

    def _one(self) -> None:
        import gradio as gr

        from hierclass.page.drawing import draw_message, draw_numbers, draw_steps, draw_trouble
        from hierclass.page.figures import draw_tree
        from hierclass.page.wording import introduction

        start = draw_message("Choose a photograph to begin.", "The answer appears here, step by step.")
        empty = draw_steps(self.classifier, ()), draw_numbers(self.classifier, ())
        gr.Markdown(introduction(self.classifier))
        with gr.Row(elem_id="one"):
            with gr.Column(elem_classes="photo-part", min_width=280):
                image = gr.Image(
                    label="Your photograph",
                    image_mode=None,
                    height=300,
                    sources=["upload", "webcam", "clipboard"],
                    buttons=[],
                    alt_text="Your photograph",
                )
                if self.examples:
                    files = [str(path) for path in self.examples]
                    gr.Examples(files, image, label="Or try one of these", cache_examples=False)
            with gr.Column(elem_classes="answer-part", min_width=280):
                headline = gr.HTML(start, elem_id="headline", js_on_load=ANNOUNCED)
                steps = gr.HTML(empty[0], elem_id="steps")
            with gr.Column(elem_classes="control-part", min_width=280):
                controls = self._controls()
            with gr.Column(elem_classes="tree-part", min_width=280):
                gr.HTML(_caption("All the classes, coloured by how likely they are"))
                tree = gr.Plot(draw_tree(self.classifier.taxonomy), show_label=False, elem_id="tree")
                with gr.Accordion("In numbers", open=False):
                    numbers = gr.HTML(empty[1])
        outputs = [headline, steps, tree, numbers]
        waiting = draw_message("Looking …", "The first answer comes at once, the finer ones after it.")
        blank = {"type": "plotly", "plot": draw_tree(self.classifier.taxonomy).to_json()}
        # An old answer must not stand beside a new photograph, even where its own never comes.
        image.change(
            None,
            None,
            outputs,
            js=f"() => {json.dumps([waiting, empty[0], blank, empty[1]])}",
            api_visibility="private",
        )

        def show(photo: Any, level: Any, sure: Any, precision: Any) -> Iterator[tuple[Any, ...]]:
            if photo is None:
                yield start, empty[0], draw_tree(self.classifier.taxonomy), empty[1]
                return
            yield from self._show(photo, level, _share(precision) if sure else None)

        shown = gr.on(
            [image.change, *(control.change for control in controls)],
            show,
            [image, *controls],
            outputs,
            preprocess=False,  # the file as it came: hierclass reads it, with its own limits and messages
            show_progress="hidden",
            trigger_mode="always_last",
            api_visibility="private",
            concurrency_limit=NUM_AT_ONCE,
            concurrency_id="classify",
        )
        busy = json.dumps([draw_trouble(BUSY), empty[0], blank, empty[1]])
        shown.failure(None, None, outputs, js=f"() => {busy}", api_visibility="private")

    def _show(self, photo: Any, level: Any, precision: Any) -> Iterator[tuple[Any, ...]]:
        """What the page shows of a photograph after every level."""
        from hierclass.page.drawing import draw_headline, draw_numbers, draw_steps, draw_trouble
        from hierclass.page.figures import draw_tree
        from hierclass.page.wording import explain

        stages: list[Stage] = []
        try:
            for stage, wish in self._climb(photo, level, precision):
                stages.append(stage)
                yield (
                    draw_headline(self.classifier, stages, wish),
                    draw_steps(self.classifier, stages),
                    draw_tree(self.classifier.taxonomy, stages),
                    draw_numbers(self.classifier, stages),
                )
        except HierclassError as error:
            trouble = draw_trouble(explain(error))
            blank = draw_tree(self.classifier.taxonomy)
            yield trouble, draw_steps(self.classifier, ()), blank, draw_numbers(self.classifier, ())

    def _climb(self, photo: Any, level: Any, precision: Any) -> Iterator[tuple[Stage, Wish]]:
        from hierclass.page.stages import climb, make_wish

        wish = make_wish(self.classifier, level, precision)
        for stage in climb(self.classifier, self.uploads.find(photo), wish):
            yield stage, wish

    def _controls(self) -> Controls:
        """Place the widgets that say how fine and how sure."""
        import gradio as gr

        from hierclass.classifier import run_once
        from hierclass.page.stages import precisions

        levels, known = self.classifier.levels, precisions(self.classifier)
        info = "Fewer kinds cost less: a finer step that is not needed is never computed."
        if run_once(levels):
            info = "Fewer kinds cost the same: every step runs the whole network."
        level = gr.Radio(
            [(f"one of {level.num_classes:,}", level.index) for level in levels],
            value=levels[-1].index,
            label="How fine?",
            info=info,
        )
        sure = gr.Checkbox(
            False,
            label="Only as fine as it is sure of",
            info="It climbs until it is sure of an answer that is fine enough; else it says less.",
            visible=bool(known),
        )
        low, high = (int(100 * (known or [0.9])[at] + 1e-6) for at in (0, -1))
        steps = ", ".join(f"{100 * each:.4g}" for each in known)
        precision = gr.Slider(
            min(low, high - 1),
            high,
            value=90 if low <= 90 <= high else low,
            step=1,
            label="How often must a sure answer be right? (of 100)",
            info=f"Measured for {steps}; between these, the next higher one holds.",
            visible=bool(known),
        )
        return Controls(level, sure, precision)

    # -- many photographs

    def _many(self) -> None:
        import gradio as gr

        from hierclass.page.drawing import draw_trouble
        from hierclass.page.pile import HEADERS, KINDS, MAX_PHOTOGRAPHS, ORDERS

        gr.Markdown(
            f"Drop up to {MAX_PHOTOGRAPHS} photographs, or zip files of photographs, of {MAX_FILE.upper()} each at "
            "most. For more, and for work that survives a crash, there is the command `hierclass label`."
        )
        with gr.Row():
            with gr.Column(min_width=280):
                files = gr.File(
                    label="Photographs or zip files",
                    file_count="multiple",
                    file_types=["image", ".zip"],
                    height=220,
                    elem_id="pile",
                )
            with gr.Column(min_width=280):
                controls = self._controls()
        with gr.Row():
            go = gr.Button("Label them", variant="primary")
            stop = gr.Button("Stop")
        status = gr.HTML(_line("Nothing is labelled yet."), elem_id="status", js_on_load=ANNOUNCED)
        order = gr.Dropdown(list(ORDERS), value="as sent", label="Order of the answers", elem_id="order")
        table = gr.Dataframe(
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
        with gr.Row():
            downloads = [
                gr.DownloadButton(f"Download as {name}", interactive=False) for name in ("CSV", "Parquet")
            ]
        order.change(
            None, [order, table], table, js=SORTING % json.dumps(ORDERS), api_visibility="private"
        )  # in the browser: the table is there
        waiting = json.dumps(_line("Waiting for its turn …"))
        go.click(None, None, [status], js=f"() => {waiting}", api_visibility="private")

        def fill(sent: Any, level: Any, sure: Any, precision: Any, request: Any) -> Iterator[tuple[Any, ...]]:
            visitor, stopped = str(request.session_hash), threading.Event()
            self._stops[visitor] = stopped
            try:
                yield from self._label(sent, level, _share(precision) if sure else None, stopped)
            finally:
                self._stops.pop(visitor, None)

        def halt(request: Any) -> None:
            if stopped := self._stops.get(str(request.session_hash)):
                stopped.set()

        for function in (fill, halt):
            function.__annotations__["request"] = gr.Request
        run = go.click(
            fill,
            [files, *controls],
            [status, table, *downloads],
            preprocess=False,
            show_progress="hidden",
            trigger_mode="once",
            api_visibility="private",
            concurrency_limit=NUM_PILES,
            concurrency_id="label",
        )
        run.then(None, [order, table], table, js=SORTING % json.dumps(ORDERS), api_visibility="private")
        run.failure(
            None, None, [status], js=f"() => {json.dumps(draw_trouble(BUSY))}", api_visibility="private"
        )
        stop.click(halt, queue=False, api_visibility="private")

    def _label(
        self, sent: Any, level: Any, precision: Any, stopped: threading.Event
    ) -> Iterator[tuple[Any, ...]]:
        """What the page shows of many photographs, while they are labelled."""
        import gradio as gr

        from hierclass.page.drawing import draw_trouble
        from hierclass.page.pile import draw_progress, table_rows, write_tables
        from hierclass.page.wording import explain

        off = gr.DownloadButton(interactive=False)
        yield _line("Waiting for its turn …"), [], off, off
        try:
            pile, shown = None, 0.0
            for each in self._work_on(sent, level, precision, thumbnails=True):
                if stopped.is_set():
                    break
                if isinstance(each, int):
                    yield _line(f"Waiting for its turn: {each} before it …"), gr.skip(), off, off
                    continue
                pile, table = each, gr.skip()
                if time.monotonic() - shown > SHOWN_SECONDS:  # a table is long
                    table, shown = table_rows(pile), time.monotonic()
                yield draw_progress(pile), table, off, off
            if pile is None or not pile.done:
                yield _line("Stopped before anything was labelled."), [], off, off
                return
            num_tiers = self.classifier.taxonomy.num_tiers
            paths = write_tables(pile, num_tiers, self.uploads.result_folder())
            ready = (gr.DownloadButton(value=str(path), interactive=True) for path in paths)
            yield draw_progress(pile, stopped=not pile.finished), table_rows(pile), *ready
        except HierclassError as error:
            yield draw_trouble(explain(error)), [], off, off

    def _work_on(self, sent: Any, level: Any, precision: Any, *, thumbnails: bool) -> Iterator[int | Pile]:
        """Label many photographs: yield how many others are before them, then the pile whenever some are done."""
        from hierclass.page.pile import gather, label_pile
        from hierclass.page.stages import make_wish

        wish = make_wish(self.classifier, level, precision)
        with self._turns.taken() as turn, self.uploads.working_folder() as folder:
            yield from turn.wait()
            pile = gather(self.uploads, sent, folder)
            with contextlib.closing(label_pile(self.classifier, pile, wish, thumbnails=thumbnails)) as work:
                for _ in work:
                    yield pile

    # -- the model

    def _about(self) -> None:
        import gradio as gr

        from hierclass.page.about import draw_found, draw_levels, draw_tree_list
        from hierclass.page.figures import draw_curve

        taxonomy = self.classifier.taxonomy
        with gr.Row():
            with gr.Column(min_width=280):
                gr.Markdown("## What each step does")
                gr.HTML(draw_levels(self.classifier))
            with gr.Column(min_width=280):
                if any(each.accuracy is not None for each in self.classifier.levels):
                    gr.HTML(_caption("The finer the answer, the more it costs"))
                    gr.Plot(draw_curve(self.classifier.levels), show_label=False, elem_id="curve")
        gr.Markdown(f"## The {taxonomy.num_classes[-1]:,} names it knows")
        query = gr.Textbox(label="Search the names and their meanings", placeholder="dog", max_length=200)
        found = gr.HTML(draw_found(taxonomy, ""), js_on_load=ANNOUNCED)
        gr.HTML(draw_tree_list(taxonomy), elem_id="classes")
        with gr.Accordion("Model card", open=False):
            gr.Markdown(self.card)
        query.change(
            lambda text: draw_found(taxonomy, text if isinstance(text, str) else ""),
            query,
            found,
            show_progress="hidden",
            trigger_mode="always_last",
            api_visibility="private",
            queue=False,
        )

    # -- programs

    def _endpoints(self) -> None:
        """Add what programs call; docs/page.md documents it, and it stays as it is when the page changes."""
        from hierclass.page import answers
        from hierclass.page.about import search

        def classify(photo: Any, level: Any = None, precision: Any = None) -> Iterator[answers.StageAnswer]:
            with _told():
                for stage, _ in self._climb(photo, level, precision):
                    yield answers.stage_answer(stage)

        def label(photos: Any, level: Any = None, precision: Any = None) -> Iterator[list[answers.RowAnswer]]:
            with _told():
                told = time.monotonic()
                for each in self._work_on(photos, level, precision, thumbnails=False):
                    finished = not isinstance(each, int) and each.finished
                    if finished or time.monotonic() - told > TOLD_SECONDS:  # each time all rows are sent
                        rows = [] if isinstance(each, int) else each.done
                        yield [answers.row_answer(row) for row in rows]
                        told = time.monotonic()

        def model() -> answers.ModelAnswer:
            return answers.model_answer(self.classifier)

        def classes(query: Any) -> list[answers.ClassAnswer]:
            with _told():
                found = search(self.classifier.taxonomy, query)
                return [answers.class_answer(self.classifier, node) for node in found]

        one, many = "classify", "label"
        _endpoint(classify, answers.CLASSIFY, answers.StageAnswer, one, NUM_AT_ONCE)
        _endpoint(label, answers.LABEL, list[answers.RowAnswer], many, NUM_PILES)
        _endpoint(model, answers.MODEL, answers.ModelAnswer, "model", NUM_AT_ONCE)
        _endpoint(classes, answers.CLASSES, list[answers.ClassAnswer], "classes", NUM_AT_ONCE)


def _endpoint(function: Callable[..., Any], about: str, result: Any, name: str, at_once: int) -> None:
    """Add an endpoint; of a generator, every value that it yields has the type `result`."""
    from gradio.events import api

    from hierclass.page.answers import PARAMETERS

    function.__annotations__.update({**PARAMETERS[name], "return": result})
    api(function, api_name=name, api_description=about, concurrency_limit=at_once, concurrency_id=name)


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """Tell programs what went wrong in one sentence."""
    import gradio as gr

    from hierclass.page.wording import explain

    try:
        yield
    except HierclassError as error:
        raise gr.Error(explain(error), print_exception=False) from error


def _share(percentage: Any) -> Any:
    """A slider's value as a share; what is no number stays as it is, and is refused later."""
    return percentage / 100 if isinstance(percentage, (int, float)) else percentage


def _caption(text: str) -> str:
    return f'<p class="hc-caption">{text}</p>'


def _line(text: str) -> str:
    return f'<div class="hc"><p class="sum">{text}</p></div>'
