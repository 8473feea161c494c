"""Which sense of a class name is meant."""

from importlib.resources import files

import pytest

from taxonomy import TaxonomyError, wordnet
from taxonomy.senses import SenseChoice, candidates, choose_senses, close_words

IDS = files("taxonomy") / "data" / "anchors" / "imagenet-1k.ids.txt"


def chosen(*names: str, **pins: str) -> dict[str, str]:
    return {choice.name: choice.synset.id for choice in choose_senses(names, pins=pins)}


def test_birds_make_a_crane_a_bird() -> None:
    assert chosen("crane", "flamingo", "heron", "stork")["crane"] == "n02012849"


def test_machines_make_a_crane_a_machine() -> None:
    assert chosen("crane", "bulldozer", "forklift", "tractor")["crane"] == "n03126707"


def test_the_same_name_twice_takes_two_senses() -> None:
    choices = choose_senses(["crane", "crane", "flamingo", "forklift", "tractor", "stork"])
    assert {choices[0].synset.id, choices[1].synset.id} == {"n02012849", "n03126707"}


def test_a_name_given_twice_is_no_company_to_itself() -> None:
    (choice, _, _) = choose_senses(["crane", "crane", "stork"])
    assert choice.synset.id == "n02012849"


def test_most_names_of_imagenet_are_read_as_meant() -> None:
    ids = [line.split()[0] for line in IDS.read_text("utf-8").splitlines()]
    meant: dict[str, set[str]] = {}
    for synset_id in ids:
        meant.setdefault(wordnet.known(synset_id).lemmas[0], set()).add(synset_id)
    right = sum(choice.synset.id in meant[choice.name] for choice in choose_senses(list(meant)))
    assert right / len(meant) >= 0.9  # the first sense is right for 0.79


def test_a_photograph_shows_things_rather_than_ideas() -> None:
    answers = chosen("mouse", "keyboard", "monitor", "printer")
    assert answers == {
        "mouse": "n03793489",
        "keyboard": "n03614007",
        "monitor": "n03782190",  # the display, not the equipment of a studio
        "printer": "n04004767",
    }


@pytest.mark.parametrize(
    ("name", "synset"),
    [
        ("tabby cat", "n02123045"),
        ("school_bus", "n04146614"),
        ("ice-cream", "n07614500"),
        ("Golden Retrievers", "n02099601"),
        ("goldfish, Carassius auratus", "n01443537"),
        ("n02084071", "n02084071"),
        ("crane (bird)", "n02012849"),
        ("crane (machine)", "n03126707"),
    ],
)
def test_names_are_read_in_many_spellings(name: str, synset: str) -> None:
    (choice,) = choose_senses([name])
    assert choice.synset.id == synset
    assert choice.note == ""


def test_an_unknown_phrase_is_taken_by_its_last_words_with_a_note() -> None:
    (choice,) = choose_senses(["spotted tabby cat"])
    assert choice.synset.id == "n02123045"
    assert choice.note == "'spotted tabby cat' is not in WordNet; taken as 'tabby cat'"


def test_a_pin_decides_and_the_other_senses_are_still_reported() -> None:
    (crane, _, _) = choose_senses(["crane", "flamingo", "heron"], pins={"crane": "n03126707"})
    assert crane.synset.id == "n03126707"
    assert {node.id for node in crane.rejected} == {"n02012849", "n09295455", "n10914331", "n10914447"}


def test_every_rejected_sense_comes_with_its_definition() -> None:
    (choice, _) = choose_senses(["crane", "flamingo"])
    assert isinstance(choice, SenseChoice)
    assert {choice.synset.id, *(node.id for node in choice.rejected)} == set(wordnet.senses("crane"))
    assert all(node.definition == wordnet.known(node.id).definition for node in choice.rejected)


def test_every_name_that_wordnet_lacks_is_listed_with_close_spellings() -> None:
    with pytest.raises(TaxonomyError) as caught:
        choose_senses(["dog", "chihuaua", "qwertyuiop", "girafe"])
    text = str(caught.value)
    assert "'chihuaua' (close: chihuahua" in text
    assert "'qwertyuiop'" in text
    assert "'girafe' (close: giraffe" in text
    assert "'dog'" not in text
    assert "\n" not in text


def test_close_words_are_near_in_spelling() -> None:
    assert close_words("elefant")[0] == "elephant"


def test_a_pin_for_a_name_that_is_not_there_is_refused() -> None:
    with pytest.raises(
        TaxonomyError, match=r"'cran' is pinned but is none of the names; did you mean 'crane'\?"
    ):
        choose_senses(["crane"], pins={"cran": "n03126707"})


def test_a_pin_to_no_synset_is_refused() -> None:
    with pytest.raises(TaxonomyError, match="'n00000001'"):
        choose_senses(["crane"], pins={"crane": "n00000001"})


def test_the_order_of_the_names_does_not_matter() -> None:
    names = ["boxer", "poodle", "crane", "flamingo", "drum", "flute", "bass"]
    assert chosen(*names) == chosen(*reversed(names))


def test_candidates_are_the_senses_of_a_name_and_the_likeliest_comes_first() -> None:
    assert set(candidates("crane")) == set(wordnet.senses("crane"))
    assert set(candidates("crane")[:2]) == {"n02012849", "n03126707"}
    assert candidates("qwertyuiop") == ()


def test_evidence_tips_a_sense_and_its_weight() -> None:
    names = ["crane", "flamingo", "heron"]
    (plain, *_) = choose_senses(names)
    (seen, *_) = choose_senses(names, evidence={"crane": {"n03126707": 9.0, "n00000000": 9.0}, "owl": {}})
    assert (plain.synset.id, seen.synset.id) == ("n02012849", "n03126707")
    (surer, *_) = choose_senses(names, evidence={"crane": {"n02012849": 9.0}})
    assert surer.weight > plain.weight
