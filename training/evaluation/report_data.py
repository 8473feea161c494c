"""Numbers of an evaluation report beyond the tables: confusions, superclasses, curves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from taxonomy import Taxonomy
from training.data.samples import UNKNOWN
from training.evaluation.calibration import LevelCalibration
from training.evaluation.metrics import Flags, Shares, reliability, wilson_interval
from training.evaluation.predictions import Predictions

Counts = npt.NDArray[np.int64]
CURVE_POINTS = 200
"""Most points of a curve."""


def confusion(predictions: Predictions, taxonomy: Taxonomy, weight: int, tier: int) -> Counts:
    """Confusion matrix of a tier (num_classes[tier], num_classes[tier]): truth in rows, answers in columns.

    ``weight`` indexes the predictions' lower weights.
    """
    size = taxonomy.num_classes[tier]
    truth = predictions.truth(taxonomy)[:, tier]
    known = truth != UNKNOWN
    cells = np.bincount(truth[known] * size + predictions.best[weight, tier][known], minlength=size * size)
    return cells.reshape(size, size)


def tree_order(taxonomy: Taxonomy, tier: int) -> npt.NDArray[np.int64]:
    """The classes of a tier (num_classes[tier],) ordered so that those of one parent are adjacent."""
    lines = [np.arange(taxonomy.num_classes[tier])]
    for above in range(tier, 0, -1):
        lines.append(taxonomy.parent_classes(above)[lines[-1]])
    return np.lexsort(lines).astype(np.int64)  # the last key, tier 0, counts first


def worst_confusions(counts: Counts, taxonomy: Taxonomy, tier: int, limit: int) -> list[dict[str, Any]]:
    """The ``limit`` most frequent wrong answers of a tier, as JSON values.

    Each has index and name of ``truth`` and ``answer``, ``count`` images out of ``of`` of the true class, and name and
    height in edges of their lowest common ancestor.
    """
    wrong = counts.copy()
    np.fill_diagonal(wrong, 0)
    nodes = taxonomy.classes(tier)
    found = []
    for cell in np.argsort(-wrong, axis=None, kind="stable")[:limit].tolist():
        truth, answer = divmod(cell, len(nodes))
        if not wrong[truth, answer]:
            break
        common = taxonomy.lca(nodes[truth].id, nodes[answer].id)
        found.append(
            {
                "truth": truth,
                "truth_name": nodes[truth].name,
                "answer": answer,
                "answer_name": nodes[answer].name,
                "count": int(wrong[truth, answer]),
                "of": int(counts[truth].sum()),
                "common": common.name,
                "height": taxonomy.height(common.id),
            }
        )
    return found


def superclasses(predictions: Predictions, taxonomy: Taxonomy, weight: int) -> list[dict[str, Any]]:
    """Accuracy of each class of tier 0 at each level, as JSON values.

    ``levels[k]`` has the accuracy on tier 0 when level k is asked (``superclass``) and on tier k (``own``), each with
    its 95% interval; None for a class without images.
    """
    truth = predictions.truth(taxonomy)
    right = []
    for level in range(taxonomy.num_tiers):
        flags = predictions.right(weight, level, taxonomy)
        right.append({"superclass": flags[0], "own": flags[level]})
    rows = []
    for index, node in enumerate(taxonomy.classes(0)):
        mine = truth[:, 0] == index
        levels = [
            {
                "superclass": _share(level["superclass"][mine]),
                "own": _share(level["own"][mine & (truth[:, tier] != UNKNOWN)]),
            }
            for tier, level in enumerate(right)
        ]
        rows.append({"id": node.id, "name": node.name, "images": int(mine.sum()), "levels": levels})
    return rows


def _share(right: Flags) -> dict[str, Any] | None:
    if not len(right):
        return None
    share = float(right.mean())
    return {"share": share, "interval": list(wilson_interval(share, len(right)))}


def risk_coverage(scores: Shares, right: Flags, weights: Shares | None = None) -> dict[str, Any]:
    """Accuracy among the highest scores (N,) by coverage, as JSON values.

    ``coverage`` and ``precision`` (0 to 1) are points of the curve, equal scores at once; ``aurc`` is the area under
    the share of wrong answers over all N coverages (Geifman & El-Yaniv 2017; Geifman et al. 2019). ``weights`` (N,)
    None: all equal.
    """
    order = np.argsort(-scores, kind="stable")
    weights = np.ones(len(scores)) if weights is None else weights[order]
    ordered, given = scores[order], np.cumsum(weights)
    precision = np.cumsum(weights * right[order]) / given
    ends = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True))
    of_each = ends[np.searchsorted(ends, np.arange(len(scores)))]  # equal scores have one coverage
    aurc = float(1 - precision[of_each] @ weights / given[-1])
    if len(ends) > CURVE_POINTS:
        ends = ends[np.linspace(0, len(ends) - 1, CURVE_POINTS).round().astype(int)]
    coverage = given[ends] / given[-1]
    return {"coverage": coverage.tolist(), "precision": precision[ends].tolist(), "aurc": aurc}


def curves(levels: Sequence[LevelCalibration]) -> list[dict[str, Any]]:
    """Reliability on each level's own tier before and after temperature, and a risk-coverage curve per tier.

    JSON values per level: ``before`` and ``after`` (cross-fitted) hold ``counts``, ``shares``, ``score`` and
    ``accuracy`` per bin; ``tiers[j]`` is `risk_coverage` on tier j (cross-fitted).
    """
    found = []
    for each in levels:
        row: dict[str, Any] = {"level": each.level}
        for name, scored in (("before", each.before), ("after", each.after)):
            bins = reliability(*scored.tier(each.level))
            row[name] = {
                "counts": bins.counts.tolist(),
                "shares": bins.shares.tolist(),
                "score": bins.mean_score.tolist(),
                "accuracy": bins.accuracy.tolist(),
            }
        row["tiers"] = [risk_coverage(*each.after.tier(tier)) for tier in range(each.level + 1)]
        found.append(row)
    return found
