"""`hierclass label` and `hierclass refine`: tables of labels, and runs that survive whatever ends them."""

from __future__ import annotations

import errno
import itertools
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hierclass.cli.progress import RunProgress
from hierclass.cli.shared import (
    DeviceOption,
    ModelOption,
    Stopped,
    TimmOption,
    WeightsOption,
    open_classifier,
)
from hierclass.decisions.exit_policy import LevelChoice, Request
from hierclass.errors import InputError
from hierclass.images.discovery import display_name
from hierclass.labelling.inputs import Shard
from hierclass.labelling.rows import FORMATS
from hierclass.labelling.run_folder import RunFolder
from hierclass.labelling.table_writers import check_target, format_of, open_writer

if TYPE_CHECKING:
    from hierclass.classifier import Classifier
    from hierclass.labelling.read_input import ReadOptions
    from hierclass.labelling.run import LabelJob, LabelRun
    from hierclass.labelling.run_pass import Engine

LevelOrAuto = Annotated[
    str | None,
    typer.Option(
        "--level",
        metavar="LEVEL",
        help="Answer at this level, 0 is the coarsest; or auto: the lowest that is enough. Default: the finest.",
    ),
]
MinTier = Annotated[
    int | None,
    typer.Option(
        "--min-tier", min=0, help="With auto: how fine an answer is to be. Default: 0, the coarsest."
    ),
]
Precision = Annotated[
    float | None,
    typer.Option(
        "--precision",
        min=0,
        max=1,
        help="With auto, --only and --exclude: the share of answers that are to be right (0.8, 0.9, 0.95, 0.99). "
        "Default: 0.95.",
    ),
]
Only = Annotated[
    list[str] | None,
    typer.Option(
        "--only", metavar="CLASS", help="Answer with these classes or what is below them; again for more."
    ),
]
Exclude = Annotated[
    list[str] | None, typer.Option("--exclude", metavar="CLASS", help="Never answer with these classes.")
]
BatchSize = Annotated[int, typer.Option("--batch-size", min=1, help="Images per call of the network.")]
Workers = Annotated[
    int | None, typer.Option("--workers", min=1, help="Processes that read images. Default: one per core.")
]
Previews = Annotated[
    bool,
    typer.Option("--previews", help="Read the small image inside of a JPEG where it is as good: faster."),
]
EngineName = Annotated[
    str,
    typer.Option(
        "--engine", help=r"local, or ray: the machines of a Ray cluster (pip install 'hierclass\[ray]')."
    ),
]
EngineWorkers = Annotated[
    int | None,
    typer.Option(
        "--engine-workers", min=1, help="With ray: processes, each with the model. Default: one per core."
    ),
]
Format = Annotated[
    str | None,
    typer.Option(
        "--format",
        help="Of the table in a folder (csv, jsonl or parquet; default: parquet, or as it is) or here (default: csv).",
    ),
]


def label(
    paths: Annotated[
        list[str],
        typer.Argument(
            metavar="PATH",
            help="Images, folders, .tar or .parquet files of images, or - for a list of paths on standard input.",
        ),
    ],
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE or FOLDER/",
            help="A .csv, .jsonl or .parquet file, or a folder for a run that can be refined. Default: CSV here.",
        ),
    ] = None,
    level: LevelOrAuto = None,
    min_tier: MinTier = None,
    precision: Precision = None,
    only: Only = None,
    exclude: Exclude = None,
    format_: Format = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Begin anew, whatever was begun before.")
    ] = False,
    retry_errors: Annotated[
        bool, typer.Option("--retry-errors", help="Read inputs that had errors again.")
    ] = False,
    shard: Annotated[
        str | None,
        typer.Option("--shard", metavar="I/N", help="Label one of N parts, for N machines: 1/N … N/N."),
    ] = None,
    image_column: Annotated[
        str | None,
        typer.Option("--image-column", help="Of Parquet files. Default: the first that holds images."),
    ] = None,
    previews: Previews = False,
    model: ModelOption = None,
    timm: TimmOption = None,
    weights: WeightsOption = None,
    device: DeviceOption = "auto",
    batch_size: BatchSize = 64,
    workers: Workers = None,
    engine: EngineName = "local",
    engine_workers: EngineWorkers = None,
) -> None:
    """Label images: one row of a table for every input, with an error where one can't be read.

    A run that was stopped or killed goes on where it was when the same command is given again.
    """
    request = _request(level, min_tier, precision, only, exclude)
    target = None if output is None else OutputTarget.parse(output, format_)
    if target is None and (overwrite or retry_errors):
        raise InputError("--overwrite and --retry-errors belong to a run on disk; give --output")
    if target is None and engine != "local":
        raise InputError(f"--engine {engine} writes parts of a table to disk; give --output")
    if target is not None:
        survive_closed_pipes()
    part = None if shard is None else Shard.parse(shard)
    classifier = _open(model, timm, weights, device, precision)
    from hierclass.labelling.read_input import ReadOptions
    from hierclass.labelling.run import LabelJob

    reading = ReadOptions(
        batch_size=batch_size,
        workers=workers,
        processes=True,
        image_column=image_column,
        previews=previews,
    )
    job = LabelJob(names=tuple(paths), request=request, reading=reading, shard=part)
    if target is None:
        _print_rows(classifier, job, _format(format_) or "csv")
        return
    how = _engine(engine, partial(open_classifier, model, timm, weights, device), engine_workers)
    with target.run(classifier, reading, how) as (run, progress):
        run.label(job, overwrite=overwrite, retry_errors=retry_errors)
        num_errors = target.finish(run)
    progress.summarise(target.table, num_errors)


def refine(
    run_folder: Annotated[
        Path, typer.Argument(metavar="RUN", help="The folder of a run (hierclass label … -o RUN/).")
    ],
    where: Annotated[
        str,
        typer.Option(
            "--where", metavar="CONDITION", help="Which rows, as in SQL: \"tier0_label in ('dog', 'bird')\"."
        ),
    ],
    level: LevelOrAuto = None,
    min_tier: MinTier = None,
    precision: Precision = None,
    only: Only = None,
    exclude: Exclude = None,
    format_: Format = None,
    model: ModelOption = None,
    timm: TimmOption = None,
    weights: WeightsOption = None,
    device: DeviceOption = "auto",
    batch_size: BatchSize = 64,
    workers: Workers = None,
    engine: EngineName = "local",
    engine_workers: EngineWorkers = None,
) -> None:
    """Label some rows of a run anew, at a higher level say; the others stay as they are."""
    request = _request(level, min_tier, precision, only, exclude)
    folder = RunFolder(run_folder)
    folder.manifest()
    target = OutputTarget.in_folder(run_folder, format_)
    survive_closed_pipes()
    classifier = _open(model, timm, weights, device, precision)
    from hierclass.labelling.read_input import ReadOptions

    reading = ReadOptions(
        batch_size=batch_size,
        workers=workers,
        processes=True,
        image_column=folder.manifest()["inputs"]["image_column"],
    )
    how = _engine(engine, partial(open_classifier, model, timm, weights, device), engine_workers)
    with target.run(classifier, reading, how) as (run, progress):
        run.refine(where, request)
        num_errors = target.finish(run)
    progress.summarise(target.table, num_errors, run.num_unread)


def _open(
    model: Path | None, timm: str | None, weights: Path | None, device: str, precision: float | None
) -> Classifier:
    """The classifier; a precision is refused that it knows no thresholds for."""
    classifier = open_classifier(model, timm, weights, device)
    if precision is not None:
        classifier.decision.at(precision)
    return classifier


def _request(
    level: str | None,
    min_tier: int | None,
    precision: float | None,
    only: list[str] | None,
    exclude: list[str] | None,
) -> Request:
    """What the options ask for; one that would change nothing is refused."""
    wish = _level(level)
    if min_tier is not None and wish != "auto":
        raise InputError("--min-tier belongs to --level auto")
    if precision is not None and wish != "auto" and not (only or exclude):
        raise InputError("--precision belongs to --level auto, --only and --exclude")
    defaults = Request()
    return Request(
        level=wish,
        min_tier=defaults.min_tier if min_tier is None else min_tier,
        precision=defaults.precision if precision is None else precision,
        only=tuple(only or ()),
        exclude=tuple(exclude or ()),
    )


def _level(text: str | None) -> LevelChoice:
    if text is None or text == "auto":
        return "auto" if text else None
    if not text.isdecimal():
        raise InputError(f"--level {text}: give a number from 0, or auto")
    return int(text)


def _engine(name: str, open_: Callable[[], Classifier], workers: int | None) -> Engine | None:
    """What computes a run; None: this process."""
    if name == "local":
        if workers is not None:
            raise InputError("--engine-workers belongs to --engine ray; --workers reads images here")
        return None
    if name != "ray":
        raise InputError(f"--engine {name}: give local or ray")
    from hierclass.labelling.cluster import RayEngine

    return RayEngine(open_, workers)


def _format(text: str | None) -> str | None:
    if text is not None and text not in FORMATS:
        raise InputError(f"--format {text}: give {', '.join(FORMATS[:-1])} or {FORMATS[-1]}")
    return text


@dataclass(frozen=True, slots=True)
class OutputTarget:
    """Where a run is, and where its table goes."""

    folder: Path
    table: Path
    is_file: bool
    """Whether the table alone is wanted: the folder goes when it is whole."""

    @classmethod
    def in_folder(cls, folder: Path, format_: str | None) -> OutputTarget:
        """The table of a folder, in a format; None: the one that it has, or Parquet. Raises InputError for others."""
        there = [each for each in FORMATS if (folder / f"labels.{each}").exists()]
        chosen = _format(format_) or [*there, "parquet"][0]
        return cls(folder, folder / f"labels.{chosen}", is_file=False)

    @classmethod
    def parse(cls, output: str, format_: str | None) -> OutputTarget:
        """Read --output; what can't be written is found before anything is done.

        Raises:
            InputError: it is neither a table that can be written nor a folder.
        """
        path = Path(output)
        if output.endswith(("/", os.sep)) or os.path.isdir(path):  # noqa: PTH112 - raises nothing for long names
            RunFolder(path).check()
            return cls.in_folder(path, format_)
        if format_ is not None:
            raise InputError(
                f"--format {format_} belongs to a folder; the ending of {output} says its format"
            )
        format_of(path)
        if RunFolder(path.parent).exists:
            raise InputError(
                f"{display_name(path.parent)} holds a run, which has a table of its own; give the folder "
                f"({display_name(path.parent)}/), or write elsewhere"
            )
        table = check_target(path)
        return cls(table.with_name(f"{table.name}.run"), table, is_file=True)

    @contextmanager
    def run(
        self, classifier: Classifier, reading: ReadOptions, engine: Engine | None
    ) -> Iterator[tuple[LabelRun, RunProgress]]:
        """Hold the run; what ends it early is told in one line, with how it goes on."""
        from rich.console import Console

        from hierclass.labelling.run import LabelRun

        folder = RunFolder(self.folder)
        progress = RunProgress(Console(stderr=True, highlight=False))
        try:
            with folder.lock(), progress:
                yield LabelRun(folder, classifier, reading, progress, engine), progress
        except Stopped as stop:
            raise Stopped(stop.code, f"stopped{progress.how_far()}; {_GOES_ON}") from None
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
            where = f" ({display_name(error.filename)})" if error.filename and not full else ""
            what = (
                f"{error.strerror or error}{where}; {'make room' if full else 'mend that'}, then {_GOES_ON}"
            )
            raise Stopped(1, f"writing failed{progress.how_far()}: {what}") from error

    def finish(self, run: LabelRun) -> int:
        """Write the table; of a run that only was to make it, nothing else stays. Returns the number of errors."""
        num_errors = run.assemble(self.table)
        if self.is_file:
            RunFolder(self.folder).clear()  # what is left of it, if this is broken off, is no run
            shutil.rmtree(self.folder, ignore_errors=True)
            return num_errors
        for format_ in FORMATS:
            other = self.table.with_name(f"labels.{format_}")
            if other != self.table:
                other.unlink(missing_ok=True)  # of another format, and no longer true
        return num_errors


_GOES_ON = "the same command goes on from there"


def _print_rows(classifier: Classifier, job: LabelJob, format_: str) -> None:
    """Label to standard output, without a run on disk."""
    from rich.console import Console

    from hierclass.labelling.pipeline import LabelPipeline

    pipeline = LabelPipeline(classifier, job.request, job.reading)
    inputs = pipeline.list_inputs(job.names, job.shard)
    console = Console(stderr=True, highlight=False)
    progress, num_errors = RunProgress(console if not sys.stdout.isatty() else Console(quiet=True)), 0
    with progress:
        progress.start(len(inputs) if isinstance(inputs, list) else None, 0)
        try:
            found = pipeline.run(inputs)
            first = next(found, None)  # wrong use is found before anything is written
            table = open_writer(sys.stdout.buffer, format_, pipeline.num_tiers)
            for outcome in itertools.chain(filter(None, [first]), found):
                table.write(pipeline.table(outcome))
                progress.advance(len(outcome), outcome.num_errors)
                num_errors += outcome.num_errors
            table.close()
        except Stopped as stop:
            raise Stopped(stop.code, f"stopped{progress.how_far()}") from None
        except OSError as error:
            raise Stopped(1, f"writing the table failed: {error.strerror or error}") from error
    progress.summarise(None, num_errors)


def survive_closed_pipes() -> None:
    """When the table goes to a file, a message that nobody reads must not end the work."""
    if hasattr(signal, "SIGPIPE") and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
