"""How a model decides: temperatures and thresholds as a checkpoint stores them, and what refuses them."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import hierclass
from hierclass import Classifier, InputError, Threshold
from hierclass.checkpoints.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from hierclass.checkpoints.compress import compress
from hierclass.decisions.calibration import Decision, first_levels
from hierclass.errors import CheckpointError


def rows(precision: float = 0.9) -> list[dict[str, Any]]:
    pairs = [(level, tier) for level in range(3) for tier in range(level + 1)]
    return [
        {"level": level, "tier": tier, "precision": precision, "score": 0.1 * level + 0.2, "coverage": 0.5}
        for level, tier in pairs
    ]


DECISION = {"lower_weight": 0.5, "temperatures": [2.0, 0.5, 1.5], "thresholds": rows(0.9) + rows(0.99)}


@pytest.fixture
def model(tiny_checkpoint: Path) -> Checkpoint:
    return dataclasses.replace(load_checkpoint(tiny_checkpoint), decision=json.loads(json.dumps(DECISION)))


def pictures() -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return [random.integers(0, 255, (32, 32, 3), dtype=np.uint8) for _ in range(3)]


def test_a_threshold_is_met_from_its_score_on_and_never_where_the_rate_cannot_be_reached() -> None:
    threshold = Threshold(level=1, tier=0, precision=0.9, score=0.25, coverage=0.5)
    assert [threshold.is_met(score) for score in (0.2, 0.25, 0.3)] == [False, True, True]
    assert not dataclasses.replace(threshold, score=None, coverage=0.0).is_met(1.0)


def test_the_thresholds_of_a_precision_are_found_by_level_and_tier(model: Checkpoint) -> None:
    found = Classifier(model, device="cpu").thresholds(precision=0.9)
    assert [[(each.level, each.tier) for each in level] for level in found] == [
        [(0, 0)],
        [(1, 0), (1, 1)],
        [(2, 0), (2, 1), (2, 2)],
    ]
    assert found[2][1] == Threshold(2, 1, 0.9, 0.4, 0.5)
    assert {each.precision for level in found for each in level} == {0.9}


@pytest.mark.parametrize("precision", [0.4, 0.995, 1, 90, -1, float("nan")])
def test_a_precision_outside_what_was_fitted_is_refused_with_the_range(precision: float) -> None:
    refusal = rf"from 0\.5 to 0\.95, the highest that this model has thresholds for, not {precision:g}$"
    with pytest.raises(InputError, match=refusal):
        fitted((0.8, 0.4), (0.95, 0.9)).at(precision)


def test_a_model_without_thresholds_says_how_to_get_them(model: Checkpoint) -> None:
    uncalibrated = Classifier(dataclasses.replace(model, decision={}), device="cpu")
    assert uncalibrated.temperatures is None
    with pytest.raises(InputError, match="fit them on labelled images with: hierclass-train calibrate"):
        uncalibrated.thresholds()


def fitted(*pairs: tuple[float, float | None]) -> Decision:
    """Thresholds of one level and tier: (precision, score)."""
    rows = (Threshold(0, 0, p, score, 0.0 if score is None else 1 - score) for p, score in pairs)
    return Decision(thresholds=tuple(rows))


def test_between_two_precisions_that_were_fitted_the_threshold_is_interpolated() -> None:
    decision = fitted((0.95, 0.9), (0.8, 0.4), (0.9, 0.6), (0.99, None))
    found = {p: decision.at(p)[0][0] for p in (0.8, 0.85, 0.9, 0.94, 0.95)}
    scores = [found[p].score for p in found]
    assert scores == pytest.approx([0.4, 0.5, 0.6, 0.84, 0.9])
    assert [each.precision for each in found.values()] == list(found)
    assert found[0.94].coverage == pytest.approx(0.16)


def test_below_the_lowest_precision_that_was_fitted_its_thresholds_hold() -> None:
    assert fitted((0.8, 0.4), (0.9, 0.6)).at(0.5)[0][0] == Threshold(0, 0, 0.5, 0.4, 0.6)
    assert fitted((0.3, 0.2), (0.9, 0.6)).at(0.3)[0][0].score == 0.2


def test_nothing_is_sure_between_a_precision_and_a_higher_one_that_none_reaches() -> None:
    decision = fitted((0.9, 0.6), (0.95, None))
    assert [decision.at(p)[0][0].score for p in (0.9, 0.91, 0.95)] == [0.6, None, None]
    assert decision.at(0.91)[0][0].coverage == 0


@given(
    st.lists(st.tuples(st.floats(0.4, 1), st.none() | st.floats(0, 1)), min_size=1, unique_by=lambda p: p[0]),
    st.floats(0, 1),
    st.floats(0, 1),
)
def test_a_threshold_is_never_below_that_of_a_lower_precision(
    pairs: list[tuple[float, float | None]], one: float, other: float
) -> None:
    decision, highest = fitted(*pairs), max(pairs)[0]
    low, high = sorted(0.5 + share * (highest - 0.5) for share in (one, other))
    if highest > 0.5:
        scores = [decision.at(p)[0][0].score for p in (low, high)]
        lower, higher = (math.inf if score is None else score for score in scores)
        assert lower <= higher + 1e-12


@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_a_temperature_changes_how_sure_an_answer_is_and_never_the_answer(
    model: Checkpoint, weight: float
) -> None:
    plain = Classifier(dataclasses.replace(model, decision={"lower_weight": weight}), device="cpu")
    calibrated = Classifier(
        dataclasses.replace(model, decision={"lower_weight": weight, "temperatures": [2.0, 0.5, 1.5]}),
        device="cpu",
    )
    assert calibrated.temperatures == (2.0, 0.5, 1.5)
    for picture in pictures():
        for level, direction in enumerate((-1, 1, -1)):  # above 1: less sure
            before, after = plain.predict(picture, level), calibrated.predict(picture, level)
            assert [step.synset for step in after.path] == [step.synset for step in before.path]
            order = [step.synset for step in before.top(12)]
            assert [step.synset for step in after.top(12)] == order
            assert (after.score - before.score) * direction > 0
        refined = list(calibrated.refine(picture))
        assert [each.score for each in refined] == pytest.approx(
            [calibrated.predict(picture, level).score for level in range(3)], abs=1e-5
        )


def test_temperatures_and_thresholds_are_written_and_read_as_they_are(
    model: Checkpoint, tmp_path: Path
) -> None:
    save_checkpoint(tmp_path, model)
    assert load_checkpoint(tmp_path).decision == DECISION
    assert hierclass.load(tmp_path, device="cpu").thresholds(0.99)[0][0].score == 0.2


def test_a_compressed_model_keeps_those_of_its_levels(model: Checkpoint, tmp_path: Path) -> None:
    small = compress(model, 1)
    assert small.decision["temperatures"] == [2.0, 0.5]
    assert [(row["level"], row["precision"]) for row in small.decision["thresholds"]] == [
        *[(0, 0.9), (1, 0.9), (1, 0.9)],
        *[(0, 0.99), (1, 0.99), (1, 0.99)],
    ]
    assert model.decision == DECISION
    save_checkpoint(tmp_path, small)
    kept, whole = hierclass.load(tmp_path, device="cpu"), Classifier(model, device="cpu")
    assert kept.thresholds(0.9) == whole.thresholds(0.9)[:2]
    picture = pictures()[0]
    assert kept.predict(picture).score == pytest.approx(whole.predict(picture, 1).score, abs=2e-3)


def test_a_compressed_model_tells_what_was_measured_of_its_levels(model: Checkpoint) -> None:
    measured = {"images": 9, "levels": [{"level": k} for k in range(3)], "thresholds": rows()}
    levels = [{"top1": 0.5, "macs": 10 * k + 10} for k in range(3)]
    model.results = {"dev": {"levels": levels, "calibration": measured}}
    found = compress(model, 0).results["dev"]["calibration"]
    assert found == {"images": 9, "levels": [{"level": 0}], "thresholds": rows()[:1]}
    model.results = {"dev": {"levels": levels, "calibration": {"levels": [3, {"level": "x"}]}}}
    assert compress(model, 0).results["dev"]["calibration"] == {"levels": []}
    model.results = {"dev": {"levels": levels, "calibration": 7}}
    assert "calibration" not in compress(model, 0).results["dev"]


def test_cutting_a_decision_leaves_what_it_does_not_know() -> None:
    assert first_levels({"lower_weight": 0.5, "note": "x"}, 1) == {"lower_weight": 0.5, "note": "x"}
    assert first_levels({"temperatures": None, "thresholds": None}, 1) == {
        "temperatures": None,
        "thresholds": None,
    }


def spoil(change: Callable[[list[dict[str, Any]]], object]) -> list[dict[str, Any]]:
    changed = rows()
    change(changed)
    return changed


@pytest.mark.parametrize(
    ("decision", "message"),
    [
        ({"lower_weight": "much"}, "'lower_weight' must be a number from 0"),
        ({"lower_weight": True}, "'lower_weight' must be a number from 0"),
        ({"lower_weight": 10**400}, "'lower_weight' must be a number from 0"),
        ({"temperatures": 1.5}, "'temperatures' must be 3 numbers above 0"),
        ({"temperatures": [1.0, 1.0]}, "'temperatures' must be 3 numbers above 0"),
        ({"temperatures": [1.0, 0.0, 1.0]}, "'temperatures' must be 3 numbers above 0"),
        ({"temperatures": [1.0, -1.0, 1.0]}, "'temperatures' must be 3 numbers above 0"),
        ({"temperatures": [1.0, "1", 1.0]}, "'temperatures' must be 3 numbers above 0"),
        ({"temperatures": [1.0, float("nan"), 1.0]}, "'temperatures' must be 3 numbers above 0"),
        ({"temperatures": [1.0, float("inf"), 1.0]}, "'temperatures' must be 3 numbers above 0"),
        ({"thresholds": {"level": 0}}, "'thresholds' is no list"),
        ({"thresholds": [3]}, "must have coverage, level, precision, score, tier and nothing else"),
        ({"thresholds": spoil(lambda r: r[0].pop("tier"))}, "and nothing else"),
        ({"thresholds": spoil(lambda r: r[0].update(extra=1))}, "and nothing else"),
        ({"thresholds": spoil(lambda r: r[0].update(level=3))}, "names level 3 and tier 0"),
        ({"thresholds": spoil(lambda r: r[0].update(tier=1))}, "names level 0 and tier 1"),
        ({"thresholds": spoil(lambda r: r[0].update(level=[0]))}, "which are not of this model"),
        ({"thresholds": spoil(lambda r: r[0].update(score=1.5))}, "outside 0 to 1"),
        ({"thresholds": spoil(lambda r: r[0].update(score="high"))}, "outside 0 to 1"),
        ({"thresholds": spoil(lambda r: r[0].update(precision=0))}, "outside 0 to 1"),
        ({"thresholds": spoil(lambda r: r[0].update(coverage=None))}, "outside 0 to 1"),
        ({"thresholds": spoil(lambda r: r.append(r[0]))}, r"every level and tier once for precision 0\.9"),
        ({"thresholds": spoil(lambda r: r.pop())}, r"every level and tier once for precision 0\.9"),
    ],
)
def test_a_damaged_decision_is_one_line_that_names_it(
    decision: dict[str, Any], message: str, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny_checkpoint, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps({**config, "decision": decision}), encoding="utf-8")
    with pytest.raises(CheckpointError, match=message) as caught:
        load_checkpoint(folder)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


def test_a_model_of_before_there_were_temperatures_is_read() -> None:
    assert Decision.from_dict({}, 3) == Decision(0.0, None, ())
    assert Decision.from_dict({"lower_weight": 1}, 3) == Decision(1.0, None, ())


def test_a_model_without_sure_answers_says_at_which_precisions_it_has_some() -> None:
    found = tuple(
        Threshold(0, 0, precision, score, 0.5 if score else 0.0)
        for precision, score in ((0.8, 0.4), (0.9, 0.7), (0.95, None))
    )
    assert Decision(thresholds=found).why_never_sure(0.9) == ""
    assert (
        Decision(thresholds=found).why_never_sure(0.93)
        == "no answer of this model is sure at precision 0.93, so that all are guesses; some are up to 0.9"
    )
    assert "more labelled images" in Decision(thresholds=found[2:]).why_never_sure(0.95)
    with pytest.raises(InputError, match="no thresholds"):
        Decision().why_never_sure(0.95)
