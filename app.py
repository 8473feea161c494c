"""The page: drop a photograph, read the answer of level 0 at once, then watch the finer levels arrive.

Widgets and wording only; every decision and all image maths are in hierclass. Run `python app.py`.
Importing this file starts nothing and needs neither Gradio nor torch.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hierclass.cli.shared import TimmOption, WeightsOption, open_classifier
from hierclass.errors import HierclassError, ImageError

if TYPE_CHECKING:
    import gradio as gr

    from hierclass.classifier import Classifier, Level
    from hierclass.decisions import Prediction

EXAMPLES = Path(__file__).with_name("examples")

MAX_UPLOAD = "20mb"
NUM_ALTERNATIVES = 3
QUEUE_LENGTH = 64
NUM_AT_ONCE = 2
"""Photographs that are classified at the same time."""
CLEANING_SECONDS = (300, 3600)
"""Every 5 minutes, uploads older than an hour are deleted; all of them when the page stops."""

TITLE = "hierclass: from coarse to fine"
INTRODUCTION = (
    "# From coarse to fine\n"
    "A small network first says what **kind** of thing is in your photograph. "
    "Each finer level only adds to what is already computed, until the thing has a name."
)
INTRODUCTION_WHOLE = (
    "# From coarse to fine\n"
    "One network looks at your photograph once. Its answer is then added up from fine to coarse: "
    "what **kind** of thing is in it, and its name. "
    "Every level runs the whole network, so a coarser answer costs the same."
)
"""For a classifier that runs once for all levels."""
INTRODUCTION_APART = (
    "# From coarse to fine\n"
    "A small part of a network first says what **kind** of thing is in your photograph. "
    "Each finer level uses more of the weights and looks at it from the start, until the thing has a name."
)
"""For a classifier whose levels share no computing."""
PRIVACY = (
    "The photograph goes to the computer that runs this page and nowhere else. "
    "It is deleted within 65 minutes, or when the page stops."
)

CSS = """
.hc { display: flex; flex-direction: column; gap: 14px; }
.hc-path { display: flex; flex-wrap: wrap; align-items: center; gap: 8px; min-height: 44px; margin: 0;
  font-size: 18px; }
.hc-path .arrow { color: var(--block-label-text-color); }
.hc-path .last { font-weight: 700; font-size: 24px; }
.hc ol { list-style: none; margin: 0; padding: 0; }
.hc li { position: relative; margin: 0; padding: 0 0 14px 30px; }
.hc li::before { content: ""; position: absolute; left: 5px; top: 22px; width: 13px; height: 13px;
  border-radius: 50%;
  background: var(--color-accent); }
.hc li::after { content: ""; position: absolute; left: 11px; top: 41px; bottom: -16px; width: 2px;
  background: var(--border-color-primary); }
.hc li:last-child::after { display: none; }
.hc li.waiting::before, .hc li.skipped::before { background: var(--background-fill-primary);
  border: 2px solid var(--border-color-primary); width: 9px; height: 9px; }
.hc .card { display: flex; flex-direction: column; box-sizing: border-box; min-height: 172px; padding: 12px 16px;
  border: 1px solid var(--border-color-primary);
  border-radius: 12px; background: var(--background-fill-primary); }
.hc li.waiting .card, .hc li.skipped .card { border-style: dashed; background: transparent; }
.hc .tier { display: flex; justify-content: space-between; font-size: 13px;
  color: var(--block-label-text-color); }
.hc .row { display: grid; grid-template-columns: minmax(90px, 1fr) minmax(50px, 1fr) 52px; gap: 12px;
  align-items: center;
  font-size: 14px; line-height: 24px; color: var(--block-label-text-color); }
.hc .row.best { font-size: 19px; line-height: 36px; font-weight: 650; color: var(--body-text-color); }
.hc .row .name { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.hc .row .score { text-align: right; font-variant-numeric: tabular-nums; }
.hc .bar { height: 6px; border-radius: 3px; background: var(--border-color-primary); overflow: hidden; }
.hc .bar i { display: block; height: 100%; border-radius: 3px; background: var(--body-text-color-subdued); }
.hc .best .bar { height: 10px; border-radius: 5px; }
.hc .best .bar i { border-radius: 5px; background: var(--color-accent); }
.hc .cost { margin-top: auto; padding-top: 6px; font-size: 13px; color: var(--block-label-text-color);
  font-variant-numeric: tabular-nums; }
.hc .later { font-size: 13px; color: var(--body-text-color); }
.hc .total { display: flex; height: 12px; border-radius: 6px; overflow: hidden;
  background: var(--border-color-primary); }
.hc .total i { box-sizing: border-box; background: var(--color-accent);
  border-right: 2px solid var(--background-fill-primary); }
.hc .sum { margin: 6px 0 0; min-height: 44px; font-size: 14px; }
.trouble { margin: 0; padding: 12px 16px; border-left: 4px solid var(--color-accent); font-size: 15px; }
.privacy p { font-size: 13px; }
@media (max-width: 767px) {
  .controls { display: contents !important; }
  .controls > *, .answer { flex: 1 1 100% !important; order: 3; }
  .controls > .photo { order: 0; } .controls > .problem { order: 1; } .controls > .gallery-of-examples { order: 1; }
  .answer { order: 2; }
}
@media (max-width: 600px) { .hc li { padding-left: 22px; } .hc li::before { left: 0; }
  .hc li::after { left: 6px; } }
"""
"""Colours are Gradio's variables, so that light and dark both fit."""


@dataclass(frozen=True, slots=True)
class Stage:
    """What one level answered, and what that step alone cost."""

    prediction: Prediction
    milliseconds: float
    """Wall-clock time of this step, measured; for level 0 without reading the photograph."""
    macs: int
    """Multiply-accumulates of this step: what the level adds, or all of it if it reuses nothing."""
    share: float
    """The same relative to what the last level costs, 0 … 1."""

    def to_dict(self) -> dict[str, Any]:
        """Return the prediction with its cost as JSON values, as the endpoint /classify answers."""
        cost = {
            "milliseconds": round(self.milliseconds, 3),
            "macs_added": self.macs,
            "share_added": self.share,
        }
        return {**self.prediction.to_dict(), "cost": cost}


def classify(classifier: Classifier, path: str, level: int | None = None) -> Iterator[Stage]:
    """Read the photograph at `path`; answer at level 0, then at each finer level up to `level` (None: all).

    Nothing above `level` is computed, and nothing above a stage before the next stage is asked for.

    Raises:
        ImageError: the photograph can't be read; the message does not hold its path.
        LevelError: the model has no such level.
    """
    from hierclass.images import read_image, resize_side

    last = classifier.check_level(level)
    image = read_image(path, min_side=resize_side(classifier.preprocessing))
    predictions = classifier.refine(image)
    for costs in classifier.levels[: last + 1]:
        started = time.perf_counter()
        prediction = next(predictions)
        elapsed = (time.perf_counter() - started) * 1000
        yield Stage(prediction, elapsed, costs.step_macs, costs.step_share)


def draw(levels: Sequence[Level], stages: Sequence[Stage], last: int) -> str:
    """Draw the stages so far as HTML: the path, a card per level (those to come too), and the cost so far.

    `last` is the level at which the answer is to stop.
    """
    from hierclass.classifier import run_once

    cards = []
    for level in levels:
        if level.index < len(stages):
            cards.append(_draw_stage(level, stages[level.index], stages[-1].prediction))
        elif stages and level.index <= last:
            cards.append(_draw_empty(level, "waiting", "is being computed …"))
        elif stages:
            skipped = "not shown" if run_once(levels) else "not computed"
            cards.append(_draw_empty(level, "skipped", f"{skipped}: you asked for a coarser answer"))
        else:
            cards.append(_draw_empty(level, "waiting", ""))
    return f'<div class="hc">{_draw_path(stages)}<ol>{"".join(cards)}</ol>{_draw_total(stages)}</div>'


def draw_trouble(message: str) -> str:
    """Draw what is wrong with a photograph, to be shown below it."""
    return f'<p class="trouble" role="alert">{escape(message)}</p>'


def explain(error: HierclassError) -> str:
    """Say for a person why there is no answer: one sentence of plain text, and what to do."""
    if isinstance(error, ImageError):
        return f"This photograph {error}. Please try another one."
    return f"{error}."


def _draw_path(stages: Sequence[Stage]) -> str:
    if not stages:
        return '<p class="hc-path">Choose a photograph to begin.</p>'
    *above, last = (escape(step.label) for step in stages[-1].prediction.path)
    arrow = '<span class="arrow" aria-hidden="true">›</span>'
    names = [f"<span>{name}</span>" for name in above] + [f'<span class="last">{last}</span>']
    return f'<p class="hc-path" role="status" aria-live="polite">{arrow.join(names)}</p>'


def _draw_stage(level: Level, stage: Stage, latest: Prediction) -> str:
    rows = [
        f'<div class="row{" best" if rank == 0 else ""}"><span class="name" title="{escape(step.label)}">'
        f'{escape(step.label)}</span><span class="bar"><i style="width:{step.score:.1%}"></i></span>'
        f'<span class="score">{_percent(step.score)}</span></div>'
        for rank, step in enumerate(stage.prediction.top(NUM_ALTERNATIVES))
    ]
    decided = latest.path[level.index]
    later = ""
    if decided.synset != stage.prediction.synset:
        later = f'<div class="later">Level {latest.level} has since decided: {escape(decided.label)}.</div>'
    plus = "+ " if level.index else ""
    cost = (
        f"{plus}{stage.milliseconds:.1f} ms · {plus}{count(stage.macs)} multiply-accumulates · "
        f"{plus}{_percent(stage.share)} of the full cost"
    )
    return (
        f'<li class="done"><div class="card">{_draw_tier(level)}{"".join(rows)}{later}'
        f'<div class="cost">{cost}</div></div></li>'
    )


def _draw_empty(level: Level, state: str, text: str) -> str:
    return (
        f'<li class="{state}"><div class="card">{_draw_tier(level)}<div class="cost">{text}</div></div></li>'
    )


def _draw_tier(level: Level) -> str:
    return f'<div class="tier"><span>Level {level.index}</span><span>one of {level.num_classes:,} classes</span></div>'


def _draw_total(stages: Sequence[Stage]) -> str:
    parts = "".join(f'<i style="width:{stage.share:.2%}"></i>' for stage in stages if stage.share)
    text = "What each level costs is shown as it arrives."
    if stages:
        share = sum(stage.share for stage in stages)
        elapsed = sum(stage.milliseconds for stage in stages)
        text = f"In all {elapsed:.1f} ms and {_percent(share)} of the full cost."
        if share < 0.9995:
            text += f" The other {_percent(1 - share)} was never computed."
    return f'<div><div class="total" aria-hidden="true">{parts}</div><p class="sum">{text}</p></div>'


def _percent(share: float) -> str:
    return escape(percent(share))


def percent(share: float) -> str:
    """Write a share (0 … 1) for a person; only what is nothing or everything reads 0% or 100%."""
    if 0 < share < 0.005:
        return "<1%"
    return ">99%" if 0.995 <= share < 0.9995 else f"{share:.0%}"


def count(number: int) -> str:
    """Write a large count for a person: "3.2 million"."""
    for size, word in ((10**9, "billion"), (10**6, "million"), (10**3, "thousand")):
        if number >= size:
            return f"{number / size:.3g} {word}"
    return str(number)


def build_page(classifier: Classifier) -> gr.Blocks:
    """Build the page around a model that is loaded already; nothing is started.

    Besides the page there is one endpoint for programs, /classify (photo, level): it streams one JSON value
    per level, coarse first (`Stage.to_dict`).
    """
    import gradio as gr

    levels = classifier.levels

    def show(photo: dict[str, Any] | None, level: int | None) -> Iterator[tuple[gr.HTML, str]]:
        stages: list[Stage] = []
        last = levels[-1].index
        try:
            last = classifier.check_level(level)
            if photo is None:
                yield gr.HTML(visible=False), draw(levels, stages, last)
                return
            for stage in classify(classifier, _uploaded(photo), last):
                stages.append(stage)
                yield gr.HTML(visible=False), draw(levels, stages, last)
        except HierclassError as error:
            yield gr.HTML(draw_trouble(explain(error)), visible=True), draw(levels, (), last)

    def answer(photo: dict[str, Any] | None, level: int | None) -> Iterator[dict[str, Any]]:
        try:
            for stage in classify(classifier, _uploaded(photo), level):
                yield stage.to_dict()
        except HierclassError as error:
            raise gr.Error(escape(explain(error)), print_exception=False) from error

    page: gr.Blocks = gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=CLEANING_SECONDS)
    with page:
        image, level, problem, result = _lay_out(classifier)
        gr.on(
            [image.change, level.change],
            show,
            [image, level],
            [problem, result],
            preprocess=False,  # the file as it came: hierclass reads it, with its own limits and messages
            show_progress="hidden",
            trigger_mode="always_last",
            api_visibility="private",
            concurrency_limit=NUM_AT_ONCE,
            concurrency_id="classify",
        )
        gr.Button(visible=False).click(
            answer,
            [image, level],
            gr.JSON(visible=False),
            preprocess=False,
            api_name="classify",
            api_description="Classify a photograph; answers level after level, coarse first, up to `level`.",
            concurrency_limit=NUM_AT_ONCE,
            concurrency_id="classify",
        )
    page.queue(max_size=QUEUE_LENGTH, api_open=False)
    return page


def introduction(classifier: Classifier) -> str:
    """Return what the page says first: how this classifier gets from coarse to fine."""
    from hierclass.classifier import run_once

    if not classifier.reuses:
        return INTRODUCTION_APART
    return INTRODUCTION_WHOLE if run_once(classifier.levels) else INTRODUCTION


def _lay_out(classifier: Classifier) -> tuple[gr.Image, gr.Radio, gr.HTML, gr.HTML]:
    """Place the widgets in the page that is being built: photograph, level, what is wrong, answer."""
    import gradio as gr

    from hierclass.classifier import run_once

    levels = classifier.levels
    whole = run_once(levels)
    gr.Markdown(introduction(classifier))
    with gr.Row():
        with gr.Column(scale=5, min_width=320, elem_classes="controls"):
            image = gr.Image(
                label="Your photograph",
                image_mode=None,
                height=340,
                buttons=[],
                alt_text="Your photograph",
                elem_classes="photo",
            )
            problem = gr.HTML(visible=False, padding=False, elem_classes="problem")
            choice = gr.Radio(
                [(f"{level.num_classes:,} classes", level.index) for level in levels],
                value=levels[-1].index,
                label="How fine?",
                info="Fewer classes cost the same: every level runs the whole network."
                if whole
                else "Fewer classes cost less: a finer level that you don't ask for is never computed.",
            )
            if examples := sorted(str(path) for path in EXAMPLES.glob("*.jpg")):
                with gr.Column(elem_classes="gallery-of-examples"):
                    gr.Examples(examples, image, label="Or try one of these", cache_examples=False)
            gr.Markdown(PRIVACY, elem_classes="privacy")
        with gr.Column(scale=7, min_width=320, elem_classes="answer"):
            result = gr.HTML(draw(levels, (), levels[-1].index), padding=False)
    return image, choice, problem, result


def _uploaded(photo: dict[str, Any] | None) -> str:
    """Return where Gradio keeps a photograph; a request may name any file, so that only uploads and examples count."""
    from gradio.utils import get_upload_folder

    path = photo.get("path") if isinstance(photo, dict) else None
    file = Path(path).resolve() if isinstance(path, str) else Path()
    ours = any(file.is_relative_to(Path(folder).resolve()) for folder in (get_upload_folder(), EXAMPLES))
    if not (ours and file.is_file()):
        raise ImageError("is not here any more")
    return str(file)


def launch(page: gr.Blocks, host: str, port: int | None) -> str:
    """Start serving the page without blocking and return its address; port None takes the next free one."""
    import gradio as gr

    theme = gr.themes.Default(
        primary_hue="teal",
        neutral_hue="slate",
        font=["system-ui", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
    )
    _, address, _ = page.launch(
        server_name=host,
        server_port=port,
        prevent_thread_lock=True,
        quiet=True,
        share=False,
        show_error=False,
        max_file_size=MAX_UPLOAD,
        run_history=False,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        enable_monitoring=False,
        allowed_paths=[str(EXAMPLES)],
        footer_links=["api"],
        theme=theme,
        css=CSS,
    )
    return address


def serve(
    model: Annotated[
        Path | None, typer.Option(help="Folder of a model. Default: the one that comes with hierclass.")
    ] = None,
    timm: TimmOption = None,
    weights: WeightsOption = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 opens the page to the network.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 7860,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps …")] = "auto",
) -> None:
    """Open the page of hierclass in this computer's browser: photographs labelled coarse to fine."""
    if importlib.util.find_spec("gradio") is None:
        _stop("the page needs Gradio; install it with: pip install 'hierclass[demo]'", 1)
    try:
        classifier = open_classifier(model, timm, weights, device)
    except HierclassError as error:
        _stop(str(error), 2)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with tempfile.TemporaryDirectory(prefix="hierclass-page-") as uploads:
        os.environ["GRADIO_TEMP_DIR"] = uploads
        _warm_up(classifier)
        page = build_page(classifier)
        try:
            address = launch(page, host, port)
        except OSError:
            _stop(f"can't listen on {host}, port {port}; try another one with --port", 2)
        print(f"hierclass is at {address} (stop it with Ctrl+C)", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            page.block_thread()


def _warm_up(classifier: Classifier) -> None:
    """Run the network once, so that the first visitor's times are not those of a cold start."""
    from PIL import Image

    for _ in classifier.refine(Image.new("RGB", (64, 64))):
        pass


def _stop(message: str, code: int) -> None:
    print(f"app.py: {' '.join(message.split())}", file=sys.stderr)
    raise SystemExit(code)


def main() -> None:
    """Read the command line and serve the page until it is stopped."""
    cli = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    cli.command()(serve)
    cli()


if __name__ == "__main__":
    main()
