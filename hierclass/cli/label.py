"""`hierclass label` and `hierclass refine`: print a table of labels, or keep a run on disk that can be continued."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hierclass.cli.label_options import (
    BatchSize,
    CsvExcel,
    CsvExcelSemicolon,
    EngineName,
    EngineWorkers,
    Exclude,
    Format,
    Ignored,
    ImageColumn,
    Keywords,
    LevelOrAuto,
    MinTier,
    Only,
    Overwrite,
    Paths,
    Precision,
    Previews,
    PriorPath,
    RetryErrors,
    SecondsPerImage,
    ShardText,
    Update,
    Workers,
    check_update,
    parse_csv_form,
    parse_format,
    parse_ignored,
    parse_keywords,
    read_request,
)
from hierclass.cli.output_target import OutputTarget, survive_closed_pipes
from hierclass.cli.progress import RunProgress
from hierclass.cli.shared import (
    DeviceOption,
    Int8Option,
    ModelChoice,
    ModelOption,
    RuntimeOption,
    Stopped,
    ThreadsOption,
    TimmOption,
    WeightsOption,
    say,
)
from hierclass.errors import InputError
from hierclass.images.discovery import PassedOver, display_name
from hierclass.labelling.inputs import SECONDS_PER_IMAGE, Shard
from hierclass.labelling.prior_file import PriorFile
from hierclass.labelling.run_folder import RunFolder
from hierclass.labelling.table_writers import PLAIN, CsvForm, open_writer

if TYPE_CHECKING:
    from hierclass.classifier import Classifier
    from hierclass.decisions.exit_policy import Request
    from hierclass.labelling.run import LabelRun
    from hierclass.labelling.run_manifest import LabelJob
    from hierclass.labelling.run_pass import Engine
    from hierclass.labelling.sidecars import SidecarWriter

_SHOWN = 20
"""Files without keywords that are named on a terminal."""


def label(
    paths: Paths,
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
    prior: PriorPath = None,
    format_: Format = None,
    csv_excel: CsvExcel = False,
    csv_excel_semicolon: CsvExcelSemicolon = False,
    keywords: Keywords = None,
    overwrite: Overwrite = False,
    update: Update = False,
    retry_errors: RetryErrors = False,
    shard: ShardText = None,
    image_column: ImageColumn = None,
    ignore: Ignored = None,
    previews: Previews = False,
    model: ModelOption = None,
    timm: TimmOption = None,
    weights: WeightsOption = None,
    device: DeviceOption = "auto",
    runtime: RuntimeOption = "auto",
    threads: ThreadsOption = None,
    int8: Int8Option = False,
    batch_size: BatchSize = 64,
    workers: Workers = None,
    seconds_per_image: SecondsPerImage = SECONDS_PER_IMAGE,
    engine: EngineName = "local",
    engine_workers: EngineWorkers = None,
) -> None:
    """Label images: one row of a table for every input, with an error where one can't be read.

    A run that was stopped or killed goes on where it was when the same command is given again.
    """
    prior_file = None if prior is None else PriorFile.read(prior)
    request = read_request(level, min_tier, precision, only, exclude, prior_file)
    csv_form, sidecars = parse_csv_form(csv_excel, csv_excel_semicolon), _sidecars(keywords)
    target = (
        None
        if output is None
        else OutputTarget.parse(output, format_).in_csv_form(csv_form, format_, update=update)
    )
    if target is None and csv_form and format_ not in (None, "csv"):
        raise InputError(f"--csv-excel is for CSV, not for --format {format_}")
    check_update(update=update, shard=shard)
    if target is None and (overwrite or update or retry_errors):
        raise InputError("--overwrite, --update and --retry-errors belong to a run on disk; give --output")
    if target is None and engine != "local":
        raise InputError(f"--engine {engine} writes parts of a table to disk; give --output")
    if target is not None:
        target.check_inputs(paths)
        target.check_lost(overwrite=overwrite, update=update)
        survive_closed_pipes()
    part = None if shard is None else Shard.parse(shard)
    choice = ModelChoice(model, timm, weights, device, runtime, threads, int8)
    classifier = open_for(choice, request, precision, prior_file)
    from hierclass.labelling.read_input import ReadOptions
    from hierclass.labelling.run_manifest import LabelJob

    reading = ReadOptions(
        batch_size=batch_size,
        workers=workers,
        processes=True,
        seconds_per_image=seconds_per_image,
        image_column=image_column,
        ignore=parse_ignored(ignore),
        previews=previews,
    )
    job = LabelJob(names=tuple(paths), request=request, reading=reading, shard=part)
    if target is None:
        _print_rows(classifier, job, parse_format(format_) or "csv", csv_form or PLAIN, sidecars)
        return
    how = _engine(engine, choice.open, engine_workers)
    with target.run(classifier, reading, how, overwrite=overwrite, update=update) as (run, progress):
        run.label(
            job,
            overwrite=overwrite,
            retry_errors=retry_errors,
            update=update,
            earlier=target.earlier(update=update, overwrite=overwrite),
        )
        again = target.same_command(overwrite=overwrite, update=update, shard=part is not None)
        num_failed = _write_keywords(run, sidecars, progress, again)
        num_errors = target.finish(run)
    progress.summarise(target.table, num_errors, num_failed)


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
    prior: PriorPath = None,
    format_: Format = None,
    csv_excel: CsvExcel = False,
    csv_excel_semicolon: CsvExcelSemicolon = False,
    keywords: Keywords = None,
    model: ModelOption = None,
    timm: TimmOption = None,
    weights: WeightsOption = None,
    device: DeviceOption = "auto",
    runtime: RuntimeOption = "auto",
    threads: ThreadsOption = None,
    int8: Int8Option = False,
    batch_size: BatchSize = 64,
    workers: Workers = None,
    seconds_per_image: SecondsPerImage = SECONDS_PER_IMAGE,
    engine: EngineName = "local",
    engine_workers: EngineWorkers = None,
) -> None:
    """Label some rows of a run anew, at a higher level say; the others stay as they are."""
    prior_file = None if prior is None else PriorFile.read(prior)
    request = read_request(level, min_tier, precision, only, exclude, prior_file)
    folder = RunFolder(run_folder)
    folder.manifest()
    csv_form, sidecars = parse_csv_form(csv_excel, csv_excel_semicolon), _sidecars(keywords)
    target = OutputTarget.in_folder(run_folder, format_).in_csv_form(csv_form, format_)
    target.check_lost(overwrite=False)
    survive_closed_pipes()
    choice = ModelChoice(model, timm, weights, device, runtime, threads, int8)
    classifier = open_for(choice, request, precision, prior_file)
    from hierclass.labelling.read_input import ReadOptions

    reading = ReadOptions(
        batch_size=batch_size,
        workers=workers,
        processes=True,
        seconds_per_image=seconds_per_image,
        image_column=folder.manifest()["inputs"]["image_column"],
    )
    how = _engine(engine, choice.open, engine_workers)
    with target.run(classifier, reading, how) as (run, progress):
        run.refine(where, request)
        num_failed = _write_keywords(run, sidecars, progress)
        num_errors = target.finish(run)
    progress.summarise(target.table, num_errors, run.num_unread + num_failed)


def open_for(
    choice: ModelChoice, request: Request, precision: float | None, prior: PriorFile | None = None
) -> Classifier:
    """Load the classifier; raise InputError if it has no thresholds for the precision, or no class of the prior.

    Say so if no answer can be sure.
    """
    classifier = choice.open()
    if precision is not None:
        classifier.decision.at(precision)
    if prior is not None:
        prior.check(classifier.taxonomy)
    if request.level == "auto" and (reason := classifier.decision.why_never_sure(request.precision)):
        say(reason)
    return classifier


def _engine(name: str, open_: Callable[[], Classifier], workers: int | None) -> Engine | None:
    """Return what computes a run; None: this process."""
    if name == "local":
        if workers is not None:
            raise InputError("--engine-workers belongs to --engine ray; --workers reads images here")
        return None
    if name != "ray":
        raise InputError(f"--engine {name}: give local or ray")
    from hierclass.labelling.cluster import RayEngine

    return RayEngine(open_, workers)


def _sidecars(keywords: str | None) -> SidecarWriter | None:
    """Return what writes the keywords that --keywords asks for, None if it asks for none."""
    if parse_keywords(keywords) is None:
        return None
    from hierclass.labelling.sidecars import SidecarWriter

    return SidecarWriter(long_names=keywords == "xmp-long")


def _write_keywords(
    run: LabelRun, sidecars: SidecarWriter | None, progress: RunProgress, again: str = "the same command"
) -> int:
    """Write the keywords of a run that has all its rows; returns how many files could not be written.

    `again` writes those, once they are mended.
    """
    if sidecars is None:
        return 0
    with progress.task("writing keywords", run.num_inputs) as advance:
        for inputs, rows in run.rows():
            sidecars.write(inputs, rows)
            advance(len(inputs))
    say_keywords(sidecars, again)
    return sidecars.num_failed


def say_keywords(sidecars: SidecarWriter, again: str = "the same command") -> None:
    """Print every .xmp file that was not written, on a terminal the first ones, and the summary."""
    on_terminal = sys.stderr is not None and sys.stderr.isatty()
    shown = sidecars.failures[: _SHOWN if on_terminal else None]
    for line in shown:
        say(line)
    if more := sidecars.num_failed - len(shown):
        say(f"{more:,} more were not written; 2> FILE at the end of the next command keeps a list in a file")
    say(sidecars.summary(again))


def _print_rows(
    classifier: Classifier, job: LabelJob, format_: str, csv_form: CsvForm, sidecars: SidecarWriter | None
) -> None:
    """Label to standard output, without keeping a run on disk."""
    from hierclass.labelling.pipeline import LabelPipeline
    from taxonomy.streams import VisibleStream
    from taxonomy.terminal import PlainConsole

    pipeline = LabelPipeline(classifier, job.request, job.reading)
    passed_over = PassedOver()
    inputs = pipeline.list_inputs(job.names, job.shard, passed_over)
    if sys.stdout is None:
        raise InputError("standard output is closed; write the table to a file with --output")
    on_terminal = sys.stdout.isatty()
    if on_terminal and format_ == "parquet":
        raise InputError("a Parquet table is not for a terminal; write it to a file with --output")
    stream = VisibleStream(sys.stdout) if on_terminal else sys.stdout.buffer
    progress, num_errors = RunProgress(PlainConsole(stderr=True, quiet=on_terminal)), 0
    with progress:
        progress.start(len(inputs) if isinstance(inputs, list) else None, 0)
        try:
            found = pipeline.run(inputs)
            first = next(found, None)  # wrong use is found before anything is written
            table = open_writer(stream, format_, pipeline.schema(), csv_form)
            for outcome in itertools.chain(filter(None, [first]), found):
                rows = pipeline.table(outcome)
                table.write(rows)
                if sidecars is not None:
                    sidecars.write(outcome.inputs, rows)
                progress.advance(len(outcome), outcome.num_errors)
                num_errors += outcome.num_errors
            table.close()
        except Stopped as stop:
            raise Stopped(stop.code, f"stopped{progress.how_far()}") from None
        except OSError as error:
            what = display_name(error.filename) if error.filename else "the table"
            raise Stopped(1, f"writing {what} failed: {error.strerror or error}") from error
    if passed_over:
        say(passed_over.text())
    if sidecars is not None:
        say_keywords(sidecars)
    progress.summarise(None, num_errors, sidecars.num_failed if sidecars else 0)
