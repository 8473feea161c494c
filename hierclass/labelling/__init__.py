"""Label many images: `hierclass.label`, and runs on disk that continue after any interruption.

Read in this order: `inputs` (what there is to label), `read_input` (read one), `read_ahead` (read many ahead of the
network), `reader_processes`, `reader_pipes` and `reader_child` (in processes, within limits), `rows` (the table),
`pipeline` (all of it as `LabelPipeline`, which the command, Python, Ray and the page use). Runs on disk: `run_inputs`,
`run_parts` and `run_folder` (files), `run_manifest` (what was asked), `run_pass` (one pass over the inputs), `run` (a
run), `earlier_rows` and `run_update` (only what is new), `sql_filter` (rows to refine), `prior_file` (weights of
classes), `table_writers` and `table_files` (the finished table), `xmp_document`, `xmp_keywords` and `sidecars`
(keywords beside images), `cluster` (many machines).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, cast

from hierclass.errors import InputError

if TYPE_CHECKING:
    from hierclass.classifier import Classifier
    from hierclass.decisions.exit_policy import LevelChoice
    from hierclass.images.discovery import PassedOver
    from hierclass.labelling.pipeline import LabelPipeline
    from hierclass.labelling.read_ahead import NumberedInput
    from hierclass.labelling.read_input import ReadOptions
    from hierclass.labelling.rows import Row

__all__ = ["label"]

_log = logging.getLogger(__name__)


def label(
    paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    *,
    classifier: Classifier | None = None,
    level: LevelChoice = None,
    min_tier: int | None = None,
    precision: float | None = None,
    only: str | Iterable[str] = (),
    exclude: str | Iterable[str] = (),
    prior: Mapping[str, float] | None = None,
    shard: str | None = None,
    reading: ReadOptions | None = None,
) -> Iterator[Row]:
    """Label images: yield a row for every image that `paths` lead to, in order, with an error where one can't be read.

    `paths` are images, folders, tar and Parquet files of images (`hierclass.labelling.inputs.list_inputs`); they may
    be endless, but for a `shard` ("2/8": the second of eight equal parts). `prior` maps classes to their weights. The
    other arguments are those of `hierclass label`: `hierclass.decisions.exit_policy.Request` explains them, and
    `hierclass.labelling.read_input.ReadOptions` explains `reading`. Memory does not grow with the number of images.
    A list, a table or a packed file is no image: its row has an error. When all is labelled, a line is logged that
    counts the other files which were passed over.

    Raises:
        LevelError: the model has no such level (on the call, before anything is read).
        InputError: an argument does not fit (on the call); or, at the end, there was nothing to label.
    """
    from hierclass.classifier import load
    from hierclass.decisions.calibration import warn_if_never_sure
    from hierclass.decisions.exit_policy import Request
    from hierclass.images.discovery import PassedOver
    from hierclass.images.sources import is_one_image
    from hierclass.labelling.inputs import Shard
    from hierclass.labelling.pipeline import LabelPipeline

    if not isinstance(paths, (str, Iterable)) or is_one_image(paths):
        paths = [cast("str | os.PathLike[str]", paths)]
    request = Request.of(level, min_tier, precision, only, exclude, prior)
    classifier = load() if classifier is None else classifier
    pipeline = LabelPipeline(classifier, request, reading)
    if level == "auto":
        warn_if_never_sure(classifier.decision, request.precision)
    passed_over = PassedOver()
    inputs = pipeline.list_inputs(
        map(_path, paths), None if shard is None else Shard.parse(shard), passed_over
    )
    return _rows(pipeline, inputs, passed_over)


def _rows(pipeline: LabelPipeline, inputs: Iterable[NumberedInput], passed_over: PassedOver) -> Iterator[Row]:
    for outcome in pipeline.run(inputs):
        yield from pipeline.rows(outcome)
    if passed_over:
        _log.log(logging.WARNING if passed_over.advice() else logging.INFO, passed_over.text())


def _path(value: object) -> str | os.PathLike[str]:
    if isinstance(value, (str, os.PathLike)):
        return value
    raise InputError(
        f"hierclass.label takes paths, not {type(value).__name__}; predict_batch takes images in memory, with "
        "level='auto' as well"
    )
