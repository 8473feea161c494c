"""Word senses: which synset a class name such as "crane" means, judged by evidence and the other names."""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from taxonomy import wordnet
from taxonomy.errors import TaxonomyError
from taxonomy.evidence import priors
from taxonomy.tree import Node
from taxonomy.words import Reading, close_words, contradiction, is_known, read

__all__ = [
    "Evidence",
    "SenseChoice",
    "candidates",
    "choose_senses",
    "close_words",
    "contradiction",
    "is_known",
]

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Evidence = Mapping[str, Mapping[str, float]]
"""Per name, as it is given, a bonus per synset id that is added to the prior of that sense (natural logarithm)."""

CONTEXT = 1.0  # exponent of the company of the other names
STRANGER = 0.1  # chance, in names, that a name has nothing to do with the others
ROUNDS = 8
UNLISTED = -4.5  # prior of a meaning that WordNet does not have, such as the cat called Bengal

DOUBT = 0.9  # a sense of less weight is doubtful; `benchmarks/senses.py` says how many wrong ones that finds
MOST_MISSING = 50  # unknown names that are told; a close spelling takes 0.1 s to find
REMOTE = 0.02  # a sense of less weight is not taken instead of one that another name has


@dataclass(frozen=True, slots=True)
class SenseChoice:
    """The sense chosen for a name, those rejected, and a note where a part of the name was not used.

    `rejected` has the likeliest first, or WordNet's order where the sense is pinned. `weight` is the chosen sense's
    share of the weight of all senses and of a meaning that WordNet lacks, 0 to 1; 1 where it is pinned or an id.
    """

    name: str
    synset: Node
    rejected: tuple[Node, ...]
    note: str = ""
    weight: float = 1.0

    @property
    def doubtful(self) -> bool:
        """Whether a person should look: the weight is low, or a part of the name was not used or contradicts its id."""
        return self.weight < DOUBT or bool(self.note)


def candidates(name: str) -> tuple[str, ...]:
    """Return the ids of the synsets that a name may mean, the likeliest first, judged by the name alone.

    Empty where WordNet has neither the name nor its last words.
    """
    found = read(name)
    prior = dict(zip(found.senses, priors(name, found.word, found.senses), strict=True))
    return tuple(sorted(found.senses, key=lambda sense: -prior[sense]))


def choose_senses(
    names: Sequence[str],
    *,
    pins: Mapping[str, str] | None = None,
    evidence: Evidence | None = None,
    photographed: bool = True,
) -> tuple[SenseChoice, ...]:
    """Resolve each name to one noun synset of WordNet 3.0.

    The rule. A name is read by `taxonomy.words.read`; each of its senses starts with the weight of
    `taxonomy.evidence.priors`. Then, for ROUNDS rounds, it is multiplied by how well it keeps company with the other
    names, to the power CONTEXT, and the weights of a name's senses, and of a meaning that WordNet lacks, are scaled to
    sum to 1. The company of a sense is the chance to draw it as follows: take another name (one with the same senses
    is not another), take one of its senses by weight (but not the same one: two classes rarely mean one thing), take
    one of that sense's ancestors, take one of the synsets below that ancestor. So a sense gains from near relatives
    most, from far ones a little. The heaviest sense wins, the surest name first; a sense that another name has is
    taken only where no other is left that has some weight.

    Args:
        names: class names in English, or synset ids, or both in one as in "n02085620-Chihuahua".
        pins: synset id for each name whose sense the caller decides.
        evidence: what speaks for senses beyond names, such as what photographs show: per name a bonus per synset id,
            natural logarithm, added to the prior of that sense; senses and names that are not there get none.
        photographed: whether it counts which synsets ImageNet-22k has photographs of; off to measure the rule on
            ImageNet's own classes.

    Returns:
        One choice per name, in the order of the names.

    Raises:
        TaxonomyError: names that WordNet does not have, listed with close spellings; a pin for a name that is not
            there, or of no synset.
    """
    pins = pins or {}
    _check_pins(names, pins)
    found = [Reading((pins[name],), pins[name]) if name in pins else read(name) for name in names]
    _check_found(names, [reading.senses for reading in found])
    prior = []
    for name, reading in zip(names, found, strict=True):
        bonus = (evidence or {}).get(name, {})
        plain = priors(name, reading.word, reading.senses, photographed=photographed)
        prior.append([p + bonus.get(sense, 0.0) for p, sense in zip(plain, reading.senses, strict=True)])
    decided = [reading.senses == (reading.word,) for reading in found]  # by an id or a pin
    senses = [reading.senses for reading in found]
    weights = _weights(senses, prior, decided)
    chosen = _distinct(senses, weights)
    return tuple(
        _choice(name, reading, weight, pick, name in pins)
        for name, reading, weight, pick in zip(names, found, weights, chosen, strict=True)
    )


def _choice(name: str, reading: Reading, weight: Floats, pick: int, pinned: bool) -> SenseChoice:
    order = sorted(range(len(reading.senses)), key=lambda k: (k != pick, -weight[k], k))
    ranked = [reading.senses[k] for k in order]
    if pinned:
        ranked += [sense for sense in read(name).senses if sense != ranked[0]]
    others = tuple(_node(sense) for sense in ranked[1:])
    return SenseChoice(name, _node(ranked[0]), others, reading.note, round(float(weight[pick]), 3))


def _check_pins(names: Sequence[str], pins: Mapping[str, str]) -> None:
    known = set(names)
    for name, synset_id in pins.items():
        if name not in known:
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
    for name in missing[:MOST_MISSING]:
        close = close_words(name)
        texts.append(f"{name!r} (close: {', '.join(close)})" if close else repr(name))
    if len(missing) > MOST_MISSING:
        texts.append(f"{len(missing) - MOST_MISSING} more")
    verb = "is" if len(missing) == 1 else "are"
    raise TaxonomyError(
        f"not among WordNet's nouns {verb} {', '.join(texts)}; correct them, or pin a synset for each"
    )


def _node(synset_id: str) -> Node:
    found = wordnet.known(synset_id)
    return Node(synset_id, found.lemmas[0], found.definition)


# ---------------------------------------------------------------- the rule


class _Company:
    """How well each sense of some names keeps company with the senses of the other names.

    Holds the pairs of a sense and one of its ancestors, not a matrix of all with all.
    """

    def __init__(self, senses: Sequence[Sequence[str]], owner: Integers) -> None:
        """`senses` per name, and for each sense, names in order, the position of its name."""
        flat = [sense for found in senses for sense in found]
        column: dict[str, int] = {}
        lines = [[column.setdefault(a, len(column)) for a in sorted(wordnet.ancestors(s))] for s in flat]
        length = np.array([len(line) for line in lines])
        self._sense = np.repeat(np.arange(len(flat)), length)  # (pairs,)
        self._above = np.concatenate([np.asarray(line) for line in lines])  # (pairs,)
        below = wordnet.num_below()
        self._size = np.array([below[a] for a in column], dtype=np.float64)
        self._drawn = 1 / length[self._sense]  # chance to take this ancestor of a sense
        kinds = {found: k for k, found in enumerate(dict.fromkeys(map(tuple, senses)))}
        kind = np.array([kinds[tuple(found)] for found in senses])[owner]  # the same word twice is one kind
        self._kin = _numbered(kind[self._sense] * len(column) + self._above)
        self._synset = _numbered(np.array([column[sense] for sense in flat]))
        self._own = _numbered(kind * len(column) + self._synset)
        self._itself = self._per_sense(self._drawn / self._size[self._above])  # chance to draw what was taken
        self._others = max(len(senses) - 1, 1)

    def chance(self, weight: Floats) -> Floats:
        """Return the chance to draw each sense from the other names, (senses,)."""
        votes = weight[self._sense] * self._drawn
        foreign = np.bincount(self._above, votes)[self._above] - np.bincount(self._kin, votes)[self._kin]
        drawn = self._per_sense(foreign / self._size[self._above])
        same = np.bincount(self._synset, weight)[self._synset] - np.bincount(self._own, weight)[self._own]
        return np.asarray(np.maximum(drawn - same * self._itself, 0) / self._others)

    def _per_sense(self, pairs: Floats) -> Floats:
        return np.asarray(np.bincount(self._sense, pairs), dtype=np.float64)


def _numbered(keys: Integers) -> Integers:
    """The keys as numbers from 0, equal ones the same."""
    return np.asarray(np.unique(keys, return_inverse=True)[1], dtype=np.int64)


def _weights(
    senses: Sequence[Sequence[str]], prior: Sequence[Sequence[float]], decided: Sequence[bool]
) -> list[Floats]:
    """Weight of every sense of every name, summing to 1 per name with the meaning that WordNet lacks."""
    if not senses:
        return []
    count = np.array([len(found) for found in senses])
    starts = np.cumsum(count) - count
    owner = np.repeat(np.arange(len(senses)), count)
    flat = np.concatenate([np.asarray(found, dtype=np.float64) for found in prior])
    alone = np.log(STRANGER / wordnet.num_below()[wordnet.ROOT])
    none_other = np.where(decided, -np.inf, UNLISTED)
    company = _Company(senses, owner)
    weight = _scaled(flat, none_other, starts, owner)
    for _ in range(ROUNDS):
        met = np.log(company.chance(weight) + np.exp(alone))
        usual = float(np.sum(weight * met) / np.sum(weight))  # what WordNet lacks keeps the usual company
        weight = _scaled(flat + CONTEXT * met, none_other + CONTEXT * usual, starts, owner)
    return np.split(weight, starts[1:])


def _scaled(score: Floats, unlisted: Floats, starts: Integers, owner: Integers) -> Floats:
    top = np.maximum(np.maximum.reduceat(score, starts), unlisted)
    weight = np.exp(score - top[owner])
    return np.asarray(weight / (np.add.reduceat(weight, starts) + np.exp(unlisted - top))[owner])


def _distinct(senses: Sequence[Sequence[str]], weights: Sequence[Floats]) -> list[int]:
    """Position of the sense each name takes."""
    chosen = [0] * len(senses)
    taken: set[str] = set()
    for i in sorted(range(len(senses)), key=lambda i: (-float(weights[i].max()), i)):
        order = sorted(range(len(senses[i])), key=lambda k: (-weights[i][k], k))
        free = (k for k in order if senses[i][k] not in taken and weights[i][k] >= REMOTE)
        chosen[i] = next(free, order[0])
        taken.add(senses[i][chosen[i]])
    return chosen
