"""Measures on a tree of nine nodes, with the answers written down.

    root ── animal ── dog ── (beagle, husky)
        │         └── cat ── (tabby)
        └── ship (a leaf in every tier)

Leaves: beagle 0, husky 1, tabby 2, ferry 3. Depths 3, 3, 3, 2.
"""

from __future__ import annotations

import numpy as np
import pytest

from taxonomy import Node, Taxonomy
from training.evaluation import metrics


@pytest.fixture(scope="module")
def tree() -> Taxonomy:
    names = ("root", "animal", "ship", "dog", "cat", "ferry", "beagle", "husky", "tabby")
    return Taxonomy(
        name="nine",
        nodes=[Node(name, name) for name in names],
        parents=[-1, 0, 0, 1, 1, 2, 3, 3, 4],
        leaves=["beagle", "husky", "tabby", "ferry"],
        tiers=[["animal", "ship"], ["dog", "cat", "ferry"], ["beagle", "husky", "tabby", "ferry"]],
    )


TRUTH = np.array([0, 0, 0, 3])
ANSWERS = np.array([0, 1, 2, 0])  # right, a sibling dog, a cat for a dog, a dog for a ferry


def test_accuracy_is_the_share_of_equal_answers() -> None:
    assert metrics.accuracy(ANSWERS, TRUTH) == 0.25


def test_mean_lca_height_counts_right_answers_as_zero(tree: Taxonomy) -> None:
    assert metrics.mean_lca_height(tree, ANSWERS, TRUTH) == (0 + 1 + 2 + 3) / 4


def test_mistake_severity_looks_at_wrong_answers_only(tree: Taxonomy) -> None:
    assert metrics.mistake_severity(tree, ANSWERS, TRUTH) == (1 + 2 + 3) / 3


def test_mistake_severity_without_a_mistake_is_none(tree: Taxonomy) -> None:
    assert metrics.mistake_severity(tree, TRUTH, TRUTH) is None


def test_hierarchical_distance_at_k_averages_over_samples_and_ranks(tree: Taxonomy) -> None:
    ranked = np.array([[0, 1], [2, 3]])
    assert metrics.hierarchical_distance_at(tree, ranked, np.array([0, 0])) == (0 + 1 + 2 + 3) / 4


def test_the_depth_of_common_ancestors_is_counted_in_edges(tree: Taxonomy) -> None:
    assert metrics.lca_depths(tree).tolist() == [[3, 2, 1, 0], [2, 3, 1, 0], [1, 1, 3, 0], [0, 0, 0, 2]]


def test_hierarchical_precision_and_recall_count_shared_ancestors_without_the_root(tree: Taxonomy) -> None:
    precision, recall, f1 = metrics.hierarchical_precision_recall(tree, ANSWERS, TRUTH)
    assert precision == (3 + 2 + 1 + 0) / (3 + 3 + 3 + 3)
    assert recall == (3 + 2 + 1 + 0) / (3 + 3 + 3 + 2)
    assert f1 == pytest.approx(2 * 6 / (12 + 11))


def test_full_path_accuracy_needs_every_tier_right(tree: Taxonomy) -> None:
    answers = [np.array([0, 1, 0, 1]), np.array([0, 0, 0, 2]), np.array([0, 0, 1, 3])]
    assert metrics.full_path_accuracy(tree, answers, TRUTH) == 0.5


def test_inconsistency_counts_answers_that_are_no_path_of_the_tree(tree: Taxonomy) -> None:
    tier0, tier1 = np.array([0, 0, 1, 1]), np.array([0, 2, 2, 2])
    tier2 = np.array([1, 3, 3, 0])  # animal-dog-husky, animal-ferry, ship-ferry-ferry, ship-ferry-beagle
    assert metrics.inconsistency_rate(tree, [tier0, tier1, tier2]) == 0.5


def test_the_wilson_interval_agrees_with_published_values() -> None:
    low, high = metrics.wilson_interval(0.5, 10)
    assert (round(low, 4), round(high, 4)) == (0.2366, 0.7634)
    assert metrics.wilson_interval(0.0, 20)[0] == 0.0
    assert round(metrics.wilson_interval(0.0, 20)[1], 4) == 0.1611  # Newcombe 1998, table I


@pytest.mark.parametrize("count", range(1, 60))
def test_no_share_lies_outside_its_interval(count: int) -> None:
    for share in (0.0, 1 / count, 1.0):
        low, high = metrics.wilson_interval(share, count)
        assert 0 <= low <= share <= high <= 1
