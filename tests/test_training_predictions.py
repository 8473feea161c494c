"""What is kept of a network's answers: enough for every measure, little enough for a million images."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from training_data import draw

from hierclass.checkpoints.checkpoint import Checkpoint, load_checkpoint
from hierclass.decisions.prediction import combine_levels
from hierclass.errors import InputError
from hierclass.images.preprocessing import preprocess
from taxonomy import Taxonomy
from training.data.samples import ImageSet
from training.evaluation import predictions
from training.evaluation.console import counts_sentence
from training.evaluation.evaluate import summarise
from training.evaluation.predictions import Predictions, collect_predictions, images_to_keep
from training.evaluation.report_data import confusion

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model(tiny_checkpoint: Path) -> Checkpoint:
    return load_checkpoint(tiny_checkpoint)


@pytest.fixture(scope="module")
def images() -> ImageSet:
    """25 images, the fourth of which can't be read."""
    leaves = np.arange(25) % 12
    sources: list[Any] = [np.asarray(draw(int(leaf), number)) for number, leaf in enumerate(leaves)]
    sources[3] = b"broken"
    return ImageSet(sources, [f"{number}.png" for number in range(25)], leaves)


@pytest.fixture(scope="module")
def collect(model: Checkpoint, images: ImageSet) -> Callable[..., Predictions]:
    def run(**options: Any) -> Predictions:
        given = {"batch_size": 4, "workers": 0, **options}
        return collect_predictions(model.network, images, model.preprocessing, CPU, model.taxonomy, **given)

    return run


def logits_of(model: Checkpoint, images: ImageSet, positions: list[int]) -> list[np.ndarray]:
    batch = np.stack([preprocess(images.image(index), model.preprocessing) for index in positions])
    with torch.inference_mode():
        return [level.numpy() for level in model.network.forward_all(torch.from_numpy(batch))]


def same(left: Predictions, right: Predictions) -> bool:
    for field in dataclasses.fields(Predictions):
        ours, theirs = getattr(left, field.name), getattr(right, field.name)
        pairs = zip(ours, theirs, strict=True) if isinstance(ours, tuple) else [(ours, theirs)]
        if not all(np.array_equal(one, other) for one, other in pairs):
            return False
    return True


def test_answers_know_their_images_and_leave_out_those_that_cannot_be_read(
    collect: Callable[..., Predictions], images: ImageSet
) -> None:
    found = collect()
    assert found.positions.tolist() == [index for index in range(25) if index != 3]
    assert found.labels.tolist() == [int(images.labels[index]) for index in found.positions]
    assert len(found.errors) == 1
    assert "3.png" in found.errors[0]


def test_what_is_best_and_what_is_right_is_what_the_product_decides(
    collect: Callable[..., Predictions], model: Checkpoint, images: ImageSet
) -> None:
    found, tree = collect(lower_weights=(0.0, 0.5)), model.taxonomy
    logits = logits_of(model, images, found.positions.tolist())
    for w, weight in enumerate((0.0, 0.5)):
        for level in range(3):
            answer = combine_levels(logits[: level + 1], tree, weight)[level].argmax(axis=1)
            assert found.best[w, level].tolist() == answer.tolist()
            assert found.path(w, level, tree)[level].tolist() == answer.tolist()
            if level:
                parents = tree.parent_classes(level)[answer]
                assert found.path(w, level, tree)[level - 1].tolist() == parents.tolist()
                right = (parents == tree.projection(level - 1)[found.labels]).sum()
                assert found.count_right(w, level, tree)[level - 1] == right
    assert [level.tolist() for level in found.own] == [each.argmax(axis=1).tolist() for each in logits]


def test_an_image_of_an_inner_node_counts_on_the_tiers_down_to_it(
    collect: Callable[..., Predictions], images: ImageSet, model: Checkpoint
) -> None:
    tree, whole = model.taxonomy, collect()
    labels = whole.labels.copy()
    labels[:4] = 12  # animal
    coarse = dataclasses.replace(whole, labels=labels)
    assert coarse.counts(tree) == [24, 20, 20]
    results = summarise(model.network, tree, coarse, 0.0)
    assert [row["images"] for row in results["levels"]] == [24, 20, 20]
    best = whole.best[0]
    for level in range(3):
        right = best[level][4:] == tree.projection(level)[labels[4:]]
        if level:
            assert results["levels"][level]["top1"] == right.mean()
            assert results["alone"]["top1"][level] == right.mean()
    animals = best[0][:4] == 0
    others = best[0][4:] == tree.projection(0)[labels[4:]]
    assert results["levels"][0]["top1"] == np.concatenate([animals, others]).mean()
    assert "24 / 20 / 20" in counts_sentence(results["levels"])
    assert confusion(coarse, tree, 0, 0).sum() == 24
    assert confusion(coarse, tree, 0, 2).sum() == 20
    with pytest.raises(InputError, match="none of 24 images is labelled down to the finest tier"):
        summarise(model.network, tree, dataclasses.replace(whole, labels=np.full(24, 12)), 0.0)


def test_what_is_said_of_the_finest_level_is_said_of_its_answer(
    collect: Callable[..., Predictions], model: Checkpoint
) -> None:
    found = collect(lower_weights=(0.0, 1.0))
    results = summarise(model.network, model.taxonomy, found, 1.0)
    assert results["finest"]["top1"] == (found.best[1, 2] == found.labels).mean()
    assert results["alone"]["top1"][2] == (found.best[0, 2] == found.labels).mean()
    assert "inconsistency_rate" not in results["finest"]


def test_answers_of_several_processes_joined_are_those_of_one(collect: Callable[..., Predictions]) -> None:
    parts = [collect(part=np.arange(rank, 25, 3)) for rank in range(3)]
    assert same(Predictions.join(parts), collect())


def test_logits_are_kept_in_half_precision_where_it_matters_least(
    collect: Callable[..., Predictions], model: Checkpoint, images: ImageSet
) -> None:
    found = collect()
    exact = combine_levels(logits_of(model, images, found.positions.tolist()), model.taxonomy, 0.5)
    kept = combine_levels(found.logits, model.taxonomy, 0.5)
    assert {level.dtype for level in found.logits} == {np.dtype(np.float16)}
    for ours, theirs in zip(kept, exact, strict=True):
        assert np.abs(ours - theirs).max() < 1e-3
    wide = predictions.shrink_logits(torch.tensor([[1e6, 0.0, -1e9], [float("nan"), 1.0, 0.0]]))
    assert wide.tolist() == [[0.0, -65504.0, -65504.0], [-65504.0] * 3]


def test_many_images_keep_the_logits_of_some_drawn_alike_in_every_process(
    collect: Callable[..., Predictions], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predictions, "KEPT_NUMBERS", 10 * 19)  # of 2 + 5 + 12 logits per image
    found = collect()
    chosen = [index for index in images_to_keep(25, 19).tolist() if index != 3]
    assert found.kept.tolist() == chosen
    assert len(chosen) in (9, 10)
    assert [level.shape for level in found.logits] == [(len(chosen), size) for size in (2, 5, 12)]
    assert found.kept_labels.tolist() == [index % 12 for index in chosen]
    assert len(found.labels) == 24
    assert same(Predictions.join([collect(part=np.arange(rank, 25, 2)) for rank in range(2)]), found)


def test_a_million_images_of_a_thousand_classes_stay_within_64_mebibytes() -> None:
    kept = images_to_keep(1_000_000, 16 + 112 + 1000)
    assert len(kept) * (16 + 112 + 1000) * 2 <= 64 * 2**20
    assert len(set(kept.tolist())) == len(kept) > 29_000
    assert kept.tolist() == sorted(kept.tolist())


def test_auto_is_the_weight_with_most_right_answers_the_lowest_of_equals(tiny_taxonomy: Taxonomy) -> None:
    leaves = np.array([0, 1, 2, 11])
    wrong, right = np.array([11, 11, 11, 0]), leaves
    best = np.array([[[0, 0, 0, 0], wrong, wrong], [[0] * 4, wrong, right], [[0] * 4, wrong, right]])
    empty = np.zeros((0,), dtype=np.int64)
    found = Predictions(np.arange(4), leaves, (0.0, 0.5, 1.0), best % 12, np.zeros((4, 1)), empty, (), ())  # type: ignore[arg-type]
    found = dataclasses.replace(found, best=np.stack([best[:, 0] % 2, best[:, 1] % 5, best[:, 2]], axis=1))
    assert found.chosen("auto", tiny_taxonomy) == 1
    assert found.chosen(1, tiny_taxonomy) == 2


def test_no_readable_image_is_an_error_that_names_some(model: Checkpoint) -> None:
    broken = ImageSet([b"a", b"b"], ["a.png", "b.png"], np.zeros(2, dtype=np.int64))
    with pytest.raises(InputError, match=r"none of the 2 images can be read: a\.png"):
        collect_predictions(model.network, broken, model.preprocessing, CPU, model.taxonomy, workers=0)
