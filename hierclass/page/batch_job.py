"""Many photographs at once: collect what was sent, label it as `hierclass label` does, and make tables."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import io
import os
import time
from collections.abc import Generator
from dataclasses import dataclass, field
from html import escape
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from PIL import Image

from hierclass.errors import HierclassError, ImageError, InputError
from hierclass.images.discovery import PassedOver
from hierclass.labelling.inputs import Input
from hierclass.labelling.pipeline import LabelPipeline
from hierclass.labelling.read_input import ADVICE, PictureReader, ReadOptions
from hierclass.labelling.reader_processes import ReaderPool
from hierclass.labelling.rows import Row, schema
from hierclass.labelling.table_writers import marked_as_text, write_table
from hierclass.page.messages import percent, photographs
from hierclass.page.single import READ_SECONDS
from hierclass.page.unpacking import ByteBudget, Photograph, unpack
from hierclass.page.uploads import Uploads
from taxonomy.streams import visible

if TYPE_CHECKING:
    from hierclass.classifier import Classifier
    from hierclass.page.single import AnswerOptions

MAX_PHOTOGRAPHS = 500
MAX_UNPACKED = 1 << 30
"""Unpacked bytes of all zip files of one request, at most."""
MAX_SECONDS = 60.0
"""Seconds that one request may take, since others wait."""
BATCH_SIZE = 8
"""Small, so that the first answers come soon."""
THUMBNAIL = 48
"""Longer side in pixels."""
THUMBNAIL_SECONDS = 2.0
"""Seconds that making one may take; a photograph that takes longer is shown without."""
HEADERS = ("no.", "picture", "answer", "how sure (%)", "file", "from coarse to fine", "remark")
Kind: TypeAlias = Literal["html", "str", "number"]
KINDS: tuple[Kind, ...] = ("number", "html", "str", "number", "str", "str", "str")
"""Types of the columns for Gradio's table."""
ORDERS = {
    "as sent": (0, 1),
    "surest first": (3, -1),
    "least sure first": (3, 1),
    "by answer": (2, 1),
    "by file": (4, 1),
}
"""Ways to sort the table: column, and 1 for rising or -1 for falling; rows without a value come last."""
DOWNLOADS = ("csv", "parquet")


@dataclass(slots=True)
class BatchJob:
    """Photographs of one request in the order in which they were sent, and their rows so far."""

    photographs: list[Photograph]
    rows: list[Row | None] = field(default_factory=list)
    thumbnails: dict[int, str] = field(default_factory=dict)
    seconds: float = 0.0
    passed_over: PassedOver = field(default_factory=PassedOver)
    """Files in zip files that are no photographs."""

    @property
    def total(self) -> int:
        """Number of photographs."""
        return len(self.photographs)

    @property
    def done(self) -> list[Row]:
        """The rows that are finished."""
        return [row for row in self.rows if row is not None]

    @property
    def num_errors(self) -> int:
        """Number of photographs that could not be read."""
        return sum(row.error is not None for row in self.done)

    @property
    def finished(self) -> bool:
        """Whether every photograph has its row."""
        return None not in self.rows


def collect_job(uploads: Uploads, sent: Any, folder: Path) -> BatchJob:
    """Return the photographs of a request: uploaded files, and those in zip files, which are unpacked to `folder`.

    A file that was deleted, or a zip file that can't be read, becomes a photograph with an error.

    Raises:
        InputError: nothing was sent, or too many photographs.
    """
    files = [sent] if isinstance(sent, dict) else sent
    if not isinstance(files, list) or not files:
        raise InputError("there is nothing to label yet; choose photographs or a zip file of photographs")
    if len(files) > MAX_PHOTOGRAPHS:
        raise _too_many(len(files))
    found, passed_over = list[Photograph](), PassedOver()
    space = ByteBudget(min(MAX_UNPACKED, uploads.free_space()))
    for number, each in enumerate(files):
        name = _name_of(each, number)
        try:
            path = uploads.find(each)
            if path.suffix.lower() != ".zip":
                found.append(Photograph(name, path))
                continue
            inner = folder / str(number)
            inner.mkdir()
            others = PassedOver()
            inside = list(unpack(path, name, inner, space, MAX_PHOTOGRAPHS, others))
            none = "; ".join(filter(None, ["holds no photographs", others.counts()]))
            found += inside or [Photograph(name, None, none)]
            passed_over.update(others)
        except (ImageError, InputError) as error:
            text = str(error)
            found.append(Photograph(name, None, text.removeprefix(f"{name} ")))
    if len(found) > MAX_PHOTOGRAPHS:
        raise _too_many(len(found))
    return BatchJob(found, passed_over=passed_over)


def run_batch_job(
    classifier: Classifier, job: BatchJob, options: AnswerOptions, *, thumbnails: bool
) -> Generator[None]:
    """Label the photographs of a job as `hierclass label` does; yield whenever the job has new rows.

    With `thumbnails`, also make small pictures for `table_rows`. Photographs that are not reached within
    `MAX_SECONDS` get an error.
    """
    reading = ReadOptions(batch_size=BATCH_SIZE, processes=True, seconds_per_image=READ_SECONDS)
    pipeline = LabelPipeline(classifier, options.request, reading)
    started = time.perf_counter()
    job.rows = [None if each.path else Row(each.name, each.error) for each in job.photographs]
    inputs = ((n, Input(os.fspath(each.path))) for n, each in enumerate(job.photographs) if each.path)
    yield
    with contextlib.closing(pipeline.run(inputs)) as found, ReaderPool(1) as readers:  # type: ignore[type-var]
        for outcome in found:
            for number, row in zip(outcome.numbers.tolist(), pipeline.rows(outcome), strict=True):
                each, over = job.photographs[number], time.perf_counter() - started > MAX_SECONDS
                if thumbnails and row.error is None and each.path is not None and not over:
                    job.thumbnails[number] = thumbnail(each.path, readers)
                error = row.error and row.error.removesuffix(ADVICE)
                job.rows[number] = dataclasses.replace(row, path=each.name, error=error)
            job.seconds = time.perf_counter() - started
            if job.seconds > MAX_SECONDS and not job.finished:
                late = f"was not reached within {MAX_SECONDS:.0f} seconds; send fewer at once, or use hierclass label"
                job.rows = [
                    row or Row(each.name, late) for row, each in zip(job.rows, job.photographs, strict=True)
                ]
                yield
                return
            yield


def table_rows(job: BatchJob) -> list[list[Any]]:
    """Return the rows of the page's table, one per finished photograph, with the columns `HEADERS`."""
    return [
        [number + 1, *_table_row(row, job.thumbnails.get(number, ""))]
        for number, row in enumerate(job.rows)
        if row is not None
    ]


def draw_progress(job: BatchJob, *, stopped: bool = False) -> str:
    """Draw the progress of a job: photographs done, rate and time left."""
    done, total = len(job.done), job.total
    rate = done / job.seconds if job.seconds else 0.0
    failed = f" · {job.num_errors:,} could not be read" if job.num_errors else ""
    if stopped:
        text = f"Stopped: {done:,} of {photographs(total)} are done.{failed}"
    elif job.finished:
        speed = f" in {job.seconds:.1f} s ({rate:,.0f} a second)" if rate else ""
        others = f" · {job.passed_over.counts()}" if job.passed_over else ""
        text = f"{photographs(total)} labelled{speed}{failed}{others}"
    else:
        left = f" · {rate:,.0f} a second · {(total - done) / rate:.0f} s left" if rate else ""
        text = f"{done:,} of {photographs(total)}{left}{failed}"
    share = done / total if total else 0
    return (
        f'<div class="hc"><div class="total" role="progressbar" aria-label="Photographs labelled" aria-valuemin="0" '
        f'aria-valuemax="{total}" aria-valuenow="{done}"><i style="width:{share:.2%}"></i></div>'
        f'<p class="sum" role="status">{escape(text)}</p></div>'
    )


def write_tables(job: BatchJob, num_tiers: int, folder: Path) -> list[Path]:
    """Write the rows as labels.csv and labels.parquet, the tables of `hierclass label`.

    Texts in labels.csv that a spreadsheet would take for a formula begin with an apostrophe: names of files and of
    classes are a stranger's.

    Raises:
        InputError: writing failed, since the disk is full for example.
    """
    import pyarrow as pa

    rows, table_schema = [row.to_dict(num_tiers) for row in job.done], schema(num_tiers)
    paths = [folder / f"labels.{ending}" for ending in DOWNLOADS]
    try:
        for path in paths:
            cells = [_without_formulas(row) for row in rows] if path.suffix == ".csv" else rows
            write_table(path, [pa.Table.from_pylist(cells, schema=table_schema)], table_schema)
    except OSError as error:
        raise InputError(
            f"the tables could not be written ({error.strerror}); please try again later"
        ) from error
    return paths


def thumbnail(path: Path, readers: ReaderPool) -> str:
    """Return a small copy of a photograph as a data URL; empty if it can't be made, or not soon."""
    try:
        pixels = readers.pixels(PictureReader(None, THUMBNAIL), os.fspath(path), THUMBNAIL_SECONDS)
        stream = io.BytesIO()
        Image.fromarray(pixels).save(stream, "JPEG", quality=70)
    except (HierclassError, OSError):
        return ""
    return f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"


def _table_row(row: Row, picture: str) -> list[Any]:
    image = f'<img src="{picture}" alt="" width="{THUMBNAIL}">' if picture else ""
    file, names = visible(row.path), [visible(step.label) for step in row.steps]
    if row.error is not None:
        return [image, "could not be read", None, file, "", visible(row.error)]
    if row.level is None or row.answer is None:
        guess = (
            f": {visible(row.label)} ({percent(row.score)})" if row.label and row.score is not None else ""
        )
        return [
            image,
            f"not sure{guess}",
            None,
            file,
            f"perhaps {' › '.join(names)}",
            "nothing is sure enough",
        ]
    given = " › ".join(names[: row.level + 1])
    remark = "" if row.level == len(names) - 1 else f"perhaps {names[-1]}"
    return [image, names[row.level], round(100 * row.answer.score, 1), file, given, remark]


def _without_formulas(row: dict[str, Any]) -> dict[str, Any]:
    """Mark texts as such that spreadsheets would compute."""
    return {name: marked_as_text(value) if isinstance(value, str) else value for name, value in row.items()}


def _name_of(sent: Any, number: int) -> str:
    """The name under which the user sent a file."""
    for key in ("orig_name", "path"):
        name = sent.get(key) if isinstance(sent, dict) else None
        if isinstance(name, str) and name.strip():
            plain = name.replace("\\", "/").encode("utf-8", "backslashreplace").decode()
            return PurePath(plain).name[:200] or f"file {number + 1}"
    return f"file {number + 1}"


def _too_many(count: int) -> InputError:
    return InputError(
        f"{photographs(count)} are too many for this page; up to {MAX_PHOTOGRAPHS:,} are taken at once, "
        "and hierclass label takes any number"
    )
