"""Levels that see images at a side of their own: images are read no larger than the finest level asked needs."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from labelling_data import job, label, rows, run_in
from PIL import Image

import hierclass
from hierclass.checkpoint import Architecture, Checkpoint, build, save_checkpoint
from hierclass.classifier import Classifier
from hierclass.climbing import Crew
from hierclass.images import read_image, read_square, resize_side, square
from hierclass.nested.resize import Resize
from hierclass.preprocessing import Preprocessing
from hierclass.stopping import Request
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
        folder, Checkpoint(network, tiny_taxonomy, architecture, Preprocessing(SIZES[-1])), dtype="float32"
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


def test_an_image_is_prepared_at_the_side_of_the_finest_level_asked(classifier: Classifier) -> None:
    assert [classifier.preprocessing_for(level).size for level in range(3)] == list(SIZES)
    assert classifier.preprocessing_for() == classifier.preprocessing


def test_images_are_shrunk_by_the_filter_of_the_levels_themselves(classifier: Classifier) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    whole = dataclasses.replace(classifier.preprocessing, crop=1.0)
    read = square(Image.fromarray(pixels), dataclasses.replace(classifier.preprocessing_for(0), crop=1.0))
    large = torch.tensor(square(Image.fromarray(pixels), whole)).permute(2, 0, 1)[None].float()
    seen = Resize(SIZES[0])(large).clamp(0, 255)
    assert np.abs(read - seen[0].permute(1, 2, 0).numpy()).max() < 3  # of noise; pixels are rounded, twice


def test_for_level_0_photographs_are_decoded_small(classifier: Classifier, photos: Path) -> None:
    sides = []
    for level in (0, 2):
        preprocessing = classifier.preprocessing_for(level)
        sides.append(min(read_image(photos / "0.jpg", min_side=resize_side(preprocessing)).size))
        assert read_square(photos / "0.jpg", preprocessing).shape == (SIZES[level], SIZES[level], 3)
    assert sides == [320 / 4, 320 / 2]  # a scale that JPEG has, with some to spare


@pytest.mark.parametrize("level", [0, 1, 2])
def test_labelling_reads_images_as_the_level_alone_needs_them(
    classifier: Classifier, photos: Path, level: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes, push = [], Crew.push

    def noting(self: Crew, pixels: Any, tags: Any) -> Any:
        shapes.append(pixels.shape)
        return push(self, pixels, tags)

    monkeypatch.setattr(Crew, "push", noting)
    found = list(hierclass.label(photos, classifier=classifier, level=level))
    expected = classifier.predict_batch(sorted(photos.iterdir()), level)
    assert shapes == [(3, SIZES[level], SIZES[level], 3)]
    assert [row.synset for row in found] == [each.synset for each in expected]
    assert [row.score for row in found] == pytest.approx([each.score for each in expected], abs=1e-5)


def test_refining_equals_running_a_level_directly_on_the_same_pixels(
    classifier: Classifier, photos: Path
) -> None:
    pixels = np.stack([read_square(file, classifier.preprocessing) for file in sorted(photos.iterdir())])
    network, images = classifier.network, classifier.to_input(pixels)
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
