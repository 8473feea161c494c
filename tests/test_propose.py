"""A tree of classes from the names of class folders."""

from __future__ import annotations

import string
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taxonomy import Taxonomy, TaxonomyError, load_taxonomy
from taxonomy.labels import LeafNames, key
from taxonomy.proposal import propose, trim
from taxonomy.tables import dumps_table, with_ids_of
from taxonomy.tiers import automatic_sizes


def flat(*names: str) -> list[tuple[str, ...]]:
    return [(name,) for name in names]


def groups(taxonomy: Taxonomy) -> dict[str, set[str]]:
    """Name of each class of tier 0 → names of its leaves."""
    found: dict[str, set[str]] = {}
    for leaf in taxonomy.leaves:
        found.setdefault(taxonomy.project(leaf, 0).name, set()).add(taxonomy.node(leaf).name)
    return found


PETS = flat("golden_retriever", "Tabby-Cat", "Chihuahua", "school bus", "taxi", "fire_engine")


def test_english_names_are_found_however_they_are_written() -> None:
    proposal = propose(PETS, name="pets")
    assert proposal.kind == "names"
    assert groups(proposal.taxonomy) == {
        "carnivore": {"golden retriever", "tabby cat", "Chihuahua"},
        "vehicle": {"school bus", "taxi", "fire engine"},
    }
    leaves = LeafNames(proposal.taxonomy)
    assert [leaves.find_folder(way) for way in PETS] == [0, 1, 2, 3, 4, 5]


def test_synset_ids_get_the_words_of_their_synsets() -> None:
    proposal = propose(flat("n02085620", "n02099601", "n04146614", "n02930766"), name="ids")
    assert (proposal.kind, proposal.choices) == ("ids", ())
    assert proposal.taxonomy.leaves == ("n02085620", "n02099601", "n04146614", "n02930766")
    assert proposal.taxonomy.node("n02085620").name == "Chihuahua"


def test_ids_and_names_may_stand_side_by_side() -> None:
    proposal = propose(flat("n02085620", "taxi"), name="both")
    assert [proposal.taxonomy.node(leaf).name for leaf in proposal.taxonomy.leaves] == ["Chihuahua", "taxi"]


def test_folders_in_folders_are_the_users_own_hierarchy() -> None:
    ways = [
        ("animal", "dog", "pug"),
        ("animal", "dog", "collie"),
        ("animal", "cat"),
        ("thing", "tool", "saw"),
    ]
    proposal = propose(ways, name="own")
    assert proposal.kind == "folders"
    assert proposal.taxonomy.num_classes == (2, 3, 4)
    leaves = LeafNames(proposal.taxonomy)
    names = [proposal.taxonomy.leaves[leaves.find_folder(way) or 0] for way in ways]
    assert names == ["animal/dog/pug", "animal/dog/collie", "animal/cat", "thing/tool/saw"]


def test_folders_that_all_have_in_common_count_for_nothing() -> None:
    assert trim([("data", "dog", "images"), ("data", "cat", "images")]) == [("dog",), ("cat",)]
    proposal = propose([("data", "dog", "images"), ("data", "cat", "images")], name="x")
    assert [proposal.taxonomy.node(leaf).name for leaf in proposal.taxonomy.leaves] == ["dog", "cat"]
    assert LeafNames(proposal.taxonomy).find_folder(("data", "cat", "images")) == 1


def test_a_tier_that_says_no_more_than_the_next_is_left_out() -> None:
    assert propose([("dogs", "dog"), ("cats", "cat")], name="x").taxonomy.num_classes == (2,)


def test_folders_with_only_one_in_each_keep_the_name_of_the_topmost() -> None:
    ways = [("animal", "mammal", "cat"), ("animal", "mammal", "dog"), ("vehicle", "road", "car", "taxi")]
    ways += [("vehicle", "road", "car", "van"), ("vehicle", "road", "bus")]
    taxonomy = propose(ways, name="x").taxonomy
    assert taxonomy.num_classes == (2, 4, 5)
    assert [node.name for node in taxonomy.classes(0)] == ["animal", "vehicle"]
    assert [node.name for node in taxonomy.classes(1)] == ["cat", "dog", "car", "bus"]
    single = propose([("animal", "cat"), ("vehicle", "car", "taxi"), ("vehicle", "car", "van")], name="x")
    assert groups(single.taxonomy) == {"animal": {"cat"}, "vehicle": {"taxi", "van"}}


def test_an_id_before_the_name_of_a_folder_is_its_class() -> None:
    ways = flat("n02085620-Chihuahua", "n02012849_crane", "n02123045_my_cat", "n04146614")
    proposal = propose(ways, name="x")
    assert (proposal.kind, proposal.choices) == ("ids", ())
    taxonomy = proposal.taxonomy
    assert taxonomy.leaves == ("n02085620", "n02012849", "n02123045", "n04146614")
    names = [taxonomy.node(leaf).name for leaf in taxonomy.leaves]
    assert names == ["Chihuahua", "crane", "my cat", "school bus"]
    assert [LeafNames(taxonomy).find_folder(way) for way in ways] == [0, 1, 2, 3]


def test_a_folder_whose_name_contradicts_its_id_is_told_and_called_by_the_id() -> None:
    proposal = propose(flat("n02085620-Chihuahua", "n02012849_whale"), name="x")
    assert [choice.name for choice in proposal.doubtful] == ["n02012849_whale"]
    assert proposal.taxonomy.node("n02012849").name == "crane"
    ways = flat(
        *load_taxonomy("tiny-imagenet").leaves[1:], load_taxonomy("tiny-imagenet").leaves[0] + "_teapot"
    )
    bundled = propose(ways, name="x")
    assert (bundled.kind, len(bundled.doubtful)) == ("bundled", 1)
    ways = [("bird", "n02012849_whale"), ("bird", "n02007558_flamingo"), ("dog", "n02085620")]
    folders = propose(ways, name="x")
    assert (folders.kind, [choice.name for choice in folders.doubtful]) == ("folders", ["n02012849_whale"])


def test_an_id_that_is_no_synset_is_no_id() -> None:
    ways = flat("n99999999_dog", "cat", "taxi")
    proposal = propose(ways, name="x")
    assert proposal.choices[0].synset.id == "n02084071"
    assert proposal.choices[0].doubtful
    assert [LeafNames(proposal.taxonomy).find_folder(way) for way in ways] == [0, 1, 2]


def test_the_same_folder_with_and_without_is_two_classes() -> None:
    proposal = propose(flat("with_mask", "without_mask"), name="x")
    assert proposal.unknown == ("without_mask",)
    assert len(proposal.taxonomy.leaves) == 2


def test_names_that_wordnet_lacks_are_classes_under_other_classes() -> None:
    proposal = propose([*PETS, *flat("qzx17", "wvv_3")], name="x")
    assert proposal.unknown == ("qzx17", "wvv_3")
    assert groups(proposal.taxonomy)["other classes"] == {"qzx17", "wvv 3"}
    assert len(groups(propose([*PETS, *flat("qzx17")], name="x").taxonomy)["qzx17"]) == 1


def test_names_that_are_all_unknown_make_one_tier() -> None:
    proposal = propose(flat("A12", "B7x", "class_0"), name="codes")
    assert (proposal.taxonomy.num_classes, proposal.choices) == ((3,), ())


def test_two_names_of_one_synset_stay_two_classes_side_by_side() -> None:
    proposal = propose([*PETS, *flat("n02930766")], name="x")
    assert proposal.same == (("n02930766", "taxi"),)
    assert len(proposal.taxonomy.leaves) == 7
    assert proposal.taxonomy.project("n02930766", 0) == proposal.taxonomy.project("taxi", 0)


def test_a_class_above_another_is_the_rest_of_its_kind_and_its_folder_is_found() -> None:
    proposal = propose([*PETS, *flat("dog")], name="x")
    leaves = LeafNames(proposal.taxonomy)
    dog = leaves.find("dog")
    assert dog is not None
    assert proposal.taxonomy.node(proposal.taxonomy.leaves[dog]).name == "other dog"


def test_exactly_the_classes_of_a_bundled_taxonomy_are_that_taxonomy() -> None:
    cifar = load_taxonomy("cifar-100")
    names = [cifar.node(leaf).name.replace(" ", "_") for leaf in cifar.leaves]
    assert propose(flat(*names), name="x").taxonomy == cifar
    assert propose(flat(*load_taxonomy("tiny-imagenet").leaves), name="x").kind == "bundled"
    assert propose(flat(*names[1:]), name="x").kind == "names"


def test_a_pin_decides_what_a_name_means() -> None:
    ways = flat("crane", "flamingo", "taxi")
    proposal = propose(ways, name="x", pins={"Crane": "n03126707"})
    assert proposal.taxonomy.leaves[0] == "n03126707"
    assert proposal.choices[0].weight == 1.0
    with pytest.raises(TaxonomyError, match="--pin heron: no class is called so; the classes are 'crane'"):
        propose(ways, name="x", pins={"heron": "n02009229"})


def test_evidence_decides_between_the_senses_of_a_folders_name() -> None:
    ways = flat("crane", "flamingo", "taxi")
    bird, machine = "n02012849", "n03126707"
    for wanted in (bird, machine):
        assert propose(ways, name="x", evidence={"crane": {wanted: 9.0}}).taxonomy.leaves[0] == wanted


def test_a_choice_says_how_sure_it_is() -> None:
    choices = {
        choice.name: choice for choice in propose(flat("crane", "taxi", "golden_retriever"), name="x").choices
    }
    assert choices["crane"].doubtful
    assert choices["crane"].weight < 0.9
    assert not choices["golden_retriever"].doubtful


def test_a_folder_of_images_above_class_folders_is_a_class_of_a_coarser_tier() -> None:
    ways = [("dog",), ("dog", "pug"), ("dog", "beagle"), ("cat", "tabby"), ("cat", "manx")]
    proposal = propose(ways, name="x")
    assert proposal.kind == "folders"
    assert proposal.taxonomy.tiers[0] == ("dog", "cat")
    assert set(proposal.taxonomy.leaves) == {"/".join(way) for way in ways[1:]}
    alone = propose([("dog",), ("dog", "pug"), ("cat",)], name="x").taxonomy
    assert alone.tiers == (("dog", "cat"), ("dog/pug", "cat"))


@pytest.mark.parametrize(
    ("ways", "message"),
    [
        ([], "there is no class; a classifier needs a folder for each of two"),
        (flat("dog"), "there is one class, 'dog'; a classifier needs a folder for each of two"),
        ([("photos", "dog")], "there is one class, 'dog'"),
        (flat("big dog", "Big_Dog"), "all folders read 'big dog'"),
        (
            [("dog",), ("dog", "pug")],
            "folder 'dog' holds images beside all class folders; move them into one",
        ),
        (flat("dog", "ca\udcfft"), r"class folder 'ca\\\\xfft' has an unprintable character"),
    ],
)
def test_folders_that_make_no_tree_are_told_in_one_line(ways: list[tuple[str, ...]], message: str) -> None:
    with pytest.raises(TaxonomyError, match=message) as caught:
        propose(ways, name="x")
    assert "\n" not in str(caught.value)


def test_the_tiers_of_folders_can_not_be_asked_for() -> None:
    with pytest.raises(TaxonomyError, match="leave --tiers out"):
        propose([("a", "b"), ("c", "d"), ("c", "e")], name="x", tiers=[2])


def test_tiers_follow_the_number_of_leaves_from_two_to_ten_thousand() -> None:
    numbers = [len(automatic_sizes(leaves)) + 1 for leaves in (2, 3, 4, 30, 100, 1000, 10_000)]
    assert numbers == [1, 1, 2, 2, 3, 3, 3]
    assert automatic_sizes(4) == (2,)
    assert automatic_sizes(10_000) == (43, 631)


WORDS = st.text(string.ascii_letters + "_- ", min_size=1, max_size=8).filter(lambda text: key(text))


@settings(max_examples=20, deadline=None)
@given(st.lists(WORDS, min_size=2, max_size=6, unique_by=key))
def test_every_folder_finds_a_leaf_of_its_own(names: list[str]) -> None:
    taxonomy = propose(flat(*names), name="x").taxonomy
    leaves = LeafNames(taxonomy)
    assert sorted(leaves.find_folder((name,)) for name in names) == list(range(len(taxonomy.leaves)))  # type: ignore[type-var]


# ---------------------------------------------------------------- as a table, edited


def test_a_tree_goes_through_its_table_and_keeps_its_ids(tmp_path: Path) -> None:
    original = propose([*PETS, *flat("qzx17", "wvv9")], name="pets").taxonomy
    (tmp_path / "pets.csv").write_text(dumps_table(original), encoding="utf-8")
    back = with_ids_of(load_taxonomy(tmp_path / "pets.csv"), original)
    assert (back.name, back.tiers) == (original.name, original.tiers)
    assert [back.node(leaf) for leaf in back.leaves] == [original.node(leaf) for leaf in original.leaves]
    assert back.classes(0) == original.classes(0)


def test_a_class_that_was_renamed_or_moved_in_the_table_is_so(tmp_path: Path) -> None:
    original = propose(PETS, name="pets").taxonomy
    text = dumps_table(original).replace("carnivore,", "pet,").replace("vehicle,taxi", "cab,taxi")
    (tmp_path / "pets.csv").write_text(text, encoding="utf-8")
    back = with_ids_of(load_taxonomy(tmp_path / "pets.csv"), original)
    assert groups(back)["pet"] == {"golden retriever", "tabby cat", "Chihuahua"}
    assert groups(back)["cab"] == {"taxi"}
    assert back.leaves == original.leaves


def test_a_name_beside_the_same_name_with_an_id_is_found_again() -> None:
    proposal = propose([("crane",), ("n02012849-crane",), ("dog",)], name="x")
    leaves = LeafNames(proposal.taxonomy)
    found = [leaves.find_folder((name,)) for name in ("crane", "n02012849-crane", "dog")]
    assert sorted(found) == [0, 1, 2]
    assert proposal.taxonomy.leaves[found[1]] == "n02012849"
    assert proposal.taxonomy.node(proposal.taxonomy.leaves[found[0]]).name == "crane"
