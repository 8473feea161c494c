"""Fit temperatures and thresholds to held-out predictions, and measure them by cross-fitting.

What ships is fitted to all predictions. What is reported is cross-fitted: fitted to a random half and measured on the
other, both ways. Few images are split repeatedly, since what a threshold keeps depends on the split. Images may have
weights (`training.data.sample_weights`).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize_scalar
from sklearn.model_selection import RepeatedKFold

from hierclass.decisions.calibration import Decision, Threshold, to_rows
from hierclass.decisions.prediction import best_paths, consensus, sum_up
from hierclass.errors import InputError
from taxonomy import Taxonomy
from training.data.sample_weights import Weighting
from training.data.samples import UNKNOWN
from training.evaluation.metrics import (
    Flags,
    Indices,
    Shares,
    expected_calibration_error,
    tilt,
    weight_ratio,
    wilson_interval,
    wilson_lower_bounds,
)
from training.evaluation.predictions import Predictions

PRECISIONS = (
    *(0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85),
    *(0.9, 0.91, 0.92, 0.93, 0.94, 0.95, 0.96, 0.97, 0.98, 0.99),
)
"""Accuracies for which thresholds are sought, in rising order; between them they are interpolated."""
MIN_IMAGES = 50
"""Least number of images: with halves of 25, a good level may already have every answer right."""
TEMPERATURES = (0.1, 10.0)
"""Lowest and highest temperature tried; without mistakes the best would be 0."""
MARGIN = 1e-5
"""Largest distance of a threshold below the score it is found at."""
MOST_SPLITS, SPLIT_IMAGES = 10, 10_000
"""Most splits into halves, and most images split in all; bounds the time."""
_ROWS = 4096
"""Images scored at once; bounds memory."""

LogScores = npt.NDArray[np.float32]


@dataclasses.dataclass(frozen=True, slots=True)
class LevelScores:
    """A level's scores for N images, and their quality.

    ``scores`` and ``right`` (N, k + 1) are for the answers to tiers 0 … k, ``known`` (N, k + 1) says where the truth is
    known, which alone counts; ``nll`` (N,) and ``brier`` (N,) are the negative log-likelihood (nats) and the Brier
    score (0 to 2, Brier 1950) of the truth on tier k, 0 where it is not known; ``weights`` (N,) weight the images.
    """

    scores: Shares
    right: Flags
    known: Flags
    nll: Shares
    brier: Shares
    weights: Shares

    @classmethod
    def join(cls, parts: Sequence[Self]) -> Self:
        """Concatenate parts of the images."""
        names = [field.name for field in dataclasses.fields(cls)]
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))

    def rows(self, wanted: npt.NDArray[Any]) -> LevelScores:
        """The selected images."""
        return LevelScores(*(getattr(self, field.name)[wanted] for field in dataclasses.fields(self)))

    def tier(self, tier: int) -> tuple[Shares, Flags, Shares]:
        """Scores, right answers and weights (n,) of the images whose class of a tier is known."""
        own = self.known[:, tier]
        return self.scores[own, tier], self.right[own, tier], self.weights[own]

    def measures(self) -> dict[str, Any]:
        """Means as JSON values: ``nll``, ``brier`` and ``ece``, the calibration error (0 to 1) per tier 0 … k."""
        weights = self.weights * self.known[:, -1]
        return {
            "nll": float(np.average(self.nll, weights=weights)),
            "brier": float(np.average(self.brier, weights=weights)),
            "ece": [expected_calibration_error(*self.tier(tier)) for tier in range(self.scores.shape[1])],
        }


@dataclasses.dataclass(frozen=True, slots=True)
class ThresholdOutcome:
    """Answers that reach a threshold: their number, how many are right, and the weights of both.

    ``total`` is the weight of all images, ``heaviest`` the largest weight of one; each image was counted ``times``
    times.
    """

    given: int
    right: int
    given_weight: float
    right_weight: float
    total: float
    heaviest: float
    times: int = 1

    def to_dict(self) -> dict[str, Any]:
        """JSON values, all 0 to 1: precision with its 95% interval (None if nothing is answered) and coverage."""
        coverage = self.given_weight / self.total
        if not self.given:
            return {"precision": None, "interval": None, "coverage": coverage}
        ratio = weight_ratio(self.given, self.right, self.given_weight, self.right_weight, self.heaviest)
        interval = np.array(wilson_interval(self.right / self.given, self.given / self.times))
        return {
            "precision": self.right_weight / self.given_weight,
            "interval": tilt(interval, ratio).tolist(),
            "coverage": coverage,
        }


@dataclasses.dataclass(frozen=True, slots=True)
class LevelCalibration:
    """Temperature and thresholds fitted for one level, and their measured quality.

    ``temperature`` and ``thresholds`` are fitted to all images, ``halves`` to either half. ``before`` are the scores at
    temperature 1, ``after`` those at the temperature of the other half; ``kept[i]`` is the outcome of the other half's
    threshold for the level, tier and precision of ``thresholds[i]``, over ``splits`` splits.
    """

    level: int
    temperature: float
    halves: tuple[float, float]
    before: LevelScores
    after: LevelScores
    thresholds: tuple[Threshold, ...]
    kept: tuple[ThresholdOutcome, ...]
    splits: int


def check_enough(count: int) -> None:
    """Raise `InputError` if there are too few labelled images to calibrate on."""
    if count < MIN_IMAGES:
        raise InputError(f"{count} labelled images are too few to calibrate on; give at least {MIN_IMAGES}")


def calibrate(
    predictions: Predictions, taxonomy: Taxonomy, lower_weight: float, weighting: Weighting | None = None
) -> list[LevelCalibration]:
    """Fit temperature and thresholds of every level to the predictions whose logits are kept.

    ``weighting`` None: all images count the same. Raises `InputError` for fewer than `MIN_IMAGES`.
    """
    check_enough(predictions.num_usable)
    truth = predictions.kept_truth(taxonomy)
    weights = _weights(predictions, weighting)
    return [
        _calibrate_level(
            level_scores(predictions, taxonomy, lower_weight, level), truth, weights, taxonomy, level
        )
        for level in range(len(predictions.logits))
    ]


def to_results(levels: Sequence[LevelCalibration], weighting: Weighting | None = None) -> dict[str, Any]:
    """Results of `calibrate` as JSON values.

    ``levels`` has a row per level: shipped temperature, those of the halves, and `LevelScores.measures` before and
    after (cross-fitted). ``thresholds`` has a row per level, tier and precision: what ships, and the cross-fitted
    precision and coverage (``measured``). ``known_top1`` is `Weighting.to_dict`, or None.
    """
    return {
        "images": int(levels[-1].before.known[:, -1].sum()),
        "splits": levels[0].splits,
        "known_top1": weighting.to_dict() if weighting else None,
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
    """The `decision` of a checkpoint, from the results of `training.evaluation.evaluate.summarise`."""
    decision: dict[str, Any] = {"lower_weight": results["lower_weight"]}
    if found := results.get("calibration"):
        names = [field.name for field in dataclasses.fields(Threshold)]
        decision["temperatures"] = [row["temperature"] for row in found["levels"]]
        decision["thresholds"] = [{name: row[name] for name in names} for row in found["thresholds"]]
    return decision


def measure_decision(
    predictions: Predictions, taxonomy: Taxonomy, decision: Decision, weighting: Weighting | None = None
) -> dict[str, Any]:
    """Measure a model's stored temperatures and thresholds on the predictions; JSON values like `to_results`."""
    weights = _weights(predictions, weighting)
    temperatures = decision.temperatures or (1.0,) * len(predictions.logits)
    levels, thresholds = [], []
    for level, temperature in enumerate(temperatures):
        log_scores = level_scores(predictions, taxonomy, decision.lower_weight, level)
        scored = score_answers(
            log_scores, predictions.kept_truth(taxonomy), taxonomy, level, temperature, weights
        )
        levels.append({"level": level, "temperature": temperature, **scored.measures()})
        own = [each for each in decision.thresholds if each.level == level]
        kept = [apply_threshold(each, scored) for each in own]
        thresholds += [
            {**row, "measured": k.to_dict()} for row, k in zip(to_rows(tuple(own)), kept, strict=True)
        ]
    return {"images": predictions.num_usable, "levels": levels, "thresholds": thresholds}


def level_scores(predictions: Predictions, taxonomy: Taxonomy, lower_weight: float, level: int) -> LogScores:
    """Log-scores (n, num_classes[level]) of a level in consensus, for the images whose logits are kept."""
    return np.concatenate(
        [
            consensus([each[rows] for each in predictions.logits[: level + 1]], taxonomy, lower_weight)
            for rows in _blocks(len(predictions.kept))
        ],
        dtype=np.float32,
        casting="same_kind",
    )


def fit_temperature(log_scores: LogScores, truth: Indices, weights: Shares | None = None) -> float:
    """The temperature that maximises the likelihood of the truth (N,) by log-scores (N, C), to four digits.

    Images whose truth is `UNKNOWN` do not count. ``weights`` (N,) None: all equal. Bounded by `TEMPERATURES`; Guo et
    al. 2017, section 4.2.
    """
    low, high = map(math.log, TEMPERATURES)
    if not (known := truth != UNKNOWN).all():
        log_scores, truth = log_scores[known], truth[known]
        weights = None if weights is None else weights[known]
    found = minimize_scalar(
        lambda log: log_likelihood_loss(log_scores, truth, math.exp(log), weights),
        bounds=(low, high),
        method="bounded",
    )
    return round(math.exp(found.x), 4)


def log_likelihood_loss(
    log_scores: LogScores, truth: Indices, temperature: float, weights: Shares | None = None
) -> float:
    """Mean negative log-likelihood (nats) of the truth (N,) by log-scores (N, C) at a temperature.

    ``weights`` (N,) None: all equal.
    """
    weights = np.ones(len(truth)) if weights is None else weights
    total = 0.0
    for rows in _blocks(len(truth)):
        scaled = log_scores[rows].astype(np.float64) / temperature
        highest = scaled.max(axis=1)
        sums = np.log(np.exp(scaled - highest[:, None]).sum(axis=1)) + highest
        total += float((sums - scaled[np.arange(len(sums)), truth[rows]]) @ weights[rows])
    return total / float(weights.sum())


def score_answers(
    log_scores: LogScores,
    truth: Indices,
    taxonomy: Taxonomy,
    level: int,
    temperature: float,
    weights: Shares | None = None,
) -> LevelScores:
    """Score a level's log-scores (N, num_classes[level]) at a temperature against the truth (N, num_tiers).

    ``weights`` (N,) None: all equal.
    """
    weights = np.ones(len(truth)) if weights is None else weights
    parts = []
    for rows in _blocks(len(truth)):
        tiers = sum_up(log_scores[rows].astype(np.float64), taxonomy, level, temperature)
        classes, scores = best_paths(tiers, taxonomy)
        true = truth[rows, : level + 1]
        known = true != UNKNOWN
        of_truth = tiers[level][np.arange(len(true)), true[:, level]]
        nll = -np.log(np.maximum(of_truth, np.finfo(np.float64).tiny)) * known[:, level]
        brier = ((tiers[level] ** 2).sum(axis=1) - 2 * of_truth + 1) * known[:, level]
        parts.append(LevelScores(scores, classes == true, known, nll, brier, weights[rows]))
    return LevelScores.join(parts)


def find_threshold(
    scores: Shares, right: Flags, precision: float, weights: Shares | None = None
) -> float | None:
    """The lowest score from which the answers (N,) are right at a rate ``precision``, or None.

    The lower end of the one-sided 95% Wilson interval must reach the rate, so that 3 right answers of 3 prove nothing,
    and 268 of 268 are the fewest that prove 99%. Equal scores are answered together or not at all. The lowest score
    that holds gives the largest coverage; being chosen, it holds a little less often than 95%. The result lies below
    that score by at most `MARGIN`, since scores vary slightly with the batch size.

    With ``weights`` (N,) the bound for the numbers of answers is moved as the weights move the share: a wrong answer
    counts as the wrong ones given do on average, and as the heaviest if none is wrong.
    """
    return find_scores(scores, right, [precision], weights)[0]


def find_scores(
    scores: Shares, right: Flags, precisions: Iterable[float], weights: Shares | None = None
) -> list[float | None]:
    """`find_threshold` for several precisions; a higher one never has a lower score."""
    weights = np.ones(len(scores)) if weights is None else weights
    order = np.argsort(-scores, kind="stable")
    ordered, counts = scores[order], np.arange(1, len(scores) + 1)
    last_of_equals = np.append(ordered[1:] != ordered[:-1], True)
    num_right, weighed = np.cumsum(right[order], dtype=np.int64), weights[order]
    ratio = weight_ratio(
        counts, num_right, np.cumsum(weighed), np.cumsum(weighed * right[order]), weights.max(initial=0.0)
    )
    bounds = tilt(wilson_lower_bounds(num_right, counts), ratio)
    found: list[float | None] = []
    for precision in precisions:
        holds = np.flatnonzero(last_of_equals & (bounds >= precision))
        if not len(holds):
            found.append(None)
            continue
        lowest, below = ordered[holds[-1]], np.append(ordered, 0.0)[holds[-1] + 1]
        found.append(float(lowest - min(MARGIN, (lowest - below) / 2)))
    return found


def find_thresholds(
    scored: LevelScores, level: int, precisions: Sequence[float] = PRECISIONS
) -> list[Threshold]:
    """A level's threshold for each tier 0 … level and precision."""
    found = []
    for tier in range(level + 1):
        scores, right, weights = scored.tier(tier)
        for precision, score in zip(precisions, find_scores(scores, right, precisions, weights), strict=True):
            coverage = 0.0 if score is None else float(np.average(scores >= score, weights=weights))
            found.append(Threshold(level, tier, precision, score, coverage))
    return found


def _calibrate_level(
    log_scores: LogScores, all_truth: Indices, weights: Shares, taxonomy: Taxonomy, level: int
) -> LevelCalibration:
    def score(temperature: float) -> LevelScores:
        return score_answers(log_scores, all_truth, taxonomy, level, temperature, weights)

    truth = all_truth[:, level]
    temperature = fit_temperature(log_scores, truth, weights)
    thresholds = find_thresholds(score(temperature), level)
    halves, parts, places, kept = [], [], [], []
    splits = max(1, min(MOST_SPLITS, SPLIT_IMAGES // len(truth)))
    for fitted, measured in RepeatedKFold(n_splits=2, n_repeats=splits, random_state=0).split(truth):
        halves.append(fit_temperature(log_scores[fitted], truth[fitted], weights[fitted]))
        scored = score(halves[-1])
        parts.append(scored.rows(measured))
        places.append(measured)
        found = find_thresholds(scored.rows(fitted), level)
        kept.append([apply_threshold(each, parts[-1]) for each in found])
    after = LevelScores.join(parts[:2]).rows(np.concatenate(places[:2]).argsort())
    return LevelCalibration(
        level,
        temperature,
        (halves[0], halves[1]),
        score(1.0),
        after,
        tuple(thresholds),
        tuple(add_outcomes(each, splits) for each in zip(*kept, strict=True)),
        splits,
    )


def _weights(predictions: Predictions, weighting: Weighting | None) -> Shares:
    """Weights of the images whose logits are kept."""
    return np.ones(len(predictions.kept)) if weighting is None else weighting.kept


def apply_threshold(threshold: Threshold, scored: LevelScores) -> ThresholdOutcome:
    """Outcome of a threshold on a level's scores."""
    scores, flags, weights = scored.tier(threshold.tier)
    given = scores >= (np.inf if threshold.score is None else threshold.score)
    right = given & flags
    return ThresholdOutcome(
        int(given.sum()),
        int(right.sum()),
        float(weights[given].sum()),
        float(weights[right].sum()),
        float(weights.sum()),
        float(weights.max()),
    )


def add_outcomes(parts: Sequence[ThresholdOutcome], times: int) -> ThresholdOutcome:
    """Sum outcomes over halves in which each image is counted ``times`` times."""
    return ThresholdOutcome(
        sum(part.given for part in parts),
        sum(part.right for part in parts),
        sum(part.given_weight for part in parts),
        sum(part.right_weight for part in parts),
        sum(part.total for part in parts),
        max(part.heaviest for part in parts),
        times,
    )


def _blocks(count: int) -> Iterator[slice]:
    return (slice(start, start + _ROWS) for start in range(0, count, _ROWS))
