"""Temperatures and thresholds: fitted on held-out answers, measured on answers that they were not fitted on.

What ships is fitted on all the answers given. What is said of it is cross-fitted: temperature and thresholds are
fitted on a random half and measured on the other, both ways, so that every answer is measured once, by numbers
that it had no part in.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize_scalar
from sklearn.model_selection import KFold

from hierclass.calibration import Decision, Threshold, to_rows
from hierclass.decisions import consensus, follow, sum_up
from hierclass.errors import InputError
from taxonomy import Taxonomy
from training.answers import Answers
from training.metrics import (
    Flags,
    Indices,
    Shares,
    expected_calibration_error,
    wilson_interval,
    wilson_lower_bounds,
)

PRECISIONS = (0.8, 0.9, 0.95, 0.99)
"""Rates of right answers that thresholds are sought for."""
MIN_IMAGES = 50
"""Fewer images say too little: halves of 25, of which a good level may have every answer right."""
TEMPERATURES = (0.1, 10.0)
"""Lowest and highest that are tried; without mistakes the best would be 0."""
MARGIN = 1e-5
"""What a threshold lies below the score it is found at, at most."""
_ROWS = 4096
"""Images whose scores are computed at once, so that memory stays bounded."""

LogScores = npt.NDArray[np.float32]


@dataclasses.dataclass(frozen=True, slots=True)
class Scored:
    """A level's answers to N images, with what their scores are worth.

    ``scores`` and ``right`` (N, k + 1) are of the answers to tiers 0 … k; ``nll`` (N,) and ``brier`` (N,) are the
    negative log-likelihood (nats) and the Brier score (0 to 2, Brier 1950) of the truth on tier k.
    """

    scores: Shares
    right: Flags
    nll: Shares
    brier: Shares

    @classmethod
    def join(cls, parts: Sequence[Self]) -> Self:
        """Parts of the images as one."""
        names = [field.name for field in dataclasses.fields(cls)]
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))

    def rows(self, wanted: npt.NDArray[Any]) -> Scored:
        """Some of the images."""
        return Scored(self.scores[wanted], self.right[wanted], self.nll[wanted], self.brier[wanted])

    def measures(self) -> dict[str, Any]:
        """Means as JSON values: ``nll``, ``brier`` and ``ece``, the calibration error (0 to 1) per tier 0 … k."""
        pairs = zip(self.scores.T, self.right.T, strict=True)
        return {
            "nll": float(self.nll.mean()),
            "brier": float(self.brier.mean()),
            "ece": [expected_calibration_error(scores, right) for scores, right in pairs],
        }


@dataclasses.dataclass(frozen=True, slots=True)
class Kept:
    """Of those images whose answers reach a threshold: how many of how many, and how many are right."""

    given: int
    right: int
    images: int

    def to_dict(self) -> dict[str, Any]:
        """JSON values: precision with its 95% interval, None where no answer is given, and coverage, all 0 to 1."""
        precision = self.right / self.given if self.given else None
        interval = None if precision is None else list(wilson_interval(precision, self.given))
        return {"precision": precision, "interval": interval, "coverage": self.given / self.images}


@dataclasses.dataclass(frozen=True, slots=True)
class LevelCalibration:
    """What was fitted for one level, and what that is worth.

    ``temperature`` and ``thresholds`` are fitted on all images, ``halves`` on either half. ``before`` are the
    answers as the network gives them, ``after`` those with the temperature of the half that they are not in;
    ``kept[i]`` is what thresholds of that half leave, for the level, tier and precision of ``thresholds[i]``.
    """

    level: int
    temperature: float
    halves: tuple[float, float]
    before: Scored
    after: Scored
    thresholds: tuple[Threshold, ...]
    kept: tuple[Kept, ...]


def calibrate(answers: Answers, taxonomy: Taxonomy, lower_weight: float) -> list[LevelCalibration]:
    """Fit temperature and thresholds of every level to the answers whose logits are kept.

    Raises `InputError` when they are fewer than `MIN_IMAGES`.
    """
    leaves = answers.kept_leaves
    if len(leaves) < MIN_IMAGES:
        raise InputError(
            f"{len(leaves)} labelled images are too few to calibrate on; give at least {MIN_IMAGES}"
        )
    return [
        _calibrate_level(level_scores(answers, taxonomy, lower_weight, level), leaves, taxonomy, level)
        for level in range(len(answers.logits))
    ]


def to_results(levels: Sequence[LevelCalibration]) -> dict[str, Any]:
    """What `calibrate` found as JSON values.

    ``levels`` has a row per level: the temperature that ships, those of the halves, and `Scored.measures` before
    and after (cross-fitted); ``thresholds`` a row per level, tier and precision: what ships, and under
    ``measured`` the cross-fitted precision and coverage.
    """
    return {
        "images": len(levels[0].before.nll),
        "levels": [
            {
                "level": each.level,
                "temperature": each.temperature,
                "halves": list(each.halves),
                "before": each.before.measures(),
                "after": each.after.measures(),
            }
            for each in levels
        ],
        "thresholds": [
            {**row, "measured": kept.to_dict()}
            for each in levels
            for row, kept in zip(to_rows(each.thresholds), each.kept, strict=True)
        ],
    }


def decision_of(results: dict[str, Any]) -> dict[str, Any]:
    """What a checkpoint stores as its `decision`, from the results of `training.evaluate.summarise`."""
    decision: dict[str, Any] = {"lower_weight": results["lower_weight"]}
    if found := results.get("calibration"):
        names = [field.name for field in dataclasses.fields(Threshold)]
        decision["temperatures"] = [row["temperature"] for row in found["levels"]]
        decision["thresholds"] = [{name: row[name] for name in names} for row in found["thresholds"]]
    return decision


def measure_decision(answers: Answers, taxonomy: Taxonomy, decision: Decision) -> dict[str, Any]:
    """What a model's own temperatures and thresholds are worth on the answers, as JSON values like `to_results`."""
    temperatures = decision.temperatures or (1.0,) * len(answers.logits)
    levels, thresholds = [], []
    for level, temperature in enumerate(temperatures):
        log_scores = level_scores(answers, taxonomy, decision.lower_weight, level)
        scored = score_answers(log_scores, answers.kept_leaves, taxonomy, level, temperature)
        levels.append({"level": level, "temperature": temperature, **scored.measures()})
        own = [each for each in decision.thresholds if each.level == level]
        kept = [_apply(each, scored) for each in own]
        thresholds += [
            {**row, "measured": k.to_dict()} for row, k in zip(to_rows(tuple(own)), kept, strict=True)
        ]
    return {"images": len(answers.kept), "levels": levels, "thresholds": thresholds}


def level_scores(answers: Answers, taxonomy: Taxonomy, lower_weight: float, level: int) -> LogScores:
    """Log-scores (n, num_classes[level]) of a level's answers in consensus, for the images whose logits are kept."""
    return np.concatenate(
        [
            consensus([each[rows] for each in answers.logits[: level + 1]], taxonomy, lower_weight)
            for rows in _blocks(len(answers.kept))
        ],
        dtype=np.float32,
        casting="same_kind",
    )


def fit_temperature(log_scores: LogScores, truth: Indices) -> float:
    """The temperature under which the truth (N,) is likeliest by log-scores (N, C), four digits after the point.

    Bounded by `TEMPERATURES`; Guo et al. 2017, section 4.2.
    """
    low, high = map(math.log, TEMPERATURES)
    found = minimize_scalar(
        lambda log: log_likelihood_loss(log_scores, truth, math.exp(log)),
        bounds=(low, high),
        method="bounded",
    )
    return round(math.exp(found.x), 4)


def log_likelihood_loss(log_scores: LogScores, truth: Indices, temperature: float) -> float:
    """Mean negative log-likelihood (nats) of the truth (N,) by log-scores (N, C) over a temperature."""
    total = 0.0
    for rows in _blocks(len(truth)):
        scaled = log_scores[rows].astype(np.float64) / temperature
        highest = scaled.max(axis=1)
        sums = np.log(np.exp(scaled - highest[:, None]).sum(axis=1)) + highest
        total += float((sums - scaled[np.arange(len(sums)), truth[rows]]).sum())
    return total / len(truth)


def score_answers(
    log_scores: LogScores, leaves: Indices, taxonomy: Taxonomy, level: int, temperature: float
) -> Scored:
    """What a level's log-scores (N, num_classes[level]) say at a temperature, against the truth (N,)."""
    parts = []
    for rows in _blocks(len(leaves)):
        tiers = sum_up(log_scores[rows].astype(np.float64), taxonomy, level, temperature)
        classes, scores = follow(tiers, taxonomy)
        truth = np.stack([taxonomy.projection(tier)[leaves[rows]] for tier in range(level + 1)], axis=1)
        of_truth = tiers[level][np.arange(len(truth)), truth[:, level]]
        nll = -np.log(np.maximum(of_truth, np.finfo(np.float64).tiny))
        brier = (tiers[level] ** 2).sum(axis=1) - 2 * of_truth + 1
        parts.append(Scored(scores, classes == truth, nll, brier))
    return Scored.join(parts)


def find_threshold(scores: Shares, right: Flags, precision: float) -> float | None:
    """The lowest score from which on the answers (N,) are right at a rate, or None if there is none.

    "Right at a rate" is said only where the answers prove it: the lower end of the one-sided 95% Wilson interval of
    their share of right ones reaches it, so that 3 right answers of 3 prove nothing, and 268 of 268 are the
    fewest that prove 99%. Answers of equal score are given together or not at all. Among the scores that hold, the
    lowest leaves the largest coverage; being chosen, it holds a little less often than 95%. What is returned lies a
    hair below it, by at most `MARGIN`: the same image scores a little differently in a batch of another size.
    """
    order = np.argsort(-scores, kind="stable")
    ordered, counts = scores[order], np.arange(1, len(scores) + 1)
    last_of_equals = np.append(ordered[1:] != ordered[:-1], True)
    bounds = wilson_lower_bounds(np.cumsum(right[order]), counts)
    holds = np.flatnonzero(last_of_equals & (bounds >= precision))
    if not len(holds):
        return None
    lowest, below = ordered[holds[-1]], np.append(ordered, 0.0)[holds[-1] + 1]
    return float(lowest - min(MARGIN, (lowest - below) / 2))


def find_thresholds(scored: Scored, level: int, precisions: Iterable[float] = PRECISIONS) -> list[Threshold]:
    """A level's threshold for each tier 0 … level and precision."""
    found = []
    for tier in range(level + 1):
        scores = scored.scores[:, tier]
        for precision in precisions:
            score = find_threshold(scores, scored.right[:, tier], precision)
            coverage = 0.0 if score is None else float(np.mean(scores >= score))
            found.append(Threshold(level, tier, precision, score, coverage))
    return found


def _calibrate_level(
    log_scores: LogScores, leaves: Indices, taxonomy: Taxonomy, level: int
) -> LevelCalibration:
    def score(temperature: float) -> Scored:
        return score_answers(log_scores, leaves, taxonomy, level, temperature)

    truth = taxonomy.projection(level)[leaves]
    temperature = fit_temperature(log_scores, truth)
    thresholds = find_thresholds(score(temperature), level)
    halves, parts, places, kept = [], [], [], [Kept(0, 0, 0)] * len(thresholds)
    for fitted, measured in KFold(2, shuffle=True, random_state=0).split(leaves):
        halves.append(fit_temperature(log_scores[fitted], truth[fitted]))
        scored = score(halves[-1])
        parts.append(scored.rows(measured))
        places.append(measured)
        found = find_thresholds(scored.rows(fitted), level)
        kept = [_add(sum_, _apply(each, parts[-1])) for sum_, each in zip(kept, found, strict=True)]
    after = Scored.join(parts).rows(np.concatenate(places).argsort())
    return LevelCalibration(
        level, temperature, (halves[0], halves[1]), score(1.0), after, tuple(thresholds), tuple(kept)
    )


def _apply(threshold: Threshold, scored: Scored) -> Kept:
    """What a threshold leaves of a level's answers."""
    images = len(scored.scores)
    if threshold.score is None:
        return Kept(0, 0, images)
    given = scored.scores[:, threshold.tier] >= threshold.score
    return Kept(int(given.sum()), int(scored.right[given, threshold.tier].sum()), images)


def _add(one: Kept, other: Kept) -> Kept:
    return Kept(one.given + other.given, one.right + other.right, one.images + other.images)


def _blocks(count: int) -> Iterator[slice]:
    return (slice(start, start + _ROWS) for start in range(0, count, _ROWS))
