"""What was fitted on held-out images and is stored in a checkpoint: consensus weight, temperatures, thresholds.

`training.evaluation.calibration` fits them. Between the precisions that were fitted, thresholds are interpolated.
"""

from __future__ import annotations

import functools
import itertools
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Self

from hierclass.errors import InputError

_log = logging.getLogger(__name__)

LOWEST_PRECISION = 0.5
"""Precisions below are refused: what is wrong more often than right is no answer to be sure of."""
HIGHEST_PRECISION = 0.99
"""The highest precision for which thresholds are fitted."""


@dataclass(frozen=True, slots=True)
class Threshold:
    """The lowest score at which a level's answers to a tier are right at a wanted rate.

    Fitted on held-out images by `training.evaluation.calibration.find_threshold`.
    """

    level: int
    """The level that answers."""
    tier: int
    """The tier of the answer, 0 … level."""
    precision: float
    """The wanted share of right answers among those given, above 0, up to 1."""
    score: float | None
    """The lowest score (0 … 1) that is sure; None: no score is."""
    coverage: float
    """Share of the held-out images (0 … 1) whose answer reaches the score."""

    def is_met(self, score: float) -> bool:
        """Return whether a score (0 … 1) reaches the threshold; never if no score is high enough."""
        return self.score is not None and score >= self.score


@dataclass(frozen=True, slots=True)
class Decision:
    """How the answers of levels are combined, and what was fitted on held-out images.

    `temperatures` has one number per level (see `hierclass.decisions.prediction.combine_levels`), None if none were
    fitted; `thresholds` has one entry per precision, level, and tier of that level.
    """

    lower_weight: float = 0.0
    temperatures: tuple[float, ...] | None = None
    thresholds: tuple[Threshold, ...] = ()

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], num_levels: int) -> Self:
        """Read the `decision` of a checkpoint of N = `num_levels` levels; absent values were not fitted.

        Raises:
            ValueError: a value is of another type or outside its range; the message names it.
        """
        weight = values.get("lower_weight", 0.0)
        if not (_is_number(weight) and weight >= 0):
            raise ValueError("'lower_weight' must be a number from 0")
        temperatures = values.get("temperatures")
        if temperatures is not None:
            numbers = temperatures if isinstance(temperatures, (list, tuple)) else ()
            if len(numbers) != num_levels or not all(_is_number(each) and each > 0 for each in numbers):
                raise ValueError(f"'temperatures' must be {num_levels} numbers above 0, one per level")
            temperatures = tuple(map(float, numbers))
        rows = values.get("thresholds") or []
        if not isinstance(rows, (list, tuple)):
            raise ValueError("'thresholds' is no list")
        thresholds = tuple(_read_threshold(row, num_levels) for row in rows)
        _check_complete(thresholds, num_levels)
        return cls(float(weight), temperatures, thresholds)

    @property
    def precisions(self) -> list[float]:
        """The precisions that have thresholds, in rising order."""
        return sorted({each.precision for each in self.thresholds})

    def at(self, precision: float) -> tuple[tuple[Threshold, ...], ...]:
        """Return the thresholds of a precision: `at(0.9)[level][tier]`, for tiers 0 … level of every level.

        Any precision from 0.5 up to the highest that was fitted will do. Between two fitted ones, score and coverage
        are interpolated linearly, and no score is sure where none is at the higher one; below the lowest fitted one
        its thresholds hold, which promise more. A threshold is never below that of a lower precision.

        Raises:
            InputError: the model has no thresholds, or the precision is outside that range.
        """
        stored = self.precisions
        if not stored:
            raise InputError(
                "this model has no thresholds; fit them on labelled images with: hierclass-train calibrate"
            )
        near = [each for each in stored if math.isclose(each, precision)]
        wanted = near[0] if near else precision
        if not min(LOWEST_PRECISION, stored[0]) <= wanted <= stored[-1]:
            raise InputError(
                f"the precision is a share of right answers from {LOWEST_PRECISION:g} to {stored[-1]:g}, the highest "
                f"that this model has thresholds for, not {precision:g}"
            )
        own = sorted(self.thresholds, key=lambda each: (each.level, each.tier, each.precision))
        found = (_between(list(group), wanted) for _, group in itertools.groupby(own, _place))
        return tuple(tuple(group) for _, group in itertools.groupby(found, lambda each: each.level))

    def why_never_sure(self, precision: float) -> str:
        """Return a line if no score of any level is sure at a precision, so that no image gets an answer; else ""."""

        def some(wanted: float) -> bool:
            return any(each.score is not None for level in self.at(wanted) for each in level)

        if some(precision):
            return ""
        highest = max(filter(some, self.precisions), default=None)
        return f"no answer of this model is sure at precision {precision:g}, so that all are guesses; " + (
            "calibrate it on more labelled images" if highest is None else f"some are up to {highest:g}"
        )


@functools.lru_cache(maxsize=8)
def warn_if_never_sure(decision: Decision, precision: float) -> None:
    """Log `Decision.why_never_sure` as a warning, once for a model and precision."""
    if reason := decision.why_never_sure(precision):
        _log.warning(reason)


def first_levels(decision: Mapping[str, Any], num_levels: int) -> dict[str, Any]:
    """Return a checkpoint's `decision` with the values of its first N levels only."""
    cut = dict(decision)
    if cut.get("temperatures") is not None:
        cut["temperatures"] = cut["temperatures"][:num_levels]
    if cut.get("thresholds") is not None:
        cut["thresholds"] = [row for row in cut["thresholds"] if row["level"] < num_levels]
    return cut


def to_rows(thresholds: tuple[Threshold, ...]) -> list[dict[str, Any]]:
    """Return thresholds as JSON values, as a checkpoint stores them."""
    return [asdict(each) for each in thresholds]


def _place(threshold: Threshold) -> tuple[int, int]:
    return threshold.level, threshold.tier


def _between(fitted: Sequence[Threshold], precision: float) -> Threshold:
    """The threshold at a precision that is not above the highest of those fitted for a level and tier, which rise."""
    rising = itertools.accumulate(fitted, _not_below)
    below = after = next(rising)
    while after.precision < precision:
        below, after = after, next(rising)
    if after.precision == precision or below is after or below.score is None or after.score is None:
        return replace(after, precision=precision)
    part = (precision - below.precision) / (after.precision - below.precision)
    return replace(
        after,
        precision=precision,
        score=below.score + part * (after.score - below.score),
        coverage=below.coverage + part * (after.coverage - below.coverage),
    )


def _not_below(lower: Threshold, higher: Threshold) -> Threshold:
    """The threshold of a higher precision, raised to that of a lower one if it is below."""
    if higher.score is None or (lower.score is not None and lower.score <= higher.score):
        return higher
    return replace(higher, score=lower.score, coverage=lower.coverage)


def _read_threshold(row: Any, num_levels: int) -> Threshold:
    names = {each.name for each in fields(Threshold)}
    if not isinstance(row, dict) or row.keys() != names:
        raise ValueError(f"each of 'thresholds' must have {', '.join(sorted(names))} and nothing else")
    level, tier, score = row["level"], row["tier"], row["score"]
    if not (_is_index(level) and level < num_levels and _is_index(tier) and tier <= level):
        raise ValueError(f"'thresholds' names level {level!r} and tier {tier!r}, which are not of this model")
    shares = (row["precision"], row["coverage"], 0.0 if score is None else score)
    if not all(_is_number(each) and 0 <= each <= 1 for each in shares) or not row["precision"]:
        raise ValueError("'thresholds' has a precision, score or coverage outside 0 to 1")
    return Threshold(**row)


def _check_complete(thresholds: tuple[Threshold, ...], num_levels: int) -> None:
    pairs = sorted((level, tier) for level in range(num_levels) for tier in range(level + 1))
    for precision in {each.precision for each in thresholds}:
        if sorted((each.level, each.tier) for each in thresholds if each.precision == precision) != pairs:
            raise ValueError(f"'thresholds' must have every level and tier once for precision {precision}")


def _is_index(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_number(value: Any) -> bool:
    """Whether a value is a finite number; whole numbers may be longer than a float holds."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and -1e300 < value < 1e300
