"""Temperatures and thresholds: found where they are known, proven by numbers that had no part in the fit."""

from __future__ import annotations

import dataclasses
import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from scipy.special import log_softmax, softmax
from scipy.stats import binomtest
from sklearn.metrics import log_loss

from hierclass.checkpoints.checkpoint import load_checkpoint, save_checkpoint
from hierclass.decisions.calibration import Decision
from hierclass.decisions.prediction import combine_levels
from hierclass.errors import InputError
from taxonomy import Taxonomy
from taxonomy.terminal import PlainConsole
from training.evaluation import calibration, metrics
from training.evaluation.calibration import (
    MIN_IMAGES,
    calibrate,
    find_threshold,
    fit_temperature,
    score_answers,
)
from training.evaluation.console import (
    calibration_table,
    coverage_rows,
    stored_table,
    threshold_rows,
    threshold_table,
)
from training.evaluation.evaluate import calibrate_checkpoint, measures, run_checkpoint
from training.evaluation.model_card import replace_calibration
from training.evaluation.predictions import Predictions, best_classes

SIZES = (2, 5, 12)


def make_answers(
    tree: Taxonomy, images: int, *, sharpness: tuple[float, float, float], seed: int = 0
) -> Predictions:
    """Answers whose truth is drawn from their scores, which are then made surer by `sharpness` per level.

    So the temperature that calibrates level k, the others not asked, is `sharpness[k]`.
    """
    random = np.random.default_rng(seed)
    leaf_logits = random.normal(0, 2, (images, 12))
    probabilities = softmax(leaf_logits, axis=1)
    leaves = np.array([random.choice(12, p=row) for row in probabilities])
    logits = []
    for tier, factor in enumerate(sharpness):
        summed = np.zeros((images, SIZES[tier]))
        np.add.at(summed.T, tree.projection(tier), probabilities.T)
        logits.append((np.log(summed) * factor).astype(np.float32))
    kept = [level - level.max(axis=1, keepdims=True) for level in logits]
    return Predictions(
        positions=np.arange(images),
        labels=leaves,
        lower_weights=(0.0, 0.5),
        best=best_classes(logits, tree, (0.0, 0.5)),
        ranked=np.argsort(-logits[-1], axis=1)[:, :5].astype(np.int32),
        kept=np.arange(images),
        logits=tuple(level.astype(np.float16) for level in kept),
        errors=(),
    )


def test_a_known_temperature_is_found(tiny_taxonomy: Taxonomy) -> None:
    answers = make_answers(tiny_taxonomy, 8000, sharpness=(2.5, 1.0, 0.4))
    found = calibrate(answers, tiny_taxonomy, 0.0)
    assert [each.temperature for each in found] == pytest.approx([2.5, 1.0, 0.4], rel=0.06)
    for each in found:
        assert each.halves == pytest.approx((each.temperature,) * 2, rel=0.1)
        assert each.after.measures()["ece"][-1] < 0.02


def test_the_loss_that_is_minimised_is_the_log_loss_of_scikit_learn() -> None:
    random = np.random.default_rng(0)
    logits = random.normal(0, 3, (5000, 12)).astype(np.float32)
    truth = np.array([random.choice(12, p=row) for row in softmax(logits / 2.0, axis=1)])
    for temperature in (0.7, 1.0, 3.0):
        expected = log_loss(truth, softmax(logits.astype(np.float64) / temperature, axis=1), labels=range(12))
        assert calibration.log_likelihood_loss(logits, truth, temperature) == pytest.approx(
            expected, rel=1e-6
        )
    best = fit_temperature(logits, truth)
    tried = [calibration.log_likelihood_loss(logits, truth, best * factor) for factor in (0.97, 1.0, 1.03)]
    assert min(tried) == tried[1]


def test_without_a_mistake_the_temperature_stops_at_its_lowest() -> None:
    logits = np.eye(4, dtype=np.float32)[np.arange(60) % 4]
    assert fit_temperature(logits, np.arange(60) % 4) == pytest.approx(0.1, abs=0.001)


@pytest.mark.parametrize("level", [0, 1, 2])
@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_scores_are_those_of_the_product(tiny_taxonomy: Taxonomy, level: int, weight: float) -> None:
    answers = make_answers(tiny_taxonomy, 5000, sharpness=(1.0, 2.0, 0.5))  # more than one block of rows
    log_scores = calibration.level_scores(answers, tiny_taxonomy, weight, level)
    scored = score_answers(log_scores, answers.kept_truth(tiny_taxonomy), tiny_taxonomy, level, 1.7)
    tiers = combine_levels(answers.logits[: level + 1], tiny_taxonomy, weight, (1.7,) * 3)
    best = tiers[level].argmax(axis=1)
    truth = tiny_taxonomy.projection(level)[answers.labels]
    assert scored.scores.shape == scored.right.shape == (5000, level + 1)
    assert scored.scores[:, level] == pytest.approx(tiers[level].max(axis=1), abs=1e-5)
    assert scored.right[:, level].tolist() == (best == truth).tolist()
    assert scored.nll.mean() == pytest.approx(
        log_loss(truth, tiers[level], labels=range(SIZES[level])), rel=1e-4
    )
    one_hot = np.eye(SIZES[level])[truth]
    assert scored.brier == pytest.approx(((tiers[level] - one_hot) ** 2).sum(axis=1), abs=1e-4)
    if level:
        above = tiny_taxonomy.parent_classes(level)[best]
        assert (
            scored.right[:, level - 1].tolist()
            == (above == tiny_taxonomy.projection(level - 1)[answers.labels]).tolist()
        )
        assert scored.scores[:, level - 1] == pytest.approx(
            tiers[level - 1][np.arange(5000), above], abs=1e-5
        )


def test_what_is_said_of_a_calibration_was_measured_on_the_other_half(tiny_taxonomy: Taxonomy) -> None:
    answers = make_answers(tiny_taxonomy, 600, sharpness=(3.0, 3.0, 3.0))
    (found, *_) = calibrate(answers, tiny_taxonomy, 0.0)
    log_scores = calibration.level_scores(answers, tiny_taxonomy, 0.0, 0)
    by_half = [
        score_answers(log_scores, answers.truth(tiny_taxonomy), tiny_taxonomy, 0, temperature).scores[:, 0]
        for temperature in found.halves
    ]
    assert found.halves[0] != found.halves[1]
    of_first = np.isclose(found.after.scores[:, 0], by_half[0], atol=1e-12)
    of_second = np.isclose(found.after.scores[:, 0], by_half[1], atol=1e-12)
    assert np.all(of_first | of_second)
    first = (of_first & ~of_second).sum()
    assert 200 < first <= 300  # certain answers are the same under both
    fitted_on_first = fit_temperature(log_scores[~of_first], answers_truth(tiny_taxonomy, answers)[~of_first])
    assert fitted_on_first == pytest.approx(found.halves[0], rel=0.02)


def answers_truth(tree: Taxonomy, answers: Predictions) -> np.ndarray:
    return tree.projection(0)[answers.labels]


def test_kept_precision_and_coverage_are_those_of_thresholds_of_the_other_half(
    tiny_taxonomy: Taxonomy,
) -> None:
    answers = make_answers(tiny_taxonomy, 6000, sharpness=(1.0, 1.0, 1.0))
    found = calibration.to_results(calibrate(answers, tiny_taxonomy, 0.5))
    assert found["images"] == 6000
    reached = [row for row in found["thresholds"] if row["measured"]["precision"] is not None]
    assert len(found["thresholds"]) == 6 * len(calibration.PRECISIONS)
    assert len(reached) > 60
    for row in reached:
        low, high = row["measured"]["interval"]
        assert low <= row["measured"]["precision"] <= high
        assert high >= row["precision"]  # the promise holds on answers that had no part in it
        assert row["measured"]["coverage"] == pytest.approx(row["coverage"], abs=0.1)
    coverages = [row["coverage"] for row in found["thresholds"] if (row["level"], row["tier"]) == (2, 0)]
    assert coverages == sorted(coverages, reverse=True)
    for place in {(row["level"], row["tier"]) for row in found["thresholds"]}:
        own = [row["score"] for row in found["thresholds"] if (row["level"], row["tier"]) == place]
        assert own == sorted(own, key=lambda score: np.inf if score is None else score)
    json.dumps(found, allow_nan=False)
    for _, shown in (threshold_rows(found["thresholds"]), coverage_rows(found["thresholds"])):
        assert len(shown) in (6, 6 * 4)  # tables keep to the usual four
    assert [row[2] for row in threshold_rows(found["thresholds"])[1][:4]] == ["80%", "90%", "95%", "99%"]


def test_images_of_inner_nodes_count_as_far_down_as_they_are_labelled(tiny_taxonomy: Taxonomy) -> None:
    answers = make_answers(tiny_taxonomy, 400, sharpness=(2.0, 2.0, 2.0))
    labels = answers.labels.copy()
    labels[:100] = 12 + np.array([0, 4])[tiny_taxonomy.projection(0)[labels[:100]]]  # animal or vehicle
    coarse = dataclasses.replace(answers, labels=labels)
    fine = dataclasses.replace(
        answers,
        positions=answers.positions[100:],
        labels=labels[100:],
        best=answers.best[:, :, 100:],
        ranked=answers.ranked[100:],
        kept=answers.kept[100:],
        logits=tuple(level[100:] for level in answers.logits),
    )
    assert coarse.counts(tiny_taxonomy) == [400, 300, 300]
    whole, mixed, part = (calibrate(each, tiny_taxonomy, 0.0) for each in (answers, coarse, fine))
    assert mixed[0].temperature == whole[0].temperature
    assert [each.temperature for each in mixed[1:]] == [each.temperature for each in part[1:]]
    (one,), (all_,) = (
        [t for t in found[2].thresholds if (t.tier, t.precision) == (0, 0.8)] for found in (mixed, whole)
    )
    assert one.coverage == pytest.approx(
        all_.coverage, abs=0.01
    )  # level 2's answers to tier 0, of all images
    assert mixed[2].before.measures()["nll"] == pytest.approx(part[2].before.measures()["nll"])
    few = dataclasses.replace(answers, labels=np.where(np.arange(400) < 360, 12, answers.labels))
    with pytest.raises(InputError, match="40 labelled images are too few"):
        calibrate(few, tiny_taxonomy, 0.0)


def flags(text: str) -> np.ndarray:
    return np.array([letter == "+" for letter in text])


def below(score: float) -> object:
    """A hair lower than a score, so that an image that scores it passes after rounding too."""
    return pytest.approx(score - calibration.MARGIN, abs=1e-9)


def test_a_threshold_is_the_lowest_score_from_which_the_rate_is_proven() -> None:
    # 40 right answers from 0.9 on, then every second one is wrong: 40 of 40 prove 93.7%, 41 of 42 91.9%,
    # 42 of 44 88.6%; 45 of 50 prove 80.9%, 46 of 52 79.3% (lower ends of one-sided 95% intervals)
    scores = np.concatenate([np.full(40, 0.9), np.linspace(0.8, 0.5, 20)])
    right = flags("+" * 40 + "-+" * 10)
    assert find_threshold(scores, right, 0.95) is None
    assert find_threshold(scores, right, 0.93) == below(0.9)
    assert find_threshold(scores, right, 0.9) == below(scores[41])
    assert find_threshold(scores, right, 0.8) == below(scores[49])
    order = np.random.default_rng(0).permutation(60)
    assert find_threshold(scores[order], right[order], 0.8) == below(scores[49])


def test_a_bad_start_does_not_hide_a_good_rest() -> None:
    scores, right = np.linspace(1, 0, 500), flags("-" + "+" * 499)
    assert find_threshold(scores, right, 0.9) == 0.0


def test_few_answers_prove_nothing() -> None:
    assert find_threshold(np.array([0.9, 0.8, 0.7]), flags("+++"), 0.99) is None
    assert find_threshold(np.array([0.9, 0.8, 0.7]), flags("+++"), 0.8) is None
    assert find_threshold(np.full(267, 0.9), np.full(267, True), 0.99) is None
    assert find_threshold(np.full(268, 0.9), np.full(268, True), 0.99) == below(0.9)
    assert find_threshold(np.array([]), np.array([], dtype=bool), 0.8) is None


def test_answers_of_equal_score_are_given_together_or_not_at_all() -> None:
    # 100 right answers tie with 30 wrong ones: 100 of 130 is no 80%, however they are ordered.
    for right in ("+" * 100 + "-" * 30, "-" * 30 + "+" * 100):
        assert find_threshold(np.full(130, 0.7), flags(right), 0.8) is None
    scores = np.concatenate([np.full(100, 0.9), np.full(130, 0.7)])
    assert find_threshold(scores, flags("+" * 100 + "+" * 100 + "-" * 30), 0.8) == below(0.7)
    assert find_threshold(scores, flags("+" * 100 + "+" * 100 + "-" * 30), 0.9) == below(0.9)


def test_the_proof_is_the_wilson_interval_of_scipy() -> None:
    counts = np.array([1, 3, 40, 268, 10_000])
    right = np.array([1, 0, 36, 268, 9_000])
    expected = [
        binomtest(int(r), int(n), alternative="greater").proportion_ci(0.95, method="wilson").low
        for r, n in zip(right, counts, strict=True)
    ]
    assert metrics.wilson_lower_bounds(right, counts) == pytest.approx(expected, abs=1e-12)


def test_too_few_images_are_refused_and_say_nothing_in_results(tiny_taxonomy: Taxonomy) -> None:
    from training.evaluation.evaluate import calibrate_if_enough

    few = make_answers(tiny_taxonomy, MIN_IMAGES - 1, sharpness=(1, 1, 1))
    with pytest.raises(InputError, match="49 labelled images are too few to calibrate on; give at least 50"):
        calibrate(few, tiny_taxonomy, 0.0)
    assert calibrate_if_enough(few, tiny_taxonomy, 0.0) is None
    assert calibration.decision_of({"lower_weight": 0.5, "calibration": None}) == {"lower_weight": 0.5}
    assert calibrate_if_enough(
        make_answers(tiny_taxonomy, MIN_IMAGES, sharpness=(1, 1, 1)), tiny_taxonomy, 0.0
    )


def test_a_stored_decision_is_measured_as_it_is(tiny_taxonomy: Taxonomy) -> None:
    answers = make_answers(tiny_taxonomy, 2000, sharpness=(2.0, 2.0, 2.0))
    found = calibration.to_results(calibrate(answers, tiny_taxonomy, 0.0))
    stored = calibration.decision_of({"lower_weight": 0.0, "calibration": found})
    measured = calibration.measure_decision(answers, tiny_taxonomy, Decision.from_dict(stored, 3))
    assert [row["temperature"] for row in measured["levels"]] == stored["temperatures"]
    for ours, before in zip(measured["levels"], found["levels"], strict=True):
        assert ours["nll"] < before["before"]["nll"]
    for row, fitted in zip(measured["thresholds"], found["thresholds"], strict=True):
        assert row["measured"]["coverage"] == fitted["coverage"]  # the same images
        if row["score"] is not None:
            assert row["measured"]["precision"] > row["precision"]


@pytest.fixture
def data(shapes: Path) -> Path:
    return shapes / "shapes.parquet"


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_calibrating_a_model_changes_no_weight(
    dtype: str, tiny_checkpoint: Path, data: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    save_checkpoint(folder, load_checkpoint(tiny_checkpoint), dtype=dtype)
    before = safetensors.torch.load_file(folder / "model.safetensors")
    results = calibrate_checkpoint(folder, [str(data)], dev_from=10, workers=0)
    after = safetensors.torch.load_file(folder / "model.safetensors")
    assert all(
        torch.equal(after[name], before[name]) and after[name].dtype == before[name].dtype for name in before
    )
    checkpoint = load_checkpoint(folder)
    assert checkpoint.results["dev"]["calibration"] == results["calibration"]
    assert [row["top1"] for row in checkpoint.results["dev"]["levels"]] == [0.5, 0.25, 0.125]
    assert checkpoint.decision["temperatures"] == [
        row["temperature"] for row in results["calibration"]["levels"]
    ]
    assert sorted(file.name for file in folder.iterdir()) == ["config.json", "model.safetensors"]


def test_calibrating_twice_is_the_same_and_evaluating_tells_it(
    tiny_checkpoint: Path, data: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny_checkpoint, tmp_path / "model")
    (folder / "MODEL_CARD.md").write_text("# Card\n\n## How it was made\n\nby hand\n")
    assert measures(run_checkpoint(folder, [str(data)], workers=0))["stored"] is None
    calibrate_checkpoint(folder, [str(data)], workers=0)
    once = {file.name: file.read_bytes() for file in folder.iterdir()}
    calibrate_checkpoint(folder, [str(data)], workers=0)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == once
    card = once["MODEL_CARD.md"].decode()
    assert card.index("## Calibration") < card.index("## How it was made")
    results = measures(run_checkpoint(folder, [str(data)], workers=0))
    fitted = load_checkpoint(folder).results["dev"]["calibration"]
    assert results["calibration"] == fitted
    assert [row["temperature"] for row in results["stored"]["levels"]] == [
        row["temperature"] for row in fitted["levels"]
    ]
    text = io.StringIO()
    console = PlainConsole(file=text, width=100)
    console.print(calibration_table(results["calibration"]), stored_table(results["stored"]))
    console.print(threshold_table(results["calibration"]["thresholds"]))
    assert f"{fitted['levels'][0]['temperature']:.3f}" in text.getvalue()
    assert "cross-fitted on 180 images" in text.getvalue()


def section(temperature: float) -> dict[str, Any]:
    found = {"nll": 1.0, "brier": 0.5, "ece": [0.1]}
    level = {"level": 0, "temperature": temperature, "halves": [1.0, 1.0], "before": found, "after": found}
    reached = {"precision": 0.85, "interval": [0.8, 0.9], "coverage": 0.3}
    none = {"precision": None, "interval": None, "coverage": 0.0}
    place = {"level": 0, "tier": 0}
    return {
        "images": 77,
        "levels": [level],
        "thresholds": [
            {**place, "precision": 0.8, "score": 0.625, "coverage": 0.5, "measured": reached},
            {**place, "precision": 0.99, "score": None, "coverage": 0.0, "measured": none},
        ],
    }


def test_a_card_has_one_section_on_calibration_and_keeps_what_a_person_wrote() -> None:
    card = "# Card\n\nfacts\n\n## How it was made\n\nby hand\n\n## Why\n\nso\n"
    first = replace_calibration(card, section(1.5))
    second = replace_calibration(first, section(2.5))
    assert first.count("## Calibration") == second.count("## Calibration") == 1
    assert ("1.500" in first, "1.500" in second, "2.500" in second) == (True, False, True)
    assert second.replace(second[second.index("## Calibration") : second.index("## How")], "") == card
    assert "| 0 | 0 | 80% | 0.625 | 50.0% | 85.0% | 80.0% to 90.0% | 30.0% |" in first
    assert "| 0 | 0 | 99% | none | 0.0% | | | 0.0% |" in first
    bare = replace_calibration("# Card\n", section(1.5))
    assert bare.startswith("# Card\n\n## Calibration\n")


def test_the_command_stores_what_it_prints(
    tiny_checkpoint: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from training.cli import app

    folder = shutil.copytree(tiny_checkpoint, tmp_path / "model")
    given = ["--data", str(data), "--dev-from", "10", "--workers", "0"]
    app(["calibrate", str(folder), *given], standalone_mode=False)
    out = capsys.readouterr().out
    assert f"stored in {folder}" in out.replace("\n", "")
    for temperature in load_checkpoint(folder).decision["temperatures"]:
        assert f"{temperature:.3f}" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{model}"], "give the labelled images with --data"),
        (
            ["{model}", "--data", "{data}", "--dev-from", "12"],
            "36 labelled images are too few to calibrate on",
        ),
        (["{tmp}/none", "--data", "{data}"], "there is no model at"),
        (["{model}", "--data", "{tmp}/none"], "does not exist"),
    ],
)
def test_wrong_use_leaves_the_model_as_it_was(
    arguments: list[str],
    message: str,
    tiny_checkpoint: Path,
    data: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    from training.cli import app

    before = {file.name: file.read_bytes() for file in tiny_checkpoint.iterdir()}
    values = {"tmp": str(tmp_path), "data": str(data), "model": str(tiny_checkpoint)}
    with pytest.raises(SystemExit) as ended:
        app(["calibrate", *(argument.format(**values) for argument in arguments), "--workers", "0"])
    assert ended.value.code == 2
    error = capfd.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert {file.name: file.read_bytes() for file in tiny_checkpoint.iterdir()} == before


def test_log_scores_are_normalised(tiny_taxonomy: Taxonomy) -> None:
    answers = make_answers(tiny_taxonomy, 60, sharpness=(1, 1, 1))
    scores = calibration.level_scores(answers, tiny_taxonomy, 0.0, 2)
    assert scores.dtype == np.float32
    assert scores == pytest.approx(log_softmax(answers.logits[2].astype(np.float64), axis=1), abs=1e-5)
