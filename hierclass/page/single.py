"""One photograph, answered level by level: what each step says, what it costs, and whether it is enough."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hierclass.decisions.exit_policy import ExitPolicy, Request, StopReason
from hierclass.errors import InputError, LevelError
from hierclass.images.decoding import ImageSource, read_image
from hierclass.images.preprocessing import resize_side

if TYPE_CHECKING:
    from hierclass.classifier import Classifier
    from hierclass.decisions.prediction import Prediction, Step


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerOptions:
    """How fine an answer is wanted, and how sure."""

    tier: int
    """The tier that is fine enough."""
    precision: float | None = None
    """The share of answers that are to be right, one for which the model has thresholds; None: sure or not."""

    @property
    def request(self) -> Request:
        """The same as `hierclass label` is asked: with a precision, levels are climbed until the answer is sure."""
        if self.precision is None:
            return Request(level=self.tier)
        return Request(level="auto", min_tier=self.tier, precision=self.precision)


@dataclass(frozen=True, slots=True)
class Stage:
    """What one level answered, what that step alone cost, and whether it was enough."""

    prediction: Prediction
    milliseconds: float
    """Wall-clock time of this step, measured; for level 0 without reading the photograph."""
    macs: int
    """Multiply-accumulates of this step: what the level adds, or all of it if it reuses nothing."""
    share: float
    """The same relative to what the last level costs, 0 … 1."""
    enough: bool
    """Whether no further level is computed."""
    tier: int | None
    """How fine the answer is so far, a tier of the prediction's path; None where not even tier 0 is sure."""
    reason: StopReason
    """Why the climb stopped here; holds where `enough` is true."""

    @property
    def level(self) -> int:
        """The level that was computed."""
        return self.prediction.level

    @property
    def answer(self) -> Step | None:
        """The class that is answered so far; None where nothing is sure."""
        return None if self.tier is None else self.prediction.path[self.tier]


def parse_options(classifier: Classifier, level: Any = None, precision: Any = None) -> AnswerOptions:
    """Read what a person or a program asks for; whatever it is, it may be wrong.

    Args:
        classifier: the model that is asked.
        level: how fine, a whole number from 0; None means the finest.
        precision: how sure, 0 … 1; the next higher one that the model has thresholds for is taken. None: not asked.

    Raises:
        LevelError: there is no such level.
        InputError: a value is no number, or the model promises no answers as sure as that.
    """
    if level is not None and (not _is_number(level) or level != int(level)):
        last = classifier.levels[-1].index
        raise LevelError(f"the level is a whole number from 0 to {last}, not {str(level)[:40]!r}")
    tier = classifier.check_level(None if level is None else int(level))
    if precision is None:
        return AnswerOptions(tier=tier)
    known = classifier.decision.precisions
    if not _is_number(precision) or not 0 < precision <= 1:
        raise InputError(f"the precision is a number above 0, up to 1, not {str(precision)[:40]!r}")
    if not known:
        raise InputError("this model was not calibrated, so it cannot say how sure its answers are")
    enough = [each for each in known if each >= precision - 1e-9]
    if not enough:
        raise InputError(f"this model promises answers that are right up to {known[-1]:.0%} of the time")
    return AnswerOptions(tier=tier, precision=enough[0])


def classify_by_level(classifier: Classifier, source: ImageSource, options: AnswerOptions) -> Iterator[Stage]:
    """Read a photograph; answer at level 0, then at each finer level until that is enough.

    Nothing above the last stage is computed, and nothing above a stage before the next stage is asked for.

    Raises:
        ImageError: the photograph can't be read; the message does not hold its path.
    """
    policy = ExitPolicy(options.request, classifier.taxonomy, classifier.decision)
    image = read_image(source, min_side=resize_side(classifier.preprocessing))
    predictions = classifier.refine(image)
    for costs in classifier.levels[: policy.last + 1]:
        started = time.perf_counter()
        prediction = next(predictions)
        elapsed = (time.perf_counter() - started) * 1000
        enough, answers = policy.judge([prediction.scores(tier)[None] for tier in range(costs.index + 1)])
        done, tier = bool(enough[0]), int(answers.tier[0])
        yield Stage(
            prediction=prediction,
            milliseconds=elapsed,
            macs=costs.step_macs,
            share=costs.step_share,
            enough=done,
            tier=tier if tier >= 0 else None,
            reason=StopReason(int(answers.reason[0])),
        )
        if done:
            return


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e9
