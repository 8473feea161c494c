"""Weights per class for a place or a season: what each class of each tier weighs, and what becomes of scores.

The correction is that of Saerens, Latinne and Decaestecker 2002, *Adjusting the Outputs of a Classifier to New a Priori
Probabilities*: p'(y | x) is proportional to p(y | x) · w(y), where w(y) is how much more frequent class y is than it
was for the model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn, TypeAlias

import numpy as np

from hierclass.decisions.named_classes import find_classes
from hierclass.decisions.prediction import Scores, sum_classes
from hierclass.errors import InputError
from taxonomy import Taxonomy

Prior: TypeAlias = "tuple[tuple[str, float], ...]"
"""Classes, by synset id or name, and their weights (0 or above); "*" names all that no other one does."""

REST = "*"


def from_mapping(weights: Mapping[str, float]) -> Prior:
    """Return the weights of a mapping; raise InputError if a class is no text or a weight no number from 0."""
    if not all(isinstance(name, str) for name in weights):
        raise InputError('the classes of a prior are names or synset ids, as {"dog": 2.5}')
    return tuple((name, read_weight(weight, f"prior, {name!r}")) for name, weight in weights.items())


def leaf_weights(
    prior: Prior, taxonomy: Taxonomy, places: Sequence[str] = (), name: str = "the prior"
) -> Scores:
    """Return the weight (num_leaves,) of every leaf, the largest 1: that of the nearest class at or above it.

    So a line says all of a class but what lines below it say: "animal,0" and "dog,1" leave the dogs. A leaf without a
    class at or above it has the weight of "*", 1 if that is not given. `places` says where each entry stands, `name`
    what holds them all.

    Raises:
        InputError: a class is unknown or named twice, a weight is no number from 0, or all are 0.
    """
    known, first = dict[str, float](), dict[str, str]()
    for at, (each_class, weight) in enumerate(prior):
        place = places[at] if places else f"prior, {each_class!r}"
        try:
            ids = frozenset({REST}) if each_class.strip() == REST else find_classes(each_class, taxonomy)
        except InputError as error:
            raise InputError(f"{place}: {error}") from None
        for each in ids:
            if each in known:
                raise InputError(
                    f"{place}: {each_class!r} has a weight already, by {first[each]}; leave one of them out"
                )
            known[each], first[each] = read_weight(weight, place), place
    rest = known.get(REST, 1.0)
    found = np.array([_nearest(leaf, taxonomy, known, rest) for leaf in taxonomy.leaves])
    if not found.any():
        raise InputError(f"{name} gives every class of this model the weight 0; give some class more")
    scaled: Scores = found / found.max()
    return scaled


def tier_weights(leaves: Scores, taxonomy: Taxonomy) -> list[Scores]:
    """Return the weights (num_classes[j],) of the classes of every tier: of each the mean of its leaves' (num_leaves,).

    The weight of a class is how much more frequent it has become. That is the mean over its leaves, weighted by their
    frequency for the model, which is taken to be the same for all, as in ImageNet.
    """
    found = []
    for tier, count in enumerate(taxonomy.num_classes):
        above = taxonomy.projection(tier)
        sums, numbers = (np.bincount(above, each, minlength=count) for each in (leaves, np.ones_like(leaves)))
        found.append(sums / numbers)
    return found


def apply_prior(tiers: Sequence[Scores], taxonomy: Taxonomy, weights: Sequence[Scores]) -> list[Scores]:
    """Multiply the scores of a level's own tier by weights, normalise them, and sum them up the tree.

    `tiers` are the scores of tiers 0 … k as `hierclass.decisions.prediction.combine_levels` returns them, `weights`
    those of `tier_weights`. Rows sum to 1 again; where the model rules out all that has a weight, weights decide.
    """
    level = len(tiers) - 1
    joint = tiers[level] * weights[level]
    total = joint.sum(axis=1, keepdims=True)
    own = np.where(total > 0, joint / np.where(total > 0, total, 1), weights[level] / weights[level].sum())
    return sum_classes(own, taxonomy, level)


def _nearest(leaf: str, taxonomy: Taxonomy, known: Mapping[str, float], rest: float) -> float:
    upwards = (leaf, *(node.id for node in taxonomy.ancestors(leaf)))
    return next((known[each] for each in upwards if each in known), rest)


def read_weight(value: Any, place: str) -> float:
    """Return a weight as a number; raise InputError, which begins with `place`, if it is no number from 0."""

    def refuse(what: str) -> NoReturn:
        raise InputError(f"{place}: the weight {what}; give a number from 0, as 2.5 or 0")

    if isinstance(value, bool) or not isinstance(value, (str, int, float, np.number)):
        refuse(f"is no number but {str(value)[:40]!r}")
    try:
        number = float(value)
    except (OverflowError, ValueError):
        refuse(f"is no number but {str(value)[:40]!r}")
    if not math.isfinite(number) or number < 0:
        refuse(f"is {number:g}")
    return number
