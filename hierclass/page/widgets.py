"""Widgets that several tabs have, and what browsers are told of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import gradio as gr

    from hierclass.classifier import Classifier

BUSY = "The page is busy or can't be reached. Please try again in a minute."
ANNOUNCED = "element.setAttribute('aria-live', 'polite')"
"""Screen readers read out what changes in such an element."""


class Controls(NamedTuple):
    """How fine, and how sure: the same three widgets for one photograph and for many."""

    level: gr.Radio
    sure: gr.Checkbox
    precision: gr.Slider


def build_controls(classifier: Classifier) -> Controls:
    """Place the widgets that say how fine and how sure."""
    import gradio as gr

    from hierclass.classifier import run_once

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


def share(percentage: Any) -> Any:
    """A slider's value as a share; what is no number stays as it is, and is refused later."""
    return percentage / 100 if isinstance(percentage, (int, float)) else percentage


def caption(text: str) -> str:
    """Draw what stands above a figure."""
    return f'<p class="hc-caption">{text}</p>'


def line(text: str) -> str:
    """Draw a line that says how far something is."""
    return f'<div class="hc"><p class="sum">{text}</p></div>'
