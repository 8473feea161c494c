"""What speaks for a sense of a word before other names are looked at: what photographs show, and what people say.

Two lists come with the package (NOTICE tells where from): how often WordNet's authors met each sense of a word in
texts, and the synsets of which ImageNet-22k has photographs.
"""

import functools
import gzip
import importlib.resources
import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence

from taxonomy import wordnet
from taxonomy.errors import TaxonomyError

# How likely a photograph shows a thing of this kind, before anything else is known.
VISIBLE = {
    "animal": 1.0,
    "food": 0.9,
    "artifact": 0.8,
    "object": 0.4,
    "substance": 0.3,
    "act": 0.1,  # sports
    "plant": 0.1,  # crops have a plant sense and a food sense; pictures show what is eaten
    "body": 0.07,
    "Tops": 0.07,  # WordNet's name for the kinds themselves, "person" and "plant" among them
    "phenomenon": 0.06,
    "person": 0.05,
}
INVISIBLE = 0.02

SAID = 0.5  # exponent of how often a sense of the word is met in texts
UNMET = 0.5  # times that a sense is taken to have been met beyond those that were counted
PHOTOGRAPHED = 0.8  # exponent of one more than the number of photographed kinds
FIRST = 0.8  # bonus of a sense whose first word this is (natural logarithm, as all bonuses)
PLURAL = -1.5  # of a sense that has only the word whose plural this is, where others have the word itself
PARTS = 0.5  # bonus of a sense whose parts WordNet lists
CASE = 0.5  # bonus of a sense that is spelled with the same capitals


def priors(name: str, word: str, senses: Sequence[str], *, photographed: bool = True) -> list[float]:
    """Say how likely a name means each of its senses, as natural logarithms up to a common addend.

    The prior of a sense is how visible its kind is (`VISIBLE`), times the share of its mentions among those of all the
    word's senses to the power SAID, times one more than the number of synsets at or below it of which ImageNet-22k
    has photographs, to the power PHOTOGRAPHED, times exp(FIRST) where WordNet names the synset by this word first,
    times exp(PARTS) where it lists parts of the thing, as it does of everyday things, times exp(CASE) where the
    capitals agree, times exp(PLURAL) where it has "glass" and others have "glasses" itself.

    Args:
        name: the name as it is given.
        word: what of it was looked up.
        senses: synset ids that `word` may mean.
        photographed: whether ImageNet-22k's list counts.
    """
    said = [num_said(word, sense) + UNMET for sense in senses]
    kinds = num_photographed() if photographed else {}
    itself = [_has(sense, {wordnet.letters(word)}) for sense in senses]
    found = []
    for sense, times, exact in zip(senses, said, itself, strict=True):
        synset = wordnet.known(sense)
        prior = math.log(VISIBLE.get(synset.category, INVISIBLE)) + SAID * math.log(times / sum(said))
        prior += PHOTOGRAPHED * math.log1p(kinds.get(sense, 0))
        prior += FIRST * (wordnet.letters(synset.lemmas[0]) in wordnet.base_forms(word))
        prior += PLURAL * (any(itself) and not exact)
        prior += PARTS * (sense in wordnet.have_parts())
        prior += CASE * (name.replace("_", " ") in synset.lemmas)
        found.append(prior)
    return found


def _has(synset_id: str, forms: Collection[str]) -> bool:
    return any(wordnet.letters(lemma) in forms for lemma in wordnet.known(synset_id).lemmas)


def num_said(word: str, synset_id: str) -> int:
    """Return how often a word was met with this meaning in the texts that WordNet's authors tagged."""
    forms = wordnet.base_forms(word)
    counts = _tag_counts()
    lemmas = [lemma.lower() for lemma in wordnet.known(synset_id).lemmas]
    return max(
        (counts.get((lemma, synset_id), 0) for lemma in lemmas if wordnet.letters(lemma) in forms), default=0
    )


@functools.cache
def num_photographed() -> Mapping[str, int]:
    """Return the number of synsets at or below each synset of which ImageNet-22k has photographs."""
    return Counter(above for synset_id in photographed_synsets() for above in wordnet.ancestors(synset_id))


@functools.cache
def photographed_synsets() -> tuple[str, ...]:
    """Return the ids of ImageNet-22k's synsets, sorted."""
    return tuple(_lines("imagenet-22k"))


@functools.cache
def _tag_counts() -> Mapping[tuple[str, str], int]:
    rows = (line.split() for line in _lines("tag-counts"))
    return {(word.replace("_", " "), synset_id): int(count) for word, synset_id, count in rows}


def _lines(name: str) -> list[str]:
    resource = importlib.resources.files("taxonomy") / "data" / "senses" / f"{name}.txt.gz"
    try:
        return gzip.decompress(resource.read_bytes()).decode().splitlines()
    except (OSError, EOFError):
        raise TaxonomyError(f"{name}.txt.gz of this package is missing or broken; install it again") from None
