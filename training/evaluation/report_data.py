"""What an evaluation report shows beyond the tables of results: confusions, superclasses, curves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from taxonomy import Taxonomy
from training.evaluation.calibration import LevelCalibration
from training.evaluation.metrics import Flags, Shares, reliability, wilson_interval
from training.evaluation.predictions import Predictions

Counts = npt.NDArray[np.int64]
CURVE_POINTS = 200
"""Most points of a curve: more than a screen shows."""


def confusion(predictions: Predictions, taxonomy: Taxonomy, weight: int, tier: int) -> Counts:
    """How often each class of a tier (rows) was answered with each (columns) by the level of that tier.

    ``weight`` is the index of a lower weight of the answers. (num_classes[tier], num_classes[tier]).
    """
    size = taxonomy.num_classes[tier]
    truth = taxonomy.projection(tier)[predictions.leaves]
    cells = np.bincount(truth * size + predictions.best[weight, tier], minlength=size * size)
    return cells.reshape(size, size)


def tree_order(taxonomy: Taxonomy, tier: int) -> npt.NDArray[np.int64]:
    """The classes of a tier (num_classes[tier],) with those of one parent side by side."""
    lines = [np.arange(taxonomy.num_classes[tier])]
    for above in range(tier, 0, -1):
        lines.append(taxonomy.parent_classes(above)[lines[-1]])
    return np.lexsort(lines).astype(np.int64)  # the last key, tier 0, counts first


def worst_confusions(counts: Counts, taxonomy: Taxonomy, tier: int, limit: int) -> list[dict[str, Any]]:
    """The most frequent wrong answers of a tier, most frequent first, as JSON values.

    Each has the indices and names of ``truth`` and ``answer``, how many images (``count``) of how many (``of``) of
    the true class, and the name of their lowest common ancestor and its height in edges.
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
    """Accuracy of each class of tier 0, at each level, as JSON values: a row per class with its images.

    ``levels[k]`` has the share whose tier 0 is right when level k is asked (``superclass``), and whose answer on
    tier k is (``own``), each with its 95% interval; None where the class has no image.
    """
    truth = taxonomy.projection(0)[predictions.leaves]
    right = []
    for level in range(taxonomy.num_tiers):
        flags = predictions.right(weight, level, taxonomy)
        right.append({"superclass": flags[0], "own": flags[level]})
    rows = []
    for index, node in enumerate(taxonomy.classes(0)):
        mine = truth == index
        levels = [{name: _share(flags[mine]) for name, flags in level.items()} for level in right]
        rows.append({"id": node.id, "name": node.name, "images": int(mine.sum()), "levels": levels})
    return rows


def _share(right: Flags) -> dict[str, Any] | None:
    if not len(right):
        return None
    share = float(right.mean())
    return {"share": share, "interval": list(wilson_interval(share, len(right)))}


def risk_coverage(scores: Shares, right: Flags, weights: Shares | None = None) -> dict[str, Any]:
    """Share right among the answers (N,) of the highest scores, by their share of all, as JSON values.

    ``coverage`` and ``precision`` are points of the curve, 0 to 1, answers of equal score at once; ``aurc`` is the
    area under the share of wrong ones over all N coverages (Geifman & El-Yaniv 2017; Geifman et al. 2019).
    ``weights`` (N,) None: all answers count the same.
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
    """Per level the reliability of its answers on its own tier before and after temperature, and a curve per tier.

    JSON values: ``before`` and ``after`` (cross-fitted) hold ``counts``, ``shares``, ``score`` and ``accuracy`` per
    bin; ``tiers[j]`` what `risk_coverage` says of the answers to tier j, scores after temperature (cross-fitted).
    """
    found = []
    for each in levels:
        row: dict[str, Any] = {"level": each.level}
        for name, scored in (("before", each.before), ("after", each.after)):
            bins = reliability(scored.scores[:, -1], scored.right[:, -1], scored.weights)
            row[name] = {
                "counts": bins.counts.tolist(),
                "shares": bins.shares.tolist(),
                "score": bins.mean_score.tolist(),
                "accuracy": bins.accuracy.tolist(),
            }
        pairs = zip(each.after.scores.T, each.after.right.T, strict=True)
        row["tiers"] = [risk_coverage(scores, right, each.after.weights) for scores, right in pairs]
        found.append(row)
    return found
