"""When to stop on the way from coarse to fine: which level is enough for an image, and which tier it is sure of."""

from __future__ import annotations

import difflib
import enum
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from hierclass.decisions.calibration import Decision
from hierclass.decisions.prediction import Scores, best_paths, restrict_classes
from hierclass.errors import InputError
from taxonomy import Taxonomy

LevelChoice: TypeAlias = "int | Literal['auto'] | None"
"""A level, None for the finest, or "auto" for the lowest that is enough."""
Flags: TypeAlias = NDArray[np.bool_]


class StopReason(enum.IntEnum):
    """Why an answer comes from the level that it comes from."""

    ASKED = 0
    """That level was asked for; there is no answer where its class is not within those asked for."""
    SURE = 1
    """Its answer is fine enough and sure enough."""
    LAST = 2
    """There is no higher level; the answer is as fine as it is sure of, which is coarser than was asked for."""
    EXCLUDED = 3
    """It is sure that the image shows none of the classes asked for."""

    @property
    def word(self) -> str:
        """What the column `stop_reason` says."""
        return self.name.lower()


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What is asked of images.

    With `level` "auto" levels are climbed until the answer is sure at rate `precision` on tier `min_tier` or a
    finer one; it is then as fine as it is sure of. `only` and `exclude` name classes, by synset id or name, at any
    height of the tree: answers are among the leaves below the former (if there are any) that are not below the latter,
    or classes above such leaves, but none above a class of `only`.
    """

    level: LevelChoice = None
    min_tier: int = 0
    precision: float = 0.95
    only: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    @property
    def selects(self) -> bool:
        """Whether some classes are no answer."""
        return bool(self.only or self.exclude)


@dataclass(frozen=True, slots=True)
class Answers:
    """Answers to N images of a model of T tiers.

    `classes` (N, T) holds class indices of the path, -1 in tiers that were not answered, `scores` (N, T) their
    scores (0 … 1). `tier` (N,) is the tier of the answer, -1 where nothing is sure or no class that is asked for
    fits; `level` (N,) the last level that was computed; `reason` (N,) a `StopReason`.
    """

    classes: NDArray[np.int32]
    scores: NDArray[np.float32]
    tier: NDArray[np.int8]
    level: NDArray[np.int8]
    reason: NDArray[np.int8]

    def __len__(self) -> int:
        return len(self.tier)

    def take(self, rows: NDArray[np.integer] | Flags) -> Answers:
        """Return some of the answers."""
        return Answers(
            self.classes[rows], self.scores[rows], self.tier[rows], self.level[rows], self.reason[rows]
        )

    @classmethod
    def none(cls, count: int, num_tiers: int) -> Answers:
        """Return answers to images of which nothing is known."""
        unknown = np.full(count, -1, dtype=np.int8)
        classes = np.full((count, num_tiers), -1, dtype=np.int32)
        return cls(classes, np.full((count, num_tiers), np.nan, np.float32), unknown, unknown, unknown)

    @classmethod
    def gather(cls, chosen: Sequence[tuple[Answers, int]]) -> Answers:
        """Return answers made of one row each of others; there is at least one."""
        names = [each.name for each in fields(cls)]
        return cls(*(np.stack([getattr(answers, name)[row] for answers, row in chosen]) for name in names))


class ExitPolicy:
    """Says of answers at a level which are good enough, for one request to one model."""

    def __init__(self, request: Request, taxonomy: Taxonomy, decision: Decision) -> None:
        """Find what a request means for a model of these classes, with the thresholds of `decision`.

        Raises:
            InputError: a class is unknown, none is left, a tier does not exist, or thresholds are missing.
        """
        self.taxonomy = taxonomy
        self.auto = request.level == "auto"
        num_levels = taxonomy.num_tiers
        self.last = num_levels - 1 if request.level in ("auto", None) else int(request.level)
        """The highest level that is computed."""
        self.min_tier = request.min_tier
        if not 0 <= request.min_tier < num_levels:
            raise InputError(
                f"tier {request.min_tier} does not exist; this model has tiers 0 to {num_levels - 1}"
            )
        self._allowed = allowed_classes(request, taxonomy) if request.selects else None
        self._inside = inside_classes(request, taxonomy)
        self._thresholds = self._find_thresholds(request, decision)

    @property
    def can_answer(self) -> bool:
        """Whether the highest level that is computed has a class within those of `only`; else answers stay empty."""
        return bool(self._inside[self.last].any())

    @property
    def first(self) -> int:
        """The lowest level whose answer can be enough; those below need not be looked at."""
        if self._allowed is not None and self._thresholds is not None:
            return 0
        return self.min_tier if self.auto else self.last

    def judge(self, tiers: Sequence[Scores]) -> tuple[Flags, Answers]:
        """Judge answers of level k: scores of tiers 0 … k, (N, num_classes[j]) each, as `combine_levels` returns them.

        Returns for which images that level is enough, and the answers of all.
        """
        level, taxonomy = len(tiers) - 1, self.taxonomy
        classes, scores = best_paths(tiers, taxonomy)
        none: Flags = np.zeros(len(classes), dtype=np.bool_)
        if self._allowed is not None:
            none = np.any(self._sure(scores) & ~_flags_of(classes, self._allowed), axis=1)
            kept = best_paths(restrict_classes(tiers, taxonomy, self._allowed), taxonomy)
            classes, scores = (
                np.where(none[:, None], ours, theirs)
                for ours, theirs in zip((classes, scores), kept, strict=True)
            )
        inside = _flags_of(classes, self._inside)
        if self.auto:
            tier = _finest(self._sure(scores) & inside)
            enough = tier >= self.min_tier
            reason = np.where(enough, StopReason.SURE, StopReason.LAST)
            done = enough | (level == self.last)
        else:
            tier, reason = _finest(inside), np.full(len(classes), StopReason.ASKED)
            done = np.full(len(classes), level == self.last)
        filled = _Padding(len(classes), taxonomy.num_tiers)
        answers = Answers(
            filled(classes, -1).astype(np.int32),
            filled(scores, np.nan).astype(np.float32),
            np.where(none, -1, tier).astype(np.int8),
            np.full(len(classes), level, dtype=np.int8),
            np.where(none, StopReason.EXCLUDED, reason).astype(np.int8),
        )
        return done | none, answers

    def _sure(self, scores: Scores) -> Flags:
        """Of scores (N, k + 1) of the answers of level k: whether each reaches its threshold."""
        if self._thresholds is None:
            return np.zeros(scores.shape, dtype=np.bool_)
        sure: Flags = scores >= self._thresholds[scores.shape[1] - 1]
        return sure

    def _find_thresholds(self, request: Request, decision: Decision) -> list[Scores] | None:
        """Per level the scores from which on tiers 0 … level are sure; None where they are missing and not needed."""
        if not self.auto and not (request.selects and decision.thresholds):
            return None
        return [
            np.array([np.inf if each.score is None else each.score for each in of_level])
            for of_level in decision.at(request.precision)
        ]


class _Padding:
    def __init__(self, rows: int, columns: int) -> None:
        self.shape = (rows, columns)

    def __call__(self, values: NDArray[np.generic], fill: float) -> NDArray[np.float64]:
        padded = np.full(self.shape, fill, dtype=np.float64)
        padded[:, : values.shape[1]] = values
        return padded


def _flags_of(classes: NDArray[np.integer], flags: Sequence[Flags]) -> Flags:
    """Of a path of classes (N, k + 1), what flags of the classes of every tier say of each."""
    return np.stack([flags[tier][column] for tier, column in enumerate(classes.T)], axis=1)


def _finest(sure: Flags) -> NDArray[np.int64]:
    """The last column that is true in every row, -1 where none is."""
    columns = np.arange(sure.shape[1])
    found: NDArray[np.int64] = np.where(sure, columns, -1).max(axis=1)
    return found


def allowed_classes(request: Request, taxonomy: Taxonomy) -> list[Flags]:
    """For every tier, which classes hold a leaf that a request allows.

    Raises:
        InputError: a class is unknown, or no leaf is left.
    """
    leaves = _leaves_of(request.only, taxonomy)
    for name in request.exclude:
        leaves &= ~_leaves_below(name, taxonomy)
    if not leaves.any():
        raise InputError("--only and --exclude leave no class to answer with; name fewer in --exclude")
    return _holding(leaves, taxonomy)


def inside_classes(request: Request, taxonomy: Taxonomy) -> list[Flags]:
    """For every tier, which classes hold no leaf beside those of `only`: to answer with another one says more.

    "mammal" is no answer to `only` "dog", though dogs are mammals; it is one to `exclude` "dog". Raises as
    `allowed_classes` for a class that is unknown.
    """
    return [~classes for classes in _holding(~_leaves_of(request.only, taxonomy), taxonomy)]


def _holding(leaves: Flags, taxonomy: Taxonomy) -> list[Flags]:
    """For every tier, which classes hold any of some leaves."""
    found = []
    for tier, count in enumerate(taxonomy.num_classes):
        classes = np.zeros(count, dtype=np.bool_)
        classes[taxonomy.projection(tier)[leaves]] = True
        found.append(classes)
    return found


def _leaves_of(only: Sequence[str], taxonomy: Taxonomy) -> Flags:
    """The leaves below any of some classes; all of them where none is named."""
    if not only:
        return np.ones(len(taxonomy.leaves), dtype=np.bool_)
    below: Flags = np.any([_leaves_below(name, taxonomy) for name in only], axis=0)
    return below


def _leaves_below(name: str, taxonomy: Taxonomy) -> Flags:
    wanted = _plain(name)
    ids = {node.id for node in taxonomy.nodes if wanted in (_plain(node.id), _plain(node.name))}
    if not ids:
        names = {_plain(node.name): node.name for node in taxonomy.nodes}
        close = difflib.get_close_matches(wanted, names, n=1)
        hint = f"did you mean {names[close[0]]!r}?" if close else "hierclass classes lists them"
        raise InputError(f"this model has no class {name!r}; {hint}")
    below = [
        leaf in ids or any(node.id in ids for node in taxonomy.ancestors(leaf)) for leaf in taxonomy.leaves
    ]
    return np.array(below)


def _plain(name: str) -> str:
    return name.strip().casefold().replace("_", " ")
