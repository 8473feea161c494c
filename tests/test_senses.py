"""Which sense of a class name is meant."""

import tracemalloc
from importlib.resources import files

import pytest

from taxonomy import TaxonomyError, wordnet
from taxonomy.evidence import num_photographed, num_said, photographed_synsets
from taxonomy.senses import SenseChoice, candidates, choose_senses, close_words, contradiction, is_known

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
    choices = choose_senses(list(meant), photographed=False)  # that they are photographed is no evidence here
    wrong = [choice for choice in choices if choice.synset.id not in meant[choice.name]]
    assert 1 - len(wrong) / len(meant) >= 0.94  # the first sense is right for 0.79
    assert sum(not choice.doubtful for choice in wrong) <= len(wrong) / 20


def test_a_photograph_shows_things_rather_than_ideas() -> None:
    answers = chosen("mouse", "keyboard", "monitor", "printer")
    assert answers == {
        "mouse": "n03793489",
        "keyboard": "n03614007",
        "monitor": "n03782190",  # the display, not the equipment of a studio
        "printer": "n04004767",
    }


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (["cat", "dog", "bird"], "animal"),
        (["chicken", "duck", "turkey", "goose", "pig", "cow", "sheep", "horse"], "animal"),
        (["airplane", "boat", "bus", "car", "train", "truck", "motorbike"], "artifact"),
        (["apple", "orange", "banana", "kiwi", "date", "lime"], "food"),
        (["baseball", "football", "cricket", "tennis", "rowing"], "act"),
        (["glacier", "mountain", "sea"], "object"),
        (["roses", "tulips", "daisy", "sunflowers"], "plant"),
    ],
)
def test_everyday_words_mean_what_photographs_show(names: list[str], kind: str) -> None:
    assert {c.name: wordnet.known(c.synset.id).category for c in choose_senses(names)} == dict.fromkeys(
        names, kind
    )


@pytest.mark.parametrize("name", ["cat", "dog", "bird", "horse", "mountain", "boat", "airplane"])
def test_a_name_alone_is_read_by_its_everyday_sense(name: str) -> None:
    (choice,) = choose_senses([name])
    assert choice.synset.id == wordnet.senses(name)[0]
    assert not choice.doubtful


def test_a_sense_that_two_names_share_is_no_company() -> None:
    answers = chosen("cardboard", "glass", "metal", "paper", "plastic", "trash")
    assert answers["glass"] != answers["trash"]
    assert "n03754295" not in answers.values()  # the drug, which both names may mean


def test_the_photographed_synsets_may_be_left_out_of_the_evidence() -> None:
    flock = ["chicken", "duck", "turkey", "goose"]
    categories = {
        which: {wordnet.known(c.synset.id).category for c in choose_senses(flock, photographed=which)}
        for which in (True, False)
    }
    assert categories == {True: {"animal"}, False: {"food"}}


def test_a_meaning_that_wordnet_lacks_makes_the_others_doubtful() -> None:
    cats = {
        c.name: c for c in choose_senses(["Bengal", "Siamese cat", "Abyssinian", "Manx cat", "Persian cat"])
    }
    assert [name for name, choice in cats.items() if choice.doubtful] == [
        "Bengal"
    ]  # WordNet knows the region


def test_an_id_before_a_name_decides_and_nothing_is_doubtful() -> None:
    for name in (
        "n02085620-Chihuahua",
        "n02085620_chihuahua",
        "n02085620",
        "n02085620 dog",
        "n02085620-qzx17",
    ):
        (choice,) = choose_senses([name])
        assert (choice.synset.id, choice.rejected, choice.doubtful) == ("n02085620", (), False)


def test_a_name_that_contradicts_its_id_is_doubtful_and_told() -> None:
    (choice, _) = choose_senses(["n02012849_whale", "n02012849_crane"])
    assert choice.synset.id == "n02012849"
    assert choice.doubtful
    assert choice.note.startswith("'n02012849_whale': n02012849 is 'crane' (large long-necked wading bird")
    assert choice.note.endswith("not 'whale'; the id decides")


def test_the_names_of_the_bundled_tree_contradict_none_of_its_ids() -> None:
    names = [line.replace(" ", "_", 1) for line in IDS.read_text("utf-8").splitlines()]
    contradicted = [name for name in names if contradiction(name)]
    assert len(contradicted) <= 6, contradicted  # such as a rooster, which is no cock in WordNet


def test_a_name_without_something_is_not_that_thing() -> None:
    assert is_known("with_mask")
    assert not is_known("without_mask")
    assert not is_known("no mask")


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
        ("diningtable", "n03201208"),
        ("TeddyBear", "n04399382"),
        ("003.backpack", "n02769748"),
        ("T-shirt/top", "n03595614"),
        ("shoes", "n04199027"),  # WordNet has the plural, too: "if I were in your shoes"
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


def test_the_last_word_of_words_written_as_one_is_taken_with_a_note() -> None:
    choices = choose_senses(["pottedplant", "HerbaceousVegetation"])
    assert [choice.note for choice in choices] == [
        "'pottedplant' is not in WordNet; taken as 'plant'",
        "'HerbaceousVegetation' is not in WordNet; taken as 'Vegetation'",
    ]


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


def test_two_names_of_one_thing_do_not_drive_one_of_them_to_a_sense_that_it_hardly_has() -> None:
    answers = chosen("aeroplane", "airplane", "plane", "helicopter", "glider")
    assert answers["aeroplane"] == answers["airplane"] == answers["plane"] == "n02691156"


def test_what_people_say_and_what_is_photographed_is_known() -> None:
    assert num_said("dog", "n02084071") == num_said("dogs", "n02084071") == 42
    assert num_said("dog", "n07676602") == 0
    assert len(photographed_synsets()) == 21841
    assert num_photographed()["n01503061"] > 800  # birds
    assert "n03754295" not in num_photographed()


def test_senses_of_many_names_are_chosen_in_little_memory() -> None:
    names = [wordnet.known(synset_id).lemmas[0] for synset_id in photographed_synsets()[::20]]
    choose_senses(names)  # WordNet is read
    tracemalloc.start()
    choose_senses(names)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (
        peak < 25e6
    )  # a matrix of senses by ancestors would take 62 MB for these 1,093 names, 8 GB for 10,000
