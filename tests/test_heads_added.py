"""The tree of a model that gets further classes (`training.heads.added_classes`)."""

from __future__ import annotations

import pytest

from hierclass.errors import InputError
from taxonomy import Taxonomy
from taxonomy.proposal import propose
from taxonomy.rows import LeafRow, from_rows
from training.heads.added_classes import add_classes


def ways(*names: str) -> list[tuple[str, ...]]:
    return [(name,) for name in names]


def own_tree(*rows: tuple[str, ...]) -> Taxonomy:
    return from_rows([LeafRow(row) for row in rows], name="mine")


def test_a_proposed_tree_gives_way_to_one_of_old_and_new_classes_whose_old_ones_keep_ids_and_names() -> None:
    old = propose(ways("golden_retriever", "tabby", "taxi", "school bus"), name="mine").taxonomy
    found = add_classes(old, ways("banana", "pineapple", "taxi"))
    tree = found.proposal.taxonomy
    assert found.how == "a new tree for old and new classes"
    assert found.new == ("banana", "pineapple")
    assert set(old.leaves) < set(tree.leaves)
    assert [tree.node(leaf).name for leaf in old.leaves] == [old.node(leaf).name for leaf in old.leaves]
    kinds = {tree.path(leaf)[0].id for leaf in tree.leaves}
    assert tree.path("n07753592")[0] == tree.path("n07753275")[0]  # both are fruit
    assert len(kinds) == 3


def test_a_tree_of_ones_own_stays_and_new_classes_go_below_their_nearest_relative() -> None:
    old = propose(ways("golden_retriever", "tabby", "taxi", "school bus"), name="mine").taxonomy
    data = old.to_dict()
    kind = {node["id"]: node for node in data["nodes"]}[old.tiers[0][0]]
    assert kind["id"] == "n02075296"  # carnivore
    kind["name"] = "pets"
    data["nodes"].insert(1, {"id": "x", "name": "on wheels", "definition": "", "parent": old.nodes[0].id})
    data["tiers"][0][1] = "x"
    for node in data["nodes"]:
        node["parent"] = "x" if node["id"] in (old.tiers[0][1],) else node["parent"]
    edited = Taxonomy.from_dict(data)
    found = add_classes(edited, ways("pug", "banana", "zzyzx"))
    tree = found.proposal.taxonomy
    assert found.how == "its tree stays, new classes are put into it"
    assert set(edited.nodes) < set(tree.nodes)
    assert tree.path("n02110958")[0].name == "pets"
    assert [tree.path(leaf)[0].name for leaf in ("n07753592", "zzyzx")] == ["other classes"] * 2
    assert found.proposal.unknown == ("zzyzx",)


def test_one_class_without_relatives_stands_by_itself() -> None:
    old = own_tree(("red", "brick"), ("red", "cherry"), ("blue", "sky"), ("blue", "sea"))
    tree = add_classes(old, ways("zzyzx")).proposal.taxonomy
    assert tree.num_classes == (3, 5)
    assert tree.path("zzyzx")[0].name == "zzyzx"


def test_a_tree_of_one_tier_gets_one_more_class() -> None:
    old = own_tree(("brick zz",), ("cherry zz",))
    tree = add_classes(old, ways("zzyzx", "zzyzy")).proposal.taxonomy
    assert tree.num_classes == (4,)


def test_more_photographs_of_its_classes_change_no_tree() -> None:
    old = own_tree(("red", "brick"), ("red", "cherry"), ("blue", "sky"), ("blue", "sea"))
    found = add_classes(old, ways("Sky", "red"))  # a leaf, and an inner node
    assert (found.new, found.proposal.taxonomy) == ((), old)


def test_a_synset_that_is_in_the_tree_already_gets_no_second_node_of_its_id() -> None:
    old = propose(ways("taxi", "school bus", "tabby"), name="mine").taxonomy
    found = add_classes(old, ways("cab", "goldfish"))
    leaves = found.proposal.taxonomy.leaves
    assert len(leaves) == len(set(leaves)) == 5


def test_a_folder_without_classes_is_refused() -> None:
    with pytest.raises(InputError, match="names no images"):
        add_classes(own_tree(("a",), ("b",)), [])
