"""A prediction travels: as JSON by whatever writes it, to other processes, as a key; its text is one line."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle

import numpy as np
import pytest

from hierclass.decisions.prediction import Prediction, combine_levels, to_predictions
from hierclass.labelling.rows import Row
from taxonomy import Taxonomy


@pytest.fixture
def prediction(tiny_taxonomy: Taxonomy) -> Prediction:
    logits = np.random.default_rng(0).normal(0, 2, (1, 12)).astype(np.float32)
    return to_predictions(combine_levels([None, None, logits], tiny_taxonomy), tiny_taxonomy)[0]


@pytest.fixture
def guess(prediction: Prediction) -> Prediction:
    return prediction.ended(0, "not sure", sure=False)


def rounded(found: dict[str, object]) -> dict[str, object]:
    """JSON values with scores of 6 digits, without what says nothing."""
    text = json.dumps({name: value for name, value in found.items() if value is not None})
    values: dict[str, object] = json.loads(text, parse_float=lambda digits: round(float(digits), 6))
    return values


def test_json_holds_all_that_a_prediction_says(prediction: Prediction, guess: Prediction) -> None:
    found = json.loads(json.dumps(prediction.to_dict()))
    assert list(found) == ["level", "synset", "label", "score", "path"]
    assert (found["level"], found["label"], len(found["path"])) == (2, prediction.label, 3)
    assert found["path"][-1] == {name: found[name] for name in ("synset", "label", "score")}
    assert {**guess.to_dict(), "path": 1} == {
        **guess.path[0].to_dict(),
        "level": 2,
        "path": 1,
        "stop_reason": "not sure",
        "sure": False,
    }


def test_encoders_of_dataclasses_write_the_same(prediction: Prediction, guess: Prediction) -> None:
    for each in (prediction, guess):
        assert rounded(dataclasses.asdict(each)) == each.to_dict()


def test_orjson_writes_the_same(prediction: Prediction) -> None:
    orjson = pytest.importorskip("orjson")
    assert rounded(json.loads(orjson.dumps(prediction))) == prediction.to_dict()


def test_a_handler_of_fastapi_may_return_it(prediction: Prediction, guess: Prediction) -> None:
    fastapi = pytest.importorskip("fastapi")
    client = pytest.importorskip("fastapi.testclient")
    app = fastapi.FastAPI()
    app.get("/plain")(lambda: guess)
    for path, value, kind in (
        ("/one", guess, Prediction),
        ("/many", [prediction, guess], list[Prediction]),
        ("/dict", guess.to_dict(), dict),
    ):
        app.get(path, response_model=kind)(lambda value=value: value)
    asked = client.TestClient(app)
    assert rounded(asked.get("/plain").json()) == guess.to_dict()
    assert asked.get("/one").json() == asked.get("/dict").json() == guess.to_dict()
    assert asked.get("/many").json() == [prediction.to_dict(), guess.to_dict()]
    assert asked.get("/openapi.json").status_code == 200


def test_copies_are_equal_and_whole(prediction: Prediction, guess: Prediction) -> None:
    for each in (prediction, guess):
        for other in (copy.copy(each), copy.deepcopy(each), pickle.loads(pickle.dumps(each))):
            assert other == each
            assert hash(other) == hash(each)
            assert other.top(3) == each.top(3)
            np.testing.assert_array_equal(other.scores(1), each.scores(1))
    assert prediction != guess
    assert len({prediction, guess, copy.copy(guess)}) == 2


def test_nobody_changes_a_prediction(prediction: Prediction) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        prediction.label = "cat"  # type: ignore[misc]
    prediction.scores()[:] = 0
    assert prediction.scores().sum() == pytest.approx(1)


def test_a_prediction_and_a_row_say_what_they_are_in_a_line(prediction: Prediction) -> None:
    path = " > ".join(f"{step.label} {step.score:.2f}" for step in prediction.path)
    assert repr(prediction) == f"<Prediction of level 2: {path}>"
    step = prediction.path[0]
    row = Row("a.jpg", None, 0, 1, "sure", False, prediction.path)
    assert repr(row) == f"<Row a.jpg: {step.label} {step.score:.2f}, sure at level 1>"
    assert repr(Row("a.jpg", None, None, 2, "excluded", False, prediction.path)) == (
        "<Row a.jpg: no answer, excluded at level 2>"
    )
    assert repr(Row("b.jpg", "no such file")) == "<Row b.jpg: error: no such file>"
