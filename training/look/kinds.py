"""The classes of a model and all that lies above them in WordNet: how well what it sees fits a synset."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from taxonomy import wordnet
from taxonomy.naming import UNSAID, word

Floats = npt.NDArray[np.float64]

CHANCE = 0.2
"""Share of images of which what is seen says nothing."""
WIDE = 0.3
"""A kind that holds a larger share of the model's classes is not worth naming."""
NEAR = 0.1
"""Two kinds below one that holds at most this share of the model's classes are near each other."""
VAGUE = 2500
"""A synset with more of WordNet's 82,115 below it, such as "substance", says nothing of how a thing looks."""


class Kinds:
    """The L classes of a model, which are synsets, and the K synsets at or above them."""

    def __init__(self, leaves: Sequence[str], names: Sequence[str]) -> None:
        """Take the ids and names of a model's classes, in the order of its scores."""
        above = [wordnet.ancestors(leaf) for leaf in leaves]
        self.ids = sorted(frozenset().union(*above))
        """Ids of the K synsets."""
        self._place = {synset: k for k, synset in enumerate(self.ids)}
        self.holds = np.zeros((len(self.ids), len(leaves)), dtype=np.bool_)
        """(K, L): whether a class is a synset or below it."""
        for leaf, line in enumerate(above):
            self.holds[[self._place[synset] for synset in line], leaf] = True
        self._share = self.holds / self.holds.sum(1, keepdims=True)
        self.leaf_names = tuple(names)
        self._names = dict(zip(leaves, names, strict=True))

    def name(self, synset: str) -> str:
        """Return what people call a synset."""
        return self._names.get(synset) or word(synset)

    @functools.cached_property
    def _expected(self) -> Floats:
        """(K, L): `expected` of each of the synsets."""
        return np.stack([self.expected(synset) for synset in self.ids])

    def expected(self, synset: str) -> Floats:
        """Return the chance (L,) that an image of a synset is seen as each class.

        Take one of the synset's ancestors (or itself), then one of the model's classes below it; any class where it has
        none, or is VAGUE. So near relatives are likely, and all is possible of what the model knows nothing near of.
        """
        line, below = wordnet.ancestors(synset), wordnet.num_below()
        told = sorted(self._place[each] for each in line if each in self._place and below[each] <= VAGUE)
        anything = (len(line) - len(told)) / self.holds.shape[1]
        return np.asarray((self._share[told].sum(0) + anything) / len(line))

    def fit(self, probabilities: Floats, synset: str) -> Floats:
        """Return how well images fit a synset, (N,): natural logarithm of how many times likelier than by chance.

        `probabilities` (N, L) are what the model says. An image is `expected` of the synset but for a share CHANCE.
        """
        return self._times(probabilities @ self.expected(synset))

    def best_fit(self, probabilities: Floats) -> Floats:
        """Return how well images fit each of the K synsets, (N, K)."""
        return self._times(probabilities @ self._expected.T)

    def _times(self, likely: Floats) -> Floats:
        return np.asarray(np.log(CHANCE + (1 - CHANCE) * self.holds.shape[1] * likely))

    def narrowest(self, probabilities: Floats, share: float) -> tuple[str, float] | None:
        """Return the smallest kind that has at least a share of the probabilities (L,), and its share.

        None where only a very wide one (`WIDE`) has it. What nobody says is no kind.
        """
        mass, size = self.holds @ probabilities, self.holds.sum(1)
        found = [
            (int(size[k]), -float(mass[k]), k)
            for k in np.flatnonzero((mass >= share) & (size <= WIDE * self.holds.shape[1])).tolist()
            if self.ids[k] not in UNSAID
        ]
        if not found:
            return None
        place = min(found)[2]
        return self.ids[place], float(mass[place])

    def apart(self, one: str, other: str) -> bool:
        """Return whether two synsets are different things: neither lies above the other, and they are not `NEAR`."""
        above, below = wordnet.ancestors(one), wordnet.ancestors(other)
        shared = [self._place[each] for each in above & below if each in self._place]
        smallest = min((int(self.holds[k].sum()) for k in shared), default=self.holds.shape[1])
        return one not in below and other not in above and smallest > NEAR * self.holds.shape[1]
