"""From the levels' logits to an answer: a path of the tree whose scores never rise on the way down."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from taxonomy import Node, Taxonomy

Scores = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Step:
    """One class of a tier with its score (0 … 1): a step of a path, or an alternative."""

    synset: str
    label: str
    score: float

    def to_dict(self) -> dict[str, Any]:
        """Return the step as JSON values."""
        return {"synset": self.synset, "label": self.label, "score": round(self.score, 6)}


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a level answers for one image: the path from tier 0 to the level's tier.

    `path` holds one step per tier 0 … `level`. It is a path of the tree, and scores never rise downward.
    """

    level: int
    path: tuple[Step, ...]
    _classes: tuple[Node, ...] = field(repr=False, compare=False)
    _scores: Scores = field(repr=False, compare=False)

    @property
    def label(self) -> str:
        """Name of the finest class answered."""
        return self.path[-1].label

    @property
    def synset(self) -> str:
        """Synset id (or own id) of the finest class answered."""
        return self.path[-1].synset

    @property
    def score(self) -> float:
        """Probability (0 … 1) that the model gives to the finest class answered."""
        return self.path[-1].score

    def top(self, k: int = 5) -> tuple[Step, ...]:
        """Return the k most probable classes of the level's tier, best first."""
        order = np.argsort(-self._scores, kind="stable")[: max(k, 0)]
        return tuple(_step(self._classes[i], self._scores[i]) for i in order)

    def to_dict(self) -> dict[str, Any]:
        """Return the prediction as JSON values."""
        last = self.path[-1].to_dict()
        return {"level": self.level, **last, "path": [step.to_dict() for step in self.path]}


def agree(
    logits: Sequence[NDArray[np.floating[Any]]], taxonomy: Taxonomy, lower_weight: float = 0.0
) -> list[Scores]:
    """Make the answers of levels 0 … k one distribution on tier k, and sum it up the tree.

    `logits[j]` (B, num_classes[j]) come from level j. Class c of tier k gets a score proportional to p_k(c) ·
    Π_{j<k} p_j(ancestor of c in tier j) ** lower_weight (a product of experts; with weight 0 the last level
    decides alone). Every coarser tier is the sum over its descendants. Returns scores (B, num_classes[j]) for
    tiers 0 … k; each row sums to 1, and no class scores more than its parent.
    """
    last = len(logits) - 1
    joint = _log_softmax(logits[last])
    ancestors: list[NDArray[np.int64]] = [np.arange(joint.shape[1])]
    for tier in range(last, 0, -1):
        ancestors.insert(0, taxonomy.parent_classes(tier)[ancestors[0]])
    if lower_weight:
        for tier in range(last):
            joint = joint + lower_weight * _log_softmax(logits[tier])[:, ancestors[tier]]
    finest = np.exp(_log_softmax(joint))
    tiers: list[Scores] = []
    for tier in range(last + 1):
        summed = np.zeros((len(finest), taxonomy.num_classes[tier]))
        np.add.at(summed.T, ancestors[tier], finest.T)
        tiers.append(summed)
    return tiers


def decide(tiers: Sequence[Scores], taxonomy: Taxonomy) -> list[Prediction]:
    """Answer with the most probable class of the last tier given, and its ancestors.

    `tiers` are the scores of tiers 0 … k as `agree` returns them, (B, num_classes[j]) each.
    """
    level = len(tiers) - 1
    classes = [taxonomy.classes(tier) for tier in range(level + 1)]
    predictions = []
    for row, best in enumerate(tiers[level].argmax(axis=1).tolist()):
        path: list[Step] = []
        for tier in range(level, -1, -1):
            # Sums of the same numbers in another order may differ in the last digit; a path must not rise.
            lowest = path[0].score if path else 0.0
            path.insert(0, _step(classes[tier][best], max(tiers[tier][row, best], lowest)))
            best = int(taxonomy.parent_classes(tier)[best]) if tier else best
        predictions.append(Prediction(level, tuple(path), classes[level], tiers[level][row]))
    return predictions


def _step(node: Node, score: float) -> Step:
    return Step(node.id, node.name, min(float(score), 1.0))


def _log_softmax(logits: NDArray[np.floating[Any]]) -> Scores:
    shifted = np.asarray(logits, dtype=np.float64)
    shifted = shifted - shifted.max(axis=1, keepdims=True)
    scores: Scores = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return scores
