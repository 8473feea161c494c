"""Numbers, reasons and errors in a layperson's words."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

from hierclass.decisions.exit_policy import StopReason
from hierclass.errors import HierclassError, ImageError
from taxonomy.streams import plural, visible

if TYPE_CHECKING:
    from hierclass.classifier import Classifier
    from hierclass.page.single import AnswerOptions, Stage
    from taxonomy import Taxonomy

MOST_EXAMPLES = 4
INTRODUCTION = (
    "A small network first says what **kind** of thing is in your photograph. "
    "Each finer step only adds to what is already computed, until the thing has a name."
)
INTRODUCTION_WHOLE = (
    "One network looks at your photograph once. Its answer is then added up from fine to coarse: "
    "what **kind** of thing is in it, and its name. "
    "Every step runs the whole network, so a coarser answer costs the same."
)
"""For a classifier that runs once for all levels (`from_timm`)."""
INTRODUCTION_APART = (
    "A small part of a network first says what **kind** of thing is in your photograph. "
    "Each finer step runs a larger part of the same network, until the thing has a name."
)
"""For a classifier whose levels share no computing."""
INTRODUCTION_SHARPER = (
    "A network first glances at a small copy of your photograph and says what **kind** of thing is in it. "
    "Each finer step runs a larger part of the same network on a sharper copy, until the thing has a name."
)
"""For a classifier whose levels share no computing and have different image sizes."""


class RefusalError(HierclassError):
    """A request that is refused before anything is done: its status in HTTP, and a sentence."""

    def __init__(self, status: int, text: str) -> None:
        """Refuse with a status of HTTP (400 … 599) and a sentence."""
        super().__init__(text)
        self.status = status


def as_html(text: str) -> str:
    """Return text that is not ours as HTML that shows it and does nothing else."""
    return escape(visible(text))


def introduction(classifier: Classifier) -> str:
    """Return the introduction of the page (Markdown): how the classifier works, and how many names it knows."""
    names = classifier.levels[-1].num_classes
    return (
        f"{_how_it_climbs(classifier)} It knows {names:,} names: whatever else a photograph shows, "
        "it answers with the closest of them."
    )


def _how_it_climbs(classifier: Classifier) -> str:
    from hierclass.costs import run_once

    if len(classifier.levels) == 1:
        return "A network says what is in your photograph."
    if not classifier.reuses:
        return INTRODUCTION_SHARPER if classifier.runtime.sizes else INTRODUCTION_APART
    return INTRODUCTION_WHOLE if run_once(classifier.levels) else INTRODUCTION


def explain(error: HierclassError) -> str:
    """Return an error as a sentence of plain text for a person."""
    if isinstance(error, ImageError):
        return f"This photograph {error}. Please try another one."
    text = str(error)
    return f"{text[:1].upper()}{text[1:]}."


def explain_class(taxonomy: Taxonomy, class_id: str) -> str:
    """Return the definition of a class, or else examples of its subclasses; empty if there are none."""
    node = taxonomy.node(class_id)
    examples = ", ".join(child.name for child in taxonomy.children(class_id)[:MOST_EXAMPLES])
    return node.definition or (f"such as {examples}" if examples else "")


def reason(classifier: Classifier, stages: Sequence[Stage], options: AnswerOptions) -> str:
    """Return a sentence or two on why the answer is as fine as it is, or that computing goes on."""
    last = stages[-1]
    if not last.enough:
        return "Looking closer …"
    if options.precision is None:
        return _asked(classifier, stages, options)
    if last.reason is StopReason.SURE and last.answer is not None:
        return (
            f"Sure enough: answers with such a score are right {_times(options.precision)}. "
            f"That is {'as fine as it gets' if last.tier == len(classifier.levels) - 1 else 'fine enough'}."
            f"{saved(classifier, stages)}"
        )
    tier = 0 if last.tier is None else last.tier + 1
    doubtful, needed = (
        last.prediction.path[tier],
        classifier.decision.at(options.precision)[last.level][tier].score,
    )
    bar = "no score is high enough for that" if needed is None else f"it would need {percent(needed)}"
    doubt = f"“{doubtful.label}” ends with {percent(doubtful.score)}; to be right {_times(options.precision)}, {bar}."
    if last.answer is None:
        return f"After the last step it is not sure enough of anything, not even of the kind: {doubt}"
    return f"Sure of “{last.answer.label}” and of nothing finer: {doubt}"


def saved(classifier: Classifier, stages: Sequence[Stage]) -> str:
    """Return a sentence on the share of work that was saved; empty if none was."""
    from hierclass.costs import run_once

    rest = 1 - sum(stage.share for stage in stages)
    if rest < 0.0005 or run_once(classifier.levels):
        return ""
    return f" The other {percent(rest)} of the work was never done."


def _asked(classifier: Classifier, stages: Sequence[Stage], options: AnswerOptions) -> str:
    count = classifier.levels[options.tier].num_classes
    if options.tier == classifier.levels[-1].index:
        return f"This is as fine as it gets: one of {count:,} names."
    return f"You asked for one of {count:,} kinds, so it stopped here.{saved(classifier, stages)}"


def _times(precision: float) -> str:
    return f"{precision * 100:.4g} times of 100"


def percent(share: float) -> str:
    """Return a share (0 … 1) as a percentage; only exact values read 0% or 100%."""
    if 0 < share < 0.005:
        return "<1%"
    return ">99%" if 0.995 <= share < 0.9995 else f"{share:.0%}"


def count(number: int) -> str:
    """Return a large count in words: "3.2 million"."""
    for size, word in ((10**9, "billion"), (10**6, "million"), (10**3, "thousand")):
        if number >= size:
            return f"{number / size:.3g} {word}"
    return str(number)


def photographs(number: int) -> str:
    """Return a count with its noun: "2 photographs"."""
    return plural(number, "photograph")
