"""The options that `hierclass label`, `hierclass refine` and `hierclass embed` share, and how their texts are read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hierclass.decisions.calibration import HIGHEST_PRECISION, LOWEST_PRECISION
from hierclass.decisions.exit_policy import LevelChoice, Request
from hierclass.errors import InputError
from hierclass.labelling.inputs import SECONDS_RANGE
from hierclass.labelling.prior_file import PriorFile
from hierclass.labelling.rows import FORMATS
from hierclass.labelling.table_writers import EXCEL, EXCEL_SEMICOLON, CsvForm
from taxonomy.folders import IGNORED

Paths = Annotated[
    list[str],
    typer.Argument(
        metavar="PATH",
        help="Images, folders, .tar or .parquet files of images, or - for a list of paths on standard input.",
    ),
]
Overwrite = Annotated[
    bool,
    typer.Option(
        "--overwrite",
        help="Begin anew, and replace the table that is there; with --update, keep what later updates need.",
    ),
]
Update = Annotated[
    bool,
    typer.Option(
        "--update", help="Label what is new or changed since, keep the other rows, drop what is gone."
    ),
]
RetryErrors = Annotated[bool, typer.Option("--retry-errors", help="Read inputs that had errors again.")]
ShardText = Annotated[
    str | None,
    typer.Option("--shard", metavar="I/N", help="Do one of N parts, for N machines: 1/N … N/N."),
]
ImageColumn = Annotated[
    str | None, typer.Option("--image-column", help="Of Parquet files. Default: the first that holds images.")
]
Ignored = Annotated[
    list[str] | None,
    typer.Option(
        "--ignore",
        metavar="PATTERN",
        help="Leave out files and folders of this name, such as '*_small.jpg', or path, such as 'raw/old/*'; again for "
        "more. Hidden ones and those of NAS and desktops (@eaDir …) are left out already, but for --ignore ''.",
    ),
]
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
        help="With auto, --only and --exclude: the share of answers that are to be right, 0.5 to 0.99. Default: 0.95. "
        "At the highest a model may be sure of nothing, which a line says.",
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
PriorPath = Annotated[
    Path | None,
    typer.Option(
        "--prior",
        metavar="FILE",
        help="How frequent classes are where the photographs were taken: lines class,weight (CSV), or a JSON object.",
    ),
]
BatchSize = Annotated[int, typer.Option("--batch-size", min=1, help="Images per call of the network.")]
Workers = Annotated[
    int | None, typer.Option("--workers", min=1, help="Processes that read images. Default: one per core.")
]
SecondsPerImage = Annotated[
    float,
    typer.Option(
        "--seconds-per-image",
        min=SECONDS_RANGE[0],
        max=SECONDS_RANGE[1],
        help="An image that takes longer to read gets an error.",
    ),
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
CsvExcel = Annotated[
    bool,
    typer.Option(
        "--csv-excel", help="Write CSV that Excel opens as it is: names in any script, no formulas."
    ),
]
CsvExcelSemicolon = Annotated[
    bool,
    typer.Option(
        "--csv-excel-semicolon", help="The same for Excel in languages that write 0,5: German, French …"
    ),
]
Keywords = Annotated[
    str | None,
    typer.Option(
        "--keywords",
        metavar="xmp",
        help="Write the classes of each answer as keywords into .xmp files beside the images, for digiKam, darktable "
        "and Lightroom. xmp-long: as photo.nef.xmp, of RAW files too.",
    ),
]


def read_request(
    level: str | None,
    min_tier: int | None,
    precision: float | None,
    only: list[str] | None,
    exclude: list[str] | None,
    prior: PriorFile | None = None,
) -> Request:
    """Return the request of the options.

    Raises:
        InputError: an option is malformed, or would change nothing beside the others.
    """
    choice = _level(level)
    if min_tier is not None and choice != "auto":
        raise InputError("--min-tier belongs to --level auto")
    if precision is not None and not LOWEST_PRECISION <= precision <= HIGHEST_PRECISION:
        raise InputError(
            f"--precision {precision:g}: give the share of answers that are to be right, from {LOWEST_PRECISION:g} to "
            f"{HIGHEST_PRECISION:g}"
        )
    if precision is not None and choice != "auto" and not (only or exclude):
        raise InputError("--precision belongs to --level auto, --only and --exclude")
    defaults = Request()
    return Request(
        level=choice,
        min_tier=defaults.min_tier if min_tier is None else min_tier,
        precision=defaults.precision if precision is None else precision,
        only=tuple(only or ()),
        exclude=tuple(exclude or ()),
        prior=() if prior is None else prior.entries,
    )


def check_update(*, update: bool, shard: str | None) -> None:
    """Raise InputError if --update is given beside --shard, with which it can't go."""
    if update and shard is not None:
        raise InputError(
            "--update can't go with --shard: with other inputs every part has others; leave --shard out, or label what "
            "is new into another table"
        )


def _level(text: str | None) -> LevelChoice:
    if text is None or text == "auto":
        return "auto" if text else None
    if not text.isdecimal():
        raise InputError(f"--level {text}: give a number from 0, or auto")
    return int(text)


def parse_ignored(patterns: list[str] | None) -> tuple[str, ...]:
    """Return the patterns of --ignore with those that hold by default; an empty one stands for none of these."""
    given = patterns or []
    return (*(() if "" in given else IGNORED), *filter(None, given))


def parse_format(text: str | None) -> str | None:
    """Return the value of --format; raise InputError if there is no such format."""
    if text is not None and text not in FORMATS:
        raise InputError(f"--format {text}: give {', '.join(FORMATS[:-1])} or {FORMATS[-1]}")
    return text


def parse_csv_form(excel: bool, semicolon: bool) -> CsvForm | None:
    """Return the form of CSV that --csv-excel or --csv-excel-semicolon asks for, None for neither.

    Raises:
        InputError: both are given.
    """
    if excel and semicolon:
        raise InputError(
            "--csv-excel writes , and 0.5, --csv-excel-semicolon ; and 0,5 (German, French …); give one of them"
        )
    return EXCEL_SEMICOLON if semicolon else EXCEL if excel else None


def parse_keywords(text: str | None) -> str | None:
    """Return the value of --keywords; raise InputError for another than xmp and xmp-long."""
    if text is not None and text not in ("xmp", "xmp-long"):
        raise InputError(f"--keywords {text}: give xmp or xmp-long")
    return text
