"""What heads a tree gets, by cross-validated accuracy: which level answers a tier, and what the heads score."""

from __future__ import annotations

import dataclasses

import numpy as np

from hierclass.checkpoints.new_classes import choose_levels
from hierclass.decisions.prediction import sum_up
from taxonomy import Taxonomy
from training.heads.examples import Examples
from training.heads.logistic import (
    CrossValidated,
    Indices,
    LinearHead,
    Values,
    cross_validate,
    fit_head,
    make_folds,
)

CLOSE = 0.03
"""A cheaper level answers a tier if it loses no more accuracy on it against the last level."""
LEAVES, TIERS, AUTO = "leaves", "tiers", "auto"
"""What heads of lower tiers score: leaves, summed up, or the tier's classes; auto: what cross-validates better."""


@dataclasses.dataclass(frozen=True, slots=True)
class SelectedHeads:
    """Heads for a tree.

    Tier k is answered by level ``levels[k]`` of the network, whose head scores what ``kind`` says (the last one
    leaves). ``heads[k]`` are fitted to all images. ``logits[k]`` (N, num_classes[k]) score every image by heads that
    were not fitted to it, ``strengths[k]`` is the regularisation that was chosen. ``why`` says what was measured.
    """

    levels: tuple[int, ...]
    kind: str
    heads: tuple[LinearHead, ...]
    logits: tuple[Values, ...]
    strengths: tuple[float, ...]
    why: tuple[str, ...]


def select_heads(
    examples: Examples,
    taxonomy: Taxonomy,
    truth: Indices,
    *,
    kind: str = AUTO,
    balance: bool = False,
    seed: int = 0,
) -> SelectedHeads:
    """Choose levels, regularisation and kind of heads by cross-validation, and fit them to all examples.

    ``truth`` (N, num_tiers) is the class on every tier, -1 where a label says nothing.
    """
    chooser = _Chooser(examples, taxonomy, truth, balance=balance, seed=seed)
    levels, why = _levels(chooser, taxonomy.num_tiers, len(examples.levels))
    last = taxonomy.num_tiers - 1
    shapes = [(level, last) for level in levels]
    if kind != LEAVES and last > 0:
        own = [(level, tier) for tier, level in enumerate(levels)]
        scores = [
            np.mean([chooser.accuracy(*shape, tier) for tier, shape in enumerate(each[:-1])])
            for each in (shapes, own)
        ]
        better = TIERS if scores[1] > scores[0] else LEAVES
        if kind == AUTO:
            why.append(
                f"heads of lower levels score {better} (right on their tiers, cross-validated: leaves summed up "
                f"{scores[0]:.1%}, tiers' classes {scores[1]:.1%})"
            )
        shapes = own if TIERS in (kind, better if kind == AUTO else kind) else shapes
    kind = LEAVES if all(shape[1] == last for shape in shapes) else TIERS
    return SelectedHeads(
        levels,
        kind,
        tuple(chooser.fit(*shape) for shape in shapes),
        tuple(chooser.scores(*shape, tier) for tier, shape in enumerate(shapes)),
        tuple(chooser.validated(*shape).strength for shape in shapes),
        tuple(why),
    )


class _Chooser:
    """Heads of levels for tiers, each cross-validated and fitted once."""

    def __init__(
        self, examples: Examples, taxonomy: Taxonomy, truth: Indices, *, balance: bool, seed: int
    ) -> None:
        self.examples, self.taxonomy, self.truth, self.balance = examples, taxonomy, truth, balance
        self.folds = make_folds(examples.labels, seed)
        self._validated = dict[tuple[int, int], CrossValidated]()
        self._fitted = dict[tuple[int, int], LinearHead]()

    def validated(self, level: int, scored: int) -> CrossValidated:
        """Cross-validate the head of a level that scores the classes of tier ``scored``."""
        if (level, scored) not in self._validated:
            self._validated[level, scored] = cross_validate(
                self.examples.levels[level],
                self.truth[:, scored],
                self.taxonomy.num_classes[scored],
                self.folds,
                balance=self.balance,
            )
        return self._validated[level, scored]

    def scores(self, level: int, scored: int, tier: int) -> Values:
        """Logits (N, num_classes[tier]) out of fold; those of a finer tier are summed up."""
        logits = self.validated(level, scored).logits
        return logits if scored == tier else summed_logits(logits, self.taxonomy, scored, tier)

    def accuracy(self, level: int, scored: int, tier: int) -> float:
        """Share of right answers (0 to 1) on a tier, out of fold, of the images whose label says something of it."""
        truth = self.truth[:, tier]
        right = self.scores(level, scored, tier).argmax(axis=1) == truth
        return float(right[truth >= 0].mean()) if (truth >= 0).any() else 0.0

    def fit(self, level: int, scored: int) -> LinearHead:
        """The head fitted to all images."""
        if (level, scored) not in self._fitted:
            self._fitted[level, scored] = fit_head(
                self.examples.levels[level],
                self.truth[:, scored],
                self.taxonomy.num_classes[scored],
                self.validated(level, scored).strength,
                balance=self.balance,
            )
        return self._fitted[level, scored]


def summed_logits(logits: Values, taxonomy: Taxonomy, scored: int, tier: int) -> Values:
    """Log-probabilities (N, num_classes[tier]) from logits (N, num_classes[scored]) of a finer tier."""
    summed = sum_up(logits.astype(np.float64), taxonomy, scored)[tier]
    return np.log(np.maximum(summed, np.finfo(np.float32).tiny)).astype(np.float32)


def _levels(chooser: _Chooser, num_tiers: int, num_levels: int) -> tuple[tuple[int, ...], list[str]]:
    """The level for each tier, never falling, the last for the last tier; and what decided, if anything did."""
    if num_tiers >= num_levels or num_tiers == 1:
        return tuple(choose_levels(num_tiers, num_levels)), []
    last, leaves = num_levels - 1, num_tiers - 1
    chosen, why = list[int](), list[str]()
    for tier in range(num_tiers - 1):
        least = chosen[-1] + 1 if chosen else 0
        most = num_levels - (num_tiers - tier)  # every finer tier needs a level above
        best = chooser.accuracy(last, leaves, tier)
        close = (each for each in range(least, most) if chooser.accuracy(each, leaves, tier) >= best - CLOSE)
        chosen.append(next(close, most))
        got = chooser.accuracy(chosen[-1], leaves, tier)
        why.append(
            f"tier {tier} is answered by level {chosen[-1]} of the network (right, cross-validated: {got:.1%}; by its "
            f"last level {best:.1%})"
        )
    return (*chosen, last), why
