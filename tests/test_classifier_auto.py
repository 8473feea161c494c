"""`predict` with level="auto" and with chosen classes answers as `hierclass.label` does, for images of every kind."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from labelling_data import failing, make_photos
from PIL import Image

import hierclass
from hierclass.classifier import BATCH_SIZE, Classifier
from hierclass.decisions import cascade
from hierclass.decisions.calibration import Threshold, to_rows
from hierclass.decisions.prediction import Prediction
from hierclass.errors import ImageError, InputError, LevelError


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = make_photos(tmp_path_factory.mktemp("auto") / "photos", 40)
    (folder / "07.png").unlink()
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def classifier(tiny_checkpoint: Path, files: list[Path]) -> Classifier:
    """The tiny model, sure of half of its answers at 0.9 and of a fifth at 0.95; never of tier 2."""
    plain = hierclass.load(tiny_checkpoint, device="cpu")
    rows = []
    for level in range(3):
        found = plain.predict_batch(files, level)
        for tier in range(level + 1):
            scores = [each.path[tier].score for each in found]
            for precision, share in ((0.9, 0.5), (0.95, 0.8)):
                score = None if tier == 2 else float(np.quantile(scores, share))
                rows.append(Threshold(level, tier, precision, score, 1 - share))
    decision = {"thresholds": to_rows(tuple(rows))}
    return Classifier(dataclasses.replace(plain.checkpoint, decision=decision), device="cpu")


REQUESTS: list[dict[str, Any]] = [
    {"level": "auto"},
    {"level": "auto", "precision": 0.9},
    {"level": "auto", "precision": 0.9, "min_tier": 1},
    {"level": "auto", "min_tier": 2},
    {"level": "auto", "only": "dog"},
    {"level": "auto", "precision": 0.9, "exclude": ["dog", "car"]},
    {"only": ["dog", "taxi"]},
    {"level": 1, "only": "taxi", "precision": 0.9},
    {"level": 0, "exclude": "vehicle"},
    {"prior": {"dog": 3, "taxi": 0}},
    {"level": "auto", "precision": 0.92, "prior": {"vehicle": 5}, "exclude": "car"},
]


@pytest.mark.parametrize("request_", REQUESTS, ids=str)
def test_predictions_are_the_rows_of_a_table(
    classifier: Classifier, files: list[Path], request_: dict[str, Any]
) -> None:
    rows = list(hierclass.label(files, classifier=classifier, **request_))
    predictions = classifier.predict_batch(files, **request_)
    assert len(rows) == len(predictions) == 39
    for row, prediction in zip(rows, predictions, strict=True):
        assert (prediction.level, prediction.stop_reason) == (row.chosen_level, row.stop_reason)
        assert prediction.sure is row.sure
        shown = row.steps[: len(prediction.path)]
        assert [step.synset for step in prediction.path] == [step.synset for step in shown]
        assert [step.score for step in prediction.path] == pytest.approx([s.score for s in shown], abs=1e-4)
        if row.label is not None:
            assert (prediction.label, prediction.synset) == (row.label, row.synset)
        else:
            assert (len(prediction.path), prediction.sure) == (prediction.level + 1, False)
            assert f"{row.stop_reason}, no answer; it sees: " in repr(prediction)


def test_the_requests_meet_every_reason_to_stop(classifier: Classifier, files: list[Path]) -> None:
    met = {each.stop_reason for how in REQUESTS for each in classifier.predict_batch(files, **how)}
    assert met == {"sure", "last", "not sure", "excluded", "asked"}


def test_a_guess_is_the_coarsest_class_and_says_that_it_is_not_sure(
    classifier: Classifier, files: list[Path]
) -> None:
    pairs = zip(classifier.predict_batch(files, "auto"), classifier.predict_batch(files, 2), strict=True)
    unsure = [(guess, whole) for guess, whole in pairs if guess.stop_reason == "not sure"]
    assert unsure
    for guess, whole in unsure:
        assert (guess.sure, guess.level) == (False, 2)
        assert (guess.label, len(guess.path)) == (whole.path[0].label, 1)
        assert {"stop_reason": "not sure", "sure": False}.items() <= guess.to_dict().items()
        assert repr(guess) == f"<Prediction of level 2, not sure: {guess.label} {guess.score:.2f}>"
        assert guess.top(1)[0].label == guess.label


def test_an_answer_is_sure_only_where_that_was_asked(classifier: Classifier, files: list[Path]) -> None:
    (row,) = hierclass.label(files[0], classifier=classifier, level=0)
    assert (row.sure, row.answer) == (None, row.steps[0])
    assert classifier.predict(files[0], 0).sure is None
    row, prediction = (
        next(hierclass.label(files[0], classifier=classifier, level=0, only="dog")),
        classifier.predict(files[0], 0, only="dog"),
    )
    assert (row.sure, row.answer, row.label) == (False, None, None)
    assert (prediction.sure, prediction.to_dict()["sure"]) == (False, False)
    assert f"asked, no answer; it sees: {prediction.label}" in repr(prediction)
    missing = next(hierclass.label("gone.jpg", classifier=classifier, level=0))
    assert missing.sure is False


def test_a_precision_at_which_nothing_is_sure_is_a_warning_once(
    classifier: Classifier, files: list[Path], caplog: pytest.LogCaptureFixture
) -> None:
    def unsure() -> Classifier:
        rows = [{**row, "score": None} for row in classifier.checkpoint.decision["thresholds"]]
        decision = {**classifier.checkpoint.decision, "thresholds": rows}
        return Classifier(dataclasses.replace(classifier.checkpoint, decision=decision), device="cpu")

    never = unsure()
    for _ in range(2):
        never.predict(files[0], "auto", precision=0.9)
        never.predict(files[0], 0)
        list(hierclass.label(files[0], classifier=unsure(), level="auto", precision=0.9))
    said = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert [text[:52] for text in said] == ["no answer of this model is sure at precision 0.9, so"]


def test_a_list_among_images_is_a_row_with_an_error(
    classifier: Classifier, files: list[Path], tmp_path: Path
) -> None:
    for name in ("l.csv", "z.zip"):
        (tmp_path / name).write_bytes(b"PK\3\4" if name == "z.zip" else b"path\na.jpg\n")
    paths = [files[0], tmp_path / "l.csv", tmp_path / "z.zip", files[1]]
    for given in (iter(paths), paths):
        rows = list(hierclass.label(given, classifier=classifier, level=0))
        assert [row.path for row in rows] == list(map(str, paths))
        assert [row.error for row in rows] == [
            None,
            "is a list or a table, not an image",
            "is packed; unpack it first",
            None,
        ]


def test_images_that_are_sure_are_not_taken_further(
    classifier: Classifier, files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[cascade.Cascade] = []
    before = cascade.Cascade.__init__

    def remember(self: cascade.Cascade, *arguments: Any) -> None:
        before(self, *arguments)
        made.append(self)

    monkeypatch.setattr(cascade.Cascade, "__init__", remember)
    stops = [each.level for each in classifier.predict_batch(files, "auto", precision=0.9)]
    assert made[0].computed == [sum(stop >= level for stop in stops) for level in range(3)]
    assert len(files) == made[0].computed[0] > made[0].computed[1] > made[0].computed[2] > 0


def test_images_in_memory_are_answered_like_their_files(classifier: Classifier, files: list[Path]) -> None:
    expected = classifier.predict_batch(files[:6], "auto", precision=0.9)
    arrays = [np.asarray(Image.open(file)) for file in files[:6]]
    kinds: Iterator[Any] = iter(
        [
            arrays[0],
            Image.fromarray(arrays[1]),
            files[2].read_bytes(),
            open(files[3], "rb"),  # noqa: SIM115
            torch.from_numpy(arrays[4].copy()).permute(2, 0, 1) / 255,
            str(files[5]),
        ]
    )
    assert classifier.predict_batch(kinds, "auto", precision=0.9) == expected
    assert classifier.predict_batch(np.stack(arrays), "auto", precision=0.9) == expected
    tensor = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2)
    assert classifier.predict_batch(tensor, "auto", precision=0.9) == expected
    for array, answer in zip(arrays, expected, strict=True):
        assert same(classifier.predict(array, "auto", precision=0.9), answer)


def same(left: Prediction, right: Prediction) -> bool:
    """Whether answers are equal but for rounding, which depends on the size of a batch."""
    close = np.allclose([step.score for step in left.path], [step.score for step in right.path], atol=1e-5)
    return close and (left.label, left.level, left.stop_reason) == (
        right.label,
        right.level,
        right.stop_reason,
    )


def test_images_are_taken_from_a_generator_batch_by_batch(
    classifier: Classifier, files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    taken, most_ahead = 0, 0
    seen = 0
    run = classifier.runtime.run

    def images() -> Iterator[Path]:
        nonlocal taken, most_ahead
        for index in range(2 * BATCH_SIZE + 5):
            taken += 1
            most_ahead = max(most_ahead, taken - seen)
            yield files[index % len(files)]

    def count(batch: Any, *arguments: Any) -> Any:
        nonlocal seen
        seen += len(batch)
        return run(batch, *arguments)

    monkeypatch.setattr(classifier.runtime, "run", count)
    answers = classifier.predict_batch(images(), 0)
    assert len(answers) == taken == seen == 2 * BATCH_SIZE + 5
    assert most_ahead == BATCH_SIZE
    assert answers[len(files)].label == answers[0].label


def test_chosen_classes_alone_are_alternatives(classifier: Classifier, files: list[Path]) -> None:
    answer = classifier.predict(files[0], only=["dog", "taxi"], exclude="beagle")
    if answer.stop_reason == "asked":
        assert {step.label for step in answer.top(99)} == {"chihuahua", "husky", "taxi"}
        assert answer.top(1)[0].label == answer.label
    scores = answer.scores()
    assert scores.shape == (12,)
    assert scores.min() == 0
    assert np.count_nonzero(scores) == 3


def test_threads_may_share_a_classifier(classifier: Classifier, files: list[Path]) -> None:
    requests = [*REQUESTS, {}] * 4
    alone = [classifier.predict(files[n], **how) for n, how in enumerate(requests[:39])]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda n: classifier.predict(files[n], **requests[n]), range(39)))
    assert all(map(same, alone, together))


def test_no_images_have_no_predictions(classifier: Classifier) -> None:
    assert classifier.predict_batch([]) == classifier.predict_batch(iter(()), "auto") == []


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"min_tier": 1}, "^min_tier belongs to level='auto'$"),
        ({"min_tier": 0, "level": 1}, "^min_tier belongs to level='auto'$"),
        ({"precision": 0.9}, "^precision belongs to level='auto', only and exclude$"),
        ({"level": "auto", "min_tier": 3}, "^tier 3 does not exist; this model has tiers 0 to 2$"),
        ({"level": "auto", "min_tier": -1}, "^tier -1 does not exist"),
        ({"level": "auto", "min_tier": True}, "^min_tier is the number of a tier, from 0, not True$"),
        ({"level": "auto", "min_tier": 1.0}, "^min_tier is the number of a tier"),
        ({"level": "auto", "precision": 95}, "precision.*not 95$"),
        (
            {"level": "auto", "precision": "0.9"},
            "^precision is a share of right answers such as 0.95, not '0.9'",
        ),
        ({"level": "auto", "precision": float("nan")}, "not nan$"),
        ({"only": "dgo"}, "^this model has no class 'dgo'; did you mean 'dog'?"),
        ({"only": [1]}, "^classes are given by name or synset id, not as 1$"),
        ({"exclude": 1}, "^classes are given by name or synset id, not as 1$"),
        ({"prior": "spring.csv"}, r"^prior maps classes to weights, such as \{'dog': 2\.5\}, and is no str$"),
        ({"prior": {1: 2}}, "^classes are given by name or synset id, not as 1$"),
        ({"prior": {"dog": -1}}, "prior, 'dog'"),
        ({"exclude": ["animal", "vehicle"]}, "leave no class to answer with"),
    ],
)
def test_what_does_not_fit_is_refused_before_an_image_is_read(
    classifier: Classifier, how: dict[str, Any], said: str
) -> None:
    with pytest.raises(InputError, match=said) as caught:
        classifier.predict("there-is-no-such-file.jpg", **how)
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match=said):
        hierclass.label("there-is-no-such-file.jpg", classifier=classifier, **how)


def test_a_level_that_does_not_exist_is_refused_beside_chosen_classes(classifier: Classifier) -> None:
    with pytest.raises(LevelError, match="levels 0 to 2"):
        classifier.predict("there-is-no-such-file.jpg", 3, only="dog")


def test_one_image_and_what_holds_none_are_refused(classifier: Classifier, files: list[Path]) -> None:
    array = np.asarray(Image.open(files[0]))
    tensor = torch.from_numpy(array.copy()).permute(2, 0, 1)
    for image in (files[0], str(files[0]), files[0].read_bytes(), open(files[0], "rb"), array, tensor):  # noqa: SIM115
        with pytest.raises(
            InputError, match=r"^this takes many images, not one; put it into a list: \[image\]$"
        ):
            classifier.predict_batch(image)  # type: ignore[arg-type]
    for wrong in (array, files[0].read_bytes(), [array], None):
        with pytest.raises(
            InputError, match=r"^hierclass\.label takes paths, not .*; predict_batch takes images"
        ):
            list(hierclass.label(wrong, classifier=classifier))  # type: ignore[arg-type]
    for nothing in (7, None):
        with pytest.raises(InputError, match=r"^give a list of images, or another iterable, not "):
            classifier.features(nothing)  # type: ignore[arg-type]
    with pytest.raises(
        ImageError, match=r"^the image: an image is .* not a list; predict_batch takes many images$"
    ):
        classifier.predict([files[0]])  # type: ignore[arg-type]
    with pytest.raises(ImageError, match=r"^image 2 of 2: an image is .* not None$"):
        classifier.predict_batch([array, None], "auto")  # type: ignore[list-item]


def test_an_error_of_the_network_is_raised(classifier: Classifier, files: list[Path]) -> None:
    head = classifier.network.heads[0]
    with failing(head, lambda features: True, RuntimeError("no memory")), pytest.raises(RuntimeError):
        classifier.predict(files[0], "auto")
    assert classifier.predict(files[0], "auto").label


def test_a_classifier_says_what_it_is(classifier: Classifier, tiny_checkpoint: Path) -> None:
    said = "levels of 2, 5 and 12 classes, on cpu by torch>"
    assert repr(hierclass.load(tiny_checkpoint, device="cpu")) == f"<Classifier tiny: {said}"
    assert repr(classifier) == f"<Classifier test_resnet: {said}"  # which knows no folder
    assert re.fullmatch(r"<Level 0: 2 classes, \d+% of the cost, 50% right>", repr(classifier.levels[0]))
