"""From WordNet's graph to a tree, and from the tree to tiers."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taxonomy import Taxonomy, TaxonomyError, wordnet
from taxonomy.anchors import assign, place, read_anchors
from taxonomy.build import from_names, from_synsets, tree_parents
from taxonomy.groups import SynsetTree
from taxonomy.naming import UNSAID, NamedNode, either, unique_names
from taxonomy.tiers import automatic_sizes

CHIHUAHUA, BEAGLE, POODLE, TABBY, PERSIAN, LION = (
    "n02085620", "n02088364", "n02113799", "n02123045", "n02123394", "n02129165",
)  # fmt: skip
FLAMINGO, CRANE, STORK = "n02007558", "n02012849", "n02002724"
TAXI, JEEP, BUS, CANOE, LIFEBOAT, FORKLIFT, LIFTING_CRANE = (
    "n02930766", "n03594945", "n04146614", "n02951358", "n03662601", "n03384352", "n03126707",
)  # fmt: skip
ORANGE, LEMON, ACORN, PIZZA, PRETZEL = "n07747607", "n07749582", "n12267677", "n07873807", "n07695742"
ANIMALS = [CHIHUAHUA, BEAGLE, POODLE, TABBY, PERSIAN, LION, FLAMINGO, CRANE, STORK]
VEHICLES = [TAXI, JEEP, BUS, CANOE, LIFEBOAT, FORKLIFT]
FOODS = [ORANGE, LEMON, ACORN, PIZZA, PRETZEL]
DOG, CAT, BIRD, MAMMAL, ANIMAL, VEHICLE, CAR, FOOD, FRUIT = (
    "n02084071", "n02120997", "n01503061", "n01861778", "n00015388", "n04524313", "n02958343", "n00021265",
    "n13134947",
)  # fmt: skip
TERRIERS = [  # siblings in WordNet, so that nothing sets some apart from the others
    "n02093754", "n02093991", "n02094114", "n02094258", "n02094433", "n02096051", "n02096177", "n02096294",
]  # fmt: skip
EVERYTHING = [*ANIMALS, *VEHICLES, *FOODS]


def classes(taxonomy: Taxonomy, tier: int) -> dict[str, set[str]]:
    """Display name of each class of a tier, with its leaves."""
    found: dict[str, set[str]] = {}
    for leaf in taxonomy.leaves:
        found.setdefault(taxonomy.project(leaf, tier).name, set()).add(leaf)
    return found


# ---------------------------------------------------------------- the tree


def test_a_synset_goes_under_the_hypernym_with_the_most_company() -> None:
    parents = tree_parents([CHIHUAHUA, BEAGLE, TABBY, LION])
    line = SynsetTree(parents, [CHIHUAHUA, BEAGLE, TABBY, LION]).line(CHIHUAHUA)
    assert "n02075296" in line  # carnivore holds all four, domestic animal only three
    assert "n01317541" not in line


def test_a_fruit_is_food_rather_than_part_of_a_plant() -> None:
    leaves = [ORANGE, LEMON, PIZZA, PRETZEL, "n07715103"]
    assert FOOD in SynsetTree(tree_parents(leaves), leaves).line(ORANGE)


def test_the_tree_has_no_words_that_nobody_says() -> None:
    parents = tree_parents(EVERYTHING)
    assert not (set(parents) & UNSAID)
    assert set(parents.values()) & UNSAID == {wordnet.ROOT}


def test_the_tree_does_not_depend_on_the_order_of_the_leaves() -> None:
    assert tree_parents(EVERYTHING) == tree_parents(EVERYTHING[::-1])


def test_a_leaf_above_another_leaf_means_the_rest_of_its_kind() -> None:
    taxonomy = from_synsets([DOG, CHIHUAHUA, TABBY, LION], tiers=[2])
    assert taxonomy.node(DOG).name == "other dog"
    assert taxonomy.lca(DOG, CHIHUAHUA).id == f"{DOG}-group"
    assert taxonomy.lca(DOG, CHIHUAHUA).name == "dog"
    assert taxonomy.leaves == (DOG, CHIHUAHUA, TABBY, LION)
    assert classes(taxonomy, 0) == {"dog": {DOG, CHIHUAHUA}, "cat or wild feline": {TABBY, LION}}


# ---------------------------------------------------------------- automatic tiers


@pytest.mark.parametrize(
    ("num_leaves", "sizes"),
    [(1, ()), (3, ()), (10, (4,)), (30, (6,)), (60, (8, 18)), (200, (12, 41)), (1000, (20, 126))],
)
def test_automatic_sizes_follow_the_number_of_leaves(num_leaves: int, sizes: tuple[int, ...]) -> None:
    assert automatic_sizes(num_leaves) == sizes


def test_animals_vehicles_and_food_fall_into_these_three() -> None:
    foods = [ORANGE, LEMON, PIZZA, PRETZEL]
    taxonomy = from_synsets([*ANIMALS, *VEHICLES, *foods], tiers=[3])
    assert classes(taxonomy, 0) == {"animal": set(ANIMALS), "vehicle": set(VEHICLES), "food": set(foods)}


def test_small_groups_are_folded_into_other() -> None:
    ids = [CHIHUAHUA, BEAGLE, POODLE, "n02099601", TABBY, PERSIAN, "n02132136", "n02364673", "n02504458"]
    taxonomy = from_synsets(ids, tiers=[3])
    found = classes(taxonomy, 0)
    assert all(len(leaves) > 1 for leaves in found.values())
    assert any(name.startswith("other ") for name in found)
    assert not {name.removeprefix("other ") for name in found} & {
        "placental",
        "carnivore that is no dog",
        "entity",
    }


def test_sizes_that_cannot_be_are_refused() -> None:
    with pytest.raises(TaxonomyError, match="4, 3"):
        from_synsets(EVERYTHING, tiers=[4, 3])
    with pytest.raises(TaxonomyError, match="20"):
        from_synsets(EVERYTHING, tiers=[20])


def test_a_stray_leaf_joins_its_nearest_group_which_keeps_its_name() -> None:
    taxonomy = from_synsets(EVERYTHING, tiers=[3])
    assert classes(taxonomy, 0) == {"animal": set(ANIMALS), "vehicle": set(VEHICLES), "food": set(FOODS)}
    assert [node.id for node in taxonomy.classes(0)] == [ANIMAL, VEHICLE, FOOD]


def test_a_group_with_a_stray_leaf_is_cut_further_and_the_stray_goes_along() -> None:
    taxonomy = from_synsets(EVERYTHING, tiers=[3, 8])
    assert taxonomy.project(ACORN, 0).name == "food"
    assert classes(taxonomy, 1)["other food"] == {ACORN, PIZZA, PRETZEL}  # and not "other thing"


def test_tiers_that_cannot_be_made_are_refused_where_sizes_are_given() -> None:
    for tiers in ([2], [2, 4]):
        with pytest.raises(TaxonomyError, match="these 8 classes do not fall into about") as caught:
            from_synsets(TERRIERS, tiers=tiers)
        assert "\n" not in str(caught.value)


def test_far_fewer_groups_than_asked_for_are_refused() -> None:
    with pytest.raises(TaxonomyError, match="do not fall into about 18 groups"):
        from_synsets(EVERYTHING, tiers=[3, 18])


def test_automatic_tiers_that_cannot_be_made_are_left_out() -> None:
    assert automatic_sizes(len(TERRIERS)) == (4,)
    assert from_synsets(TERRIERS).num_classes == (8,)


def test_few_leaves_have_one_tier() -> None:
    assert from_synsets([CHIHUAHUA, TAXI]).num_classes == (2,)
    assert from_synsets([CHIHUAHUA]).num_classes == (1,)


POOL_TEXT = """
    n02666196 n02699494 n02769748 n02791270 n02823428 n02837789 n02883205 n03085013 n03179701 n03388043 n03400231
    n03637318 n03804744 n04118538 n04254777 n04275548 n04398044 n07614500 n09193705 n09246464 n01443537 n01644900
    n01770393 n01910747 n02165456 n02206856 n02403003 n02480495
"""
POOL = sorted({*EVERYTHING, *re.findall(r"n\d{8}", POOL_TEXT)})


@settings(max_examples=40, deadline=None)
@given(ids=st.lists(st.sampled_from(POOL), min_size=4, max_size=40, unique=True))
def test_tiers_nest_and_have_no_singletons_whatever_the_leaves(ids: list[str]) -> None:
    taxonomy = from_synsets(ids)
    assert taxonomy.leaves == tuple(ids)
    for tier in range(taxonomy.num_tiers - 1):
        assert np.bincount(taxonomy.projection(tier)).min() > 1
    for tier in range(1, taxonomy.num_tiers):
        above = taxonomy.parent_classes(tier)
        assert (above[taxonomy.projection(tier)] == taxonomy.projection(tier - 1)).all()
    assert from_synsets(ids) == taxonomy


# ---------------------------------------------------------------- anchors


def test_anchors_are_the_classes_of_their_tier() -> None:
    taxonomy = from_synsets(EVERYTHING, anchors=[[ANIMAL, VEHICLE, FOOD], [DOG, CAT, BIRD, CAR]])
    assert [node.name for node in taxonomy.classes(0)] == ["animal", "vehicle", "food", "acorn"]
    assert classes(taxonomy, 1)["dog"] == {CHIHUAHUA, BEAGLE, POODLE}
    assert classes(taxonomy, 1)["car"] == {TAXI, JEEP}
    assert classes(taxonomy, 1)["other vehicle"] == {BUS, CANOE, LIFEBOAT, FORKLIFT}
    assert classes(taxonomy, 1)["food"] == set(FOODS) - {ACORN}  # no anchor in it: it stays as it is


def test_an_anchor_is_reached_by_any_hypernym_path() -> None:
    domestic = "n01317541"  # the tree's rule puts dogs under carnivore; the anchor wins
    taxonomy = from_synsets([CHIHUAHUA, TABBY, LION, "n02132136"], anchors=[[domestic]])
    assert classes(taxonomy, 0)["domestic animal"] == {CHIHUAHUA, TABBY}


def test_of_two_anchors_the_first_listed_wins() -> None:
    first = from_synsets([CHIHUAHUA, TABBY, LION, POODLE], anchors=[[DOG, MAMMAL]])
    assert classes(first, 0) == {"dog": {CHIHUAHUA, POODLE}, "mammal": {TABBY, LION}}
    with pytest.raises(TaxonomyError, match=f"no leaf came to anchor '{DOG}'"):
        from_synsets([CHIHUAHUA, TABBY, LION, POODLE], anchors=[[MAMMAL, DOG]])


def test_a_finer_anchor_takes_leaves_along_that_no_coarser_one_holds() -> None:
    taxonomy = from_synsets(EVERYTHING, anchors=[[ANIMAL, VEHICLE, FOOD], [FRUIT]])
    # WordNet has acorns as fruit, not as food; here fruit is food.
    assert taxonomy.project(ACORN, 0).name == "food"
    assert classes(taxonomy, 1)["fruit"] == {ORANGE, LEMON, ACORN}


def test_an_anchor_may_say_what_it_collects_and_what_it_is_under() -> None:
    anchors = [
        [{"id": "x-living", "name": "living thing", "of": [ANIMAL]}, VEHICLE, FOOD],
        [{"id": "x-nut", "name": "nut or pet", "of": [ACORN, DOG], "under": "x-living"}],
    ]
    taxonomy = from_synsets(EVERYTHING, anchors=anchors)
    assert taxonomy.project(ACORN, 0).id == "x-living"
    assert classes(taxonomy, 1)["nut or pet"] == {ACORN, CHIHUAHUA, BEAGLE, POODLE}
    assert classes(taxonomy, 1)["wading bird"] == {FLAMINGO, CRANE, STORK}


def test_an_automatic_tier_keeps_the_anchors_of_a_finer_one_whole() -> None:
    taxonomy = from_synsets(EVERYTHING, tiers=[3, 6], anchors=[None, [FRUIT, DOG]])
    assert classes(taxonomy, 1)["fruit"] == {ORANGE, LEMON, ACORN}
    assert classes(taxonomy, 1)["dog"] == {CHIHUAHUA, BEAGLE, POODLE}
    assert classes(taxonomy, 0)["food"] == set(FOODS)  # it keeps its name though acorns come with the fruit


def test_a_tier_without_anchors_takes_an_automatic_size() -> None:
    taxonomy = from_synsets(EVERYTHING, anchors=[None, [FRUIT, DOG]])
    assert taxonomy.num_tiers == 3
    assert classes(taxonomy, 1)["dog"] == {CHIHUAHUA, BEAGLE, POODLE}


def test_a_synset_that_is_no_leaf_can_be_placed() -> None:
    anchors = read_anchors([[ANIMAL, VEHICLE], [DOG, {"id": CAR, "under": VEHICLE}]])
    assert [a and a.id for a in place("n02110341", anchors)] == [ANIMAL, DOG]  # dalmatian
    assert [a and a.id for a in place("n02701002", anchors)] == [VEHICLE, CAR]  # ambulance
    assert [a and a.id for a in place("n03201208", anchors)] == [None, None]  # dining table


def test_the_coarser_anchor_decides_where_two_tiers_disagree() -> None:
    anchors = read_anchors([[BIRD, MAMMAL], [{"id": "x", "name": "x", "of": [DOG, CAT, CRANE]}]])
    held = assign([CHIHUAHUA, TABBY, CRANE], anchors)
    assert held[0][CRANE].id == BIRD
    assert CRANE not in held[1]


@pytest.mark.parametrize(
    ("anchors", "text"),
    [
        ([["n00000001"]], "n00000001"),
        ([[DOG, DOG]], "twice"),
        ([[{"id": "x-dog", "of": [DOG]}]], "name"),
        ([[{"id": "x-dog", "name": "dog"}]], "synsets"),
        ([[{"name": "dog"}]], "no id"),
        ([[{"id": DOG, "colour": "red"}]], "colour"),
        ([[ANIMAL], [{"id": DOG, "under": "x"}]], "tier 0 does not have"),
        ([["n02958343"]], "no leaf came"),
    ],
)
def test_wrong_anchors_are_named(anchors: list[list[object]], text: str) -> None:
    with pytest.raises(TaxonomyError, match=text):
        from_synsets(ANIMALS, anchors=anchors)  # type: ignore[arg-type]


# ---------------------------------------------------------------- ids and names


def test_every_unknown_id_is_named() -> None:
    with pytest.raises(
        TaxonomyError, match=r"'n00000001', 'dog' are no noun synsets of WordNet 3.0; write n and 8"
    ):
        from_synsets([CHIHUAHUA, "n00000001", "dog"])


def test_ids_listed_twice_are_named() -> None:
    with pytest.raises(TaxonomyError, match=f"more than once: '{CHIHUAHUA}'"):
        from_synsets([CHIHUAHUA, TABBY, CHIHUAHUA])


def test_no_ids_are_refused() -> None:
    with pytest.raises(TaxonomyError, match="no classes"):
        from_synsets([])


def test_the_two_cranes_are_told_apart_by_what_they_are() -> None:
    machine = {"id": "x-machine", "name": "machine", "of": ["n03183080", VEHICLE]}
    taxonomy = from_synsets(
        [CRANE, STORK, FLAMINGO, LIFTING_CRANE, FORKLIFT, TAXI], anchors=[[BIRD, machine]]
    )
    assert taxonomy.node(CRANE).name == "crane (bird)"
    assert taxonomy.node(LIFTING_CRANE).name == "crane (machine)"


def test_names_that_differ_in_case_only_are_told_apart() -> None:
    taxonomy = from_synsets(["n02113186", "n02113023", "n02963159", "n03595614"])
    assert len({node.name.lower() for node in taxonomy.nodes}) == len(taxonomy.nodes)


def test_a_name_without_a_distinguishing_ancestor_gets_its_id() -> None:
    nodes = [
        NamedNode("r", "thing", False, -1),
        NamedNode("a", "same", True, 0),
        NamedNode("b", "same", True, 0),
    ]
    assert unique_names(nodes) == ["thing", "same", "same (b)"]


def test_words_are_joined_as_in_english() -> None:
    assert either(["a"]) == "a"
    assert either(["a", "b"]) == "a or b"
    assert either(["a", "b", "c"]) == "a, b or c"


def test_leaves_carry_definitions_and_lay_words() -> None:
    taxonomy = from_synsets([CHIHUAHUA, TABBY])
    assert taxonomy.node(CHIHUAHUA).name == "Chihuahua"
    assert taxonomy.node(CHIHUAHUA).definition.startswith("an old breed of tiny short-haired dog")


def test_a_taxonomy_of_names_has_their_synsets_as_leaves() -> None:
    taxonomy, choices = from_names(["tabby cat", "school_bus", "ice-cream"])
    assert taxonomy.leaves == (TABBY, BUS, "n07614500")
    assert [choice.name for choice in choices] == ["tabby cat", "school_bus", "ice-cream"]


def test_two_names_for_one_thing_are_refused() -> None:
    with pytest.raises(TaxonomyError, match=r"'school bus' and 'school_bus' both mean n04146614"):
        from_names(["school bus", "school_bus"])
