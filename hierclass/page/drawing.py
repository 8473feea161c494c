"""The answer to one photograph as HTML: the path, a card per level, and the cost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from hierclass.page.messages import as_html, count, explain_class, percent, reason

if TYPE_CHECKING:
    from hierclass.classifier import Classifier
    from hierclass.costs import Level
    from hierclass.page.single import AnswerOptions, Stage

MORE_THAN_ALL = 1.005
"""From this share of the last level's cost on, the page says that the steps together cost more."""
NUM_ALTERNATIVES = 2
"""Further classes shown beside the best of each level."""


def draw_headline(classifier: Classifier, stages: Sequence[Stage], options: AnswerOptions) -> str:
    """Draw the path so far and why it ends there."""
    text = as_html(reason(classifier, stages, options))
    return f'<div class="hc">{_draw_path(stages)}<p class="hc-why">{text}</p></div>'


def draw_message(title: str, text: str) -> str:
    """Draw a message in place of the path."""
    return (
        f'<div class="hc"><p class="hc-path">{as_html(title)}</p><p class="hc-why">{as_html(text)}</p></div>'
    )


def draw_trouble(message: str) -> str:
    """Draw an error in place of the path."""
    return f'<div class="hc"><p class="trouble" role="alert">{as_html(message)}</p></div>'


def draw_steps(classifier: Classifier, stages: Sequence[Stage]) -> str:
    """Draw a card per level, also for those not computed, and the total cost."""
    cards = [_draw_level(classifier, level, stages) for level in classifier.levels]
    return f'<div class="hc"><ol class="hc-steps">{"".join(cards)}</ol>{_draw_total(stages)}</div>'


def draw_numbers(classifier: Classifier, stages: Sequence[Stage]) -> str:
    """Draw the technical table behind an answer: score, time and cost of every step."""
    names = ("level", "answer", "score", "time", "work", "of all")
    rows = []
    for stage in stages:
        step = stage.prediction.path[-1]
        cells = (
            f"{as_html(step.label)} <code>{as_html(step.synset)}</code>",
            f"{step.score:.3f}",
            f"{stage.milliseconds:.1f} ms",
            f"{stage.macs / 1e6:,.1f} M",
            percent(stage.share),
        )
        rows.append((str(stage.level), *cells))
    return (
        f"{draw_table(names, rows, 'Nothing is computed yet.')}"
        '<p class="hc-note">Each row is one step alone: wall-clock time, millions of multiply-accumulates, and their '
        f"share of the {count(classifier.levels[-1].macs)} that the last level takes in all.</p>"
    )


def draw_table(names: Sequence[str], rows: Sequence[Sequence[str]], empty: str = "") -> str:
    """Draw a table of HTML cells, the first of each row its heading; without rows it shows `empty`."""
    head = "".join(f'<th scope="col">{name}</th>' for name in names)
    body = "".join(
        f'<tr><th scope="row">{first}</th>{"".join(f"<td>{cell}</td>" for cell in rest)}</tr>'
        for first, *rest in rows
    )
    body = body or f'<tr><td colspan="{len(names)}">{empty}</td></tr>'
    return f'<div class="hc-wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _draw_path(stages: Sequence[Stage]) -> str:
    """Draw the path; classes beyond the sure answer are marked as guesses, by a word as well as by colour."""
    last = stages[-1]
    sure = -1 if last.tier is None else last.tier
    names = []
    for tier, step in enumerate(last.prediction.path):
        name = as_html(step.label)
        if tier > sure and last.enough:
            names.append(f'<span class="guess">perhaps {name}</span>')
        else:
            kind = "last" if tier == max(sure, 0) or tier == last.level else "above"
            names.append(f'<span class="{kind}">{name}</span>')
    arrow = '<span class="arrow" aria-hidden="true">›</span>'
    return f'<p class="hc-path">{arrow.join(names)}</p>'


def _draw_level(classifier: Classifier, level: Level, stages: Sequence[Stage]) -> str:
    from hierclass.costs import run_once

    if level.index < len(stages):
        return _draw_stage(classifier, level, stages[level.index], stages[-1])
    if stages and not stages[-1].enough:
        waits = level.index == len(stages)
        return _draw_empty(level, "waiting", "is being computed …" if waits else "only if it is needed")
    if stages:
        return _draw_empty(level, "skipped", "not shown" if run_once(classifier.levels) else "not computed")
    return _draw_empty(level, "waiting", "")


def _draw_stage(classifier: Classifier, level: Level, stage: Stage, latest: Stage) -> str:
    best, *others = stage.prediction.top(1 + NUM_ALTERNATIVES)
    meaning = explain_class(classifier.taxonomy, best.synset)
    decided = latest.prediction.path[level.index]
    if decided.synset != best.synset:
        note = f'<div class="note">A later step has decided: {as_html(decided.label)}</div>'
    else:
        note = f'<div class="meaning">{as_html(meaning)}</div>'  # its room is kept where there is none
    rows = "".join(_draw_row(each.label, each.score, "") for each in others)
    plus = "+ " if level.index else ""
    return (
        f'<li class="done">{_draw_title(level)}{_draw_row(best.label, best.score, " best")}{note}{rows}'
        f'<div class="cost">{plus}{stage.milliseconds:.1f} ms · {plus}{percent(stage.share)} of the full work</div>'
        "</li>"
    )


def _draw_row(label: str, score: float, kind: str) -> str:
    return (
        f'<div class="row{kind}"><span class="name">{as_html(label)}</span>'
        f'<span class="bar" aria-hidden="true"><i style="width:{score:.1%}"></i></span>'
        f'<span class="score">{as_html(percent(score))}</span></div>'
    )


def _draw_empty(level: Level, state: str, text: str) -> str:
    return f'<li class="{state}">{_draw_title(level)}<div class="cost">{text}</div></li>'


def _draw_title(level: Level) -> str:
    return f'<div class="title"><span>Step {level.index + 1}</span><span>one of {level.num_classes:,}</span></div>'


def _draw_total(stages: Sequence[Stage]) -> str:
    widths = [min(stage.share, 1) for stage in stages]
    parts = "".join(f'<i style="width:{width:.2%}"></i>' for width in widths if width)
    text = "What each step costs is shown as it arrives."
    if stages:
        share = sum(stage.share for stage in stages)
        elapsed = sum(stage.milliseconds for stage in stages)
        anew = ": every step looks anew" if share > MORE_THAN_ALL else ""
        text = f"In all {elapsed:.1f} ms and {as_html(percent(share))} of the full work{anew}."
    return f'<div class="total" aria-hidden="true">{parts}</div><p class="sum">{text}</p>'
