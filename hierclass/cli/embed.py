"""`hierclass embed`: write a table of features of images, by runs that can be continued as those of labels."""

from __future__ import annotations

from typing import Annotated

import typer

from hierclass.cli.label_options import (
    BatchSize,
    Ignored,
    ImageColumn,
    Overwrite,
    Paths,
    Previews,
    RetryErrors,
    SecondsPerImage,
    ShardText,
    Update,
    Workers,
    check_update,
    parse_ignored,
)
from hierclass.cli.output_target import OutputTarget, survive_closed_pipes
from hierclass.cli.shared import (
    DeviceOption,
    Int8Option,
    ModelChoice,
    ModelOption,
    RuntimeOption,
    ThreadsOption,
)
from hierclass.labelling.inputs import SECONDS_PER_IMAGE, Shard


def embed(
    paths: Paths,
    output: Annotated[
        str,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE or FOLDER/",
            help="A .parquet file, or a folder that keeps the run.",
        ),
    ],
    level: Annotated[
        int | None,
        typer.Option(
            "--level", min=0, help="Features of this level; 0 is the coarsest. Default: the finest."
        ),
    ] = None,
    overwrite: Overwrite = False,
    update: Update = False,
    retry_errors: RetryErrors = False,
    shard: ShardText = None,
    image_column: ImageColumn = None,
    ignore: Ignored = None,
    previews: Previews = False,
    model: ModelOption = None,
    device: DeviceOption = "auto",
    runtime: RuntimeOption = "auto",
    threads: ThreadsOption = None,
    int8: Int8Option = False,
    batch_size: BatchSize = 64,
    workers: Workers = None,
    seconds_per_image: SecondsPerImage = SECONDS_PER_IMAGE,
) -> None:
    """Compute the features of images: one row of a table for every input, with an error where one can't be read.

    A run that was stopped or killed goes on where it was when the same command is given again.
    """
    check_update(update=update, shard=shard)
    target = OutputTarget.parse(output, None, "embed")
    target.check_inputs(paths)
    target.check_lost(overwrite=overwrite, update=update)
    survive_closed_pipes()
    part = None if shard is None else Shard.parse(shard)
    classifier = ModelChoice(model, None, None, device, runtime, threads, int8).open()
    from hierclass.decisions.exit_policy import Request
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
    job = LabelJob(
        names=tuple(paths), request=Request(level=level), reading=reading, shard=part, features=True
    )
    with target.run(classifier, reading, None, overwrite=overwrite, update=update) as (run, progress):
        run.label(
            job,
            overwrite=overwrite,
            retry_errors=retry_errors,
            update=update,
            earlier=target.earlier(update=update, overwrite=overwrite),
        )
        num_errors = target.finish(run)
    progress.summarise(target.table, num_errors)
