"""What a model sees in images of each class: evidence for what a name means, and images that do not fit their name."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np

from hierclass.errors import ImageError
from hierclass.processors import num_cores
from taxonomy import wordnet
from taxonomy.labels import LeafNames, key, leading_id
from taxonomy.proposal import trim
from taxonomy.senses import DOUBT, SenseChoice, candidates
from training.look.kinds import Floats, Kinds

if TYPE_CHECKING:
    from hierclass.classifier import Classifier
    from taxonomy import Taxonomy
    from training.data.datasets import LabelPath, Source

INDEPENDENT = 3
"""Images of one class count as at most so many independent ones: a model errs on all of them alike."""
AGREED = 0.6
"""Share of what is seen that a kind must have to be named."""
MISFIT = 3.0
"""Images fit another kind better than their name by this much (natural logarithm) where they show something else."""
MIXED = 0.3
"""Share of the images of a class that show another kind, from which on the class mixes two."""
CONFIRMED = 2.0
"""Images that fit a meaning at least so well confirm it (natural logarithm)."""
FEW = 3
"""Fewer images than this say nothing of a class's name."""


@dataclasses.dataclass(frozen=True, slots=True)
class Sight:
    """What the images of one class look like: a synset, its name, and its share (0 … 1) of all that is seen."""

    synset: str
    name: str
    share: float

    def __str__(self) -> str:
        return f"{self.name} {self.share:.2f}"


class Looker:
    """Looks at images with a model whose classes are synsets."""

    def __init__(self, classifier: Classifier) -> None:
        """Look with a classifier; it is called by several threads."""
        self._classifier, leaves = classifier, classifier.taxonomy.leaves
        self.kinds = Kinds(leaves, [classifier.taxonomy.node(leaf).name for leaf in leaves])

    def look(self, images: Mapping[str, Sequence[Source]]) -> Iterator[tuple[str, Floats, int]]:
        """Yield each class, what the model says of its readable images, (N, L), and the number of images looked at."""
        with ThreadPoolExecutor(num_cores(), thread_name_prefix="hierclass-look") as threads:
            for name, sources in images.items():
                found = [each for each in threads.map(self._probabilities, sources) if each is not None]
                yield (
                    name,
                    np.array(found, dtype=np.float64).reshape(-1, self.kinds.holds.shape[1]),
                    len(sources),
                )

    def _probabilities(self, source: Source) -> Floats | None:
        try:
            return np.asarray(self._classifier.predict(source).scores(), dtype=np.float64)
        except ImageError:
            return None


@dataclasses.dataclass(frozen=True, slots=True)
class Seen:
    """What a model saw: its classes, and per class folder its probabilities (N, L) for N images."""

    kinds: Kinds
    images: Mapping[str, Floats]

    def evidence(self) -> dict[str, dict[str, float]]:
        """Return what speaks for each meaning of each name, as `taxonomy.senses.choose_senses` takes it.

        It is the mean of how well the images fit the meaning (`Kinds.fit`), times their number, of which at most
        INDEPENDENT count.
        """
        return {
            name: {
                sense: self._fit(name, sense) * min(len(images), INDEPENDENT) for sense in candidates(name)
            }
            for name, images in self.images.items()
            if len(images)
        }

    def sight(self, name: str) -> Sight | None:
        """Return what most images of a class look like; None if it was not looked at or they show many things."""
        images = self.images.get(name)
        return None if images is None or not len(images) else self._sight(images)

    def confirms(self, choice: SenseChoice) -> bool:
        """Return whether the images show what a name was taken for of which only a part was read, and no id."""
        images = self.images.get(choice.name, ())
        likely = len(images) >= FEW and choice.weight >= DOUBT and leading_id(choice.name) is None
        return likely and self._fit(choice.name, choice.synset.id) >= CONFIRMED

    def misfits(self, taxonomy: Taxonomy) -> list[str]:
        """Return a line for every class whose images look like something else than its meaning, or like two kinds.

        `taxonomy` gives the meanings: a class that it has under a synset id means that synset.
        """
        leaves = LeafNames(taxonomy)
        found = {name: leaves.find(name) for name in self.images}
        return self.misfits_of(
            {name: taxonomy.leaves[leaf] for name, leaf in found.items() if leaf is not None}
        )

    def misfits_of(self, meanings: Mapping[str, str]) -> list[str]:
        """Return these lines for classes of given meanings, which are synset ids, or ids of no synset."""
        lines = [
            self._misfit(name, synset, self.images[name])
            for name, synset in meanings.items()
            if wordnet.synset(synset) is not None and len(self.images[name]) >= FEW
        ]
        return [line for line in lines if line]

    def _misfit(self, name: str, synset: str, images: Floats) -> str:
        every, own = self.kinds.best_fit(images), self.kinds.fit(images, synset)
        whole = self._sight(images)
        if whole and every.mean(0).max() - own.mean() > MISFIT and self.kinds.apart(synset, whole.synset):
            meant = wordnet.known(synset)
            text = f"images of {name!r} look like {whole}{self._examples(images, whole)}, not like {meant.lemmas[0]}"
            return f"{text} ({shortened(meant.definition)})"
        odd = every.max(1) - own > MISFIT
        count = int(odd.sum())
        if min(count, len(odd) - count) < max(FEW, MIXED * len(odd)):
            return ""
        strange, usual = self._sight(images[odd]), self._sight(images[~odd])
        if not strange or not usual:
            return ""
        if not all(self.kinds.apart(strange.synset, other) for other in (synset, usual.synset)):
            return ""
        return (
            f"images of {name!r} show two kinds: {len(odd) - count} of {len(odd)} look like {usual.name}, {count} like "
            f"{strange.name}"
        )

    def _sight(self, images: Floats) -> Sight | None:
        found = self.kinds.narrowest(images.mean(0), AGREED)
        return None if found is None else Sight(found[0], self.kinds.name(found[0]), found[1])

    def _examples(self, images: Floats, sight: Sight) -> str:
        """The likeliest two of a kind's classes, in brackets; empty where the kind is a class itself."""
        inside = images.mean(0) * self.kinds.holds[self.kinds.ids.index(sight.synset)]
        best = np.argsort(-inside, kind="stable")[: min(2, np.count_nonzero(inside))].tolist()
        names = [f"{self.kinds.leaf_names[leaf]} {inside[leaf]:.2f}" for leaf in best]
        return f" ({', '.join(names)})" if len(names) > 1 else ""

    def _fit(self, name: str, synset: str) -> float:
        return float(self.kinds.fit(self.images[name], synset).mean())


def shortened(text: str, most: int = 60) -> str:
    """Return the first words of a text."""
    return text if len(text) <= most else text[:most].rsplit(" ", 1)[0] + " …"


def images_of_classes(samples: Mapping[LabelPath, Sequence[Source]]) -> dict[str, list[Source]]:
    """Return images by class as `taxonomy.proposal.propose` names classes; none where folders lie in folders."""
    trimmed = trim(list(samples))
    if any(len(path) != 1 for path in trimmed):
        return {}
    names: dict[str, str] = {}
    found: dict[str, list[Source]] = {}
    for (name,), sources in zip(trimmed, samples.values(), strict=True):
        found.setdefault(names.setdefault(key(name), name), []).extend(sources)
    return found
