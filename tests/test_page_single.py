"""One photograph on the page: its stages, why they stop, how they are drawn, and what programs get of them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from page_data import CAT, calibrated
from PIL import Image

import hierclass
from hierclass.checkpoints.checkpoint import load_checkpoint
from hierclass.classifier import Classifier
from hierclass.decisions.exit_policy import StopReason
from hierclass.errors import ImageError, InputError, LevelError
from hierclass.page import messages, single
from hierclass.page.drawing import draw_headline, draw_numbers, draw_steps, draw_trouble
from hierclass.page.endpoint_types import class_answer, model_answer, stage_answer
from hierclass.page.single import AnswerOptions, classify_by_level, parse_options
from taxonomy import Taxonomy


@pytest.fixture(scope="module")
def classifier(tiny_checkpoint: Path) -> Any:
    return hierclass.load(tiny_checkpoint, "cpu")


def stages_of(classifier: Any, **options: Any) -> list[Any]:
    return list(
        classify_by_level(classifier, CAT, AnswerOptions(**{"tier": classifier.levels[-1].index, **options}))
    )


def test_levels_arrive_coarse_first_and_add_up_to_the_full_cost(classifier: Any) -> None:
    stages = stages_of(classifier)
    assert [stage.level for stage in stages] == [0, 1, 2]
    assert [stage.enough for stage in stages] == [False, False, True]
    assert sum(stage.share for stage in stages) == pytest.approx(1)
    assert sum(stage.macs for stage in stages) == classifier.levels[-1].macs
    assert all(stage.milliseconds > 0 and stage.macs > 0 for stage in stages)


def test_steps_that_reuse_nothing_are_shown_at_their_own_cost(classifier: Any) -> None:
    from hierclass.checkpoints.checkpoint import build
    from hierclass.classifier import Classifier

    given = {"structure": "masks", "widths": None, "densities": (0.25, 0.5, 1.0)}
    architecture = dataclasses.replace(classifier.checkpoint.architecture, **given)
    network = build(architecture, classifier.taxonomy, 32).eval()
    masks = Classifier(
        dataclasses.replace(classifier.checkpoint, network=network, architecture=architecture), device="cpu"
    )
    stages = stages_of(masks)
    assert [stage.share for stage in stages] == pytest.approx([1, 1, 1], rel=0.01)  # heads differ
    assert [stage.macs for stage in stages] == [network.cost(level).macs for level in range(3)]
    assert "300% of the full work" in draw_steps(masks, stages)
    assert messages.introduction(masks).startswith(messages.INTRODUCTION_APART)
    assert messages.introduction(classifier).startswith(messages.INTRODUCTION)
    assert "It knows 12 names" in messages.introduction(classifier)


def test_the_page_answers_what_the_classifier_answers(classifier: Any) -> None:
    for stage in stages_of(classifier):
        expected = classifier.predict(CAT, stage.level)
        assert stage.prediction.synset == expected.synset
        assert stage.prediction.score == pytest.approx(expected.score, abs=1e-4)


def test_nothing_above_the_level_asked_for_is_computed(classifier: Any) -> None:
    computed: list[int] = []
    heads = enumerate(classifier.network.heads)
    hooks = [
        head.register_forward_hook(lambda *_, level=level: computed.append(level)) for level, head in heads
    ]
    try:
        assert [stage.level for stage in stages_of(classifier, tier=1)] == [0, 1]
    finally:
        for hook in hooks:
            hook.remove()
    assert computed == [0, 1]


@pytest.mark.parametrize(
    ("tier", "threshold", "levels", "answered", "reason"),
    [
        (0, 0.0, [0], 0, StopReason.SURE),
        (1, 0.0, [0, 1], 1, StopReason.SURE),
        (2, 0.0, [0, 1, 2], 2, StopReason.SURE),
        (0, None, [0, 1, 2], None, StopReason.NOT_SURE),
        (2, 0.3, [0, 1, 2], 0, StopReason.LAST),  # an untrained model: about 1/2, 1/5 and 1/12
    ],
)
def test_it_climbs_until_it_is_sure_and_says_why(
    tiny_checkpoint: Path, tier: int, threshold: float | None, levels: list[int], answered: Any, reason: Any
) -> None:
    model = calibrated(tiny_checkpoint, {0.9: threshold})
    stages = stages_of(model, tier=tier, precision=0.9)
    assert [stage.level for stage in stages] == levels
    assert (stages[-1].tier, stages[-1].reason) == (answered, reason)
    (row,) = hierclass.label([CAT], classifier=model, level="auto", min_tier=tier, precision=0.9)
    assert (row.level, row.chosen_level, row.stop_reason) == (answered, levels[-1], reason.word)


def test_a_sure_answer_that_stops_early_says_what_was_never_done(tiny_checkpoint: Path) -> None:
    model = calibrated(tiny_checkpoint, {0.9: 0.0})
    options = AnswerOptions(tier=0, precision=0.9)
    headline = draw_headline(model, list(classify_by_level(model, CAT, options)), options)
    assert "right 90 times of 100" in headline
    assert "of the work was never done" in headline
    assert draw_steps(model, stages_of(model, tier=0)).count("not computed") == 2


def test_an_unsure_answer_names_the_score_that_it_would_need(tiny_checkpoint: Path) -> None:
    model = calibrated(tiny_checkpoint, {0.9: 0.3})
    options = AnswerOptions(tier=2, precision=0.9)
    headline = draw_headline(model, list(classify_by_level(model, CAT, options)), options)
    assert "and of nothing finer" in headline
    assert "it would need 30%" in headline  # of the tier below the one that is sure
    assert (
        f"“{list(classify_by_level(model, CAT, options))[-1].prediction.path[1].label}” ends with" in headline
    )
    assert headline.count("perhaps ") == 2
    none = calibrated(tiny_checkpoint, {0.9: None})
    assert "no score is high enough" in draw_headline(
        none, list(classify_by_level(none, CAT, options)), options
    )


def test_the_drawing_grows_level_by_level(classifier: Any) -> None:
    stages: list[Any] = []
    assert draw_steps(classifier, stages).count('class="waiting"') == 3
    for number, stage in enumerate(classify_by_level(classifier, CAT, AnswerOptions(tier=2)), start=1):
        stages.append(stage)
        drawing = draw_steps(classifier, stages)
        assert drawing.count('class="done"') == number
        assert drawing.count('class="waiting"') == 3 - number
        headline = draw_headline(classifier, stages, AnswerOptions(tier=2))
        assert all(step.label in headline for step in stage.prediction.path)
        assert ("Looking closer" in headline) == (number < 3)
        assert draw_numbers(classifier, stages).count("<tr>") == 1 + number
    assert "100% of the full work" in drawing


def test_what_is_drawn_is_escaped(classifier: Any) -> None:
    assert "<script>" not in draw_trouble("<script>alert(1)</script>")


def test_a_class_without_a_definition_is_explained_by_what_is_below_it(classifier: Any) -> None:
    assert messages.explain_class(classifier.taxonomy, "dog") == "such as chihuahua, beagle, husky"
    assert messages.explain_class(classifier.taxonomy, "tabby") == ""


def test_definitions_are_shown_and_a_later_step_may_decide_otherwise(tiny_checkpoint: Path) -> None:
    checkpoint = load_checkpoint(tiny_checkpoint)
    tree = checkpoint.taxonomy
    nodes = [dataclasses.replace(node, definition=f"what a {node.id} is") for node in tree.nodes]
    defined = Taxonomy(
        name=tree.name, nodes=nodes, parents=tree.parents.tolist(), leaves=tree.leaves, tiers=tree.tiers
    )
    classifier = Classifier(dataclasses.replace(checkpoint, taxonomy=defined), device="cpu")
    stages = stages_of(classifier)
    drawing, decided = draw_steps(classifier, stages), stages[-1].prediction.path
    assert f'<div class="meaning">what a {decided[-1].synset} is</div>' in drawing
    for stage, step in zip(stages, decided, strict=True):
        assert (f"A later step has decided: {step.label}" in drawing) == (
            stage.prediction.synset != step.synset
        )


@pytest.mark.parametrize("level", [3, -1, 7, 1.5, "1", True, [1], {}, float("nan"), 1e30])
def test_a_level_that_does_not_exist_is_refused_in_a_sentence(classifier: Any, level: Any) -> None:
    with pytest.raises(LevelError, match="level"):
        parse_options(classifier, level)


@pytest.mark.parametrize("precision", [0, 1.2, -1, "0.9", True, [0.9], float("nan")])
def test_a_precision_that_is_none_is_refused_in_a_sentence(tiny_checkpoint: Path, precision: Any) -> None:
    with pytest.raises(InputError, match="precision"):
        parse_options(calibrated(tiny_checkpoint, {0.9: 0.5}), 1, precision)


def test_any_precision_up_to_the_highest_of_the_model_is_taken(
    classifier: Any, tiny_checkpoint: Path
) -> None:
    model = calibrated(tiny_checkpoint, {0.8: 0.1, 0.95: 0.9})
    assert model.decision.precisions == [0.8, 0.95]
    assert parse_options(model, None, 0.8) == AnswerOptions(tier=2, precision=0.8)
    assert parse_options(model, 1.0, 0.81) == AnswerOptions(tier=1, precision=0.81)
    assert parse_options(model, 1.0, 0.1) == AnswerOptions(tier=1, precision=0.5)
    with pytest.raises(InputError, match="up to 95%"):
        parse_options(model, 1, 0.99)
    with pytest.raises(InputError, match="was not calibrated"):
        parse_options(classifier, 1, 0.9)


def test_a_broken_file_gives_a_message_without_its_path(classifier: Any, tmp_path: Path) -> None:
    path = tmp_path / "holiday.jpg"
    path.write_text("this is no photograph")
    with pytest.raises(ImageError) as caught:
        list(classify_by_level(classifier, path, AnswerOptions(tier=2)))
    message = messages.explain(caught.value)
    assert message.startswith("This photograph is no image of a kind that is read")
    assert str(tmp_path) not in message


def test_a_photograph_that_takes_too_long_gives_a_message(
    classifier: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(single, "READ_SECONDS", 0.1)
    Image.new("1", (4800, 4800)).save(tmp_path / "slow.png", compress_level=1)
    with pytest.raises(ImageError) as caught:
        list(classify_by_level(classifier, tmp_path / "slow.png", AnswerOptions(tier=2)))
    assert messages.explain(caught.value).startswith("This photograph takes longer than 0.1 s to read. ")


@pytest.mark.parametrize(
    ("share", "text"),
    [(0, "0%"), (0.001, "<1%"), (0.5, "50%"), (0.994, "99%"), (0.999, ">99%"), (1, "100%")],
)
def test_percentages_never_round_to_nothing_or_everything(share: float, text: str) -> None:
    assert messages.percent(share) == text


@pytest.mark.parametrize(
    ("number", "text"), [(512, "512"), (3_210_000, "3.21 million"), (2 * 10**9, "2 billion")]
)
def test_large_counts_are_written_in_words(number: int, text: str) -> None:
    assert messages.count(number) == text


def test_what_programs_get_is_json_of_the_type_it_says(classifier: Any) -> None:
    stages = stages_of(classifier, tier=1)
    first, last = json.loads(json.dumps([stage_answer(stage) for stage in stages]))
    assert (first["enough"], first["stop_reason"], last["enough"], last["stop_reason"]) == (
        False,
        None,
        True,
        "asked",
    )
    assert last["answer"]["synset"] == last["synset"] == last["path"][-1]["synset"]
    assert last["alternatives"][0]["synset"] == last["synset"]
    about = json.loads(json.dumps(model_answer(classifier)))
    assert [level["num_classes"] for level in about["levels"]] == [2, 5, 12]
    assert about["digest"] == classifier.digest
    found = class_answer(classifier, classifier.taxonomy.node("tabby"))
    assert found["path"] == ["animal", "cat"]
    assert found["tiers"] == [2]
