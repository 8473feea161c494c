"""The taxonomies that come with the package."""

import json
from importlib.resources import files

import numpy as np
import pytest

from taxonomy import Taxonomy, load_taxonomy
from taxonomy.build import from_synsets

# Words of WordNet's upper floors and of zoologists; nobody answers them when asked what a picture shows.
UNLAY = {
    "entity", "thing", "whole", "object", "matter", "artifact", "instrumentality", "organism", "living thing",
    "substance", "covering", "commodity", "chordate", "vertebrate", "placental", "natural object", "conveyance",
}  # fmt: skip
SIZES = {"cifar-100": (8, 20, 100), "tiny-imagenet": (13, 47, 200), "imagenet-1k": (16, 112, 1000)}


@pytest.fixture(params=sorted(SIZES))
def bundled(request: pytest.FixtureRequest) -> Taxonomy:
    return load_taxonomy(request.param)


def test_tiers_have_the_sizes_we_say(bundled: Taxonomy) -> None:
    assert bundled.num_classes == SIZES[bundled.name]


def test_leaves_are_in_the_order_of_their_ids(bundled: Taxonomy) -> None:
    assert list(bundled.leaves) == sorted(bundled.leaves)


def test_coarse_classes_have_words_that_people_say(bundled: Taxonomy) -> None:
    for node in bundled.classes(0):
        assert not {word.strip() for word in node.name.replace(" or ", ",").split(",")} & UNLAY
        assert "(" not in node.name


def test_coarse_classes_are_balanced(bundled: Taxonomy) -> None:
    counts = np.bincount(bundled.projection(0))
    assert counts.max() <= 0.25 * len(bundled.leaves)
    assert counts.min() >= 0.02 * len(bundled.leaves)


def test_no_class_of_a_coarser_tier_is_a_singleton(bundled: Taxonomy) -> None:
    for tier in (0, 1):
        assert np.bincount(bundled.projection(tier)).min() >= 2


def test_every_coarse_class_but_people_falls_apart_in_the_next_tier(bundled: Taxonomy) -> None:
    parts = np.bincount(bundled.parent_classes(1))
    whole = [node.name for node, count in zip(bundled.classes(0), parts, strict=True) if count < 2]
    assert whole == (["person"] if bundled.name == "cifar-100" else [])


def test_leaves_are_told_apart_by_words_and_not_only_by_brackets_or_number(bundled: Taxonomy) -> None:
    names = [bundled.node(leaf).name.split(" (")[0].lower() for leaf in bundled.leaves]
    assert sorted(set(names)) == sorted(names)
    assert not {name + ending for name in names for ending in ("s", "es")} & set(names)


def test_the_files_are_what_their_anchors_make(bundled: Taxonomy) -> None:
    folder = files("taxonomy") / "data" / "anchors"
    lines = (folder / f"{bundled.name}.ids.txt").read_text("utf-8").splitlines()
    ids = [line.split()[0] for line in lines]
    anchors = json.loads((folder / f"{bundled.name}.json").read_text("utf-8"))
    named = dict(line.split(" ", 1) for line in lines)
    assert from_synsets(ids, anchors=anchors, name=bundled.name, names=named) == bundled


def test_cifar_100_has_its_official_classes_and_superclasses() -> None:
    taxonomy = load_taxonomy("cifar-100")
    names = [node.name for node in taxonomy.classes(2)]
    assert {"aquarium fish", "lawn mower", "maple tree", "pickup truck", "sweet pepper", "boy"} <= set(names)
    assert np.bincount(taxonomy.projection(1)).tolist() == [5] * 20
    fish = {name for name in names if taxonomy.path(taxonomy.leaves[names.index(name)])[1].name == "fish"}
    assert fish == {"aquarium fish", "flatfish", "ray", "shark", "trout"}


@pytest.mark.parametrize(
    ("name", "leaf", "path"),
    [
        ("tiny-imagenet", "n02085620", ["mammal", "dog", "Chihuahua"]),
        ("tiny-imagenet", "n04146614", ["vehicle", "bus, train or van", "school bus"]),
        ("tiny-imagenet", "n04275548", ["insect, spider or snail", "spider, scorpion or web", "spider web"]),
        ("tiny-imagenet", "n07873807", ["food", "meal or snack", "pizza"]),
        ("cifar-100", "n02129165", ["mammal", "large carnivore", "lion"]),
        ("cifar-100", "n04256520", ["household item", "furniture", "couch"]),
        ("imagenet-1k", "n02085620", ["mammal", "dog", "Chihuahua"]),
        ("imagenet-1k", "n02129165", ["mammal", "wild cat", "lion"]),
        ("imagenet-1k", "n02012849", ["bird", "stork, heron or crane", "crane (bird)"]),
        ("imagenet-1k", "n03126707", ["building or structure", "tower, pole or crane", "construction crane"]),
        ("imagenet-1k", "n04285008", ["vehicle", "car", "sports car"]),
        ("imagenet-1k", "n02134084", ["mammal", "bear or panda", "polar bear"]),
        ("imagenet-1k", "n03425413", ["device or machine", "machine or machine part", "gas pump"]),
        ("imagenet-1k", "n03141823", ["device or machine", "measuring or medical device", "crutch"]),
        ("imagenet-1k", "n04423845", ["tool, weapon or stationery", "tool, broom or mop", "thimble"]),
        ("imagenet-1k", "n13133613", ["food or drink", "vegetable", "ear of corn"]),
    ],
)
def test_paths_read_as_people_would_say_them(name: str, leaf: str, path: list[str]) -> None:
    assert [node.name for node in load_taxonomy(name).path(leaf)] == path


def test_the_classes_a_model_was_trained_on_stay_in_their_order() -> None:
    taxonomy = load_taxonomy("tiny-imagenet")
    assert [node.name for node in taxonomy.classes(0)] == [
        "fish or sea life", "reptile or amphibian", "insect, spider or snail", "bird", "mammal", "tool or device",
        "clothing or accessory", "building or structure", "household item", "toy or sports gear", "vehicle", "food",
        "landscape",
    ]  # fmt: skip
    assert taxonomy.projection(1)[:12].tolist() == [0, 1, 1, 1, 2, 2, 0, 3, 3, 3, 4, 5]
