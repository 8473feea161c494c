"""The tab for one photograph: shows each level's answer as soon as it is computed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hierclass.errors import HierclassError
from hierclass.page.drawing import draw_headline, draw_message, draw_numbers, draw_steps, draw_trouble
from hierclass.page.figures import draw_blank_tree, draw_tree
from hierclass.page.messages import explain, introduction
from hierclass.page.service import NUM_PHOTOGRAPHS, Service
from hierclass.page.widgets import (
    ANNOUNCED,
    BUSY,
    Controls,
    build_controls,
    caption,
    share,
    takes_request,
    visitor_of_request,
)

if TYPE_CHECKING:
    import gradio as gr


def build_single_tab(service: Service, examples: Sequence[Path]) -> None:
    """Add the tab's widgets and connect them."""
    import gradio as gr

    classifier = service.classifier
    start = draw_message("Choose a photograph to begin.", "The answer appears here, step by step.")
    gr.Markdown(introduction(classifier))
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
            if examples:
                files = [str(path) for path in examples]
                gr.Examples(files, image, label="Or try one of these", cache_examples=False)
        with gr.Column(elem_classes="answer-part", min_width=280):
            headline = gr.HTML(start, elem_id="headline", js_on_load=ANNOUNCED)
            steps = gr.HTML(draw_steps(classifier, ()), elem_id="steps")
        with gr.Column(elem_classes="control-part", min_width=280):
            controls = build_controls(classifier)
        with gr.Column(elem_classes="tree-part", min_width=280):
            gr.HTML(caption("All the classes, coloured by how likely they are"))
            tree = gr.Plot(draw_blank_tree(classifier.taxonomy), show_label=False, elem_id="tree")
            with gr.Accordion("In numbers", open=False):
                numbers = gr.HTML(draw_numbers(classifier, ()))
    _wire(service, image, controls, [headline, steps, tree, numbers], start)


def _wire(
    service: Service, image: gr.Image, controls: Controls, outputs: list[gr.HTML | gr.Plot], start: str
) -> None:
    """Update the answer when the photograph or a control changes."""
    import gradio as gr

    # An old answer must not stand beside a new photograph, even where its own never comes.
    waiting = draw_message("Looking …", "The first answer comes at once, the finer ones after it.")
    image.change(None, None, outputs, js=_in_browser(service, waiting), api_visibility="private")

    def show(
        photo: Any, level: Any, sure: Any, precision: Any, request: gr.Request
    ) -> Iterator[tuple[Any, ...]]:
        if photo is None:
            yield _empty(service, start)
            return
        asked = (photo, level, share(precision) if sure else None)
        yield from _show(service, asked, visitor_of_request(request))

    takes_request(show)
    shown = gr.on(
        [image.change, *(control.change for control in controls)],
        show,
        [image, *controls],
        outputs,
        preprocess=False,  # the file as it came: hierclass reads it, with its own limits and messages
        show_progress="hidden",
        trigger_mode="always_last",
        api_visibility="private",
        concurrency_limit=NUM_PHOTOGRAPHS,
        concurrency_id="classify",
    )
    busy = _in_browser(service, draw_trouble(BUSY))
    shown.failure(None, None, outputs, js=busy, api_visibility="private")


def _show(service: Service, asked: tuple[Any, Any, Any], visitor: str) -> Iterator[tuple[Any, ...]]:
    """Yield the contents of the tab after every level."""
    classifier, stages = service.classifier, []
    try:
        for stage, options in service.classify(*asked, visitor=visitor):
            stages.append(stage)
            yield (
                draw_headline(classifier, stages, options),
                draw_steps(classifier, stages),
                draw_tree(classifier.taxonomy, stages),
                draw_numbers(classifier, stages),
            )
    except HierclassError as error:
        yield _empty(service, draw_trouble(explain(error)))


def _empty(service: Service, headline: str) -> tuple[Any, ...]:
    """The contents of the tab without an answer."""
    classifier = service.classifier
    return (
        headline,
        draw_steps(classifier, ()),
        draw_blank_tree(classifier.taxonomy),
        draw_numbers(classifier, ()),
    )


def _in_browser(service: Service, headline: str) -> str:
    """JavaScript that shows the tab without an answer, without asking the server."""
    headline, steps, tree, numbers = _empty(service, headline)
    plot = {"type": "plotly", "plot": tree.to_json()}
    return f"() => {json.dumps([headline, steps, plot, numbers])}"
