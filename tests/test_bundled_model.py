"""The model that comes with the package: what it promises in numbers, and that it knows the examples."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from page_data import EXAMPLES

import hierclass
from hierclass.classifier import Classifier
from hierclass.decisions.named_classes import find_classes
from hierclass.decisions.prior import from_mapping, leaf_weights
from hierclass.files import BUNDLED
from hierclass.images.preprocessing import decode_side, resize_side
from hierclass.labelling.prior_file import PriorFile
from taxonomy import load_taxonomy


@pytest.fixture(scope="module")
def classifier() -> Classifier:
    return hierclass.load(device="cpu")


def test_it_answers_the_tiers_of_the_bundled_tree(classifier: Classifier) -> None:
    assert [level.num_classes for level in classifier.levels] == [16, 112, 1000]
    assert classifier.taxonomy == load_taxonomy("imagenet-1k")


def test_lower_levels_cost_what_we_say(classifier: Classifier) -> None:
    first, second, last = classifier.levels
    assert first.share <= 1 / 11
    assert second.share <= 1 / 3
    assert last.macs == pytest.approx(385e6, rel=0.01)  # the pretrained network, no more and no less
    assert (BUNDLED / "model.safetensors").stat().st_size < 17e6


def test_for_level_0_images_are_decoded_no_larger_than_it_needs(classifier: Classifier) -> None:
    assert classifier.runtime.sizes == (64, 128, 224)
    sides = [decode_side(classifier.preprocessing_for(level)) for level in range(3)]
    assert sides[0] < sides[1] == sides[2] == resize_side(classifier.preprocessing)


def test_it_was_measured_and_knows_when_it_is_sure(classifier: Classifier) -> None:
    assert all(level.accuracy is not None for level in classifier.levels)
    assert {0.8, 0.9, 0.95, 0.99} < set(classifier.decision.precisions)
    assert (min(classifier.decision.precisions), max(classifier.decision.precisions)) == (0.5, 0.99)
    for decision in (classifier.decision, hierclass.load(device="cpu", int8=True).decision):
        every = [decision.at(percent / 100)[2][2].score or 1.0 for percent in range(50, 100)]
        assert every == sorted(every)
        assert every[0] < every[30] < every[45] < 1
    assert (BUNDLED / "MODEL_CARD.md").is_file()


def test_it_knows_the_classes_of_the_examples_in_the_documents(
    classifier: Classifier, tmp_path: Path
) -> None:
    docs = Path(__file__).parent.parent / "docs"
    page, tree = (docs / "labelling.md").read_text(encoding="utf-8"), classifier.taxonomy
    (block,) = re.findall(r"^```\n(class,weight\n.*?)```$", page, re.DOTALL | re.MULTILINE)
    (tmp_path / "spring.csv").write_text(block, encoding="utf-8")
    prior = PriorFile.read(tmp_path / "spring.csv")
    prior.check(tree)
    assert classifier.predict(EXAMPLES / "cat.jpg", 0, prior=dict(prior.entries)).label == "mammal"
    given = re.findall(r"\{\"[^{}]*\}", page + (docs / "python.md").read_text(encoding="utf-8"))
    assert len(given) >= 3
    for each in given:
        leaf_weights(from_mapping(json.loads(each)), tree)
    for each in re.findall(r"--(?:only|exclude) (\w+)", page):
        assert find_classes(each, tree)
    (keywords,) = re.findall(r"`(\w+\|.*?)`", page)
    assert keywords == "|".join(node.name for node in tree.path("n02085620"))


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("coffee", ["food or drink", "drink", "espresso"]),
        ("temple", ["building or structure", "church, castle or palace", "palace"]),
        ("cat", ["mammal", "house cat"]),
    ],
)
def test_it_knows_what_is_in_the_examples(classifier: Classifier, name: str, path: list[str]) -> None:
    prediction = classifier.predict(EXAMPLES / f"{name}.jpg")
    assert [step.label for step in prediction.path][: len(path)] == path


def test_it_is_not_sure_of_the_name_of_what_it_does_not_know(classifier: Classifier) -> None:
    for name in ("flower", "rocket"):  # a dahlia, and a rocket that is no missile
        (row,) = hierclass.label(EXAMPLES / f"{name}.jpg", classifier=classifier, level="auto")
        assert row.error is None
        assert len(row.steps) < 3 or row.steps[2].score < 0.9
