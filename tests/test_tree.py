"""The tree, its tiers and its checks, on a nine-node tree with literal answers and on random trees."""

import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from taxonomy import HierclassError, Node, Taxonomy, TaxonomyError

#          all
#        /     \
#    animal    plant
#    /    \       \
#  dog    fish    tree
#  / \             |
# pug poodle      oak
NINE = ["all", "animal", "plant", "dog", "fish", "tree", "pug", "poodle", "oak"]
PARENTS = [-1, 0, 0, 1, 1, 2, 3, 3, 5]
LEAVES = ["poodle", "fish", "oak", "pug"]
TIERS = [["animal", "plant"], ["fish", "dog", "tree"], LEAVES]


def make(**changes: Any) -> Taxonomy:
    parts: dict[str, Any] = {
        "name": "nine",
        "nodes": [Node(node_id, node_id.upper()) for node_id in NINE],
        "parents": PARENTS,
        "leaves": LEAVES,
        "tiers": TIERS,
    }
    return Taxonomy(**{**parts, **changes})


def test_a_tree_knows_its_sizes() -> None:
    tree = make()
    assert tree.num_tiers == 3
    assert tree.num_classes == (2, 3, 4)
    assert tree.leaves == ("poodle", "fish", "oak", "pug")
    assert tree.parents.tolist() == PARENTS
    assert tree.parents.dtype == np.int32
    assert repr(tree) == "Taxonomy('nine', tiers of 2 / 3 / 4)"


def test_projection_gives_each_leaf_its_class_in_the_order_of_the_tier() -> None:
    tree = make()
    assert tree.projection(0).tolist() == [0, 0, 1, 0]
    assert tree.projection(1).tolist() == [1, 0, 2, 1]
    assert tree.projection(2).tolist() == [0, 1, 2, 3]
    assert tree.projection(1).dtype == np.int64
    assert tree.projection(1) is tree.projection(1)


def test_parent_classes_lead_to_the_tier_before() -> None:
    assert make().parent_classes(1).tolist() == [0, 0, 1]
    assert make().parent_classes(2).tolist() == [1, 0, 2, 1]


def test_tier_0_has_no_parent_classes() -> None:
    with pytest.raises(TaxonomyError, match="ask for tier 1 or more"):
        make().parent_classes(0)


def test_a_path_runs_from_coarse_to_fine_and_stops_at_the_tier() -> None:
    tree = make()
    assert [node.id for node in tree.path("pug")] == ["animal", "dog", "pug"]
    assert [node.id for node in tree.path(3, 1)] == ["animal", "dog"]
    assert tree.project(np.int64(2), 1).id == "tree"  # type: ignore[arg-type]


def test_a_leaf_may_serve_as_class_of_a_coarser_tier() -> None:
    assert [node.id for node in make().path("fish")] == ["animal", "fish", "fish"]


def test_depth_height_distance_and_common_ancestors() -> None:
    tree = make()
    assert [tree.depth(node_id) for node_id in NINE] == [0, 1, 1, 2, 2, 2, 3, 3, 3]
    assert [tree.height(node_id) for node_id in NINE] == [3, 2, 2, 1, 0, 1, 0, 0, 0]
    assert tree.lca("pug", "poodle").id == "dog"
    assert tree.lca("pug", "oak").id == "all"
    assert tree.lca("pug", "animal").id == "animal"
    assert tree.distance("pug", "poodle") == 2
    assert tree.distance("pug", "fish") == 3
    assert tree.distance("pug", "oak") == 6
    assert tree.distance("pug", "pug") == 0


def test_lca_heights_of_all_pairs_of_leaves() -> None:
    heights = make().lca_heights
    assert heights.tolist() == [[0, 2, 3, 1], [2, 0, 3, 2], [3, 3, 0, 3], [1, 2, 3, 0]]
    assert heights.dtype == np.int64


def test_ancestors_and_children() -> None:
    tree = make()
    assert [node.id for node in tree.ancestors("pug")] == ["dog", "animal", "all"]
    assert tree.ancestors("all") == ()
    assert [node.id for node in tree.children("dog")] == ["pug", "poodle"]
    assert tree.children("pug") == ()


def test_the_tree_of_the_coarser_tiers_ends_at_their_classes() -> None:
    tree = make().truncate(1)
    assert [node.id for node in tree.nodes] == ["all", "animal", "plant", "dog", "fish", "tree"]
    assert tree.parents.tolist() == [-1, 0, 0, 1, 1, 2]
    assert tree.leaves == ("fish", "dog", "tree")
    assert tree.tiers == (("animal", "plant"), ("fish", "dog", "tree"))
    assert (tree.name, tree.node("dog").name) == ("nine", "DOG")
    assert make().truncate(2) == make()
    assert make().truncate(0).leaves == ("animal", "plant")
    with pytest.raises(TaxonomyError, match="tier 3 does not exist"):
        make().truncate(3)


def test_a_tree_cannot_be_changed() -> None:
    tree = make()
    for array in (tree.parents, tree.projection(0), tree.lca_heights):
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 0
    with pytest.raises(AttributeError):
        tree.name = "other"  # type: ignore[misc]


def test_changing_the_lists_it_was_made_of_leaves_a_tree_alone() -> None:
    leaves = list(LEAVES)
    tree = make(leaves=leaves)
    leaves.clear()
    assert len(tree.leaves) == 4


def test_equality_and_hash_are_by_content() -> None:
    assert make() == make()
    assert hash(make()) == hash(make())
    assert make() != make(name="ten")
    assert make() != "nine"


def test_pickling_keeps_content_and_protection() -> None:
    copy = pickle.loads(pickle.dumps(make()))
    assert copy == make()
    assert not copy.parents.flags.writeable


# ---------------------------------------------------------------- wrong questions


@pytest.mark.parametrize("tier", [3, -1])
def test_an_unknown_tier_is_answered_with_the_known_ones(tier: int) -> None:
    with pytest.raises(TaxonomyError, match=f"tier {tier} does not exist; this taxonomy has tiers 0 to 2"):
        make().classes(tier)


def test_an_unknown_node_is_answered_with_the_nearest_one() -> None:
    with pytest.raises(TaxonomyError, match=r"no node 'podle' in taxonomy 'nine'; did you mean 'poodle'\?"):
        make().node("podle")
    with pytest.raises(TaxonomyError, match=r"no node 'PUG' in taxonomy 'nine'; did you mean 'pug'\?"):
        make().index("PUG")


def test_leaves_are_asked_for_by_leaf_id_or_index() -> None:
    with pytest.raises(TaxonomyError, match="leaf 'dog' is not a leaf"):
        make().path("dog")
    with pytest.raises(TaxonomyError, match="leaf 4 does not exist; this taxonomy has leaves 0 to 3"):
        make().path(4)


def test_errors_can_be_caught_as_the_projects_own_and_as_value_errors() -> None:
    assert issubclass(TaxonomyError, HierclassError)
    assert issubclass(TaxonomyError, ValueError)


# ---------------------------------------------------------------- wrong trees

NODES = [Node(node_id, node_id) for node_id in NINE]
DUPLICATE_NAME = [Node(n.id, "dog") if n.id == "tree" else n for n in NODES]
DUPLICATE_ID = [Node("dog", "other") if n.id == "tree" else n for n in NODES]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"parents": [-1, 0, -1, 1, 1, 2, 3, 3, 5]}, "two roots ('all', 'plant')"),
        ({"parents": [-1, 6, 0, 1, 1, 2, 3, 3, 5]}, "cycle (animal -> pug -> dog -> animal)"),
        ({"parents": [0, 0, 0, 1, 1, 2, 3, 3, 5]}, "cycle (all -> all)"),
        ({"parents": [-1, 0, 0, 1, 1, 8, 3, 3, 0]}, "node 'tree' stands before its parent 'oak'"),
        ({"parents": [-1, 0, 0, 1, 1, 2, 3, 3, 9]}, "node 'oak' has the unknown parent 9"),
        ({"parents": [-1, 0]}, "9 nodes but 2 parents"),
        ({"nodes": DUPLICATE_ID}, "duplicate id 'dog' (nodes 3 and 5)"),
        ({"nodes": DUPLICATE_NAME}, "duplicate display name 'dog' (nodes 'dog' and 'tree')"),
        ({"nodes": [Node("all", " "), *NODES[1:]]}, "node 'all' has an empty name"),
        ({"nodes": [Node("", "x"), *NODES[1:]]}, "node 0 has an empty id"),
        ({"nodes": [Node("all", "a\nb"), *NODES[1:]]}, "line break"),
        ({"nodes": [], "parents": []}, "there are no nodes"),
        ({"leaves": []}, "there are no leaves"),
        ({"leaves": [*LEAVES, "cat"]}, "leaf 'cat' is not a node"),
        ({"leaves": [*LEAVES, "dog"]}, "leaf 'dog' has children ('pug', 'poodle')"),
        ({"leaves": [*LEAVES, "pug"]}, "'pug' stands twice in leaves"),
        ({"leaves": ["poodle", "oak", "pug"]}, "node 'fish' has no children but is not in leaves"),
        ({"tiers": []}, "there are no tiers"),
        ({"tiers": [[], LEAVES]}, "tier 0 is empty"),
        ({"tiers": [["animal", "moss"], LEAVES]}, "'moss' in tier 0 is not a node"),
        ({"tiers": [["animal", "animal", "plant"], LEAVES]}, "'animal' stands twice in tier 0"),
        ({"tiers": [["animal"], LEAVES]}, "leaf 'oak' has no class in tier 0"),
        ({"tiers": [["plant"], LEAVES]}, "leaves 'poodle', 'fish', 'pug' have no class in tier 0"),
        ({"tiers": [["animal", "dog", "plant"], LEAVES]}, "tier 0 holds 'animal' and also 'dog'"),
        (
            {"tiers": [["dog", "fish", "plant"], ["animal", "tree"], LEAVES]},
            "tiers do not nest: 'animal' of tier 1 lies above 'dog' of tier 0",
        ),
        ({"tiers": [["animal", "plant"]]}, "the last tier must be the leaves in the same order"),
        ({"tiers": [LEAVES[::-1]]}, "at position 0 tier 0 has 'pug' and leaves has 'poodle'"),
    ],
)
def test_a_wrong_tree_is_refused_by_name_in_one_line(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(TaxonomyError) as caught:
        make(**{"nodes": NODES, **changes})
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_single_leaf_under_a_root_is_a_taxonomy() -> None:
    tree = Taxonomy(
        name="", nodes=[Node("r", "r"), Node("x", "x")], parents=[-1, 0], leaves=["x"], tiers=[["x"]]
    )
    assert tree.lca_heights.tolist() == [[0]]


# ---------------------------------------------------------------- properties of random trees


@st.composite
def taxonomies(draw: st.DrawFn) -> Taxonomy:
    size = draw(st.integers(2, 30))
    parents = [-1] + [draw(st.integers(0, i - 1)) for i in range(1, size)]
    inner = set(parents)
    leaves = draw(st.permutations([i for i in range(size) if i not in inner]))
    tiers: list[list[int]] = []
    tier = [0]
    while len(tiers) < 4 and draw(st.booleans()):
        tiers.append(draw(st.permutations(tier)))
        opened = [i for i in tier if i in inner and draw(st.booleans())]
        tier = [i for i in tier if i not in opened] + [i for i in range(size) if parents[i] in opened]
    tiers.append(leaves)
    names = draw(
        st.lists(st.text("aé \"'[,", min_size=1, max_size=4).filter(str.strip), min_size=1, max_size=3)
    )
    return Taxonomy(
        name=draw(st.text(max_size=5)),
        nodes=[Node(f"n{i}", f"{names[i % len(names)]}{i}", "" if i % 2 else "a thing") for i in range(size)],
        parents=parents,
        leaves=[f"n{i}" for i in leaves],
        tiers=[[f"n{i}" for i in classes] for classes in tiers],
    )


@given(taxonomies())
def test_every_leaf_projects_to_its_ancestor_or_itself(tree: Taxonomy) -> None:
    for leaf in tree.leaves:
        line = [tree.node(leaf), *tree.ancestors(leaf)]
        for tier in range(tree.num_tiers):
            assert [node for node in line if node in tree.classes(tier)] == [tree.project(leaf, tier)]


@given(taxonomies())
def test_each_tier_refines_the_one_before(tree: Taxonomy) -> None:
    for tier in range(1, tree.num_tiers):
        refined = tree.parent_classes(tier)[tree.projection(tier)]
        assert refined.tolist() == tree.projection(tier - 1).tolist()


@given(taxonomies(), st.data())
def test_distance_is_a_metric_and_lca_is_symmetric(tree: Taxonomy, data: st.DataObject) -> None:
    a, b, c = (data.draw(st.sampled_from(tree.nodes)).id for _ in range(3))
    assert tree.lca(a, b) == tree.lca(b, a)
    assert tree.distance(a, b) == tree.distance(b, a)
    assert (tree.distance(a, b) == 0) == (a == b)
    assert tree.distance(a, c) <= tree.distance(a, b) + tree.distance(b, c)


@given(taxonomies())
def test_lca_heights_agree_with_lca(tree: Taxonomy) -> None:
    for i, a in enumerate(tree.leaves):
        for j, b in enumerate(tree.leaves):
            assert tree.lca_heights[i, j] == tree.height(tree.lca(a, b).id)


@given(taxonomies())
def test_coarser_tiers_are_the_same_without_the_finer_ones(tree: Taxonomy) -> None:
    for last in range(tree.num_tiers):
        upper = tree.truncate(last)
        assert upper.num_classes == tree.num_classes[: last + 1]
        for tier in range(last + 1):
            assert upper.classes(tier) == tree.classes(tier)
            if tier:
                assert upper.parent_classes(tier).tolist() == tree.parent_classes(tier).tolist()
            assert upper.truncate(tier) == tree.truncate(tier)
        assert all(upper.lca(a, b) == tree.lca(a, b) for a in upper.leaves for b in upper.leaves)


@given(taxonomies())
def test_a_tree_survives_its_dictionary_form(tree: Taxonomy) -> None:
    copy = Taxonomy.from_dict(tree.to_dict())
    assert copy == tree
    assert hash(copy) == hash(tree)
