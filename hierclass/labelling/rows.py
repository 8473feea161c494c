"""The tables of labels and of features: outcomes of inputs as Arrow tables and as rows for Python."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from hierclass.decisions.exit_policy import Answers, StopReason, is_sure
from hierclass.decisions.prediction import Step
from hierclass.labelling.inputs import Input, Stamp

if TYPE_CHECKING:
    import pyarrow as pa

    from taxonomy import Taxonomy

Value: TypeAlias = "str | int | float | bool | None"

SCORE_DIGITS = 4
FORMATS = ("csv", "jsonl", "parquet")
"""Endings of the files that the table can be written as."""
_OWN = ("_index", "_size", "_modified")
"""Columns that only the parts of a run have: the number of the input, and size and time of its file."""


@dataclass(frozen=True, slots=True)
class Row:
    """The outcome of one input: an answer with its path, or an `error`.

    `path` names the input. `steps` are the classes of the last computed level, one per tier from 0 to its own; their
    scores (0 … 1) never rise. `level` is the tier of the answer, an index of `steps`; None if nothing is sure
    (`stop_reason` "not sure"), the image shows none of the classes asked for ("excluded"), or the level that was asked
    for is too coarse to tell ("asked"). `chosen_level` is the last computed level and `stop_reason` says why it was
    the last (a `hierclass.decisions.exit_policy.StopReason` in words). `preview`: a preview was read. `guess` is the
    index of the coarsest class that could have been the answer where `stop_reason` is "not sure", else None.
    """

    path: str
    error: str | None = None
    level: int | None = None
    chosen_level: int | None = None
    stop_reason: str | None = None
    preview: bool | None = None
    steps: tuple[Step, ...] = ()
    guess: int | None = None

    def __repr__(self) -> str:
        if self.error is not None:
            return f"<Row {self.path}: error: {self.error}>"
        shown = "no answer" if self.score is None else f"{self.label} {self.score:.2f}"
        return f"<Row {self.path}: {shown}, {self.stop_reason} at level {self.chosen_level}>"

    @property
    def answer(self) -> Step | None:
        """The class that is the answer; None if there is none."""
        return None if self.level is None else self.steps[self.level]

    @property
    def sure(self) -> bool | None:
        """Whether the answer is sure, with "auto"; None: the level that was asked for answered; false: no answer."""
        return is_sure(self.level is not None, self.stop_reason)

    @property
    def synset(self) -> str | None:
        """Synset id (or own id) of the answer, of the guess where it is not sure; None if there is neither."""
        return None if self._shown is None else self._shown.synset

    @property
    def label(self) -> str | None:
        """Name of the answer, of the guess where it is not sure; None if there is neither."""
        return None if self._shown is None else self._shown.label

    @property
    def score(self) -> float | None:
        """Probability (0 … 1) that the model gives to `label`."""
        return None if self._shown is None else self._shown.score

    @property
    def _shown(self) -> Step | None:
        return self.answer if self.guess is None else self.steps[self.guess]

    def to_dict(self, num_tiers: int | None = None) -> dict[str, Value]:
        """Return the values of the columns of a table of N = `num_tiers` tiers (None: those that the row has).

        They are None where the row has none.
        """
        values: dict[str, Value] = dict.fromkeys(columns(len(self.steps) if num_tiers is None else num_tiers))
        values |= {name: getattr(self, name) for name in columns(0)}
        if self.score is not None:
            values["score"] = round(self.score, SCORE_DIGITS)
        for tier, step in enumerate(self.steps):
            values[f"tier{tier}_synset"] = step.synset
            values[f"tier{tier}_label"] = step.label
            values[f"tier{tier}_score"] = round(step.score, SCORE_DIGITS)
        return values


def is_guess(level: int | None, stop_reason: str | None) -> bool:
    """Return whether a row's class is a guess, by `level` and `stop_reason`; runs of earlier versions say "last"."""
    return level is None and stop_reason in (StopReason.NOT_SURE.word, StopReason.LAST.word)


def columns(num_tiers: int) -> tuple[str, ...]:
    """Return the names of the columns of a table of N = `num_tiers` tiers, in order."""
    tiers = (f"tier{tier}_{field}" for tier in range(num_tiers) for field in ("synset", "label", "score"))
    answer = ("path", "error", "level", "synset", "label", "score")
    return (*answer, "chosen_level", "stop_reason", "preview", *tiers)


def schema(num_tiers: int, *, own: bool = False) -> pa.Schema:
    """Return the Arrow schema of a table of N = `num_tiers` tiers; with `own`, of a part of a run."""
    import pyarrow as pa

    types = {"level": pa.int32(), "score": pa.float32(), "preview": pa.bool_()}
    kinds = {name: types.get(name.split("_")[-1], pa.string()) for name in columns(num_tiers)}
    return _schema(kinds, own=own)


def feature_schema(num_features: int, *, own: bool = False) -> pa.Schema:
    """Return the Arrow schema of a table of F = `num_features` features; with `own`, of a part of a run."""
    import pyarrow as pa

    features = pa.list_(pa.float32(), num_features)
    return _schema({"path": pa.string(), "error": pa.string(), "features": features}, own=own)


def _schema(kinds: dict[str, pa.DataType], *, own: bool) -> pa.Schema:
    import pyarrow as pa

    return pa.schema(list({**(dict.fromkeys(_OWN, pa.int64()) if own else {}), **kinds}.items()))


@dataclass(slots=True, kw_only=True)
class ReadInputs:
    """N inputs that were read, and the errors met on the way."""

    numbers: NDArray[np.int64]
    """The number of each input among all inputs."""
    inputs: Sequence[Input]
    errors: Sequence[str | None]
    stamps: Sequence[Stamp | None]

    def __len__(self) -> int:
        return len(self.inputs)

    @property
    def num_errors(self) -> int:
        """Number of inputs with an error."""
        return sum(error is not None for error in self.errors)

    def columns(self) -> dict[str, Any]:
        """Return the values of the columns that every table has, and of those that only parts of a run have."""
        stamps = [each or Stamp(-1, -1) for each in self.stamps]
        return {
            "_index": self.numbers,
            "_size": [each.size for each in stamps],
            "_modified": [each.modified for each in stamps],
            "path": [item.name for item in self.inputs],
            "error": list(self.errors),
        }


@dataclass(slots=True, kw_only=True)
class FeatureOutcome(ReadInputs):
    """The outcomes of N inputs: features (N, F), or errors in their place."""

    features: NDArray[np.float32]

    def table(self) -> pa.Table:
        """Return the outcomes as an Arrow table with the columns of a part of a run; no features where errors are."""
        import pyarrow as pa

        size = self.features.shape[1]
        failed = pa.array([error is not None for error in self.errors], pa.bool_())
        flat = pa.array(self.features.reshape(-1), pa.float32())
        features = pa.FixedSizeListArray.from_arrays(flat, size, mask=failed)
        return pa.table({**self.columns(), "features": features}, schema=feature_schema(size, own=True))


@dataclass(slots=True, kw_only=True)
class Outcome(ReadInputs):
    """The outcomes of N inputs: answers, or errors in their place."""

    answers: Answers
    previews: NDArray[np.bool_]

    def rows(self, taxonomy: Taxonomy) -> list[Row]:
        """Return one row per input."""
        nodes = [taxonomy.classes(tier) for tier in range(taxonomy.num_tiers)]
        found = []
        for at, (item, error) in enumerate(zip(self.inputs, self.errors, strict=True)):
            if error is not None:
                found.append(Row(item.name, error))
                continue
            level = int(self.answers.level[at])
            tier, guess = (
                int(each[at]) if each[at] >= 0 else None for each in (self.answers.tier, self.answers.guess)
            )
            pairs = zip(self.answers.classes[at, : level + 1], self.answers.scores[at], strict=False)
            steps = tuple(
                Step(nodes[k][index].id, nodes[k][index].name, float(score))
                for k, (index, score) in enumerate(pairs)
            )
            reason = StopReason(int(self.answers.reason[at])).word
            preview = bool(self.previews[at])
            found.append(Row(item.name, None, tier, level, reason, preview, steps, guess))
        return found

    def table(self, names: ClassNames) -> pa.Table:
        """Return the outcomes as an Arrow table with the columns of a part of a run, for the tiers of `names`."""
        import pyarrow as pa

        answers, good = self.answers, np.array([error is None for error in self.errors], dtype=np.bool_)
        rows = np.arange(len(self))
        answered, shown = good & (answers.tier >= 0), good & (answers.shown >= 0)
        at = np.where(shown, answers.shown, 0)
        values: dict[str, Any] = {
            **self.columns(),
            "level": pa.array(answers.tier.astype(np.int32), mask=~answered),
            "synset": _taken(names.synsets, names.starts[at] + answers.classes[rows, at], shown),
            "label": _taken(names.labels, names.starts[at] + answers.classes[rows, at], shown),
            "score": _scores(answers.scores[rows, at], shown),
            "chosen_level": pa.array(answers.level.astype(np.int32), mask=~good),
            "stop_reason": _taken(names.reasons, answers.reason, good),
            "preview": pa.array(self.previews, mask=~good),
        }
        for k in range(names.num_tiers):
            known = good & (answers.classes[:, k] >= 0)
            values[f"tier{k}_synset"] = _taken(names.synsets, names.starts[k] + answers.classes[:, k], known)
            values[f"tier{k}_label"] = _taken(names.labels, names.starts[k] + answers.classes[:, k], known)
            values[f"tier{k}_score"] = _scores(answers.scores[:, k], known)
        return pa.table(values, schema=schema(names.num_tiers, own=True))


class ClassNames:
    """Ids and names of a taxonomy's classes as Arrow arrays; those of tier k begin at `starts[k]`."""

    def __init__(self, taxonomy: Taxonomy, num_tiers: int) -> None:
        """Take the first N = `num_tiers` tiers of a taxonomy."""
        import pyarrow as pa

        self.num_tiers = num_tiers
        nodes = [node for tier in range(num_tiers) for node in taxonomy.classes(tier)]
        self.starts = np.cumsum([0, *taxonomy.num_classes])[:num_tiers]
        self.synsets = pa.array([node.id for node in nodes], pa.string())
        self.labels = pa.array([node.name for node in nodes], pa.string())
        self.reasons = pa.array([reason.word for reason in StopReason], pa.string())


def _scores(values: NDArray[np.floating[Any]], known: NDArray[np.bool_]) -> pa.Array:
    import pyarrow as pa

    rounded = np.round(np.nan_to_num(values.astype(np.float64)), SCORE_DIGITS)
    return pa.array(rounded.astype(np.float32), mask=~known)


def _taken(texts: pa.Array, indices: NDArray[np.integer[Any]], known: NDArray[np.bool_]) -> pa.Array:
    """The text at every index, null where `known` is false."""
    import pyarrow as pa

    return texts.take(pa.array(np.where(known, indices, 0).astype(np.int32), mask=~known))
