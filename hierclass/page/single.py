"""Classify one photograph level by level: answer, cost and exit decision of each step."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hierclass.decisions.calibration import LOWEST_PRECISION
from hierclass.decisions.exit_policy import ExitPolicy, Request, StopReason
from hierclass.errors import InputError, LevelError
from hierclass.labelling.read_input import PictureReader
from hierclass.labelling.reader_processes import ReaderPool

if TYPE_CHECKING:
    from hierclass.classifier import Classifier
    from hierclass.decisions.prediction import Prediction, Step

READ_SECONDS = 10.0
"""Seconds that reading one photograph may take, since others wait; ordinary ones take hundredths."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerOptions:
    """How fine and how sure an answer must be."""

    tier: int
    """The tier that is fine enough."""
    precision: float | None = None
    """Share of answers that must be right, one of `Decision.at`; None: answers need not be sure."""

    @property
    def request(self) -> Request:
        """The same as a request of `hierclass label`; with a precision, its level is "auto"."""
        if self.precision is None:
            return Request(level=self.tier)
        return Request(level="auto", min_tier=self.tier, precision=self.precision)


@dataclass(frozen=True, slots=True)
class Stage:
    """The answer of one level, the cost of that step alone, and the exit decision."""

    prediction: Prediction
    milliseconds: float
    """Wall-clock time of this step; that of level 0 excludes reading the photograph."""
    macs: int
    """Multiply-accumulates of this step: what the level adds, or all if it reuses nothing."""
    share: float
    """`macs` relative to the cost of the last level, 0 … 1."""
    enough: bool
    """Whether no further level is computed."""
    tier: int | None
    """Tier of the answer so far, an index of the prediction's path; None if not even tier 0 is sure."""
    reason: StopReason
    """Why no further level is computed; valid if `enough` is true."""

    @property
    def level(self) -> int:
        """The level that was computed."""
        return self.prediction.level

    @property
    def answer(self) -> Step | None:
        """The class that is the answer so far; None if nothing is sure."""
        return None if self.tier is None else self.prediction.path[self.tier]


def parse_options(classifier: Classifier, level: Any = None, precision: Any = None) -> AnswerOptions:
    """Check the level and the precision of a request, which may be anything.

    Args:
        classifier: the model that answers.
        level: a whole number from 0; None means the finest.
        precision: 0 … 1; below 0.5 the thresholds for 0.5 hold. None: answers need not be sure.

    Raises:
        LevelError: there is no such level.
        InputError: a value is no number, or the model has no thresholds for such a precision.
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
    if precision > known[-1] + 1e-9:
        raise InputError(f"this model promises answers that are right up to {known[-1]:.0%} of the time")
    return AnswerOptions(tier=tier, precision=min(max(precision, LOWEST_PRECISION), known[-1]))


def classify_by_level(classifier: Classifier, source: Path, options: AnswerOptions) -> Iterator[Stage]:
    """Read a photograph in a process; yield the answer of level 0, then of each finer level until one is enough.

    A level is computed when its stage is asked for.

    Raises:
        ImageError: the photograph can't be read, or takes more than `READ_SECONDS`; the message does not hold its path.
    """
    policy = ExitPolicy(options.request, classifier.taxonomy, classifier.decision)
    with ReaderPool(1) as readers:
        pixels = readers.pixels(
            PictureReader(classifier.preprocessing_for()), os.fspath(source), READ_SECONDS
        )
    predictions = classifier.refine_pixels(pixels[None])
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
