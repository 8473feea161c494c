"""Early exit: which level is enough for an image, which tier its answer is sure of, and which classes may answer."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from numbers import Integral, Real
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from hierclass.decisions.calibration import Decision
from hierclass.decisions.named_classes import Flags, allowed_classes, inside_classes
from hierclass.decisions.prediction import (
    Prediction,
    Scores,
    best_paths,
    restrict_classes,
    to_predictions,
)
from hierclass.decisions.prior import Prior, apply_prior, from_mapping, leaf_weights, tier_weights
from hierclass.errors import InputError
from taxonomy import Taxonomy

LevelChoice: TypeAlias = "int | Literal['auto'] | None"
"""A level, None for the finest, or "auto" for the lowest level that is enough for each image."""


class StopReason(enum.IntEnum):
    """Why no finer level was computed for an image."""

    ASKED = 0
    """The level was asked for. There is no answer where its class is not within `Request.only`."""
    SURE = 1
    """The answer is sure at tier `Request.min_tier` or a finer one."""
    LAST = 2
    """There is no finer level. The answer ends at the finest tier that is sure, coarser than `Request.min_tier`."""
    EXCLUDED = 3
    """The model is sure that the image shows none of the classes asked for."""
    NOT_SURE = 4
    """There is no finer level, and no tier is sure: there is no answer, only a guess (`Answers.guess`)."""

    @property
    def word(self) -> str:
        """The value in the column `stop_reason`."""
        return self.name.lower().replace("_", " ")


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """Which level answers, how sure an answer must be, and which classes may be the answer.

    With `level` "auto", ever finer levels are computed until the answer is sure on tier `min_tier` or a finer one:
    sure answers are right at rate `precision` (0 … 1). The answer ends at the finest tier that is sure. `only` and
    `exclude` name classes of any height of the tree, by synset id or name: an answer is a leaf below a class of
    `only` (all leaves if it is empty) and below none of `exclude`, or a class that holds such a leaf and does not
    lie above a class of `only`. `prior` has weights of classes, for a place or a season: scores are multiplied by
    them and normalised again (`hierclass.decisions.prior`).
    """

    level: LevelChoice = None
    min_tier: int = 0
    precision: float = 0.95
    only: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    prior: Prior = ()

    @classmethod
    def of(
        cls,
        level: LevelChoice = None,
        min_tier: int | None = None,
        precision: float | None = None,
        only: str | Iterable[str] = (),
        exclude: str | Iterable[str] = (),
        prior: Mapping[str, float] | None = None,
    ) -> Request:
        """Return the request that the arguments of a call make; None: not given.

        Raises:
            InputError: an argument is malformed, or would change nothing beside the others.
        """
        auto, classes = level == "auto", (_names(only), _names(exclude))
        if min_tier is not None and not auto:
            raise InputError("min_tier belongs to level='auto'")
        if precision is not None and not auto and not any(classes):
            raise InputError("precision belongs to level='auto', only and exclude")
        if min_tier is not None and not _is(Integral, min_tier):
            raise InputError(f"min_tier is the number of a tier, from 0, not {min_tier!r}")
        if precision is not None and not _is(Real, precision):
            raise InputError(f"precision is a share of right answers such as 0.95, not {precision!r}")
        if prior is not None and not isinstance(prior, Mapping):
            raise InputError(
                f"prior maps classes to weights, such as {{'dog': 2.5}}, and is no {type(prior).__name__}"
            )
        _names(prior or ())
        defaults = cls()
        return cls(
            level=level,
            min_tier=defaults.min_tier if min_tier is None else int(min_tier),
            precision=defaults.precision if precision is None else float(precision),
            only=classes[0],
            exclude=classes[1],
            prior=from_mapping(prior or {}),
        )

    @property
    def selects(self) -> bool:
        """Whether the request restricts the classes that may be the answer."""
        return bool(self.only or self.exclude)


@dataclass(frozen=True, slots=True)
class Answers:
    """Answers to N images of a model of T tiers.

    `classes` (N, T) holds the class indices of the path, -1 in tiers that were not computed; `scores` (N, T) their
    scores (0 … 1), NaN there. `tier` (N,) is the tier of the answer, -1 where there is none; `level` (N,) the last
    level that was computed; `reason` (N,) a `StopReason`. `guess` (N,) is a tier where the reason is
    `StopReason.NOT_SURE`, the coarsest whose class could have been the answer; -1 elsewhere.
    """

    classes: NDArray[np.int32]
    scores: NDArray[np.float32]
    tier: NDArray[np.int8]
    level: NDArray[np.int8]
    reason: NDArray[np.int8]
    guess: NDArray[np.int8]

    @property
    def shown(self) -> NDArray[np.int8]:
        """The tier (N,) of the class that is shown: that of the answer, or else of the guess; -1 if there is none."""
        return np.maximum(self.tier, self.guess)

    def __len__(self) -> int:
        return len(self.tier)

    def take(self, rows: NDArray[np.integer] | Flags) -> Answers:
        """Return the answers of the given rows (indices, or flags (N,))."""
        return Answers(*(getattr(self, each.name)[rows] for each in fields(self)))

    @classmethod
    def none(cls, count: int, num_tiers: int) -> Answers:
        """Return N = `count` answers that say nothing, for images with an error."""
        unknown = np.full(count, -1, dtype=np.int8)
        classes = np.full((count, num_tiers), -1, dtype=np.int32)
        return cls(
            classes, np.full((count, num_tiers), np.nan, np.float32), unknown, unknown, unknown, unknown
        )

    @classmethod
    def gather(cls, chosen: Sequence[tuple[Answers, int]]) -> Answers:
        """Return one row of each of the given answers, in order; there is at least one."""
        names = [each.name for each in fields(cls)]
        return cls(*(np.stack([getattr(answers, name)[row] for answers, row in chosen]) for name in names))


class ExitPolicy:
    """Decides, for one request to one model, which answers of a level are final."""

    def __init__(self, request: Request, taxonomy: Taxonomy, decision: Decision) -> None:
        """Resolve the classes and thresholds of a request for a model with this taxonomy and decision.

        Raises:
            InputError: a class is unknown, none is left, a tier does not exist, thresholds are missing, or weights
                make no prior.
        """
        self.taxonomy = taxonomy
        self.auto = request.level == "auto"
        num_levels = taxonomy.num_tiers
        self.last = num_levels - 1 if request.level in ("auto", None) else int(request.level)
        """The finest level that may be computed."""
        self.min_tier = request.min_tier
        if not 0 <= request.min_tier < num_levels:
            raise InputError(
                f"tier {request.min_tier} does not exist; this model has tiers 0 to {num_levels - 1}"
            )
        self._allowed = allowed_classes(request, taxonomy) if request.selects else None
        self._inside = inside_classes(request, taxonomy)
        self._weights = self._find_weights(request)
        self._thresholds = self._find_thresholds(request, decision)

    @property
    def can_answer(self) -> bool:
        """Whether level `last` has a class within `Request.only`; if not, no image gets an answer."""
        return bool(self._inside[self.last].any())

    @property
    def first(self) -> int:
        """The lowest level whose answer can be final; the answers of those below need not be judged."""
        if self._allowed is not None and self._thresholds is not None:
            return 0
        return self.min_tier if self.auto else self.last

    def judge(self, tiers: Sequence[Scores]) -> tuple[Flags, Answers]:
        """Judge the answers of level k to N images.

        `tiers` are the scores of tiers 0 … k as `combine_levels` returns them, (N, num_classes[j]) each. Returns
        flags (N,), true for images that need no finer level, and the answers to all N.
        """
        level, taxonomy = len(tiers) - 1, self.taxonomy
        if self._weights is not None:
            tiers = apply_prior(tiers, taxonomy, self._weights)
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
            unsure = np.where(tier < 0, StopReason.NOT_SURE, StopReason.LAST)
            reason = np.where(enough, StopReason.SURE, unsure)
            done = enough | (level == self.last)
        else:
            tier, reason = _finest(inside), np.full(len(classes), StopReason.ASKED)
            done = np.full(len(classes), level == self.last)
        reason = np.where(none, StopReason.EXCLUDED, reason)
        guess = np.where(reason == StopReason.NOT_SURE, _coarsest(inside), -1)
        missing = ((0, 0), (0, taxonomy.num_tiers - classes.shape[1]))
        answers = Answers(
            np.pad(classes, missing, constant_values=-1).astype(np.int32),
            np.pad(scores, missing, constant_values=np.nan).astype(np.float32),
            np.where(none, -1, tier).astype(np.int8),
            np.full(len(classes), level, dtype=np.int8),
            reason.astype(np.int8),
            guess.astype(np.int8),
        )
        return done | none, answers

    def predictions(self, tiers: Sequence[Scores], answers: Answers) -> list[Prediction]:
        """Return the `answers` that `judge` gave for the scores `tiers` as predictions.

        Each path ends at the tier that is shown. Where there is none, it is what the model sees.
        """
        shown = list(tiers) if self._weights is None else apply_prior(tiers, self.taxonomy, self._weights)
        if self._allowed is not None:
            excluded = (answers.reason == StopReason.EXCLUDED)[:, None]
            kept = restrict_classes(shown, self.taxonomy, self._allowed)
            shown = [np.where(excluded, *both) for both in zip(shown, kept, strict=True)]
        found = []
        for row, prediction in enumerate(to_predictions(shown, self.taxonomy)):
            reason, tier, end = (each[row] for each in (answers.reason, answers.tier, answers.shown))
            end = int(end) if end >= 0 else prediction.level
            word = StopReason(int(reason)).word
            found.append(prediction.ended(end, word, is_sure(bool(tier >= 0), word)))
        return found

    def _sure(self, scores: Scores) -> Flags:
        """Whether each score (N, k + 1) of the paths of level k reaches its threshold."""
        if self._thresholds is None:
            return np.zeros(scores.shape, dtype=np.bool_)
        sure: Flags = scores >= self._thresholds[scores.shape[1] - 1]
        return sure

    def _find_weights(self, request: Request) -> list[Scores] | None:
        """The weights of the classes of every tier; None without a prior."""
        if not request.prior:
            return None
        leaves = leaf_weights(request.prior, self.taxonomy)
        if self._allowed is not None and not leaves[self._allowed[-1]].any():
            raise InputError("only and exclude leave classes alone that the prior gives the weight 0")
        return tier_weights(leaves, self.taxonomy)

    def _find_thresholds(self, request: Request, decision: Decision) -> list[Scores] | None:
        """Per level the thresholds (level + 1,) of tiers 0 … level; None if the request needs none."""
        if not self.auto and not (request.selects and decision.thresholds):
            return None
        return [
            np.array([np.inf if each.score is None else each.score for each in of_level])
            for of_level in decision.at(request.precision)
        ]


def is_sure(answered: bool, stop_reason: str | None) -> bool | None:
    """Return whether an answer is sure: false where there is none, None where a level was asked for and answered."""
    return None if answered and stop_reason == StopReason.ASKED.word else answered


def _flags_of(classes: NDArray[np.integer], flags: Sequence[Flags]) -> Flags:
    """Look up flags of the classes of every tier for paths (N, k + 1) of class indices."""
    return np.stack([flags[tier][column] for tier, column in enumerate(classes.T)], axis=1)


def _finest(sure: Flags) -> NDArray[np.int64]:
    """The last true column of every row, -1 where there is none."""
    columns = np.arange(sure.shape[1])
    found: NDArray[np.int64] = np.where(sure, columns, -1).max(axis=1)
    return found


def _coarsest(flags: Flags) -> NDArray[np.int64]:
    """The first true column of every row, -1 where there is none."""
    found: NDArray[np.int64] = np.where(flags.any(axis=1), flags.argmax(axis=1), -1)
    return found


def _is(kind: type, value: object) -> bool:
    """Whether a value is a number of a kind, of NumPy perhaps."""
    return isinstance(value, kind) and not isinstance(value, bool)


def _names(names: object) -> tuple[str, ...]:
    """One name or several as a tuple."""
    found = (names,) if isinstance(names, str) else tuple(names) if isinstance(names, Iterable) else (names,)
    for name in found:
        if not isinstance(name, str):
            raise InputError(f"classes are given by name or synset id, not as {name!r:.60}")
    return found
