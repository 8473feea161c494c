"""The tab for the model: levels, classes to search, model card."""

from __future__ import annotations

from hierclass.page.figures import draw_curve
from hierclass.page.model_info import LONGEST_QUERY, draw_found, draw_levels, draw_tree_list
from hierclass.page.service import Service
from hierclass.page.widgets import ANNOUNCED, caption


def build_model_tab(service: Service, card: str) -> None:
    """Add the tab's widgets and connect them."""
    import gradio as gr

    taxonomy = service.classifier.taxonomy
    with gr.Row():
        with gr.Column(min_width=280):
            gr.Markdown("## What each step does")
            gr.HTML(draw_levels(service.classifier))
        with gr.Column(min_width=280):
            if any(each.accuracy is not None for each in service.classifier.levels):
                gr.HTML(caption("The finer the answer, the more it costs"))
                gr.Plot(draw_curve(service.classifier.levels), show_label=False, elem_id="curve")
    gr.Markdown(f"## The {taxonomy.num_classes[-1]:,} names it knows")
    query = gr.Textbox(
        label="Search the names and their meanings", placeholder="dog", max_length=LONGEST_QUERY
    )
    found = gr.HTML(draw_found(taxonomy, ""), js_on_load=ANNOUNCED)
    gr.HTML(draw_tree_list(taxonomy), elem_id="classes")
    with gr.Accordion("Model card", open=False):
        gr.Markdown(card)
    query.change(
        lambda text: draw_found(taxonomy, str(text)[:LONGEST_QUERY]),
        query,
        found,
        show_progress="hidden",
        trigger_mode="always_last",
        api_visibility="private",
        queue=False,
    )
