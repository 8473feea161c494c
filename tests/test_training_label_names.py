"""What a label means: a leaf, an inner node, or nothing; and what an image of an inner node says of each tier."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from training_data import draw, jpeg

from hierclass.errors import InputError
from taxonomy import Node, Taxonomy, load_taxonomy
from training.data.label_names import LabelNames
from training.data.samples import inner_nodes, read_images, truth_table


@pytest.fixture
def names(tiny_taxonomy: Taxonomy) -> LabelNames:
    return LabelNames(tiny_taxonomy, inner_nodes(tiny_taxonomy))


def put(folder: Path, *names: str) -> Path:
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(jpeg(draw(number % 12, number)))
    return folder


def test_labels_are_the_leaves_and_then_the_classes_above_them(tiny_taxonomy: Taxonomy) -> None:
    assert inner_nodes(tiny_taxonomy) == ("animal", "dog", "cat", "bird", "vehicle", "car", "boat")
    table = truth_table(tiny_taxonomy)
    assert table.shape == (19, 3)
    assert [table[:12, tier].tolist() for tier in range(3)] == [
        tiny_taxonomy.projection(tier).tolist() for tier in range(3)
    ]
    assert table[12:].tolist() == [
        *([0, -1, -1], [0, 0, -1], [0, 1, -1], [0, 2, -1]),
        *([1, -1, -1], [1, 3, -1], [1, 4, -1]),
    ]


def test_a_leaf_that_is_its_own_class_on_all_tiers_is_no_inner_node() -> None:
    nodes = [Node(name, name) for name in ("root", "dog", "pug", "beagle", "car")]
    tree = Taxonomy(
        name="t",
        nodes=nodes,
        parents=[-1, 0, 1, 1, 0],
        leaves=["pug", "beagle", "car"],
        tiers=[["dog", "car"], ["pug", "beagle", "car"]],
    )
    assert inner_nodes(tree) == ("dog",)
    assert truth_table(tree).tolist() == [[0, 0], [0, 1], [1, 2], [0, -1]]


@pytest.mark.parametrize(
    ("way", "label"),
    [
        (("beagle",), 1),
        (("animal", "dog", "beagle", "images"), 1),
        (("dog",), 13),
        (("animal", "dog"), 13),
        (("Animal",), 12),
        (("dog", "unicorn"), None),  # a misspelt class is not taken for the one above
        (("thing",), None),  # the root says nothing
    ],
)
def test_folders_name_leaves_or_inner_nodes(
    names: LabelNames, way: tuple[str, ...], label: int | None
) -> None:
    assert names.find_folders([way]) == {way: label}


def test_folders_that_all_ways_end_with_do_not_count(names: LabelNames) -> None:
    ways = [("dog", "images"), ("dog", "beagle", "images")]
    assert names.find_folders(ways) == {ways[0]: 13, ways[1]: 1}


@pytest.mark.parametrize(
    ("way", "label"),
    [
        (("beagle",), 1),
        (("animal", "dog"), 13),
        (("animal", "dog", "Beagle"), 1),
        (("mammal", "beagle"), 1),  # the last part names the node
        (("beagle", "unicorn"), None),
    ],
)
def test_texts_are_names_or_paths_in_the_tree(
    names: LabelNames, way: tuple[str, ...], label: int | None
) -> None:
    assert names.find_texts([way]) == {way: label}


def test_a_name_of_two_nodes_needs_its_path() -> None:
    tree = Taxonomy(
        name="cranes",
        nodes=[
            *(Node("r", "thing"), Node("b", "bird"), Node("m", "machine")),
            *(Node("b/c", "crane (bird)"), Node("m/c", "crane (machine)"), Node("o", "owl")),
        ],
        parents=[-1, 0, 0, 1, 2, 1],
        leaves=["b/c", "m/c", "o"],
        tiers=[["b", "m"], ["b/c", "m/c", "o"]],
    )
    names = LabelNames(tree, inner_nodes(tree))
    assert names.find_texts([("crane",), ("machine", "crane"), ("m/c",)]) == {
        ("crane",): None,
        ("machine", "crane"): 1,
        ("m/c",): 1,
    }
    assert "may mean b/c, m/c of taxonomy 'cranes'; write the id" in names.missing(("crane",))


def test_a_node_between_two_tiers_counts_as_the_class_above_it() -> None:
    nodes = ("r", "animal", "canine", "dog", "fox", "car")
    tree = Taxonomy(
        name="t",
        nodes=[Node(name, name) for name in nodes],
        parents=[-1, 0, 1, 2, 2, 0],
        leaves=["dog", "fox", "car"],
        tiers=[["animal", "car"], ["dog", "fox", "car"]],
    )
    names = LabelNames(tree, inner_nodes(tree))
    assert names.find_texts([("canine",), ("animal",)]) == {("canine",): 3, ("animal",): 3}


def test_images_beside_class_folders_are_of_the_inner_node(tmp_path: Path) -> None:
    photos = put(tmp_path, "dog/1.jpg", "dog/pug/2.jpg", "dog/beagle/3.jpg", "cat/4.jpg", "cat/manx/5.jpg")
    tree = load_taxonomy(str(photos))
    images = read_images([photos], tree)
    by_name = dict(zip(images.names, images.truth(tree).tolist(), strict=True))
    dog, cat = (tree.tiers[0].index(name) for name in ("dog", "cat"))
    assert by_name["dog/1.jpg"] == [dog, -1]
    assert by_name["cat/4.jpg"] == [cat, -1]
    assert by_name["dog/pug/2.jpg"] == [dog, tree.leaves.index("dog/pug")]


def test_class_folders_without_an_image_are_named(tmp_path: Path) -> None:
    photos = put(tmp_path, "dog/pug/1.jpg", "dog/beagle/2.jpg")
    (photos / "dog" / "collie").mkdir()
    (photos / "unicorn").mkdir()
    (photos / ".hidden").mkdir()
    (note,) = read_images([photos], load_taxonomy(str(photos))).notes
    assert note.endswith("2 class folders hold no image: dog/collie, unicorn")
    (note,) = read_images([f"imagefolder:{photos}"], load_taxonomy(str(photos)).truncate(0)).notes
    assert note.endswith("a class folder holds no image: unicorn")


def test_a_label_that_means_nothing_is_refused_with_its_place(
    tmp_path: Path, tiny_taxonomy: Taxonomy
) -> None:
    put(tmp_path, "dog/unicorn/1.jpg", "dog/beagle/1.jpg")
    with pytest.raises(InputError, match=r"label 'dog/unicorn' is no leaf of taxonomy 'tiny'"):
        read_images([tmp_path], tiny_taxonomy)
    assert np.array_equal(read_images([tmp_path / "dog" / "beagle"], tiny_taxonomy).labels, [1])
