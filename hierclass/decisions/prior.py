"""Weights per class for a place or a season: read from a file or a mapping, and applied to scores on the tree.

The correction is that of Saerens, Latinne and Decaestecker 2002, *Adjusting the Outputs of a Classifier to New a Priori
Probabilities*: p'(y | x) is proportional to p(y | x) · w(y), where w(y) is how much more frequent class y is than it
was for the model.
"""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

import numpy as np

from hierclass.decisions.named_classes import find_classes
from hierclass.decisions.prediction import Scores, sum_classes
from hierclass.errors import InputError
from taxonomy import Taxonomy

Prior: TypeAlias = "tuple[tuple[str, float], ...]"
"""Classes, by synset id or name, and their weights (0 or above); "*" names all that no other one does."""

REST = "*"
MOST_BYTES = 1 << 20
"""Bytes of a file of weights, at most; of 1,000 classes they take about 20,000."""


@dataclass(frozen=True, slots=True)
class PriorFile:
    """The weights of a file; `places` says of each where it stands, such as "spring.csv line 3"."""

    entries: Prior
    places: tuple[str, ...]

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> PriorFile:
        """Read a CSV file of lines `class,weight`, or a JSON object of classes and weights (ending .json).

        Raises:
            InputError: the file can't be read, or is none of these; the message names the line.
        """
        path = Path(path)
        text = _read_text(path)
        found = (
            _json_entries(path.name, text)
            if path.suffix.lower() == ".json"
            else _csv_entries(path.name, text)
        )
        if not found:
            raise InputError(f"{path.name} names no class; give lines such as: dog,2.5")
        return cls(tuple(entry for entry, _ in found), tuple(place for _, place in found))

    def check(self, taxonomy: Taxonomy) -> None:
        """Raise InputError, which names the line, if a class is not of the model or the weights make no prior."""
        leaf_weights(self.entries, taxonomy, self.places)


def from_mapping(weights: Mapping[str, float]) -> Prior:
    """Return the weights of a mapping; raise InputError if one is no number from 0."""
    return tuple((name, _number(weight, f"prior, {name!r}")) for name, weight in weights.items())


def leaf_weights(prior: Prior, taxonomy: Taxonomy, places: Sequence[str] = ()) -> Scores:
    """Return the weight (num_leaves,) of every leaf, the largest 1: that of the nearest class at or above it.

    So a line says all of a class but what lines below it say: "animal,0" and "dog,1" leave the dogs. A leaf without a
    class at or above it has the weight of "*", 1 if that is not given. `places` says where each entry stands.

    Raises:
        InputError: a class is unknown or named twice, a weight is no number from 0, or all are 0.
    """
    known, first = dict[str, float](), dict[str, str]()
    for at, (name, weight) in enumerate(prior):
        place = places[at] if places else f"prior, {name!r}"
        try:
            ids = frozenset({REST}) if name.strip() == REST else find_classes(name, taxonomy)
        except InputError as error:
            raise InputError(f"{place}: {error}") from None
        for each in ids:
            if each in known:
                raise InputError(
                    f"{place}: {name!r} has a weight already, by {first[each]}; leave one of them out"
                )
            known[each], first[each] = _number(weight, place), place
    rest = known.get(REST, 1.0)
    found = np.array([_nearest(leaf, taxonomy, known, rest) for leaf in taxonomy.leaves])
    if not found.any():
        raise InputError("the prior gives every class of this model the weight 0; give some class more")
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


def _read_text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise InputError(f"{path} can't be read: {error.strerror or error}") from error
    if len(data) > MOST_BYTES:
        raise InputError(f"{path.name} is larger than a mebibyte; is it a file of weights?")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise InputError(f"{path.name} line {line} is no UTF-8; save it as CSV UTF-8") from None


def _csv_entries(name: str, text: str) -> list[tuple[tuple[str, float], str]]:
    first = text.split("\n", 1)[0]
    delimiter = next((mark for mark in ("\t", ";") if mark in first), ",")
    reader, found = csv.reader(text.splitlines(keepends=True), delimiter=delimiter), list[Any]()
    try:
        for cells in reader:
            place = f"{name} line {reader.line_num}"
            cells = [cell.strip() for cell in cells]
            if not any(cells) or (not found and [cell.casefold() for cell in cells[1:2]] == ["weight"]):
                continue
            if len(cells) != 2 or not cells[0]:
                raise InputError(
                    f"{place}: give a class and its weight, as dog,2.5; a comma in a name needs quotes"
                )
            found.append(((cells[0], _number(cells[1], place)), place))
    except csv.Error as error:
        raise InputError(f"{name} line {reader.line_num} can't be read: {error}") from None
    return found


def _json_entries(name: str, text: str) -> list[tuple[tuple[str, float], str]]:
    try:
        given = json.loads(text, object_pairs_hook=tuple)
    except json.JSONDecodeError as error:
        raise InputError(f"{name} line {error.lineno} is no JSON: {error.msg}") from None
    except (RecursionError, ValueError):  # nested too deeply, or a number of too many digits
        given = None
    if not isinstance(given, tuple):
        raise InputError(f'{name} is no JSON object of classes and weights, as {{"dog": 2.5}}')
    found = []
    for number, (key, weight) in enumerate(given, start=1):
        place = f"{name} entry {number}"
        found.append(((key.strip(), _number(weight, place)), place))
    return found


def _number(value: Any, place: str) -> float:
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
