"""Measures of hierarchical predictions, each with its source.

Leaves are indices (N,) of a taxonomy's leaves; answers of a tier are class indices (N,) of that tier.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from taxonomy import Taxonomy

Indices = npt.NDArray[np.integer[Any]]
Shares = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]
Numbers = npt.NDArray[Any] | float


class Reliability(NamedTuple):
    """Answers grouped by score, arrays (bins,): number, mean score, accuracy, and share of all answers.

    Means and shares are weighted.
    """

    counts: Indices
    mean_score: Shares
    accuracy: Shares
    shares: Shares


def accuracy(answers: Indices, truth: Indices) -> float:
    """Share of the answers (N,) that equal the truth (N,), 0 to 1."""
    return float(np.mean(answers == truth))


def balanced_accuracy(answers: Indices, truth: Indices) -> float:
    """Mean over the classes of the truth (N,) of the share of right answers (N,) among their samples, 0 to 1.

    Every class counts the same, however many samples it has ("balanced accuracy", Brodersen et al. 2010).
    """
    counts = np.bincount(truth)
    right = np.bincount(truth, weights=answers == truth, minlength=len(counts))
    return float(np.mean(right[counts > 0] / counts[counts > 0]))


def wilson_interval(share: float, count: float, z: float = 1.959963984540054) -> tuple[float, float]:
    """95% interval of a share of ``count`` independent trials (Wilson 1927, score interval)."""
    centre = share + z * z / (2 * count)
    half = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    scale = 1 + z * z / count
    low, high = (centre - half) / scale, (centre + half) / scale
    return max(0.0, min(low, share)), min(1.0, max(high, share))  # rounding would leave 0 and 1 outside


def wilson_lower_bounds(right: Indices, counts: Indices, z: float = 1.6448536269514722) -> Shares:
    """Lower ends (N,) of the one-sided 95% Wilson intervals for ``right`` (N,) of ``counts`` (N,).

    0.53 for 3 of 3, 0.99 for 268 of 268.
    """
    shares = right / counts
    half = z * np.sqrt(shares * (1 - shares) / counts + z * z / (4 * counts * counts))
    bounds: Shares = (shares + z * z / (2 * counts) - half) / (1 + z * z / counts)
    return bounds


def weight_ratio(
    given: Numbers, right: Numbers, given_weight: Numbers, right_weight: Numbers, heaviest: float
) -> Shares:
    """Mean weight of a wrong answer divided by that of a right one, for ``right`` (N,) of ``given`` (N,) answers.

    The weights (N,) are sums. Where no answer is wrong, or none right, its weight is taken to be the ``heaviest``.
    """
    wrong = given - right
    of_wrong = np.where(wrong > 0, (given_weight - right_weight) / np.maximum(wrong, 1), heaviest)
    of_right = np.where(right > 0, right_weight / np.maximum(right, 1), heaviest)
    ratio: Shares = of_wrong / of_right
    return ratio


def tilt(share: Shares, ratio: Shares) -> Shares:
    """Accuracies (N,) when a wrong answer counts ``ratio`` (N,) times as much as a right one."""
    tilted: Shares = share / (1 + (ratio - 1) * (1 - share))
    return tilted


def effective_size(weights: Shares) -> float:
    """Effective sample size of weights (N,) (Kish 1965)."""
    return float(weights.sum() ** 2 / (weights @ weights))


def reliability(scores: Shares, right: Flags, weights: Shares | None = None, bins: int = 15) -> Reliability:
    """Group answers by score into bins of equal width: answers, mean score and share right of each (bins,).

    ``scores`` (N,) are 0 to 1, ``right`` (N,) says which answers are; a score on an edge belongs to the bin above,
    1 to the last. Empty bins have 0 for both means. ``weights`` (N,) None: all answers count the same.
    """
    weights = np.ones(len(scores)) if weights is None else weights
    index = np.minimum((scores * bins).astype(np.int64), bins - 1)

    def add(values: Shares) -> Shares:
        sums: Shares = np.bincount(index, weights=values, minlength=bins).astype(np.float64)
        return sums

    totals = add(weights)
    divisor = np.where(totals > 0, totals, 1.0)
    return Reliability(
        np.bincount(index, minlength=bins),
        add(weights * scores) / divisor,
        add(weights * right) / divisor,
        totals / weights.sum(),
    )


def expected_calibration_error(scores: Shares, right: Flags, weights: Shares | None = None) -> float:
    """Mean distance of score and share right over 15 bins of equal width, weighted by answers, 0 to 1.

    Naeini et al. 2015; as in Guo et al. 2017, *On Calibration of Modern Neural Networks*, section 2.
    """
    found = reliability(scores, right, weights)
    return float(np.abs(found.mean_score - found.accuracy) @ found.shares)


def mean_lca_height(taxonomy: Taxonomy, answers: Indices, truth: Indices) -> float:
    """Mean height of the lowest common ancestor of answered and true leaf over all samples.

    Height in edges down to the deepest leaf below; 0 where the answer is right. "Hierarchical distance of the
    top-1" in Bertinetto et al. 2020, *Making Better Mistakes*, section 4.2.
    """
    return float(np.mean(taxonomy.lca_heights[answers, truth]))


def mistake_severity(taxonomy: Taxonomy, answers: Indices, truth: Indices) -> float | None:
    """Mean height of the lowest common ancestor over the wrong answers only; None if there are none.

    "Hierarchical distance of a mistake" in Bertinetto et al. 2020, section 4.2. It can fall
    while accuracy falls (easy mistakes are added): read it beside top-1.
    """
    wrong = answers != truth
    return float(np.mean(taxonomy.lca_heights[answers[wrong], truth[wrong]])) if wrong.any() else None


def hierarchical_distance_at(taxonomy: Taxonomy, ranked: Indices, truth: Indices) -> float:
    """Mean LCA height of the k highest-ranked leaves (N, k) and the truth (N,) over all samples and ranks.

    "Average hierarchical distance of the top-k" (HD@k), Bertinetto et al. 2020, section 4.2.
    """
    return float(np.mean(taxonomy.lca_heights[ranked, truth[:, None]]))


def hierarchical_precision_recall(
    taxonomy: Taxonomy, answers: Indices, truth: Indices
) -> tuple[float, float, float]:
    """Hierarchical precision, recall and F1 of answered leaves, micro-averaged over the samples.

    Each leaf stands for the set of itself and its ancestors without the root; hP = Σ|Â∩A| / Σ|Â|, hR = Σ|Â∩A|
    / Σ|A| and hF their harmonic mean (Kiritchenko et al. 2005; Silla & Freitas 2011, section 5).
    """
    depths = np.array([taxonomy.depth(leaf) for leaf in taxonomy.leaves], dtype=np.int64)
    shared = lca_depths(taxonomy)[answers, truth].sum()
    precision = _ratio(shared, depths[answers].sum())
    recall = _ratio(shared, depths[truth].sum())
    return precision, recall, _ratio(2 * precision * recall, precision + recall)


def lca_depths(taxonomy: Taxonomy) -> Indices:
    """Depth in edges of the lowest common ancestor of every two leaves, (num_leaves, num_leaves)."""
    ancestors = np.zeros((len(taxonomy.leaves), len(taxonomy.nodes)), dtype=np.float32)
    for row, leaf in enumerate(taxonomy.leaves):
        for node in (taxonomy.node(leaf), *taxonomy.ancestors(leaf)):
            ancestors[row, taxonomy.index(node.id)] = 1.0
    return (ancestors @ ancestors.T).astype(np.int64) - 1  # shared ancestors, the root not counted


def full_path_accuracy(taxonomy: Taxonomy, answers: Sequence[Indices], leaves: Indices) -> float:
    """Share of samples whose answer is right in every tier at once.

    ``answers``: one (N,) array of class indices per tier, coarse first, each level's own highest score
    ("full-path accuracy", Park et al. 2024, *Visually Consistent Hierarchical Image Classification*).
    """
    right = np.ones(len(leaves), dtype=bool)
    for tier, answer in enumerate(answers):
        right &= answer == taxonomy.projection(tier)[leaves]
    return float(np.mean(right))


def inconsistency_rate(taxonomy: Taxonomy, answers: Sequence[Indices]) -> float:
    """Share of samples whose answers per tier are no path of the tree.

    ``answers`` are the raw highest scores per level, before anything makes them consistent ("tree-based
    inconsistency error", Park et al. 2024; the complement of the consistency of Wang et al. 2023).
    """
    broken = np.zeros(len(answers[0]), dtype=bool)
    for tier in range(1, len(answers)):
        broken |= taxonomy.parent_classes(tier)[answers[tier]] != answers[tier - 1]
    return float(np.mean(broken))


def _ratio(part: float, whole: float) -> float:
    return float(part / whole) if whole else 0.0
