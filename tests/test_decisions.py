"""From logits to an answer: literal posteriors on a small tree, and what holds for any logits."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from hierclass.decisions.prediction import Prediction, best_paths, combine_levels, to_predictions
from hierclass.errors import LevelError
from taxonomy import Node, Taxonomy

#      thing
#     /     \
#  animal   tool
#  /  \       \
# cat dog    saw
NODES = [Node(name, name.title()) for name in ("thing", "animal", "tool", "cat", "dog", "saw")]
TREE = Taxonomy(
    name="five",
    nodes=NODES,
    parents=[-1, 0, 0, 1, 1, 2],
    leaves=["dog", "saw", "cat"],
    tiers=[["animal", "tool"], ["dog", "saw", "cat"]],
)


def logits(*shares: float) -> NDArray[np.float32]:
    """Logits (1, C) whose softmax is `shares`; any constant may be added to logits."""
    return np.log(np.array([shares], dtype=np.float32)) + np.float32(3)


def any_logits(classes: int) -> st.SearchStrategy[NDArray[np.float32]]:
    values = st.floats(-200, 200, width=32)
    return arrays(np.float32, (3, classes), elements=values)


def test_the_last_level_decides_alone_and_is_summed_up_the_tree() -> None:
    coarse, fine = combine_levels([logits(0.1, 0.9), logits(0.5, 0.2, 0.3)], TREE)
    assert fine == pytest.approx(np.array([[0.5, 0.2, 0.3]]), abs=1e-6)
    assert coarse == pytest.approx(np.array([[0.8, 0.2]]), abs=1e-6)


def test_lower_levels_count_with_their_weight() -> None:
    # dog 0.5 · 0.1, saw 0.2 · 0.9, cat 0.3 · 0.1 → 0.05, 0.18, 0.03, which sum to 0.26
    coarse, fine = combine_levels([logits(0.1, 0.9), logits(0.5, 0.2, 0.3)], TREE, lower_weight=1.0)
    assert fine == pytest.approx(np.array([[5 / 26, 18 / 26, 3 / 26]]), abs=1e-6)
    assert coarse == pytest.approx(np.array([[8 / 26, 18 / 26]]), abs=1e-6)
    # With weight ½ the lower level counts with its root.
    _, fine = combine_levels([logits(0.04, 0.96), logits(0.5, 0.2, 0.3)], TREE, lower_weight=0.5)
    total = 0.5 * 0.2 + 0.2 * math.sqrt(0.96) + 0.3 * 0.2
    assert fine[0, 1] == pytest.approx(0.2 * math.sqrt(0.96) / total, abs=1e-6)


def test_a_level_alone_answers_with_its_softmax() -> None:
    (coarse,) = combine_levels([logits(0.25, 0.75)], TREE)
    assert coarse == pytest.approx(np.array([[0.25, 0.75]]), abs=1e-6)


def test_a_temperature_divides_the_log_scores_of_the_level_asked_before_they_are_summed_up() -> None:
    coarse, fine = combine_levels([logits(0.1, 0.9), logits(0.5, 0.2, 0.3)], TREE, temperatures=(7.0, 0.5))
    total = 0.25 + 0.04 + 0.09  # a temperature of ½ squares the shares; that of level 0 has no say
    assert fine == pytest.approx(np.array([[0.25, 0.04, 0.09]]) / total, abs=1e-6)
    assert coarse == pytest.approx(np.array([[0.34, 0.04]]) / total, abs=1e-6)
    (alone,) = combine_levels([logits(0.36, 0.64)], TREE, temperatures=(2.0, 0.5))
    assert alone == pytest.approx(np.array([[0.6, 0.8]]) / 1.4, abs=1e-6)


def test_a_temperature_applies_to_the_consensus_as_a_whole() -> None:
    _, together = combine_levels(
        [logits(0.1, 0.9), logits(0.5, 0.2, 0.3)], TREE, 1.0, temperatures=(7.0, 0.5)
    )
    squares = np.array([[5.0**2, 18.0**2, 3.0**2]])
    assert together == pytest.approx(squares / squares.sum(), abs=1e-6)


def test_the_path_of_many_images_is_followed_as_that_of_one() -> None:
    scores = [np.array([[0.4, 0.6], [0.9, 0.1]]), np.array([[0.4, 0.35, 0.25], [0.2, 0.1, 0.7]])]
    classes, path = best_paths(scores, TREE)
    assert classes.tolist() == [[0, 0], [0, 2]]
    assert path.tolist() == [[0.4, 0.4], [0.9, 0.7]]


def test_an_answer_is_the_best_class_of_the_last_tier_and_its_ancestors() -> None:
    # Tier 0 would say tool, but the best leaf is a dog: the path leads to the dog.
    scores = [np.array([[0.4, 0.6], [0.9, 0.1]]), np.array([[0.4, 0.35, 0.25], [0.2, 0.1, 0.7]])]
    first, second = to_predictions(scores, TREE)
    assert [step.synset for step in first.path] == ["animal", "dog"]
    assert (first.level, first.synset, first.label, first.score) == (1, "dog", "Dog", 0.4)
    assert [(step.label, step.score) for step in second.path] == [("Animal", 0.9), ("Cat", 0.7)]


def test_alternatives_come_best_first_and_are_never_more_than_the_tier_has() -> None:
    (answer,) = to_predictions(combine_levels([logits(0.1, 0.9), logits(0.5, 0.2, 0.3)], TREE), TREE)
    assert [step.synset for step in answer.top(2)] == ["dog", "cat"]
    assert [step.synset for step in answer.top()] == ["dog", "cat", "saw"]
    assert answer.top(0) == ()
    assert answer.top(-1) == ()
    assert answer.top(1)[0] == answer.path[-1]
    assert sum(step.score for step in answer.top(3)) == pytest.approx(1)


def test_a_prediction_as_json_says_level_answer_and_path() -> None:
    (answer,) = to_predictions([np.array([[0.75, 0.25]]), np.array([[0.5, 0.25, 0.25]])], TREE)
    assert json.loads(json.dumps(answer.to_dict())) == {
        "level": 1,
        "synset": "dog",
        "label": "Dog",
        "score": 0.5,
        "path": [
            {"synset": "animal", "label": "Animal", "score": 0.75},
            {"synset": "dog", "label": "Dog", "score": 0.5},
        ],
    }


def test_predictions_are_compared_by_level_and_path() -> None:
    scores = [np.array([[0.75, 0.25]]), np.array([[0.5, 0.25, 0.25]])]
    other = [scores[0], np.array([[0.5, 0.1, 0.4]])]
    assert to_predictions(scores, TREE)[0] == to_predictions(other, TREE)[0]
    assert to_predictions(scores, TREE)[0] != to_predictions(scores[:1], TREE)[0]
    assert len({to_predictions(scores, TREE)[0], to_predictions(other, TREE)[0]}) == 1


def check_path(prediction: Prediction, taxonomy: Taxonomy) -> None:
    assert len(prediction.path) == prediction.level + 1
    scores = [step.score for step in prediction.path]
    assert scores == sorted(scores, reverse=True)
    assert all(0 <= score <= 1 for score in scores)
    for tier, (upper, lower) in enumerate(zip(prediction.path, prediction.path[1:], strict=False), start=1):
        index = [node.id for node in taxonomy.classes(tier)].index(lower.synset)
        assert taxonomy.classes(tier - 1)[taxonomy.parent_classes(tier)[index]].id == upper.synset


@settings(max_examples=60, deadline=None)
@given(
    first=any_logits(2),
    second=any_logits(5),
    third=any_logits(12),
    weight=st.sampled_from((0.0, 0.3, 1.0, 4.0)),
    temperature=st.sampled_from((None, 0.1, 0.7, 10.0)),
)
def test_any_logits_give_a_path_of_the_tree_whose_scores_never_rise(
    first: NDArray[np.float32],
    second: NDArray[np.float32],
    third: NDArray[np.float32],
    weight: float,
    temperature: float | None,
    tiny_taxonomy: Taxonomy,
) -> None:
    temperatures = None if temperature is None else (temperature,) * 3
    every = [first, second, third]
    for level in range(3):
        tiers = combine_levels(every[: level + 1], tiny_taxonomy, weight, temperatures)
        assert [tier.shape for tier in tiers] == [(3, size) for size in (2, 5, 12)[: level + 1]]
        for tier in tiers:
            assert np.all(tier >= 0)
            assert tier.sum(axis=1) == pytest.approx(1)
        for prediction in to_predictions(tiers, tiny_taxonomy):
            check_path(prediction, tiny_taxonomy)


def test_no_images_give_no_predictions() -> None:
    empty = [np.zeros((0, 2), np.float32), np.zeros((0, 3), np.float32)]
    assert to_predictions(combine_levels(empty, TREE), TREE) == []


def test_alternatives_and_scores_can_be_had_of_every_tier_that_is_answered() -> None:
    (answer,) = to_predictions(combine_levels([logits(0.1, 0.9), logits(0.5, 0.2, 0.3)], TREE), TREE)
    assert [step.synset for step in answer.top(2, tier=0)] == ["animal", "tool"]
    assert answer.scores(0) == pytest.approx([0.8, 0.2])
    assert answer.scores() == pytest.approx([0.5, 0.2, 0.3])
    answer.scores()[0] = 9  # a copy
    assert answer.scores()[0] == pytest.approx(0.5)
    for tier in (2, -1):
        with pytest.raises(LevelError, match="answers tiers 0 to 1"):
            answer.top(1, tier=tier)
