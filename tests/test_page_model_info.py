"""The model on the page: its levels, its classes, and the pictures of both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from page_data import CAT, calibrated

import hierclass
from hierclass.errors import InputError
from hierclass.files import BUNDLED
from hierclass.page.model_info import draw_found, draw_levels, draw_tree_list, read_card, search
from hierclass.page.single import AnswerOptions, classify_by_level
from taxonomy import Node, Taxonomy, load_taxonomy

pytest.importorskip("plotly", reason="plotly is not installed")


@pytest.fixture(scope="module")
def classifier(tiny_checkpoint: Path) -> Any:
    return hierclass.load(tiny_checkpoint, "cpu")


@pytest.fixture(scope="module")
def bundled() -> Taxonomy:
    """The tree of the bundled model."""
    return load_taxonomy("imagenet-1k")


def test_levels_are_shown_with_cost_and_accuracy(classifier: Any) -> None:
    table = draw_levels(classifier)
    assert table.count("<tr>") == 4
    assert "50.0%" in table
    assert "12.5%" in table


def test_every_class_of_every_tier_is_in_the_tree_list(bundled: Taxonomy) -> None:
    from html import unescape

    text = unescape(draw_tree_list(bundled))
    assert all(node.name in text for tier in range(bundled.num_tiers) for node in bundled.classes(tier))
    assert text.count("<details>") == text.count("</details>") > 50


def test_a_class_that_goes_on_alone_is_listed_once() -> None:
    nodes = [Node("root", "thing"), Node("x", "animal"), Node("a", "dog"), Node("b", "cat"), Node("y", "car")]
    tiers = [["x", "y"], ["a", "b", "y"]]
    tree = Taxonomy(name="t", nodes=nodes, parents=[-1, 0, 1, 1, 0], leaves=["a", "b", "y"], tiers=tiers)
    text = draw_tree_list(tree)
    assert text.count("car") == 1
    assert text.count("<details>") == 1


def test_the_best_names_are_found_first(bundled: Taxonomy) -> None:
    names = [node.name for node in search(bundled, "dog")]
    assert names[0] == "dog"
    assert "Chihuahua" in names
    assert search(bundled, "n02085620")[0].name == "Chihuahua"
    assert search(bundled, "  TABBY ")[0].name == "tabby cat"
    assert search(bundled, "") == []
    assert "No class is called “&lt;b&gt;”" in draw_found(bundled, "<b>")


@pytest.mark.parametrize("query", [None, 3, ["dog"], "x" * 300])
def test_a_search_that_is_no_text_is_refused(bundled: Taxonomy, query: Any) -> None:
    with pytest.raises(InputError, match="a search is a text"):
        search(bundled, query)


def test_a_model_without_a_card_says_so(tmp_path: Path) -> None:
    assert read_card(tmp_path) == "This model has no card."
    assert "Model card" in read_card(BUNDLED)


def test_the_tree_is_coloured_as_far_as_it_is_computed(tiny_checkpoint: Path) -> None:
    from hierclass.page.figures import CHOSEN, UNKNOWN, draw_tree

    model = calibrated(tiny_checkpoint, {0.9: 0.3})
    empty = draw_tree(model.taxonomy).data[0]
    assert len(empty.ids) == 2 + 5 + 12
    assert set(empty.marker.colors) == {UNKNOWN}
    stages = list(classify_by_level(model, CAT, AnswerOptions(tier=2, precision=0.9)))
    first = draw_tree(model.taxonomy, stages[:1]).data[0]
    assert sum(colour != UNKNOWN for colour in first.marker.colors) == 2
    last = draw_tree(model.taxonomy, stages).data[0]
    assert UNKNOWN not in last.marker.colors
    outlined = [
        each for each, colour in zip(last.ids, last.marker.line.color, strict=True) if colour == CHOSEN
    ]
    assert outlined == [f"0/{stages[-1].prediction.path[0].synset}"]  # it is sure of no more
    assert sum(last.values[:2]) == 12


def test_names_can_be_read_on_every_colour() -> None:
    from hierclass.page.figures import _colour, _readable

    def luminance(colour: str) -> float:
        values = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in values]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for step in range(101):
        pair = sorted((luminance(_colour(step / 100)), luminance(_readable(step / 100))))
        assert (pair[1] + 0.05) / (pair[0] + 0.05) >= 4.5, step


def test_names_are_no_markup_in_figures() -> None:
    from hierclass.page.figures import draw_tree

    nodes = [Node("r", "thing"), Node("a", "<b>x</b>"), Node("c", "y")]
    tree = Taxonomy(name="t", nodes=nodes, parents=[-1, 0, 0], leaves=["a", "c"], tiers=[["a", "c"]])
    assert "<b>x" not in draw_tree(tree).to_json()


def test_the_curve_leaves_out_what_was_not_measured(classifier: Any) -> None:
    import dataclasses

    from hierclass.page.figures import draw_curve

    assert list(draw_curve(classifier.levels).data[0].y) == [50, 25, 12.5]
    unmeasured = [dataclasses.replace(level, accuracy=None) for level in classifier.levels]
    figure = draw_curve(unmeasured)
    assert list(figure.data[0].y) == []
    assert "not measured" in figure.layout.annotations[0].text
