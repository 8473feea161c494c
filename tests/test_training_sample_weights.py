"""Images that are easier than the world's: what each counts, and that it counts everywhere."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from training_data import draw, jpeg

from hierclass.checkpoints.checkpoint import load_checkpoint
from hierclass.checkpoints.compress import compress
from hierclass.errors import InputError
from taxonomy import Taxonomy
from training.data.sample_weights import weigh_images
from training.evaluation import calibration, metrics
from training.evaluation.calibration import (
    ThresholdOutcome,
    calibrate,
    find_threshold,
    fit_temperature,
    to_results,
)
from training.evaluation.console import answer_rows, coverage_rows, weighting_sentence
from training.evaluation.evaluate import measures, run_checkpoint, run_model
from training.evaluation.model_card import replace_calibration
from training.evaluation.predictions import Predictions, best_classes, suitable_batch
from training.evaluation.report_data import risk_coverage

KNOWN = {"level": 2, "top1": 0.751, "measured": 0.835, "factor": 1.678, "effective_images": 1153.2}


def said(tree: Taxonomy, right: int, images: int) -> Predictions:
    """Answers of which the last level has the first ones right, each surer than the next."""
    leaves = np.arange(images) % 12
    answered = np.where(np.arange(images) < right, leaves, (leaves + 1) % 12)
    sure = np.linspace(6, 2, images)[:, None]
    logits = [
        (sure * np.eye(size)[tree.projection(tier)[answered]]).astype(np.float32)
        for tier, size in enumerate(tree.num_classes)
    ]
    return Predictions(
        positions=np.arange(images),
        labels=leaves,
        lower_weights=(0.0,),
        best=best_classes(logits, tree, (0.0,)),
        ranked=np.argsort(-logits[-1], axis=1)[:, :5].astype(np.int32),
        kept=np.arange(images),
        logits=tuple(level.astype(np.float16) for level in logits),
        errors=(),
    )


def test_wrong_ones_count_so_much_that_the_top1_is_the_known_one(tiny_taxonomy: Taxonomy) -> None:
    found = weigh_images(said(tiny_taxonomy, right=8, images=10), 0.6)
    assert found.factor == pytest.approx(8 * 0.4 / (2 * 0.6))
    assert found.weights == pytest.approx([0.75] * 8 + [2.0] * 2)
    assert (found.level, found.top1, found.measured) == (2, 0.6, 0.8)
    assert found.to_dict()["effective_images"] == pytest.approx(100 / (8 * 0.5625 + 2 * 4))


def test_of_harder_images_the_right_ones_count_more(tiny_taxonomy: Taxonomy) -> None:
    found = weigh_images(said(tiny_taxonomy, right=4, images=10), 0.8)
    assert found.weights == pytest.approx([2.0] * 4 + [1 / 3] * 6)
    assert found.factor == pytest.approx(1 / 6)


def test_only_images_whose_logits_are_kept_are_weighed_where_logits_are_needed(
    tiny_taxonomy: Taxonomy,
) -> None:
    answers = said(tiny_taxonomy, right=8, images=10)
    some = dataclasses.replace(answers, positions=np.arange(10) * 2, kept=np.array([4, 18]))
    assert weigh_images(some, 0.6).kept == pytest.approx([0.75, 2.0])


@pytest.mark.parametrize("known", [0.0, 1.0, 75.1, -0.5, math.nan])
def test_a_known_top1_is_a_share(known: float, tiny_taxonomy: Taxonomy) -> None:
    with pytest.raises(InputError, match=r"^`known_top1` .*: give more than 0, less than 1, such as 0.751"):
        weigh_images(said(tiny_taxonomy, right=8, images=10), known)


@pytest.mark.parametrize(("right", "which"), [(0, "none"), (10, "all")])
def test_without_right_or_wrong_answers_there_is_nothing_to_weigh(
    right: int, which: str, tiny_taxonomy: Taxonomy
) -> None:
    with pytest.raises(InputError, match=f"has {which} of the 10 images right, so that no weights make that"):
        weigh_images(said(tiny_taxonomy, right=right, images=10), 0.5)


def test_a_temperature_is_fitted_to_the_weighted_images() -> None:
    # The best temperature of answers "1 against 0" is 1 / log odds of the share that is right.
    log_scores, truth = np.tile(np.array([[0, -1]], dtype=np.float32), (4, 1)), np.array([0, 0, 0, 1])
    assert fit_temperature(log_scores, truth) == pytest.approx(1 / math.log(3), abs=1e-4)
    weights = np.array([1, 1, 1, 1.5])
    assert fit_temperature(log_scores, truth, weights) == pytest.approx(1 / math.log(2), abs=1e-4)


def test_a_threshold_proves_the_rate_of_the_weighted_images() -> None:
    # 96 right of 100 prove 91.4%; wrong ones that count twice make odds of 10.6 to odds of 5.3: 84.1%.
    scores, right = np.full(100, 0.9), np.arange(100) < 96
    bound = float(metrics.wilson_lower_bounds(np.array([96]), np.array([100]))[0])
    assert (round(bound, 3), round(bound / (2 - bound), 3)) == (0.914, 0.841)
    twice = np.where(right, 1.0, 2.0)
    reached = [find_threshold(scores, right, rate) is not None for rate in (0.913, 0.915)]
    weighted = [find_threshold(scores, right, rate, twice) is not None for rate in (0.841, 0.842)]
    assert reached == weighted == [True, False]
    assert find_threshold(scores, right, 0.913, np.full(100, 7.0)) is not None  # only how they differ counts


def test_where_no_answer_is_wrong_the_next_one_is_taken_to_count_as_much_as_any() -> None:
    # 100 right of 100 prove 97.4%; with a wrong one that would count three times 92.5%.
    scores, right = np.append(np.full(100, 0.9), 0.1), np.append(np.full(100, True), False)
    weights = np.append(np.ones(100), 3.0)
    assert find_threshold(scores, right, 0.973) is not None
    assert find_threshold(scores, right, 0.926, weights) is None
    assert find_threshold(scores, right, 0.924, weights) is not None


def test_what_a_threshold_keeps_is_counted_by_weight() -> None:
    kept = ThresholdOutcome(
        given=100, right=96, given_weight=104, right_weight=96, total=208, heaviest=2
    ).to_dict()
    assert (kept["precision"], kept["coverage"]) == (96 / 104, 0.5)
    low, high = metrics.wilson_interval(0.96, 100)
    assert kept["interval"] == pytest.approx([low / (2 - low), high / (2 - high)])
    none = ThresholdOutcome(given=0, right=0, given_weight=0, right_weight=0, total=208, heaviest=2).to_dict()
    assert none == {"precision": None, "interval": None, "coverage": 0.0}


def test_a_split_that_is_repeated_makes_no_interval_narrower() -> None:
    once = ThresholdOutcome(10, 9, 10, 9, 20, 1).to_dict()
    assert ThresholdOutcome(30, 27, 30, 27, 60, 1, times=3).to_dict() == once
    assert once["interval"] == list(metrics.wilson_interval(0.9, 10))


def test_an_image_that_counts_twice_is_two_images() -> None:
    random = np.random.default_rng(0)
    scores, right = random.random(50), random.random(50) < 0.7
    weights, twice = np.where(right, 1.0, 2.0), np.repeat(np.arange(50), np.where(right, 1, 2))
    error = metrics.expected_calibration_error
    assert error(scores, right, weights) == pytest.approx(error(scores[twice], right[twice]))
    bins = metrics.reliability(scores, right, weights)
    assert bins.shares == pytest.approx(metrics.reliability(scores[twice], right[twice]).shares)
    assert bins.counts.sum() == 50  # images are counted, whatever they weigh
    ours, theirs = risk_coverage(scores, right, weights), risk_coverage(scores[twice], right[twice])
    for name in ("coverage", "precision", "aurc"):
        assert ours[name] == pytest.approx(theirs[name])


def test_a_calibration_with_weights_says_what_they_are(tiny_taxonomy: Taxonomy) -> None:
    answers = said(tiny_taxonomy, right=90, images=100)
    weighting = weigh_images(answers, 0.75)
    plain, found = calibrate(answers, tiny_taxonomy, 0.0), calibrate(answers, tiny_taxonomy, 0.0, weighting)
    assert np.average(found[2].after.right[:, 2], weights=found[2].after.weights) == pytest.approx(0.75)
    assert found[2].temperature > plain[2].temperature
    results = to_results(found, weighting)
    assert results["known_top1"] == weighting.to_dict()
    assert (results["images"], results["splits"]) == (100, 10)
    assert to_results(plain)["known_top1"] is None
    (row,) = [row for row in results["thresholds"] if (row["tier"], row["precision"]) == (2, 0.8)]
    # Wrong ones, the least sure ones here, weigh 2.5 each, right ones 0.83: of 100, 75 are right.
    assert 0.75 < row["coverage"] < 0.9
    json.dumps(results, allow_nan=False)


@pytest.mark.parametrize(("images", "splits"), [(50, 10), (1212, 8), (6000, 1)])
def test_few_images_are_split_again_and_again(
    images: int, splits: int, tiny_taxonomy: Taxonomy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibration, "TEMPERATURES", (1.0, 1.001))
    answers = said(tiny_taxonomy, right=images // 2, images=images)
    assert {each.splits for each in calibrate(answers, tiny_taxonomy, 0.0)} == {splits}


def test_the_sentence_says_which_way_the_images_differ() -> None:
    easier = weighting_sentence(KNOWN, 1212)
    assert easier.startswith(
        "These images are easier than those the model will meet: level 2 has 83.5% of them right, and 75.1% of "
        "representative ones. So an image that it has wrong counts 1.68 times as much as one that it has right,"
    )
    assert easier.endswith("the 1,212 images say as much as 1,153 equal ones.")
    assert weighting_sentence({**KNOWN, "factor": 0.5}, 9).startswith("These images are harder than")


def test_tables_have_the_weighted_accuracy_in_brackets_and_coverage_by_rate() -> None:
    results: dict[str, Any] = {"levels": [{}, {}], "answers": [[0.5], [0.75, 0.25]]}
    heads, rows = answer_rows(results)
    assert heads == ["level asked", "tier 0", "tier 1"]
    assert rows == [["0", "50.0%", ""], ["1", "75.0%", "25.0%"]]
    results["weighted_answers"] = [[0.4], [0.6, 0.125]]
    assert answer_rows(results)[1] == [["0", "50.0% (40.0%)", ""], ["1", "75.0% (60.0%)", "25.0% (12.5%)"]]
    thresholds = [
        {
            "level": 1,
            "tier": 0,
            "precision": rate,
            "score": score,
            "coverage": share,
            "measured": {"coverage": 0.25},
        }
        for rate, score, share in ((0.9, None, 0.0), (0.8, 0.5, 0.75))
    ]
    assert coverage_rows(thresholds) == (
        ["level asked", "tier", "80%", "90%"],
        [["1", "0", "75.0% (25.0%)", "none (25.0%)"]],
    )


@pytest.fixture
def data(shapes: Path) -> Path:
    return shapes / "shapes.parquet"


def train(*arguments: object) -> None:
    from training.cli import app

    app([*map(str, arguments), "--workers", "0"], standalone_mode=False)


def test_the_commands_weigh_and_say_so(
    tiny_checkpoint: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(tiny_checkpoint, tmp_path / "model")
    (folder / "MODEL_CARD.md").write_text("# Card\n\n## How it was made\n\nby hand\n")
    train("calibrate", folder, "--data", data, "--known-top1", 0.25)
    stored = load_checkpoint(folder).results["dev"]["calibration"]
    known = stored["known_top1"]
    assert known["top1"] == 0.25
    sentence = weighting_sentence(known, 180)
    assert sentence in " ".join(capsys.readouterr().out.split())
    card = (folder / "MODEL_CARD.md").read_text()
    assert sentence in card
    assert "| level asked | tier | 80% | 90% | 95% | 99% |" in card
    train("evaluate", folder, "--data", data, "--known-top1", 0.25, "--report", tmp_path / "report")
    out = capsys.readouterr().out
    assert sentence in " ".join(out.split())
    assert "(25.0%)" in out
    page = (tmp_path / "report" / "report.html").read_text()
    assert sentence in page
    assert "--known-top1 0.25 --report report" in page
    assert json.loads((tmp_path / "report" / "report.json").read_text())["calibration"] == stored


def test_accuracy_counts_all_images_the_same_with_the_weighted_one_beside_it(
    tiny_checkpoint: Path, data: Path
) -> None:
    plain = measures(run_checkpoint(tiny_checkpoint, [str(data)], workers=0))
    found = measures(run_checkpoint(tiny_checkpoint, [str(data)], workers=0, known_top1=0.25))
    assert found["answers"] == plain["answers"]
    assert plain["weighted_answers"] is plain["levels"][2]["weighted_top1"] is None
    assert found["levels"][2]["weighted_top1"] == found["weighted_answers"][2][2] == pytest.approx(0.25)
    assert found["levels"][2]["top1"] == found["calibration"]["known_top1"]["measured"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--known-top1", "75.1"],
            "--known-top1 75.1: give more than 0, less than 1, such as 0.751 for 75.1%",
        ),
        (["--known-top1", "much"], "Invalid value for '--known-top1'"),
        (["--known-top1", "0.5", "--dev-from", "13"], "24 labelled images are too few to calibrate on"),
    ],
)
@pytest.mark.parametrize("command", ["evaluate", "calibrate"])
def test_wrong_use_is_one_line(
    command: str,
    options: list[str],
    message: str,
    tiny_checkpoint: Path,
    data: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    from training.cli import main

    with pytest.raises(SystemExit) as ended:
        main([command, str(tiny_checkpoint), "--data", str(data), *options, "--workers", "0"])
    assert ended.value.code == 2
    error = capfd.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_classes_with_one_image_or_none_are_measured_and_reported(
    tiny_checkpoint: Path, tiny_taxonomy: Taxonomy, tmp_path: Path
) -> None:
    rows = [(0, number) for number in range(50)] + [(1, 0), (5, 0), (9, 0), (9, 1)]
    table = {
        "image": [jpeg(draw(*row)) for row in rows],
        "wnid": [tiny_taxonomy.leaves[leaf] for leaf, _ in rows],
        "set": ["easy"] * len(rows),
        "name": ["the same"] * len(rows),
    }
    pq.write_table(pa.table(table), tmp_path / "few.parquet")
    model = load_checkpoint(tiny_checkpoint)
    run = run_model(model, [str(tmp_path / "few.parquet")], workers=0)
    results = measures(run)
    right = run.predictions.own[2] == run.predictions.labels
    of_classes = [right[run.predictions.labels == leaf].mean() for leaf in (0, 1, 5, 9)]
    assert results["levels"][2]["balanced"] == pytest.approx(np.mean(of_classes))
    train("evaluate", tiny_checkpoint, "--data", tmp_path / "few.parquet", "--report", tmp_path / "report")
    numbers = json.loads((tmp_path / "report" / "report.json").read_text())
    assert sum(images for _, _, images in numbers["confusions"][2]["cells"]) == 54
    assert {row["name"]: row["images"] for row in numbers["superclasses"]} == {"animal": 52, "vehicle": 2}


def test_a_model_in_memory_is_measured_like_one_in_a_folder(tiny_checkpoint: Path, data: Path) -> None:
    ours = run_model(load_checkpoint(tiny_checkpoint), [str(data)], workers=0, dev_from=10)
    stored = run_checkpoint(tiny_checkpoint, [str(data)], workers=0, dev_from=10)
    assert measures(ours) == measures(stored)
    assert (ours.digest, stored.digest is None) == (None, False)


def test_a_smaller_model_keeps_the_weighted_accuracy_of_its_levels(tiny_checkpoint: Path) -> None:
    model = load_checkpoint(tiny_checkpoint)
    levels = [{"top1": 0.5, "macs": 10 * level + 10, "weighted_top1": 0.4} for level in range(3)]
    model.results = {
        "dev": {
            "levels": levels,
            "weighted_answers": [[0.4], [0.5, 0.4], [0.5, 0.5, 0.4]],
            "calibration": {"images": 9, "known_top1": KNOWN, "levels": [], "thresholds": []},
        }
    }
    found = compress(model, 1).results["dev"]
    assert found["weighted_answers"] == [[0.4], [0.5, 0.4]]
    assert found["calibration"]["known_top1"] == KNOWN


def test_a_card_of_before_there_were_weights_is_replaced_without_them() -> None:
    found = {"images": 77, "levels": [], "thresholds": []}
    assert "representative" not in replace_calibration("# Card\n", found)


def test_larger_images_are_answered_fewer_at_once_on_a_processor() -> None:
    processor, accelerator = torch.device("cpu"), torch.device("cuda")
    assert [suitable_batch(size, processor) for size in (32, 64, 224, 4000)] == [256, 128, 10, 1]
    assert suitable_batch(224, accelerator) == 256
