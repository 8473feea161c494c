"""Labelling gives exactly one row per input, in order, whatever is wrong with an input."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from labelling_data import failing
from PIL import Image

import hierclass
from hierclass.classifier import Classifier
from hierclass.errors import InputError, LevelError
from hierclass.images.preprocessing import read_square
from hierclass.labelling.read_input import ReadOptions


@pytest.fixture(scope="module")
def classifier(tiny_checkpoint: Path) -> Classifier:
    return hierclass.load(tiny_checkpoint, device="cpu")


def label(
    paths: Iterable[str],
    classifier: Classifier,
    *,
    level: int | None = None,
    batch_size: int = 64,
    workers: int | None = None,
) -> Iterator[hierclass.Row]:
    reading = ReadOptions(batch_size=batch_size, workers=workers)
    return hierclass.label(paths, classifier=classifier, level=level, reading=reading)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Ten different images."""
    folder = tmp_path_factory.mktemp("photos")
    random = np.random.default_rng(0)
    paths = [str(folder / f"{index}.png") for index in range(10)]
    for path in paths:
        Image.fromarray(random.integers(0, 255, (40, 48, 3), dtype=np.uint8)).save(path)
    return paths


@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_rows_are_those_of_predict_in_the_order_of_the_inputs(
    classifier: Classifier, photos: list[str], batch_size: int, workers: int
) -> None:
    paths = photos + photos[::-1]
    rows = list(label(paths, classifier, batch_size=batch_size, workers=workers))
    assert [row.path for row in rows] == paths
    for row, path in zip(rows, paths, strict=True):
        alone = classifier.predict(path).path
        assert row.error is None
        assert [step.synset for step in row.steps] == [step.synset for step in alone]
        np.testing.assert_allclose([s.score for s in row.steps], [s.score for s in alone], atol=1e-4)


@pytest.mark.parametrize("level", [0, 1, 2])
def test_a_row_has_a_step_for_each_tier_down_to_the_level(
    classifier: Classifier, photos: list[str], level: int
) -> None:
    for row in label(photos, classifier, level=level):
        assert len(row.steps) == level + 1
        scores = [step.score for step in row.steps]
        assert scores == sorted(scores, reverse=True)


def test_a_broken_input_has_its_row_and_leaves_the_others_alone(
    classifier: Classifier, photos: list[str], tmp_path: Path
) -> None:
    (tmp_path / "text.jpg").write_text("no picture")
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "folder").mkdir()
    broken = [str(tmp_path / name) for name in ("text.jpg", "empty.jpg", "missing.jpg", "folder")]
    paths = [broken[0], *photos[:3], *broken[1:], *photos[3:], broken[0]]
    rows = list(label(paths, classifier, batch_size=2))
    assert [row.path for row in rows] == paths
    assert [row.path for row in rows if row.error] == [*broken, broken[0]]
    assert all(bool(row.error) != bool(row.steps) for row in rows)
    for row in rows:
        if not row.error:
            alone = classifier.predict(row.path).path
            assert [step.synset for step in row.steps] == [step.synset for step in alone]


@pytest.mark.parametrize(("name", "level"), [("notes.txt", "INFO"), ("a.jxl", "WARNING")])
def test_files_that_were_passed_over_are_logged_as_a_warning_if_they_are_photographs(
    classifier: Classifier, tmp_path: Path, name: str, level: str, caplog: pytest.LogCaptureFixture
) -> None:
    for each in ("a.jpg", "a_small.jpg", name):
        (tmp_path / each).touch()
    caplog.set_level("INFO")
    reading = ReadOptions(ignore=(*ReadOptions().ignore, "*_small.*"))
    assert [row.path for row in hierclass.label(tmp_path, classifier=classifier, reading=reading)] == [
        str(tmp_path / "a.jpg")
    ]
    (record,) = caplog.records
    assert record.levelname == level
    assert record.message.startswith("1 other file passed over")


def test_nothing_but_broken_inputs_gives_rows_while_they_are_read(classifier: Classifier) -> None:
    rows = label((f"{number}.jpg" for number in itertools.count()), classifier, batch_size=2)
    first = list(itertools.islice(rows, 100))
    assert [row.path for row in first] == [f"{number}.jpg" for number in range(100)]
    assert {row.error for row in first} == {"no such file"}


def test_what_is_in_flight_is_bounded(classifier: Classifier, photos: list[str]) -> None:
    taken = 0

    def endless() -> Iterator[str]:
        nonlocal taken
        for path in itertools.cycle(photos):
            taken += 1
            yield path

    rows = label(endless(), classifier, batch_size=4, workers=2)
    for done, _ in enumerate(itertools.islice(rows, 200), start=1):
        assert taken <= done + 4 * 4 + 2


def test_the_threads_end_with_the_rows(classifier: Classifier, photos: list[str]) -> None:
    rows = label(itertools.cycle(photos), classifier, batch_size=2, workers=3)
    next(rows)
    rows.close()  # type: ignore[attr-defined]
    for thread in threading.enumerate():
        if thread.name.startswith("hierclass-read"):
            thread.join(timeout=10)
            assert not thread.is_alive()


def test_a_batch_that_needs_too_much_memory_is_divided(classifier: Classifier, photos: list[str]) -> None:
    with failing(classifier.network, lambda images: len(images) > 2, MemoryError()):
        rows = list(label(photos, classifier, batch_size=8))
    assert [row.path for row in rows] == photos
    assert not any(row.error for row in rows)


def test_an_image_on_which_the_network_fails_has_an_error_of_one_line(
    classifier: Classifier, photos: list[str]
) -> None:
    unlucky = classifier.runtime.to_batch(np.stack([read_square(photos[4], classifier.preprocessing)]))[0]
    error = RuntimeError("first line\nsecond line")
    with failing(
        classifier.network, lambda images: any(torch.equal(image, unlucky) for image in images), error
    ):
        rows = list(label(photos, classifier, batch_size=8))
    assert [row.path for row in rows if row.error] == [photos[4]]
    assert rows[4].error == "failed unexpectedly (RuntimeError: first line second line)"


def test_a_level_that_does_not_exist_is_refused_before_anything_is_read(classifier: Classifier) -> None:
    for level in (-1, 3):
        with pytest.raises(LevelError, match=f"level {level} does not exist; this model has levels 0 to 2"):
            label(iter([]), classifier, level=level)


def test_a_batch_size_or_workers_below_one_is_refused(classifier: Classifier) -> None:
    with pytest.raises(InputError):
        label([], classifier, batch_size=0)
    with pytest.raises(InputError):
        label([], classifier, workers=0)


def test_nothing_to_label_is_said(classifier: Classifier, tmp_path: Path) -> None:
    for paths in ([], [str(tmp_path)]):
        with pytest.raises(InputError, match="nothing to do"):
            list(label(paths, classifier))


def test_one_path_alone_may_be_given(photos: list[str], tiny_checkpoint: Path) -> None:
    classifier = hierclass.load(tiny_checkpoint, device="cpu")
    (row,) = hierclass.label(Path(photos[0]), classifier=classifier)
    assert row.label == classifier.predict(photos[0]).label
