"""Climbing levels computes what is needed and no more, and answers as the level alone would."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from labelling_data import failing

import hierclass
from hierclass.classifier import Classifier
from hierclass.decisions.calibration import Decision, Threshold
from hierclass.decisions.cascade import Cascade
from hierclass.decisions.exit_policy import Answers, ExitPolicy, Request, StopReason
from hierclass.errors import InputError


@pytest.fixture(scope="module")
def classifier(tiny_checkpoint: Path) -> Classifier:
    return hierclass.load(tiny_checkpoint, device="cpu")


@pytest.fixture(scope="module")
def images(classifier: Classifier) -> np.ndarray[Any, Any]:
    size = classifier.preprocessing.size
    return np.random.default_rng(0).integers(0, 255, (40, size, size, 3), dtype=np.uint8)


def deciding(classifier: Classifier, scores: list[list[float | None]]) -> Decision:
    """A decision with a threshold for every level and tier."""
    rows = tuple(
        Threshold(level, tier, 0.95, score, 0.5)
        for level, of_level in enumerate(scores)
        for tier, score in enumerate(of_level)
    )
    return Decision(classifier.lower_weight, classifier.temperatures, rows)


def climb(
    classifier: Classifier, policy: ExitPolicy, images: np.ndarray[Any, Any], batch_size: int, chunk: int = 7
) -> tuple[dict[int, Any], Cascade]:
    cascade = Cascade(classifier, policy, batch_size)
    done = []
    for start in range(0, len(images), chunk):
        part = images[start : start + chunk]
        done += cascade.push(part, np.arange(start, start + len(part)))
    done += cascade.finish()
    found: dict[int, Any] = {}
    for tags, answers in done:
        assert isinstance(answers, Answers)
        for row, tag in enumerate(tags.tolist()):
            assert tag not in found
            found[tag] = answers.take(np.array([row]))
    return found, cascade


def alone(classifier: Classifier, image: np.ndarray[Any, Any], level: int) -> Any:
    return classifier.predict_pixels(image[None], level)[0]


@pytest.mark.parametrize("level", [0, 1, 2])
def test_a_level_that_is_asked_for_answers_as_ever(
    classifier: Classifier, images: np.ndarray[Any, Any], level: int
) -> None:
    policy = ExitPolicy(Request(level=level), classifier.taxonomy, classifier.decision)
    found, cascade = climb(classifier, policy, images, 8)
    assert cascade.computed == [*[0] * level, len(images)]
    for tag, answer in found.items():
        wanted = alone(classifier, images[tag], level)
        ids = [classifier.taxonomy.classes(tier)[answer.classes[0, tier]].id for tier in range(level + 1)]
        assert ids == [step.synset for step in wanted.path]
        np.testing.assert_allclose(
            answer.scores[0, : level + 1], [step.score for step in wanted.path], atol=1e-4
        )
        assert (answer.classes[0, level + 1 :] == -1).all()
        assert (answer.tier[0], answer.level[0], answer.reason[0]) == (level, level, StopReason.ASKED)
    assert sorted(found) == list(range(len(images)))


@pytest.mark.parametrize("batch_size", [1, 5, 64])
def test_images_stop_where_they_are_sure_and_only_the_others_go_on(
    classifier: Classifier, images: np.ndarray[Any, Any], batch_size: int
) -> None:
    tops = [[alone(classifier, image, level).path for image in images] for level in range(3)]
    half = [float(np.median([path[0].score for path in of_level])) for of_level in tops]
    decision = deciding(classifier, [[half[0]], [half[1], None], [half[2], None, None]])
    policy = ExitPolicy(Request(level="auto"), classifier.taxonomy, decision)
    found, cascade = climb(classifier, policy, images, batch_size)
    stops = [
        next((level for level in range(3) if tops[level][tag][0].score >= half[level]), 2)
        for tag in range(len(images))
    ]
    assert [found[tag].level[0] for tag in range(len(images))] == stops
    assert cascade.computed == [sum(stop >= level for stop in stops) for level in range(3)]
    for tag, stop in enumerate(stops):
        path = tops[stop][tag]
        sure = path[0].score >= half[stop]
        assert found[tag].tier[0] == (0 if sure else -1)
        assert found[tag].reason[0] == (StopReason.SURE if sure else StopReason.NOT_SURE)
        assert found[tag].guess[0] == (-1 if sure else 0)
        np.testing.assert_allclose(found[tag].scores[0, 0], path[0].score, atol=1e-4)


def test_levels_that_cannot_be_fine_enough_are_passed(
    classifier: Classifier, images: np.ndarray[Any, Any]
) -> None:
    decision = deciding(classifier, [[0.0], [0.0, 0.0], [0.0, 0.0, 0.0]])
    request = Request(level="auto", min_tier=1)
    found, cascade = climb(classifier, ExitPolicy(request, classifier.taxonomy, decision), images, 8)
    assert cascade.computed == [0, len(images), 0]
    assert {int(answer.tier[0]) for answer in found.values()} == {1}


def test_without_thresholds_auto_is_refused(classifier: Classifier) -> None:
    with pytest.raises(InputError, match="no thresholds"):
        ExitPolicy(Request(level="auto"), classifier.taxonomy, Decision())


def test_answers_keep_to_the_classes_that_are_asked_for(
    classifier: Classifier, images: np.ndarray[Any, Any]
) -> None:
    taxonomy = classifier.taxonomy
    leaf = taxonomy.leaves[3]
    request = Request(only=(taxonomy.node(leaf).name.upper(),))
    found, _ = climb(classifier, ExitPolicy(request, taxonomy, Decision()), images, 8)
    scores = leaf_scores(classifier, images)
    for tag, answer in found.items():
        assert taxonomy.leaves[answer.classes[0, 2]] == leaf
        np.testing.assert_allclose(answer.scores[0], scores[tag][leaf], atol=1e-4)  # of its ancestors too
        assert (answer.tier[0], answer.reason[0]) == (2, StopReason.ASKED)


def test_a_coarser_class_is_no_answer_to_a_finer_one_that_is_asked_for(
    classifier: Classifier, images: np.ndarray[Any, Any]
) -> None:
    taxonomy = classifier.taxonomy
    group = taxonomy.classes(1)[0]
    sure = deciding(classifier, [[0.0], [0.0, 0.0], [0.0, 0.0, 0.0]])
    above = taxonomy.classes(0)[taxonomy.parent_classes(1)[0]]
    for request in (Request(level="auto", only=(group.id,)), Request(level=0, only=(group.id,))):
        policy = ExitPolicy(request, taxonomy, sure)
        assert policy.can_answer == (request.level == "auto")
        found, _ = climb(classifier, policy, images, 8)
        for tag, answer in found.items():
            is_above = alone(classifier, images[tag], 0).path[0].synset == above.id
            if not is_above:
                assert (answer.tier[0], answer.reason[0]) == (-1, StopReason.EXCLUDED)
            elif request.level == 0:
                assert (answer.tier[0], answer.reason[0]) == (-1, StopReason.ASKED)
            else:
                is_group = alone(classifier, images[tag], 1).path[1].synset == group.id
                expected = (1, 1, StopReason.SURE) if is_group else (-1, 1, StopReason.EXCLUDED)
                assert (answer.tier[0], answer.level[0], answer.reason[0]) == expected
    assert not ExitPolicy(Request(level=0, only=(group.id,)), taxonomy, Decision()).can_answer
    found, _ = climb(
        classifier, ExitPolicy(Request(level=0, exclude=(group.id,)), taxonomy, Decision()), images, 8
    )
    assert {int(answer.tier[0]) for answer in found.values()} == {0}  # "animal" is none of those left out


def test_a_guess_is_the_coarsest_class_that_could_have_been_the_answer(
    classifier: Classifier, images: np.ndarray[Any, Any]
) -> None:
    taxonomy = classifier.taxonomy
    never = deciding(classifier, [[None], [None, None], [None, None, None]])
    group = taxonomy.classes(1)[0].id
    for only, guess in (((), 0), ((group,), 1), ((taxonomy.leaves[0],), 2)):
        policy = ExitPolicy(Request(level="auto", only=only), taxonomy, never)
        for answer in climb(classifier, policy, images[:8], 8)[0].values():
            assert (answer.tier[0], answer.guess[0], answer.shown[0]) == (-1, guess, guess)
            assert (answer.level[0], answer.reason[0]) == (2, StopReason.NOT_SURE)
            name = taxonomy.classes(guess)[answer.classes[0, guess]].id
            assert name in (only or [node.id for node in taxonomy.classes(0)])


def leaf_scores(classifier: Classifier, images: np.ndarray[Any, Any]) -> list[dict[str, float]]:
    return [{each.synset: each.score for each in alone(classifier, image, 2).top(99)} for image in images]


def test_what_is_surely_none_of_them_stops_early_and_has_no_answer(
    classifier: Classifier, images: np.ndarray[Any, Any]
) -> None:
    taxonomy = classifier.taxonomy
    coarse = taxonomy.classes(0)[0]
    decision = deciding(classifier, [[0.0], [0.0, 0.0], [0.0, 0.0, 0.0]])
    request = Request(only=(coarse.id,))
    found, cascade = climb(classifier, ExitPolicy(request, taxonomy, decision), images, 8)
    shown = [alone(classifier, image, 0).path[0].synset for image in images]
    assert cascade.computed[0] == len(images)
    for tag, synset in enumerate(shown):
        answer = found[tag]
        if synset != coarse.id:
            assert (answer.level[0], answer.tier[0], answer.reason[0]) == (0, -1, StopReason.EXCLUDED)
        else:
            assert answer.level[0] > 0 or answer.reason[0] == StopReason.ASKED


def test_a_class_that_does_not_exist_is_named_with_a_suggestion(classifier: Classifier) -> None:
    name = classifier.taxonomy.classes(0)[0].name
    with pytest.raises(InputError, match=f"no class '{name}x'; did you mean '{name}'"):
        ExitPolicy(Request(only=(f"{name}x",)), classifier.taxonomy, Decision())


def test_excluding_everything_is_refused(classifier: Classifier) -> None:
    everything = tuple(node.id for node in classifier.taxonomy.classes(0))
    with pytest.raises(InputError, match="leave no class"):
        ExitPolicy(Request(exclude=everything), classifier.taxonomy, Decision())


def test_a_batch_that_fails_is_divided_down_to_the_image_that_fails(
    classifier: Classifier, images: np.ndarray[Any, Any]
) -> None:
    images = images[:8].copy()
    images[4] = 0
    head, seen = classifier.network.heads[1], list[torch.Tensor]()
    hook = head.register_forward_pre_hook(lambda _, found: seen.append(found[0]))
    with torch.inference_mode():
        classifier.network(classifier.runtime.to_batch(images[4:5]), 1)
    hook.remove()

    def holds_bad(features: torch.Tensor) -> bool:
        return bool(torch.isclose(features, seen[0], atol=1e-5).all(dim=1).any())

    decision = deciding(classifier, [[None], [None, None], [None, None, None]])
    policy = ExitPolicy(Request(level="auto"), classifier.taxonomy, decision)
    cascade = Cascade(classifier, policy, 8)
    with failing(head, holds_bad, RuntimeError("first line\nsecond line")):
        done = cascade.push(images, np.arange(8)) + cascade.finish()
    failed = {tag: text for tags, text in done if isinstance(text, str) for tag in tags.tolist()}
    assert failed == {4: "failed unexpectedly (RuntimeError: first line second line)"}
    assert sorted(tag for tags, _ in done for tag in tags.tolist()) == list(range(8))
