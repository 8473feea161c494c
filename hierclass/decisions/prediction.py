"""From the logits of levels to predictions: paths of the tree whose scores never rise from coarse to fine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import InitVar, dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hierclass.errors import LevelError
from taxonomy import Node, Taxonomy

Scores = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Step:
    """One class of a tier with its score (0 … 1)."""

    synset: str
    label: str
    score: float

    def to_dict(self) -> dict[str, Any]:
        """Return the step as JSON values."""
        return {"synset": self.synset, "label": self.label, "score": round(self.score, 6)}


@dataclass(frozen=True, repr=False)
class Prediction:
    """The answer of a level to one image: the class `label` with its `synset` (or own id) and `score` (0 … 1).

    `path` holds one class per tier from 0 to that of the answer, a path of the tree; its scores never rise from coarse
    to fine. `level` is the last level that was computed.

    `stop_reason` and `sure` are None where nothing but a level was asked for. With `level="auto"`, `only`, `exclude` or
    `prior`, `stop_reason` says why no finer level was computed, as in the table of `hierclass label` (a
    `hierclass.decisions.exit_policy.StopReason` in words). `sure` is what `hierclass.labelling.rows.Row.sure` is: true
    for a sure answer of "auto", None for that of the level asked for, false where there is no answer. Then `label` is
    the coarsest guess ("not sure"), or what the model sees, which was not asked for ("excluded"; "asked": the level is
    too coarse for `only`).

    It is a dataclass of JSON values: web frameworks and JSON encoders that take dataclasses take it, and
    `json.dumps(prediction.to_dict())` works everywhere.
    """

    level: int
    synset: str = field(init=False)
    label: str = field(init=False)
    score: float = field(init=False)
    path: tuple[Step, ...]
    stop_reason: str | None = field(default=None, kw_only=True)
    sure: bool | None = field(default=None, kw_only=True)
    _classes: InitVar[tuple[tuple[Node, ...], ...]] = ()
    _scores: InitVar[tuple[Scores, ...]] = ()

    def __post_init__(self, _classes: tuple[tuple[Node, ...], ...], _scores: tuple[Scores, ...]) -> None:
        """Keep the scores (num_classes[j],) of tiers 0 … level and their classes, which are no fields."""
        last = self.path[-1]
        values = {"synset": last.synset, "label": last.label, "score": last.score}
        for name, value in {**values, "_classes": _classes, "_scores": _scores}.items():
            object.__setattr__(self, name, value)

    def __repr__(self) -> str:
        why = f", {self.stop_reason}" if self.stop_reason else ""
        if self.sure is False and self.stop_reason != "not sure":
            why += ", no answer; it sees"
        path = " > ".join(f"{step.label} {step.score:.2f}" for step in self.path)
        return f"<Prediction of level {self.level}{why}: {path}>"

    @classmethod
    def __get_pydantic_core_schema__(cls, source: object, handler: object) -> Any:
        """Let pydantic, and FastAPI by it, write a prediction as `to_dict` does."""
        from pydantic_core import core_schema

        return core_schema.any_schema(
            serialization=core_schema.plain_serializer_function_ser_schema(
                lambda value: value.to_dict() if isinstance(value, cls) else value,
                return_schema=core_schema.dict_schema(),
            )
        )

    def top(self, k: int = 5, tier: int | None = None) -> tuple[Step, ...]:
        """Return the k most probable classes of a tier (None: the answer's), best first.

        Raises:
            LevelError: the level does not answer that tier.
        """
        classes, scores = self._classes_of(tier)
        order = np.argsort(-scores, kind="stable")[: max(k, 0)]
        allowed = order[scores[order] >= 0]  # see `restrict_classes`
        return tuple(_step(classes[i], scores[i]) for i in allowed)

    def scores(self, tier: int | None = None) -> Scores:
        """Return the probability (num_classes[tier],) of every class of a tier (None: the answer's).

        Raises:
            LevelError: the level does not answer that tier.
        """
        found: Scores = np.maximum(self._classes_of(tier)[1], 0.0)
        return found

    def to_dict(self) -> dict[str, Any]:
        """Return the prediction as JSON values: level, synset, label, score and path, scores with 6 digits.

        `stop_reason` and `sure` follow where they are not None.
        """
        last, path = self.path[-1].to_dict(), [step.to_dict() for step in self.path]
        why = {} if self.stop_reason is None else {"stop_reason": self.stop_reason}
        sure = {} if self.sure is None else {"sure": self.sure}
        return {"level": self.level, **last, "path": path, **why, **sure}

    def ended(self, end: int, stop_reason: str, sure: bool | None) -> Prediction:
        """Return the prediction with a path that ends at tier `end`, and why no finer level was computed."""
        return replace(self, path=self.path[: end + 1], stop_reason=stop_reason, sure=sure)

    def _classes_of(self, tier: int | None) -> tuple[tuple[Node, ...], Scores]:
        """The classes of a tier (None: the answer's) and their scores, below 0 for those that may be no answer."""
        if tier is None:
            tier = len(self.path) - 1
        if not 0 <= tier <= self.level:
            raise LevelError(f"level {self.level} answers tiers 0 to {self.level}, not {tier}")
        kept = vars(self)
        return kept["_classes"][tier], kept["_scores"][tier]


def consensus(
    logits: Sequence[NDArray[np.floating[Any]] | None], taxonomy: Taxonomy, lower_weight: float = 0.0
) -> Scores:
    """Combine the answers of levels 0 … k to log-scores (B, num_classes[k]) of tier k.

    `logits[j]` (B, num_classes[j]) come from level j. Class c of tier k gets a score proportional to p_k(c) ·
    Π_{j<k} p_j(ancestor of c in tier j) ** lower_weight (a product of experts). With weight 0 level k decides alone,
    and the logits of lower levels may be None. The exponentials of each row sum to 1.
    """
    *lower_logits, asked = logits
    assert asked is not None
    joint = _log_softmax(asked)
    if not lower_weight:
        return joint
    for ancestors, lower in zip(_ancestors(taxonomy, len(lower_logits)), lower_logits, strict=True):
        assert lower is not None
        joint = joint + lower_weight * _log_softmax(lower)[:, ancestors]
    return _log_softmax(joint)


def sum_up(log_scores: Scores, taxonomy: Taxonomy, level: int, temperature: float = 1.0) -> list[Scores]:
    """Divide a level's log-scores (B, num_classes[level]) by a temperature and sum them up the tree.

    A temperature above 1 makes answers less sure, one below 1 surer; the order of the classes of the level's own tier
    stays (Guo et al. 2017, *On Calibration of Modern Neural Networks*, section 4.2). Returns scores
    (B, num_classes[j]) of tiers 0 … level; each row sums to 1, and no class scores more than its parent.
    """
    return sum_classes(np.exp(_log_softmax(log_scores / temperature)), taxonomy, level)


def sum_classes(scores: Scores, taxonomy: Taxonomy, level: int) -> list[Scores]:
    """Sum scores (B, num_classes[level]) up the tree: those (B, num_classes[j]) of tiers 0 … level."""
    above = enumerate(_ancestors(taxonomy, level))
    return [*(_summed(scores, each, taxonomy.num_classes[tier]) for tier, each in above), scores]


def combine_levels(
    logits: Sequence[NDArray[np.floating[Any]] | None],
    taxonomy: Taxonomy,
    lower_weight: float = 0.0,
    temperatures: Sequence[float] | None = None,
) -> list[Scores]:
    """Combine the logits of levels 0 … k to one distribution on tier k, and sum it up the tree.

    `logits[j]` (B, num_classes[j]) come from level j; `consensus` combines them. `temperatures` has one number above
    0 per level of the model (None: all 1); that of level k divides the combined log-scores. Returns scores
    (B, num_classes[j]) of tiers 0 … k; each row sums to 1, and no class scores more than its parent.
    """
    level = len(logits) - 1
    temperature = 1.0 if temperatures is None else temperatures[level]
    return sum_up(consensus(logits, taxonomy, lower_weight), taxonomy, level, temperature)


def best_paths(tiers: Sequence[Scores], taxonomy: Taxonomy) -> tuple[NDArray[np.int64], Scores]:
    """Return the path that ends in the most probable class of tier k, for every image.

    `tiers` are the scores of tiers 0 … k as `combine_levels` returns them, (B, num_classes[j]) each. Returns class
    indices (B, k + 1) and their scores (B, k + 1), 0 … 1, which never rise from left to right.
    """
    level, rows = len(tiers) - 1, np.arange(len(tiers[-1]))
    best = tiers[level].argmax(axis=1).astype(np.int64)
    classes = np.empty((len(best), level + 1), dtype=np.int64)
    scores = np.empty((len(best), level + 1))
    lowest = np.zeros(len(best))
    for tier in range(level, -1, -1):
        # Sums of the same numbers in another order may differ in the last digit; a path must not rise.
        lowest = np.minimum(np.maximum(tiers[tier][rows, best], lowest), 1.0)
        classes[:, tier], scores[:, tier] = best, lowest
        best = taxonomy.parent_classes(tier)[best] if tier else best
    return classes, scores


def restrict_classes(
    tiers: Sequence[Scores], taxonomy: Taxonomy, allowed: Sequence[NDArray[np.bool_]]
) -> list[Scores]:
    """Restrict scores to the classes that are allowed: `allowed[j]` (num_classes[j],) flags those of tier j.

    `tiers` are the scores of tiers 0 … k as `combine_levels` returns them; at least one class of tier k is allowed. A
    coarser class gets the sum of its allowed classes of tier k; rows need not sum to 1 any more. Classes that are not
    allowed score -1, so that they are never the most probable.
    """
    level = len(tiers) - 1
    kept = np.where(allowed[level], tiers[level], 0.0)
    restricted: list[Scores] = []
    for tier, ancestors in enumerate(_ancestors(taxonomy, level)):
        restricted.append(np.where(allowed[tier], _summed(kept, ancestors, taxonomy.num_classes[tier]), -1.0))
    return [*restricted, np.where(allowed[level], kept, -1.0)]


def to_predictions(tiers: Sequence[Scores], taxonomy: Taxonomy) -> list[Prediction]:
    """Return one prediction per image: the path that ends in the most probable class of tier k.

    `tiers` are the scores of tiers 0 … k as `combine_levels` returns them, (B, num_classes[j]) each.
    """
    level = len(tiers) - 1
    nodes = [taxonomy.classes(tier) for tier in range(level + 1)]
    predictions = []
    for row, (answers, along) in enumerate(zip(*best_paths(tiers, taxonomy), strict=True)):
        steps = zip(nodes, answers.tolist(), along.tolist(), strict=True)
        path = tuple(_step(classes[answer], score) for classes, answer, score in steps)
        predictions.append(Prediction(level, path, tuple(nodes), tuple(scores[row] for scores in tiers)))
    return predictions


def _ancestors(taxonomy: Taxonomy, level: int) -> list[NDArray[np.int64]]:
    """For each tier 0 … `level` - 1, the class (num_classes[level],) that every class of tier `level` belongs to."""
    found: list[NDArray[np.int64]] = []
    classes = np.arange(taxonomy.num_classes[level])
    for tier in range(level, 0, -1):
        classes = taxonomy.parent_classes(tier)[classes]
        found.insert(0, classes)
    return found


def _summed(finest: Scores, ancestors: NDArray[np.int64], num_classes: int) -> Scores:
    """Sum scores (B, C) of classes to scores (B, num_classes) of their ancestors (C,)."""
    summed = np.zeros((len(finest), num_classes))
    order = np.argsort(ancestors, kind="stable")
    present, starts = np.unique(ancestors[order], return_index=True)
    summed[:, present] = np.add.reduceat(finest[:, order], starts, axis=1)  # many times as fast as np.add.at
    return summed


def _step(node: Node, score: float) -> Step:
    return Step(node.id, node.name, float(score))


def _log_softmax(logits: NDArray[np.floating[Any]]) -> Scores:
    shifted = np.asarray(logits, dtype=np.float64)
    shifted = shifted - shifted.max(axis=1, keepdims=True)
    scores: Scores = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return scores
