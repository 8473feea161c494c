"""Build the page: tabs and endpoints around one service."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hierclass.page.endpoints import add_endpoints
from hierclass.page.service import Service
from hierclass.page.tab_batch import build_batch_tab
from hierclass.page.tab_model import build_model_tab
from hierclass.page.tab_single import build_single_tab

if TYPE_CHECKING:
    import gradio as gr

QUEUE_LENGTH = 100
"""Requests that wait at most; further ones are told that the page is busy."""
TITLE = "hierclass: from coarse to fine"
PRIVACY = (
    "What you drop goes to the computer that runs this page and nowhere else. "
    "It is deleted within an hour, or when the page stops."
)
NAMED = """() => document.querySelectorAll('[aria-label="common.upload"]')
  .forEach(each => each.setAttribute('aria-label', 'Upload photographs or zip files'))"""
"""Names a button that Gradio leaves without a proper name."""


def build_page(service: Service, *, card: str = "", examples: Sequence[Path] = ()) -> gr.Blocks:
    """Build the page around a service, with a model card (Markdown) and example photographs; start nothing."""
    import gradio as gr

    page: gr.Blocks = gr.Blocks(title=TITLE, analytics_enabled=False)
    with page:
        add_endpoints(service)  # first: what the page itself calls must not take their names
        gr.Markdown("# From coarse to fine")
        with gr.Tab("One photograph"):
            build_single_tab(service, examples)
        with gr.Tab("Many photographs"):
            build_batch_tab(service)
        with gr.Tab("The model"):
            build_model_tab(service, card)
        gr.Markdown(PRIVACY, elem_classes="privacy")
        page.load(None, js=NAMED)
    page.queue(max_size=QUEUE_LENGTH, api_open=False)
    return page
