"""Word senses: which synset a class name such as "crane" means, judged by WordNet and the other names."""

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from taxonomy import wordnet
from taxonomy.errors import TaxonomyError
from taxonomy.tree import Node

Floats = npt.NDArray[np.float64]

RANK = 0.15  # how much less likely each later sense of WordNet's order is (natural logarithm)
CASE = 0.5  # bonus of a sense that is spelled with the same capitals
CONTEXT = 1.0  # weight of the other names
STRANGER = 0.1  # chance, in names, that a name has nothing to do with the others
ROUNDS = 8

DOUBT = 0.9  # a sense of less weight is doubtful; `benchmarks/senses.py` says how many wrong ones that finds

# How likely a photograph shows a thing of this kind, before anything else is known.
VISIBLE = {
    "animal": 1.0,
    "artifact": 1.0,
    "food": 1.0,
    "plant": 0.5,  # crops have a plant sense and a food sense; pictures show what is eaten
    "object": 0.6,
    "body": 0.5,
    "person": 0.3,
    "substance": 0.3,
    "phenomenon": 0.2,
}
INVISIBLE = 0.05


@dataclass(frozen=True, slots=True)
class SenseChoice:
    """The sense chosen for a name, those rejected, and a note where only a part of the name was used.

    `rejected` has the likeliest first, or WordNet's order where the sense is pinned. `weight` is the chosen sense's
    share of the weight of all senses, 0 to 1; 1 where it is pinned or the only one.
    """

    name: str
    synset: Node
    rejected: tuple[Node, ...]
    note: str = ""
    weight: float = 1.0

    @property
    def doubtful(self) -> bool:
        """Whether a person should look: another sense is not much less likely, or a part of the name was not used."""
        return self.weight < DOUBT or bool(self.note)


Evidence = Mapping[str, Mapping[str, float]]
"""Per name, as it is given, a bonus per synset id that is added to the prior of that sense (natural logarithm)."""


def candidates(name: str) -> tuple[str, ...]:
    """Return the ids of the synsets that a name may mean, the likeliest first, judged by the name alone.

    Empty where WordNet has neither the name nor its last words.
    """
    senses, _ = _candidates(name)
    prior = {sense: _prior(name, sense, k) for k, sense in enumerate(senses)}
    return tuple(sorted(senses, key=lambda sense: -prior[sense]))


def choose_senses(
    names: Sequence[str], *, pins: Mapping[str, str] | None = None, evidence: Evidence | None = None
) -> tuple[SenseChoice, ...]:
    """Resolve each name to one noun synset of WordNet 3.0.

    The rule. Each sense of a name starts with a weight: how visible its kind is (`VISIBLE`), times exp(-RANK) per
    step in WordNet's order, times exp(CASE) where the capitals agree. Then, for ROUNDS rounds, it is multiplied by
    how well it keeps company with the other names, to the power CONTEXT, and the weights of a name's senses are
    scaled to sum to 1. The company of a sense is the chance to draw it as follows: take another name (one with the
    same senses is not another), take one of its senses by weight, take one of that sense's ancestors, take one of the
    synsets below that ancestor. So a sense gains from near relatives most, from far ones a little. The heaviest sense
    wins, the surest name first; a sense that another name has is taken only where no other is left.

    A name is looked up as it is (any case; spaces, underscores or hyphens), then as a plural, then by its last words
    ("spotted tabby cat" as "tabby cat", with a note). "goldfish, Carassius auratus" keeps the senses that have most
    of these words, "crane (bird)" those below (else nearest to) the word in brackets. A synset id stands for itself.

    Args:
        names: class names in English.
        pins: synset id for each name whose sense the caller decides.
        evidence: what speaks for senses beyond names, such as what photographs show: per name a bonus per synset id,
            natural logarithm, added to the prior of that sense; senses and names that are not there get none.

    Returns:
        One choice per name, in the order of the names.

    Raises:
        TaxonomyError: names that WordNet does not have, all listed with close spellings; a pin for a name that is not
            there, or of no synset.
    """
    pins = pins or {}
    _check_pins(names, pins)
    found = [((pins[name],), "") if name in pins else _candidates(name) for name in names]
    _check_found(names, [senses for senses, _ in found])
    weights = _weights(names, [senses for senses, _ in found], evidence or {})
    chosen = _distinct([senses for senses, _ in found], weights)
    choices = []
    for i, (senses, note) in enumerate(found):
        order = sorted(range(len(senses)), key=lambda k: (k != chosen[i], -weights[i][k], k))
        every = senses if names[i] not in pins else (senses[0], *_others(names[i], senses[0]))
        ranked = [senses[k] for k in order] if len(every) == len(senses) else list(every)
        others = tuple(_node(sense) for sense in ranked[1:])
        choices.append(
            SenseChoice(names[i], _node(ranked[0]), others, note, round(float(weights[i][chosen[i]]), 3))
        )
    return tuple(choices)


def is_known(name: str) -> bool:
    """Whether WordNet has a noun for a name, or for its last words, of at least two letters: "model 3" has none."""
    senses, note = _candidates(name)
    read = note.rpartition("taken as ")[2].strip("'\"") if note else name
    if wordnet.synset(name) is not None:
        return True
    return bool(senses) and re.search(r"[^\W\d_]{2}", read) is not None


# ---------------------------------------------------------------- names


def _candidates(name: str) -> tuple[tuple[str, ...], str]:
    """The senses a name may have in WordNet's order, and a note where only its last words are known."""
    text = " ".join(name.replace("_", " ").split())
    if wordnet.synset(text) is not None:
        return (text,), ""
    bracket = re.fullmatch(r"(.+?) \((.+)\)", text)
    if bracket:
        senses, note = _candidates(bracket[1])
        return _hinted(senses, wordnet.senses(bracket[2])), note
    if "," in text:
        votes: dict[str, int] = {}
        for part in text.split(","):
            for sense in wordnet.senses(part):
                votes[sense] = votes.get(sense, 0) + 1
        return tuple(sense for sense, count in votes.items() if count == max(votes.values())), ""
    parts = re.split(r"[ -]", text)
    for start in range(len(parts)):
        senses = wordnet.senses(" ".join(parts[start:]) if start else text)
        if senses:
            read = " ".join(parts[start:])
            return senses, f"{name!r} is not in WordNet; taken as {read!r}" if start else ""
    return (), ""


def _hinted(senses: tuple[str, ...], hints: tuple[str, ...]) -> tuple[str, ...]:
    """The senses below a sense of the hint; where there is none, those that share most with its first sense."""
    below = tuple(sense for sense in senses if set(hints) & (wordnet.ancestors(sense) - {sense}))
    if below or not hints:
        return below or senses
    near = {s: max(map(wordnet.depth, wordnet.ancestors(s) & wordnet.ancestors(hints[0]))) for s in senses}
    return tuple(sense for sense in senses if near[sense] == max(near.values()))


def _others(name: str, pinned: str) -> list[str]:
    return [sense for sense in _candidates(name)[0] if sense != pinned]


def _check_pins(names: Sequence[str], pins: Mapping[str, str]) -> None:
    for name, synset_id in pins.items():
        if name not in names:
            close = difflib.get_close_matches(name, names, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise TaxonomyError(f"{name!r} is pinned but is none of the names{hint}")
        if wordnet.synset(synset_id) is None:
            raise TaxonomyError(
                f"{name!r} is pinned to {synset_id!r}, which is no noun synset of WordNet 3.0"
            )


def _check_found(names: Sequence[str], senses: Sequence[Sequence[str]]) -> None:
    missing = [name for name, found in zip(names, senses, strict=True) if not found]
    if not missing:
        return
    texts = []
    for name in missing:
        close = close_words(name)
        texts.append(f"{name!r} (close: {', '.join(close)})" if close else repr(name))
    verb = "is" if len(missing) == 1 else "are"
    raise TaxonomyError(
        f"not among WordNet's nouns {verb} {', '.join(texts)}; correct them, or pin a synset for each"
    )


def close_words(name: str, num: int = 3) -> list[str]:
    """Nouns of WordNet spelled like a name, the closest first."""
    text = " ".join(re.split(r"[\s_-]+", name.strip().lower()))
    near = [word for word in wordnet.words() if word[:1] == text[:1] and abs(len(word) - len(text)) <= 3]
    return difflib.get_close_matches(text, sorted(near), n=num, cutoff=0.75)


def _node(synset_id: str) -> Node:
    found = wordnet.known(synset_id)
    return Node(synset_id, found.lemmas[0], found.definition)


# ---------------------------------------------------------------- the rule


def _weights(names: Sequence[str], senses: Sequence[Sequence[str]], evidence: Evidence) -> list[Floats]:
    """Weight of every sense of every name, summing to 1 per name."""
    flat = [sense for found in senses for sense in found]
    starts = np.cumsum([0, *(len(found) for found in senses)])[:-1]
    owner = np.repeat(np.arange(len(senses)), [len(found) for found in senses])
    prior = np.array(
        [
            _prior(name, sense, k) + evidence.get(name, {}).get(sense, 0.0)
            for name, found in zip(names, senses, strict=True)
            for k, sense in enumerate(found)
        ]
    )
    column = {a: j for j, a in enumerate(sorted({a for sense in flat for a in wordnet.ancestors(sense)}))}
    above = np.zeros((len(flat), len(column)))  # (senses, ancestors), 1 where an ancestor-or-self
    for i, sense in enumerate(flat):
        above[i, [column[a] for a in wordnet.ancestors(sense)]] = 1
    drawn = above / above.sum(1, keepdims=True)  # chance to take each ancestor of a sense
    below = wordnet.num_below()
    size = np.array([below[a] for a in column], dtype=np.float64)
    kinds = {tuple(found): k for k, found in enumerate(dict.fromkeys(map(tuple, senses)))}
    kind = np.array(
        [kinds[tuple(found)] for found in senses]
    )  # the same word twice gives no company to itself
    weight = _scaled(prior, starts, owner)
    for _ in range(ROUNDS):
        votes = np.add.reduceat(drawn * weight[:, None], starts, axis=0)  # (names, ancestors)
        own = np.zeros((len(kinds), len(column)))
        np.add.at(own, kind, votes)
        chance = (votes.sum(0) - own[kind]) / size
        company = np.einsum("sa,sa->s", above, chance[owner]) / max(len(senses) - 1, 1)
        weight = _scaled(prior + CONTEXT * np.log(company + STRANGER / below[wordnet.ROOT]), starts, owner)
    return np.split(weight, starts[1:])


def _prior(name: str, sense: str, rank: int) -> float:
    found = wordnet.known(sense)
    same_case = name.replace("_", " ") in found.lemmas
    return -RANK * rank + CASE * same_case + float(np.log(VISIBLE.get(found.category, INVISIBLE)))


def _scaled(score: Floats, starts: npt.NDArray[np.int64], owner: npt.NDArray[np.int64]) -> Floats:
    weight = np.exp(score - np.maximum.reduceat(score, starts)[owner])
    return np.asarray(weight / np.add.reduceat(weight, starts)[owner])


def _distinct(senses: Sequence[Sequence[str]], weights: Sequence[Floats]) -> list[int]:
    """Position of the sense each name takes."""
    chosen = [0] * len(senses)
    taken: set[str] = set()
    for i in sorted(range(len(senses)), key=lambda i: (-float(weights[i].max()), i)):
        order = sorted(range(len(senses[i])), key=lambda k: (-weights[i][k], k))
        chosen[i] = next((k for k in order if senses[i][k] not in taken), order[0])
        taken.add(senses[i][chosen[i]])
    return chosen
