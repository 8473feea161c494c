"""Widgets and texts that several tabs share."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from hierclass.decisions.calibration import LOWEST_PRECISION
from hierclass.page.addresses import visitor_of

if TYPE_CHECKING:
    import gradio as gr

    from hierclass.classifier import Classifier

BUSY = "The page is busy or can't be reached. Please try again in a minute."
ANNOUNCED = "element.setAttribute('aria-live', 'polite')"
"""Makes screen readers read out changes of an element."""


class Controls(NamedTuple):
    """The three widgets that set `AnswerOptions`, the same in both tabs."""

    level: gr.Radio
    sure: gr.Checkbox
    precision: gr.Slider


def build_controls(classifier: Classifier) -> Controls:
    """Add the widgets that set how fine and how sure an answer must be."""
    import gradio as gr

    from hierclass.costs import run_once

    levels, known = classifier.levels, classifier.decision.precisions
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
    low, high = (int(100 * each + 1e-6) for each in (LOWEST_PRECISION, known[-1] if known else 0.9))
    precision = gr.Slider(
        min(low, high - 1),
        high,
        value=90 if low <= 90 <= high else low,
        step=1,
        label="How often must a sure answer be right? (of 100)",
        info="Measured on photographs of things that the model knows; of others nothing is promised.",
        visible=bool(known),
    )
    return Controls(level, sure, precision)


def share(percentage: Any) -> Any:
    """Return a slider's value as a share; anything but a number is returned as it is, to be refused later."""
    return percentage / 100 if isinstance(percentage, (int, float)) else percentage


def takes_request(function: Callable[..., Any]) -> None:
    """Have Gradio hand a function the request as its argument `request`, which it recognises by the type."""
    import gradio as gr

    function.__annotations__["request"] = gr.Request  # names that are local to a function are not found


def visitor_of_request(request: gr.Request) -> str:
    """Return who asks, for limits per visitor."""
    return visitor_of(request.client.host if request.client else None)


def caption(text: str) -> str:
    """Draw the caption of a figure."""
    return f'<p class="hc-caption">{text}</p>'


def line(text: str) -> str:
    """Draw a line of status text."""
    return f'<div class="hc"><p class="sum">{text}</p></div>'
