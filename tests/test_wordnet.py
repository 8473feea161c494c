"""WordNet 3.0's nouns, from the archive in the package."""

from importlib import resources

import nltk.data
import pytest

from taxonomy import TaxonomyError, wordnet


def test_a_synset_has_its_lemmas_definition_category_and_hypernyms() -> None:
    dog = wordnet.known("n02084071")
    assert dog.lemmas == ("dog", "domestic dog", "Canis familiaris")
    assert dog.definition.startswith("a member of the genus Canis")
    assert dog.category == "animal"
    assert dog.parents == ("n01317541", "n02083346")  # domestic animal, canine


@pytest.mark.parametrize(
    "wrong", ["n00000001", "n02084072", "n2084071", "v00001740", "dog", "", "n020840711"]
)
def test_what_is_no_noun_synset_is_none(wrong: str) -> None:
    assert wordnet.synset(wrong) is None


def test_an_unknown_synset_says_how_ids_look() -> None:
    with pytest.raises(TaxonomyError, match=r"'n00000001'.*n02084071"):
        wordnet.known("n00000001")


@pytest.mark.parametrize("word", ["school bus", "school_bus", "School-Bus", " SCHOOL  BUS ", "school buses"])
def test_case_separators_and_plurals_do_not_matter(word: str) -> None:
    assert wordnet.senses(word) == ("n04146614",)


@pytest.mark.parametrize("word", ["ice cream", "ice-cream", "icecream", "ice_cream"])
def test_words_may_be_joined_or_apart(word: str) -> None:
    assert wordnet.senses(word) == ("n07614500",)


def test_senses_come_in_the_order_of_wordnet() -> None:
    assert wordnet.senses("dog")[:3] == ("n02084071", "n10114209", "n10023039")
    assert wordnet.senses("crane") == ("n10914447", "n10914331", "n09295455", "n03126707", "n02012849")


def test_a_word_that_exists_is_not_read_as_a_plural() -> None:
    assert wordnet.senses("glasses") == ("n04272054",)  # spectacles, not drinking glasses


def test_an_irregular_plural_has_its_singular() -> None:
    assert wordnet.senses("mice") == wordnet.senses("mouse")


def test_a_word_wordnet_does_not_have_has_no_senses() -> None:
    assert wordnet.senses("qwertyuiop") == ()
    assert wordnet.senses("") == ()


def test_ancestors_follow_every_hypernym_path() -> None:
    found = wordnet.ancestors("n02085620")  # Chihuahua
    assert {"n02085620", "n02084071", "n01317541", "n02083346", "n00015388", wordnet.ROOT} <= found


def test_depth_is_the_longest_way_up() -> None:
    assert wordnet.depth(wordnet.ROOT) == 0
    assert wordnet.depth("n02084071") == 13


def test_every_noun_is_below_the_root() -> None:
    below = wordnet.num_below()
    assert len(below) == below[wordnet.ROOT] == 82115  # as the WordNet 3.0 statistics say
    assert below["n02084071"] == 190


def test_reading_wordnet_leaves_the_search_path_of_nltk_alone() -> None:
    wordnet.senses("dog")
    assert str(resources.files("taxonomy")) not in nltk.data.path
