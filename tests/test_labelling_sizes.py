"""Levels that see images at a side of their own: images are decoded no larger than the finest level asked needs."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from labelling_data import job, label, rows, run_in
from PIL import Image

import hierclass
from hierclass.checkpoints.checkpoint import Checkpoint, build, save_checkpoint
from hierclass.checkpoints.description import Architecture
from hierclass.classifier import Classifier
from hierclass.decisions.exit_policy import Request
from hierclass.images.decoding import read_image
from hierclass.images.preprocessing import Preprocessing, decode_side, read_square, resize_side
from taxonomy import Taxonomy

SIZES = (32, 48, 64)


@pytest.fixture(scope="module")
def classifier(tiny_taxonomy: Taxonomy, tmp_path_factory: pytest.TempPathFactory) -> Classifier:
    """A tiny EfficientNet, not trained, whose levels see images of 32, 48 and 64 pixels."""
    torch.manual_seed(0)
    architecture = Architecture(
        "test_efficientnet", (0.5, 1.0, 1.0), structure="prefix", sizes=SIZES, frozen=True
    )
    folder = tmp_path_factory.mktemp("sized")
    network = build(architecture, tiny_taxonomy, SIZES[-1])
    save_checkpoint(
        folder,
        Checkpoint(tiny_taxonomy, architecture, Preprocessing(SIZES[-1]), network=network),
        dtype="float32",
    )
    return hierclass.load(folder, device="cpu")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three JPEGs of 480 x 320 pixels."""
    folder, generator = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for number in range(3):
        pixels = generator.integers(0, 255, (320, 480, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.jpg")
    return folder


def test_an_image_is_prepared_with_the_detail_that_the_finest_level_asked_looks_at(
    classifier: Classifier,
) -> None:
    found = [classifier.preprocessing_for(level) for level in range(3)]
    assert [each.size for each in found] == [SIZES[-1]] * 3
    assert [each.detail for each in found] == [*SIZES[:-1], None]
    assert classifier.preprocessing_for() == classifier.preprocessing


def test_for_level_0_photographs_are_decoded_small(classifier: Classifier, photos: Path) -> None:
    sides = []
    for level in (0, 2):
        preprocessing = dataclasses.replace(classifier.preprocessing_for(level), size=160, crop=1.0)
        sides.append(min(read_image(photos / "0.jpg", min_side=decode_side(preprocessing)).size))
        side = preprocessing.detail or 160
        assert read_square(photos / "0.jpg", preprocessing).shape == (side, side, 3)
    assert sides == [320 / 2, 320]  # a scale that JPEG has, with some to spare


def test_where_twice_the_detail_is_all_that_the_network_sees_nothing_is_decoded_smaller(
    classifier: Classifier, photos: Path
) -> None:
    less = classifier.preprocessing_for(1)
    assert decode_side(less) == resize_side(classifier.preprocessing)
    assert read_square(photos / "0.jpg", less).shape == (SIZES[1], SIZES[1], 3)


@pytest.mark.parametrize("level", [0, 1, 2])
def test_labelling_answers_as_asking_for_every_image_does(
    classifier: Classifier, photos: Path, level: int
) -> None:
    shapes: list[tuple[int, ...]] = []
    hook = classifier.network.register_forward_pre_hook(lambda _, found: shapes.append(tuple(found[0].shape)))
    found = list(hierclass.label(photos, classifier=classifier, level=level))
    hook.remove()
    assert shapes == [(3, 3, SIZES[level], SIZES[level])]
    expected = classifier.predict_batch(sorted(photos.iterdir()), level)
    assert [row.synset for row in found] == [each.synset for each in expected]
    assert [row.score for row in found] == pytest.approx([each.score for each in expected], abs=1e-5)


def test_refining_equals_running_a_level_directly_on_the_same_pixels(
    classifier: Classifier, photos: Path
) -> None:
    pixels = np.stack([read_square(file, classifier.preprocessing) for file in sorted(photos.iterdir())])
    network, images = classifier.network, classifier.runtime.to_batch(pixels)
    with torch.inference_mode():
        state = network.start(images)
        for level in range(3):
            assert torch.equal(network.refine(state), network(images, level))


def test_a_run_that_is_refined_holds_what_the_finest_level_says_at_once(
    classifier: Classifier, photos: Path, tmp_path: Path
) -> None:
    label(tmp_path / "at-once", classifier, job(photos, level=2))
    label(tmp_path / "refined", classifier, job(photos, level=0))
    coarse = rows(tmp_path / "refined")
    run, _ = run_in(tmp_path / "refined", classifier)
    with run.folder.lock():
        run.refine("1", Request(level=2))
        run.assemble(tmp_path / "refined" / "labels.parquet")
    fine = rows(tmp_path / "refined")
    assert fine == rows(tmp_path / "at-once") != coarse
