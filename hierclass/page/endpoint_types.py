"""Types of the results of the page's endpoints, which `/gradio_api/info` shows and docs/page.md documents.

Keys are added, never renamed or removed, however the page changes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, TypedDict

from hierclass.page.model_info import describe_tiers, model_name

if TYPE_CHECKING:
    from hierclass.classifier import Classifier
    from hierclass.decisions.prediction import Step
    from hierclass.labelling.rows import Row
    from hierclass.page.single import Stage
    from taxonomy import Node

NUM_ALTERNATIVES = 5

CLASSIFY = (
    "Classify a photograph. Answers level after level, coarse first, up to `level` (from 0; null: the finest). "
    "With `precision` (0 to 1) it climbs until an answer to tier `level` is right that often; `answer` is what it is "
    "sure of."
)
LABEL = (
    "Label photographs and zip files of photographs, as the command `hierclass label` does: a list of one row per "
    "photograph, in order, with an `error` where one can't be read. Streams the rows that are done; the last is whole."
)
MODEL = "What the levels of the model answer, cost and get right, and the precisions that thresholds were fitted for."
CLASSES = "Find classes by name, synset id or words of their definition."


class _Meta(TypedDict):
    _type: Literal["gradio.FileData"]


class SentFile(TypedDict):
    """A file that was uploaded before; `gradio_client.handle_file` makes one."""

    path: str
    meta: _Meta


class StepAnswer(TypedDict):
    """One class of a tier: synset id (or own id), name, probability 0 … 1."""

    synset: str
    label: str
    score: float


class CostAnswer(TypedDict):
    """What one step took: wall-clock time, and what it computed beyond the steps before it."""

    milliseconds: float
    macs_added: int
    share_added: float


class StageAnswer(TypedDict):
    """What one level says of a photograph; /classify streams one per level, coarse first."""

    level: int
    synset: str
    label: str
    score: float
    path: list[StepAnswer]
    alternatives: list[StepAnswer]
    cost: CostAnswer
    enough: bool
    answer: StepAnswer | None
    stop_reason: str | None


class RowAnswer(TypedDict):
    """What became of one photograph of many; `error` is None where it could be read.

    `name` is the table's column `path`; clients of Gradio take what has a `path` for a file to fetch.
    """

    name: str
    error: str | None
    level: int | None
    synset: str | None
    label: str | None
    score: float | None
    chosen_level: int | None
    stop_reason: str | None
    steps: list[StepAnswer]


class LevelAnswer(TypedDict):
    """What a level answers and costs; `accuracy` is None where it was not measured."""

    level: int
    num_classes: int
    macs: int
    share: float
    parameters: int
    bytes: int
    accuracy: float | None


class ModelAnswer(TypedDict):
    """The model behind the page."""

    name: str
    digest: str
    precisions: list[float]
    levels: list[LevelAnswer]


class ClassAnswer(TypedDict):
    """A class of the taxonomy: the tiers that it is a class of, and what it belongs to, coarse first."""

    synset: str
    label: str
    definition: str
    tiers: list[int]
    path: list[str]


PARAMETERS: dict[str, dict[str, Any]] = {
    "classify": {"photo": SentFile, "level": int | None, "precision": float | None},
    "label": {"photos": list[SentFile], "level": int | None, "precision": float | None},
    "model": {},
    "classes": {"query": str},
}
"""What each endpoint takes: name and type of its arguments."""


def stage_answer(stage: Stage) -> StageAnswer:
    """Return a stage as JSON values."""
    best = stage.prediction.path[-1]
    return StageAnswer(
        **step_answer(best),
        level=stage.level,
        path=[step_answer(step) for step in stage.prediction.path],
        alternatives=[step_answer(step) for step in stage.prediction.top(NUM_ALTERNATIVES)],
        cost=CostAnswer(
            milliseconds=round(stage.milliseconds, 3), macs_added=stage.macs, share_added=stage.share
        ),
        enough=stage.enough,
        answer=None if stage.answer is None else step_answer(stage.answer),
        stop_reason=stage.reason.word if stage.enough else None,
    )


def row_answer(row: Row) -> RowAnswer:
    """Return a row of many as JSON values."""
    return RowAnswer(
        name=row.path,
        error=row.error,
        level=row.level,
        synset=row.synset,
        label=row.label,
        score=None if row.score is None else round(row.score, 6),
        chosen_level=row.chosen_level,
        stop_reason=row.stop_reason,
        steps=[step_answer(step) for step in row.steps],
    )


def model_answer(classifier: Classifier) -> ModelAnswer:
    """Return what there is to know of a model as JSON values."""
    return ModelAnswer(
        name=model_name(classifier),
        digest=classifier.digest,
        precisions=classifier.decision.precisions,
        levels=[
            LevelAnswer(
                level=level.index,
                num_classes=level.num_classes,
                macs=level.macs,
                share=level.share,
                parameters=level.parameters,
                bytes=level.bytes,
                accuracy=level.accuracy,
            )
            for level in classifier.levels
        ],
    )


def class_answer(classifier: Classifier, node: Node) -> ClassAnswer:
    """Return a class as JSON values."""
    tiers, path = describe_tiers(classifier.taxonomy, node)
    return ClassAnswer(
        synset=node.id,
        label=node.name,
        definition=node.definition,
        tiers=tiers,
        path=[above.name for above in path],
    )


def step_answer(step: Step) -> StepAnswer:
    """Return a step as JSON values."""
    return StepAnswer(synset=step.synset, label=step.label, score=round(step.score, 6))
