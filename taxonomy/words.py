"""Reading class names: which noun synsets of WordNet a name such as "n02012849-crane" or "TeddyBears" may mean."""

import difflib
import functools
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from taxonomy import wordnet
from taxonomy.labels import leading_id

NEGATIONS = frozenset({"no", "non", "not", "without"})
"""A name with one of these words is not the kind that its last words say: "without mask"."""

_LETTERS = re.compile(r"[^\W\d_]{2}")


@dataclass(frozen=True, slots=True)
class Reading:
    """What a name may mean.

    `senses` are synset ids in WordNet's order, none where WordNet has neither the name nor its last words. `word` is
    what was looked up. `note` is not empty where only a part of the name was used or where the name contradicts its id.
    """

    senses: tuple[str, ...] = ()
    word: str = ""
    note: str = ""


@functools.lru_cache(maxsize=50_000)
def read(name: str) -> Reading:
    """Read a class name.

    A synset id alone, or before a name as in "n02085620-Chihuahua", decides. Else the name is looked up as it is (any
    case; spaces, underscores or hyphens) and as a plural, without a number before it, in its parts where capitals
    tell them ("TeddyBear") and with spaces where WordNet has them ("diningtable"). "crane (bird)" keeps the senses
    below (else nearest to) the word in brackets, "goldfish, Carassius auratus" those that have most of these words,
    "T-shirt/top" those of the first. Last, its last words are taken, with a note: "spotted tabby cat" as "tabby cat";
    but not of "without mask".
    """
    text = " ".join(name.replace("_", " ").split())
    given = leading_id(text)
    if given is not None and wordnet.synset(given) is not None:
        return Reading((given,), given, contradiction(name))
    bracket = re.fullmatch(r"(.+?) \((.+)\)", text)
    if bracket:
        whole = read(bracket[1])
        return Reading(_hinted(whole.senses, wordnet.senses(bracket[2])), whole.word, whole.note)
    if (parts := [part.strip() for part in re.split(r"[,/]", text) if wordnet.senses(part)]) and parts != [
        text
    ]:
        return Reading(_most_voted(parts), parts[0])
    for form in _forms(text):
        if senses := wordnet.senses(form):
            return Reading((*senses, *wordnet.plural_senses(form)), form)
    return _of_last_words(name, text)


def is_known(name: str) -> bool:
    """Whether WordNet has a noun for a name, or for its last words, of at least two letters: "model 3" has none."""
    found = read(name)
    return bool(found.senses) and (leading_id(name) is not None or _LETTERS.search(found.word) is not None)


def contradiction(name: str) -> str:
    """Say how the words of a name contradict the synset id before them; empty where they don't.

    They do where WordNet has them all, but neither for that synset nor for one above or below it.
    """
    given = leading_id(name)
    rest = name[len(given) :].strip(" _-.,:") if given else ""
    synset = wordnet.synset(given) if given else None
    if given is None or synset is None or not rest:
        return ""
    found = read(rest)
    senses = found.senses if _LETTERS.search(found.word) and not found.note else ()
    related = wordnet.ancestors(given)
    if not senses or any(sense in related or given in wordnet.ancestors(sense) for sense in senses):
        return ""
    return f"{name!r}: {given} is {synset.lemmas[0]!r} ({synset.definition}), not {rest!r}; the id decides"


def close_words(name: str, num: int = 3) -> list[str]:
    """Nouns of WordNet spelled like a name, the closest first."""
    text = " ".join(re.split(r"[\s_-]+", name.strip().lower()))
    near = [word for word in wordnet.words() if word[:1] == text[:1] and abs(len(word) - len(text)) <= 3]
    return difflib.get_close_matches(text, sorted(near), n=num, cutoff=0.75)


def _forms(text: str) -> list[str]:
    """Ways to write the whole of a name, the likeliest first."""
    bare = _bare(text)
    forms = [text, bare, _spread(text), _spread(bare)]
    return list(dict.fromkeys([*forms, *(_joined().get(form.lower(), form) for form in forms)]))


def _bare(text: str) -> str:
    """The text without a number before it."""
    return re.sub(r"^\d+[.\s-]+", "", text) or text


def _spread(text: str) -> str:
    """The text with a space before each capital that follows a small letter."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", text)


def _most_voted(parts: list[str]) -> tuple[str, ...]:
    """The senses that most of some words have; where none has more than one word, those of the first."""
    votes = Counter(sense for part in parts for sense in wordnet.senses(part))
    most = max(votes.values())
    return tuple(sense for sense in votes if votes[sense] == most > 1) or wordnet.senses(parts[0])


def _of_last_words(name: str, text: str) -> Reading:
    parts = re.split(r"[ -]", _spread(_bare(text)))
    if NEGATIONS & {part.lower() for part in parts}:
        return Reading()
    for start in range(1, len(parts)):
        words = " ".join(parts[start:])
        if senses := wordnet.senses(words):
            return Reading(senses, words, f"{name!r} is not in WordNet; taken as {words!r}")
    if len(parts) == 1:
        words = _tail(text.lower())
        if words:
            return Reading(wordnet.senses(words), words, f"{name!r} is not in WordNet; taken as {words!r}")
    return Reading()


def _tail(text: str) -> str:
    """The noun at the end of two words written as one, such as "monitor" of "tvmonitor"; empty where there is none."""
    for end in range(2, len(text) - 3):
        head, tail = text[:end], text[end:]
        if tail in wordnet.common_nouns() and (head in _parts() or (len(head) > 4 and head.endswith("ed"))):
            return tail
    return ""


@functools.cache
def _joined() -> Mapping[str, str]:
    """WordNet's nouns of several words, by how they look without the spaces and hyphens."""
    return {re.sub(r"[ -]", "", word): word for word in sorted(wordnet.words()) if " " in word}


@functools.cache
def _parts() -> frozenset[str]:
    """The words that WordNet's common nouns are made of."""
    return frozenset(part for word in wordnet.common_nouns() for part in word.split())


def _hinted(senses: tuple[str, ...], hints: tuple[str, ...]) -> tuple[str, ...]:
    """The senses below a sense of the hint; where there is none, those that share most with its first sense."""
    below = tuple(sense for sense in senses if set(hints) & (wordnet.ancestors(sense) - {sense}))
    if below or not hints:
        return below or senses
    near = {s: max(map(wordnet.depth, wordnet.ancestors(s) & wordnet.ancestors(hints[0]))) for s in senses}
    return tuple(sense for sense in senses if near[sense] == max(near.values()))
