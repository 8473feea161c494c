"""How many images per second the training loader prepares, by image size, augmentation and number of workers.

    python benchmarks/loading.py DATA … [--size 64] [--size 224] [--workers 1] [--workers 2] [--json OUT]

DATA are Parquet files with a column ``image``, and folders of images; labels are not needed. Images are prepared as
`hierclass-train fit` does: small ones are decoded once before the clock starts, large ones every time they are used.
The clock runs from the first batch, which starts the workers, to the last.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from hierclass.errors import InputError
from hierclass.images.kinds import scanned_endings
from hierclass.processors import num_cores
from training.data.batches import read_training_batches, training_loader
from training.data.sampler import BatchSampler
from training.data.samples import ImageSet, decode_small

POLICY = "rand-m7-n2-mstd0.5"


def read_sources(path: Path, limit: int) -> ImageSet:
    """The first images of a Parquet file or a folder, all of leaf 0; raises `InputError` where there are none."""
    import pyarrow.parquet as pq

    sources: list[Path | bytes] = []
    if path.is_dir():
        endings = scanned_endings()
        sources += sorted(file for file in path.rglob("*") if file.suffix.lower() in endings)
    elif path.suffix == ".parquet":
        column = pq.read_table(path, columns=["image"]).column("image")[:limit].to_pylist()
        sources += [value["bytes"] if isinstance(value, dict) else value for value in column]
    sources = sources[:limit]
    if not sources:
        raise InputError(
            f"{path} holds no images; give Parquet files with a column image, or folders of images"
        )
    return ImageSet(
        sources, [str(number) for number in range(len(sources))], np.zeros(len(sources), np.int64)
    )


def measure(
    images: ImageSet, *, size: int, policy: str | None, workers: int, batch_size: int, seconds: float
) -> float:
    """Images per second, over at least so many seconds from the first batch on."""
    order = BatchSampler(len(images), batch_size, seed=0)
    shares = (share for epoch in range(1_000_000) for share in order.shares(epoch, side=size))
    loader = training_loader(
        images,
        shares,
        sides=[size],
        crop_scale=(0.35, 1.0),
        color_jitter=0.0,
        auto_augment=policy,
        seed=0,
        workers=workers,
    )
    stream = read_training_batches(loader)
    # What workers prepared before the clock starts is not the rate to come.
    for _ in range(1 + 4 * workers):
        next(stream)
    started, count = time.monotonic(), 0
    while (spent := time.monotonic() - started) < seconds or not count:
        count += len(next(stream).images)
    spent = time.monotonic() - started
    stream.close()
    return count / spent


def main(
    data: Annotated[list[Path], typer.Argument(exists=True)],
    size: Annotated[list[int] | None, typer.Option(help="Pixels per side. Repeatable. Default: 64.")] = None,
    workers: Annotated[
        list[int] | None, typer.Option(help="Processes that prepare images. Repeatable. Default: 1.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=2)] = 64,
    limit: Annotated[int, typer.Option(min=2, help="Images of each DATA.")] = 2000,
    rounds: Annotated[int, typer.Option(min=1, help="Interleaved rounds; medians are shown.")] = 3,
    seconds: Annotated[float, typer.Option(min=0, help="Length of one measurement.")] = 5.0,
    json_: Annotated[Path | None, typer.Option("--json", help="Write the figures here.")] = None,
) -> None:
    """Print the table and write the JSON."""
    console = Console()
    sets = []
    try:
        for path in data:
            images = read_sources(path, limit)
            for side in size or [64]:
                sets.append((path.name, side, decode_small(images, max_side=2 * side)[0]))
    except InputError as error:
        console.print(str(error), soft_wrap=True)
        raise SystemExit(2) from None
    contenders = [
        (name, side, images, policy, count)
        for name, side, images in sets
        for policy in (None, POLICY)
        for count in workers or [1]
    ]
    load = os.getloadavg()[0]
    found: list[list[float]] = [[] for _ in contenders]
    for _ in range(rounds):
        for rates, (_, side, images, policy, count) in zip(found, contenders, strict=True):
            options = {"workers": count, "batch_size": batch_size, "seconds": seconds}
            rates.append(measure(images, size=side, policy=policy, **options))  # type: ignore[arg-type]
    rows = [
        {
            "data": name,
            "images": len(images),
            "decoded_before": sum(isinstance(source, np.ndarray) for source in images.sources),
            "size": side,
            "auto_augment": policy,
            "workers": count,
            "images_per_second": round(statistics.median(rates), 1),
            "low": round(min(rates), 1),
            "high": round(max(rates), 1),
        }
        for rates, (name, side, images, policy, count) in zip(found, contenders, strict=True)
    ]
    report = {
        "cores": num_cores(),
        "load_before": round(load, 2),
        "rounds": rounds,
        "seconds": seconds,
        "rows": rows,
    }
    _show(console, report)
    if json_ is not None:
        json_.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def _show(console: Console, report: dict[str, Any]) -> None:
    table = Table(title=f"images per second of the training loader; {report['cores']} cores")
    for column in ("data", "decoded before", "pixels", "augmentation", "workers", "images/s", "range"):
        table.add_column(column, justify="left" if column in ("data", "augmentation") else "right")
    for row in report["rows"]:
        table.add_row(
            row["data"],
            f"{row['decoded_before']} of {row['images']}",
            str(row["size"]),
            "crop, flip" + (f", {row['auto_augment']}" if row["auto_augment"] else ""),
            str(row["workers"]),
            f"{row['images_per_second']:.0f}",
            f"{row['low']:.0f} to {row['high']:.0f}",
        )
    console.print(table)
    console.print(
        f"Medians of {report['rounds']} interleaved rounds of {report['seconds']:g} s. "
        f"Load of the machine before: {report['load_before']}."
    )


if __name__ == "__main__":
    typer.run(main)
