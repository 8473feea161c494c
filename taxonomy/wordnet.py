"""WordNet 3.0's nouns, read through NLTK from the archive that ships with the package.

The one file that imports NLTK, and only inside functions: WordNet is needed to build a tree, never to use one.
Everything here is plain values; ids are written as ImageNet writes them, `n` and the 8-digit offset.
Methods may be called from several threads; a lock guards NLTK's shared file position.
"""

import functools
import importlib.resources
import io
import re
import threading
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from taxonomy.errors import TaxonomyError

ROOT = "n00001740"  # entity, above every noun

_ID = re.compile(r"n\d{8}")
_LOCK = threading.RLock()


@dataclass(frozen=True, slots=True)
class Synset:
    """A noun synset: its lemmas in WordNet's order, spaces for underscores, and the ids of its hypernyms."""

    id: str
    lemmas: tuple[str, ...]
    definition: str
    category: str  # name of the lexicographer file, like "animal" or "artifact"
    parents: tuple[str, ...]  # hypernyms and instance hypernyms, sorted by id


@functools.cache
def _reader() -> Any:
    try:
        import nltk.data
        from nltk.corpus.reader.wordnet import WordNetCorpusReader
    except ImportError:
        raise TaxonomyError("building a taxonomy needs NLTK; run: pip install nltk") from None

    class BundledReader(WordNetCorpusReader):  # type: ignore[misc]
        """Reads the package's own archive, wherever it is installed.

        NLTK accepts a corpus only below its global search path, so that is longer while the reader is made; and it
        finds none in folders that a group may write to, as many installations leave them, so that the files are
        handed to it unpacked.
        """

        def open(self, file: str) -> Any:
            return nltk.data.SeekableUnicodeStreamReader(io.BytesIO(_unpacked(f"wordnet/{file}")), "utf8")

        def map_wn(self, version: str = "wordnet") -> None:
            """Need no mapping to another WordNet version; NLTK would look for a second archive."""

    with _LOCK, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # NLTK warns that other languages are not there
        folder = str(importlib.resources.files("taxonomy"))
        nltk.data.path.append(folder)
        try:
            return BundledReader(folder, None)
        finally:
            nltk.data.path.remove(folder)


def _unpacked(name: str) -> bytes:
    resource = importlib.resources.files("taxonomy") / "data" / "wordnet" / "corpora" / "wordnet.zip"
    try:
        with resource.open("rb") as file, zipfile.ZipFile(file) as archive:
            return archive.read(name)
    except (OSError, KeyError, zipfile.BadZipFile):
        raise TaxonomyError(
            "the WordNet archive of this package is missing or broken; install it again"
        ) from None


@functools.cache
def synset(synset_id: str) -> Synset | None:
    """Look up a synset by its id; None where WordNet 3.0 has no such noun."""
    if not _ID.fullmatch(synset_id):
        return None
    with _LOCK:
        # NLTK reads whatever stands at an offset: ask only for offsets that start a line.
        if synset_id not in _hypernyms():
            return None
        found = _reader().synset_from_pos_and_offset("n", int(synset_id[1:]))
        parents = found.hypernyms() + found.instance_hypernyms()
        return Synset(
            synset_id,
            tuple(lemma.replace("_", " ") for lemma in found.lemma_names()),
            found.definition(),
            found.lexname().removeprefix("noun."),
            tuple(sorted({_id(parent) for parent in parents})),
        )


def known(synset_id: str) -> Synset:
    """Look up a synset by its id; raises TaxonomyError where WordNet 3.0 has no such noun."""
    found = synset(synset_id)
    if found is None:
        raise TaxonomyError(
            f"WordNet 3.0 has no noun synset {synset_id!r}; write `n` and 8 digits, like n02084071"
        )
    return found


@functools.cache
def senses(word: str) -> tuple[str, ...]:
    """Return the ids of the noun senses of a word in WordNet's order, the most frequent first.

    Case does not matter, nor whether a space, an underscore or a hyphen joins the parts. Inflected forms are
    looked up as they are first; only where that finds nothing, by their base form (Princeton's morphy rules).
    """
    with _LOCK:
        for form in _spellings(word):
            exact = [s for s in _reader().synsets(form, pos="n", check_exceptions=False) if _has(s, form)]
            if exact:
                return tuple(dict.fromkeys(_id(s) for s in exact))
        for form in _spellings(word):
            inflected = _reader().synsets(form, pos="n")
            if inflected:
                return tuple(dict.fromkeys(_id(s) for s in inflected))
    return ()


@functools.cache
def plural_senses(word: str) -> tuple[str, ...]:
    """Return the ids of the noun senses of the words whose plural a word is, in WordNet's order; none are its own."""
    own = set(senses(word))
    with _LOCK:
        bases = [base for form in _spellings(word) for base in _bases(form)]
        found = [_id(s) for base in bases for s in _reader().synsets(base, pos="n") if _has(s, base)]
    return tuple(sense for sense in dict.fromkeys(found) if sense not in own)


@functools.cache
def base_forms(word: str) -> frozenset[str]:
    """Return the nouns that a word is a form of, itself included, as `letters`: of "roses" roses, rose."""
    with _LOCK:
        forms = _spellings(word)
        bases = [base for form in forms for base in _bases(form)]
    return frozenset(letters(form) for form in (*forms, *bases))


def _bases(form: str) -> list[str]:
    """The nouns of at least three letters that a word is an inflected form of, by Princeton's morphy rules."""
    return [base for base in _reader()._morphy(form, "n") if base != form and len(base) > 2]


def letters(word: str) -> str:
    """Return a word in lower case without what joins its parts: "ice-cream", "ice cream" and "ice_cream" are equal."""
    return re.sub(r"[\s_-]", "", word.lower())


@functools.cache
def ancestors(synset_id: str) -> frozenset[str]:
    """Return the ids of a synset and of everything above it, by every hypernym path."""
    return frozenset(_upward(synset_id))


def _upward(synset_id: str) -> set[str]:
    found = {synset_id}
    waiting = [synset_id]
    while waiting:
        for parent in _hypernyms()[waiting.pop()]:
            if parent not in found:
                found.add(parent)
                waiting.append(parent)
    return found


@functools.cache
def depth(synset_id: str) -> int:
    """Return the number of edges of the longest hypernym path from a synset to the root."""
    return max((depth(parent) + 1 for parent in _hypernyms()[synset_id]), default=0)


@functools.cache
def num_below() -> Mapping[str, int]:
    """Return the number of synsets at or below each synset, by every hypernym path."""
    counts: dict[str, int] = {}
    for synset_id in _hypernyms():
        for above in _upward(synset_id):
            counts[above] = counts.get(above, 0) + 1
    return counts


@functools.cache
def words() -> frozenset[str]:
    """Return every noun of WordNet, in lower case, with spaces for underscores."""
    with _LOCK:
        return frozenset(lemma.replace("_", " ") for lemma in _reader().all_lemma_names(pos="n"))


@functools.cache
def common_nouns() -> frozenset[str]:
    """Return the nouns of WordNet that are written without a capital, with spaces for underscores."""
    found: set[str] = set()
    for _, data in _data_lines():
        fields = data.split(" ")
        found.update(fields[4 : 4 + 2 * int(fields[3], 16) : 2])
    return frozenset(word.replace("_", " ") for word in found if word == word.lower())


@functools.cache
def have_parts() -> frozenset[str]:
    """Return the ids of the synsets whose parts WordNet lists: mostly everyday things, such as a car or a bird."""
    return frozenset(synset_id for synset_id, data in _data_lines() if " %p " in data)


@functools.cache
def _hypernyms() -> Mapping[str, tuple[str, ...]]:
    """Ids of the direct hypernyms of every noun synset (0.4 s once; NLTK object by object takes 20 s)."""
    pointer = re.compile(r" @i? (\d{8}) n")
    return {
        synset_id: tuple(sorted({"n" + offset for offset in pointer.findall(data)}))
        for synset_id, data in _data_lines()
    }


def _data_lines() -> Iterator[tuple[str, str]]:
    """Every noun synset's id and its line in WordNet's file, without the definition."""
    for line in _unpacked("wordnet/data.noun").decode().splitlines():
        if line[:1].isdigit():
            yield "n" + line[:8], line.partition(" | ")[0]


def _spellings(word: str) -> list[str]:
    parts = [part for part in re.split(r"[\s_]+", word.strip().lower()) if part]
    joined = "_".join(parts)
    pieces = joined.replace("-", "_").split("_")
    forms = [joined, *(glue.join(pieces) for glue in ("_", "-", ""))]
    return list(dict.fromkeys(form for form in forms if form))


def _has(found: Any, form: str) -> bool:
    return any(lemma.lower() == form for lemma in found.lemma_names())


def _id(found: Any) -> str:
    return f"n{found.offset():08d}"
