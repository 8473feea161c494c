"""The measures against other people's implementations of them, on the same answers: scikit-learn, SciPy, HiClass."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn import metrics as sklearn_metrics
from sklearn.calibration import calibration_curve

from taxonomy import Taxonomy, load_taxonomy
from training.evaluation import metrics
from training.evaluation import report_data as findings
from training.evaluation.predictions import Predictions

RANDOM = np.random.default_rng(7)
COUNT = 400


@pytest.fixture(scope="module")
def truth() -> np.ndarray:
    return RANDOM.integers(0, 200, COUNT)


@pytest.fixture(scope="module")
def tree() -> Taxonomy:
    return load_taxonomy("tiny-imagenet")  # leaves of unequal depth


@pytest.fixture(scope="module")
def answered(truth: np.ndarray) -> np.ndarray:
    """Leaves answered, about half of them right and some near."""
    guessed = np.where(RANDOM.random(COUNT) < 0.5, truth, RANDOM.integers(0, 200, COUNT))
    return np.where(RANDOM.random(COUNT) < 0.2, np.minimum(truth + 1, 199), guessed)


def test_accuracy_is_scikit_learns(truth: np.ndarray, answered: np.ndarray) -> None:
    assert metrics.accuracy(answered, truth) == sklearn_metrics.accuracy_score(truth, answered)


def test_the_interval_is_scipys() -> None:
    for right, count in ((0, 5), (3, 7), (4536, 10_000), (60, 60)):
        expected = binomtest(right, count).proportion_ci(0.95, method="wilson")
        assert metrics.wilson_interval(right / count, count) == pytest.approx(
            (expected.low, expected.high), abs=1e-12
        )


def lineage(tree: Taxonomy, leaf: int) -> set[str]:
    """A leaf and its ancestors without the root."""
    found = [tree.leaves[leaf]]
    while (parent := int(tree.parents[tree.index(found[-1])])) > 0:
        found.append(tree.nodes[parent].id)
    return set(found)


def test_hierarchical_precision_and_recall_are_overlaps_of_sets_of_ancestors(
    tree: Taxonomy, truth: np.ndarray, answered: np.ndarray
) -> None:
    given = [lineage(tree, leaf) for leaf in answered.tolist()]
    true = [lineage(tree, leaf) for leaf in truth.tolist()]
    shared = sum(len(one & other) for one, other in zip(given, true, strict=True))
    precision, recall = shared / sum(map(len, given)), shared / sum(map(len, true))
    assert precision != recall
    assert metrics.hierarchical_precision_recall(tree, answered, truth) == pytest.approx(
        (precision, recall, 2 * precision * recall / (precision + recall)), abs=1e-12
    )


def test_hierarchical_precision_and_recall_are_those_of_hiclass(
    tree: Taxonomy, truth: np.ndarray, answered: np.ndarray
) -> None:
    hiclass = pytest.importorskip("hiclass.metrics", exc_type=ImportError)

    def paths(leaves: np.ndarray) -> np.ndarray:
        rows = [sorted(lineage(tree, leaf)) for leaf in leaves.tolist()]
        width = max(tree.depth(leaf) for leaf in tree.leaves)
        return np.array([row + [""] * (width - len(row)) for row in rows])

    given, true = paths(answered), paths(truth)
    precision, recall, f1 = metrics.hierarchical_precision_recall(tree, answered, truth)
    assert precision == pytest.approx(hiclass.precision(true, given), abs=1e-12)
    assert recall == pytest.approx(hiclass.recall(true, given), abs=1e-12)
    assert f1 == pytest.approx(hiclass.f1(true, given), abs=1e-12)


@pytest.mark.parametrize("tier", [0, 1, 2])
def test_confusions_are_scikit_learns(
    tree: Taxonomy, truth: np.ndarray, answered: np.ndarray, tier: int
) -> None:
    best = np.stack([tree.projection(each)[answered] for each in range(3)])[None].astype(np.int32)
    empty = np.zeros(0, dtype=np.int64)
    ranked = np.zeros((COUNT, 5), dtype=np.int32)
    answers = Predictions(np.arange(COUNT), truth, (0.0,), best, ranked, empty, (), ())
    expected = sklearn_metrics.confusion_matrix(
        tree.projection(tier)[truth], best[0, tier], labels=range(tree.num_classes[tier])
    )
    assert findings.confusion(answers, tree, 0, tier).tolist() == expected.tolist()


@pytest.fixture(scope="module")
def scores() -> np.ndarray:
    return np.append(RANDOM.random(2000) ** 0.5, [0.0, 1.0, 1.0])


@pytest.fixture(scope="module")
def right(scores: np.ndarray) -> np.ndarray:
    return RANDOM.random(len(scores)) < scores**2


def test_reliability_is_scikit_learns_calibration_curve(scores: np.ndarray, right: np.ndarray) -> None:
    found = metrics.reliability(scores, right)
    accuracy, mean = calibration_curve(right, scores, n_bins=15, strategy="uniform")
    filled = found.counts > 0
    assert found.accuracy[filled] == pytest.approx(accuracy, abs=1e-12)
    assert found.mean_score[filled] == pytest.approx(mean, abs=1e-12)
    assert found.counts.sum() == len(scores)
    weights = found.counts[filled] / len(scores)
    expected = float(np.abs(accuracy - mean) @ weights)
    assert metrics.expected_calibration_error(scores, right) == pytest.approx(expected, abs=1e-12)


def test_the_area_under_risk_and_coverage_is_a_mean_over_every_coverage(
    scores: np.ndarray, right: np.ndarray
) -> None:
    distinct = np.unique(scores, return_index=True)[1]
    some, correct = scores[distinct], right[distinct]
    found = findings.risk_coverage(some, correct)
    risks = [1 - correct[some >= score].mean() for score in some]
    assert found["aurc"] == pytest.approx(np.mean(risks), abs=1e-12)
    assert found["coverage"][-1] == 1.0
    assert found["precision"][-1] == pytest.approx(correct.mean())
    assert len(found["coverage"]) == findings.CURVE_POINTS
    for coverage, precision in list(zip(found["coverage"], found["precision"], strict=True))[::40]:
        best = np.argsort(-some)[: round(coverage * len(some))]
        assert precision == pytest.approx(correct[best].mean())


def test_answers_of_equal_score_are_one_point_of_the_curve() -> None:
    found = findings.risk_coverage(np.array([0.9, 0.5, 0.5, 0.5]), np.array([True, True, False, False]))
    assert found == {"coverage": [0.25, 1.0], "precision": [1.0, 0.5], "aurc": (0 + 0.5 * 3) / 4}
