"""How fast photographs are labelled: `python benchmarks/labelling.py [--model FOLDER] [--json OUT]`.

It makes photographs of its own from `examples/`: of phone size (12 megapixels, with the small picture inside that
cameras put there) and of web size (0.2 megapixels), all different. In one process and in interleaved rounds it
labels them at every level, as far as each needs (`auto`), with and without `--previews`, each photograph several
times so that what it takes to start matters little. It also takes apart what that costs: reading and decoding alone,
the network alone, each on all cores, and what both would cost one after the other on the same cores.
For comparison two loops over the dense network of the same backbone: that of timm's `inference.py`, with its own
transforms and a DataLoader with a worker process per core, and one that decodes in a process per core and runs ONNX
Runtime on all cores.

`--paths N` instead labels a list of N paths over the web-size photographs with `hierclass label`, in a process of its
own, and reports its peak memory (with the processes that read for it), its rate, how long one photograph alone takes
from start to end, and how long listing takes; `--small` takes photographs of 96 x 72 pixels, so that what remains is
the network and what surrounds it.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import psutil
import typer
from loops import onnx_loop, timm_loop
from PIL import Image, ImageEnhance
from rich.table import Table
from timing import describe_machine, wide_console

import hierclass
from hierclass.checkpoints.checkpoint import load_checkpoint
from hierclass.classifier import Classifier
from hierclass.decisions.cascade import Cascade, ParallelCascade
from hierclass.decisions.exit_policy import ExitPolicy, Request
from hierclass.files import BUNDLED
from hierclass.images.preprocessing import Preprocessing, decode_side, read_square
from hierclass.labelling.inputs import list_inputs
from hierclass.labelling.pipeline import LabelPipeline
from hierclass.labelling.read_ahead import read_ahead
from hierclass.labelling.read_input import ReadOptions
from hierclass.processors import num_cores

EXAMPLES = Path(__file__).parent.parent / "examples"
SIZES = {"web": (500, 400), "phone": (4032, 3024)}
"""Pixels of the photographs: about 0.2 and 12 megapixels."""
SMALL = (96, 72)

LOOPS = {"of_timm": "timm's loop, dense", "of_onnx": "ONNX Runtime's loop, dense"}
"""Key of the rate relative to a loop, and what the loop is called."""

Call = Callable[[], int]
"""Labels all photographs of a folder; returns their number."""


def make_photographs(folder: Path, size: tuple[int, int], count: int) -> None:
    """Write photographs of one size, each another crop and brightness of an example, with a preview inside."""
    chance = random.Random(0)
    sources = [Image.open(file).convert("RGB") for file in sorted(EXAMPLES.glob("*.jpg"))]
    for number in range(count):
        source = sources[number % len(sources)]
        width = chance.uniform(0.6, 1) * min(source.width, source.height * size[0] / size[1])
        height = width * size[1] / size[0]
        left, top = chance.uniform(0, source.width - width), chance.uniform(0, source.height - height)
        image = source.resize(size, box=(left, top, left + width, top + height))
        image = ImageEnhance.Brightness(image).enhance(chance.uniform(0.7, 1.3))
        if size[0] > 1000:  # what a sensor adds, so that files have the bytes of a phone's
            noise = np.random.default_rng(number).normal(0, 6, (size[1] // 4, size[0] // 4, 3))
            pixels = np.asarray(image, dtype=np.float32) + np.kron(noise, np.ones((4, 4, 1)))
            image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
        image.save(folder / f"{number:04}.jpg", quality=88, exif=_exif(image))


def repeat(folder: Path, count: int) -> None:
    """Link every photograph of a folder until it is there `count` times."""
    for file in sorted(folder.iterdir()):
        for number in range(1, count):
            os.link(file, file.with_stem(f"{file.stem}-{number}"))


def _exif(image: Image.Image) -> bytes:
    """EXIF data that holds a picture of 160 pixels at the longer side."""
    small, stream = image.copy(), io.BytesIO()
    small.thumbnail((160, 160))
    small.save(stream, "JPEG", quality=80)
    data = stream.getvalue()
    place = (0x0201).to_bytes(2, "little") + b"\4\0\1\0\0\0" + (14 + 30).to_bytes(4, "little")
    length = (0x0202).to_bytes(2, "little") + b"\4\0\1\0\0\0" + len(data).to_bytes(4, "little")
    empty = b"\0\0" + (14).to_bytes(4, "little")
    return b"Exif\0\0II*\0" + (8).to_bytes(4, "little") + empty + b"\2\0" + place + length + bytes(4) + data


def decode_only(preprocessing: Preprocessing, folder: Path, reading: ReadOptions) -> Call:
    """Read and decode, and do no more."""
    inputs = list(enumerate(list_inputs([folder])))
    return lambda: sum(1 for _ in read_ahead(inputs, preprocessing, reading))


def network_only(classifier: Classifier, folder: Path, request: Request, reading: ReadOptions) -> Call:
    """Answer photographs that were read before."""
    policy = ExitPolicy(request, classifier.taxonomy, classifier.decision)
    preprocessing = classifier.preprocessing_for(policy.last)
    pixels = np.stack([read_square(file, preprocessing) for file in sorted(folder.iterdir())])

    def call() -> int:
        with ParallelCascade(classifier, policy, reading.batch_size) as cascade:
            for start in range(0, len(pixels), reading.batch_size):
                part = pixels[start : start + reading.batch_size]
                cascade.push(part, np.arange(start, start + len(part)))
            cascade.finish()
        return len(pixels)

    return call


def label(classifier: Classifier, folder: Path, request: Request, reading: ReadOptions) -> Call:
    """Label, as `hierclass label` does, short of writing the table."""
    pipeline = LabelPipeline(classifier, request, reading)
    inputs = list(pipeline.list_inputs([folder]))
    return lambda: sum(len(outcome) for outcome in pipeline.run(inputs))


def ways_to_read(classifier: Classifier) -> dict[str, Preprocessing]:
    """How images are read, by what reading and decoding alone is called: levels may need less than the last."""
    found = [classifier.preprocessing_for(level.index) for level in classifier.levels]
    return {decode_name(preprocessing): preprocessing for preprocessing in found}


def decode_name(preprocessing: Preprocessing) -> str:
    """What reading and decoding alone is called, by the shorter side that is decoded at the least."""
    return f"decode only, {decode_side(preprocessing)} px"


def contenders(classifier: Classifier, folder: Path, batch_size: int, precision: float) -> dict[str, Call]:
    """Name → call, for the photographs of one folder."""
    reading, previews = (
        ReadOptions(batch_size=batch_size, processes=True, previews=small) for small in (False, True)
    )
    calls = dict[str, Call]()
    for name, preprocessing in ways_to_read(classifier).items():
        calls[name] = decode_only(preprocessing, folder, reading)
        calls[f"{name}, previews"] = decode_only(preprocessing, folder, previews)
    for name, request in requests(classifier, precision).items():
        calls[f"{name}: network only"] = network_only(classifier, folder, request, reading)
        calls[f"{name}: label"] = label(classifier, folder, request, reading)
        calls[f"{name}: label, previews"] = label(classifier, folder, request, previews)
    return calls


def requests(classifier: Classifier, precision: float) -> dict[str, Request]:
    """Name → what is asked: every level and, if the model has thresholds, as far as each photograph needs."""
    found = {f"level {level.index}": Request(level=level.index) for level in classifier.levels}
    if classifier.decision.thresholds:
        found[f"auto, {precision:.0%} sure"] = Request(level="auto", precision=precision)
    return found


def work_of_auto(classifier: Classifier, folder: Path, precision: float, batch_size: int) -> dict[str, Any]:
    """Return the share of photographs that auto has judged at each level, and its computing, of the last level's."""
    policy = ExitPolicy(Request(level="auto", precision=precision), classifier.taxonomy, classifier.decision)
    cascade = Cascade(classifier, policy, batch_size)
    preprocessing = classifier.preprocessing_for(policy.last)
    pixels = np.stack([read_square(file, preprocessing) for file in distinct(folder)])
    for start in range(0, len(pixels), batch_size):
        part = pixels[start : start + batch_size]
        cascade.push(part, np.arange(start, start + len(part)))
    cascade.finish()
    judged = [count / len(pixels) for count in cascade.computed]
    costs = [
        level.step_macs if classifier.reuses and level.index > policy.first else level.macs
        for level in classifier.levels
    ]
    work = sum(share * cost for share, cost in zip(judged, costs, strict=False))
    return {"judged": judged, "work": work / classifier.levels[-1].macs}


def what_auto_saves(rows: Sequence[dict[str, Any]], work: float) -> str:
    """Say how much less auto computes than the last level, and how much faster it is."""
    of_last = {
        row["what"].partition(": ")[2]: row["of_last"] for row in rows if row["what"].startswith("auto")
    }
    return (
        f"auto computes {work:.0%} of what the last level computes (1 / {1 / work:.2f}); its network alone is "
        f"{of_last['network only']:.2f} times as fast, labelling {of_last['label']:.2f} times."
    )


def distinct(folder: Path) -> list[Path]:
    """The photographs of a folder without those that `repeat` linked."""
    return sorted(file for file in folder.iterdir() if "-" not in file.name)


def measure(calls: dict[str, Call], rounds: int) -> dict[str, list[float]]:
    """Images per second of every call, one value per round; every round times all in an order shuffled anew."""
    order, shuffler = list(calls), random.Random(0)
    found: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        shuffler.shuffle(order)
        for name in order:
            began = time.perf_counter()
            count = calls[name]()
            found[name].append(count / (time.perf_counter() - began))
    return found


def agreement(classifier: Classifier, folder: Path) -> list[float]:
    """Per tier, the share of the last level's answers that are the same from previews as from whole photographs.

    Empty where no preview is large enough for the last level.
    """
    both = [
        list(hierclass.label(distinct(folder), classifier=classifier, reading=ReadOptions(previews=previews)))
        for previews in (False, True)
    ]
    pairs = [(whole, small) for whole, small in zip(*both, strict=True) if small.preview]
    tiers = range(len(classifier.levels)) if pairs else ()
    same = [
        [whole.steps[tier].synset == small.steps[tier].synset for whole, small in pairs] for tier in tiers
    ]
    return [float(np.mean(values)) for values in same]


def rows_of(classifier: Classifier, found: dict[str, list[float]]) -> list[dict[str, Any]]:
    """A row per contender: median rate, range, and for labelling how near it comes to what bounds it."""
    medians = {name: statistics.median(rates) for name, rates in found.items()}
    rows = []
    for name, rates in found.items():
        row = {"what": name, "rate": medians[name], "low": min(rates), "high": max(rates)}
        if ": label" in name:
            asked = name.partition(":")[0]
            level = int(asked.removeprefix("level ")) if asked.startswith("level") else None
            decoding = decode_name(classifier.preprocessing_for(level))
            decode = medians[f"{decoding}, previews" if "previews" in name else decoding]
            network = medians[f"{asked}: network only"]
            row["of_both"] = medians[name] * (1 / decode + 1 / network)
            row |= {key: medians[name] / medians[loop] for key, loop in LOOPS.items()}
        if ": " in name:
            last = f"level {len(classifier.levels) - 1}: {name.partition(': ')[2]}"
            row["of_last"] = medians[name] / medians[last]
        rows.append(row)
    return rows


def draw(title: str, rows: Sequence[dict[str, Any]]) -> Table:
    """Show the rows of one folder."""
    table = Table(title=title)
    shares = {
        "of_both": "of both in turn",
        "of_timm": "of timm's loop",
        "of_onnx": "of ONNX's loop",
        "of_last": "of the last level",
    }
    for column in ("what runs", "images/s", "range", *shares.values()):
        table.add_column(column, justify="left" if column == "what runs" else "right")
    for row in rows:
        found = (f"{row[key]:.2f}" if key in row else "" for key in shares)
        table.add_row(row["what"], f"{row['rate']:,.0f}", f"{row['low']:,.0f} – {row['high']:,.0f}", *found)
    return table


def run_list(folder: Path, count: int, model: Path | None, level: str) -> dict[str, Any]:
    """Label a list of so many paths in a process of its own; its peak memory, its rate and when all were listed."""
    files = [str(file) for file in sorted(folder.iterdir())]
    with tempfile.TemporaryDirectory() as place:
        listed, out = Path(place) / "list.txt", Path(place) / "run"
        with listed.open("w") as file:
            file.writelines(f"{files[number % len(files)]}\n" for number in range(count))
        command = [sys.executable, "-m", "hierclass", "label", "-", "-o", f"{out}/", "--level", level]
        command += ["--model", str(model)] if model else []
        began = time.perf_counter()
        with listed.open("rb") as stdin:
            process = subprocess.Popen(command, stdin=stdin)
        listed_after, peak = 0.0, 0.0
        while process.poll() is None:
            if not listed_after and (out / "run.json").exists():
                listed_after = time.perf_counter() - began
            peak = max(peak, used_memory(process.pid))
            time.sleep(0.1)
        seconds = time.perf_counter() - began
    return {
        "paths": count,
        "seconds": seconds,
        "rate": count / seconds,
        "peak_mib": peak,
        "listed_after": listed_after or seconds,
    }


def used_memory(process: int) -> float:
    """MiB that a process and its children hold, what they share counted once; 0 when it has ended."""
    with contextlib.suppress(psutil.Error):
        family = [psutil.Process(process), *psutil.Process(process).children(recursive=True)]
        found = [each.memory_full_info() for each in family]
        return float(sum(getattr(each, "pss", each.uss) for each in found)) / 2**20
    return 0.0


def main(
    model: Annotated[Path | None, typer.Option(help="Model folder; the bundled model if left out.")] = None,
    count: Annotated[int, typer.Option(min=1, help="Photographs of web size; a tenth of phone size.")] = 600,
    times: Annotated[
        int,
        typer.Option(min=1, help="How often each is labelled in a round, so that starting matters little."),
    ] = 4,
    rounds: Annotated[int, typer.Option(min=1, help="Interleaved rounds; medians are shown.")] = 5,
    batch_size: Annotated[int, typer.Option(min=1)] = 64,
    precision: Annotated[float, typer.Option(help="How sure auto is to be.")] = 0.9,
    paths: Annotated[
        list[int] | None, typer.Option(min=1, help="Label a list of so many paths instead. Repeatable.")
    ] = None,
    small: Annotated[
        bool, typer.Option("--small", help="With --paths: photographs of 96 x 72 pixels.")
    ] = False,
    level: Annotated[str, typer.Option(help="With --paths: the level.")] = "0",
    int8: Annotated[bool, typer.Option("--int8", help="Run the model's graphs in 8 bits.")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the figures here.")] = None,
) -> None:
    """Measure labelling."""
    console, report = wide_console(), dict[str, Any]()
    classifier = hierclass.load(model, "cpu", runtime="auto", int8=int8)
    report["machine"] = {**describe_machine(classifier.device), "used_cores": num_cores()}
    report["int8"] = int8
    with tempfile.TemporaryDirectory() as place:
        if paths:
            folder = Path(place)
            make_photographs(folder, SMALL if small else SIZES["web"], count)
            alone = statistics.median(run_list(folder, 1, model, level)["seconds"] for _ in range(rounds))
            report["one_photograph"] = alone
            console.print(f"one photograph, from start to end: {alone:.1f} s (median of {rounds})")
            report["lists"] = [run_list(folder, each, model, level) for each in sorted(paths)]
            for row in report["lists"]:
                console.print(
                    f"{row['paths']:,} paths: {row['rate']:,.0f} images/s, peak {row['peak_mib']:,.0f} MiB, "
                    f"all listed after {row['listed_after']:.1f} s"
                )
        else:
            report["sizes"] = {}
            for name, number in {"web": count, "phone": max(1, count // 10)}.items():
                folder = Path(place) / name
                folder.mkdir()
                make_photographs(folder, SIZES[name], number)
                repeat(folder, times)
                calls = contenders(classifier, folder, batch_size, precision)
                checkpoint = load_checkpoint(model or BUNDLED)
                calls[LOOPS["of_timm"]] = timm_loop(checkpoint, folder, batch_size)
                calls[LOOPS["of_onnx"]] = onnx_loop(
                    checkpoint, folder, batch_size, Path(place) / "dense.onnx"
                )
                rows = rows_of(classifier, measure(calls, rounds))
                found: dict[str, Any] = {"images": number, "times": times, "rows": rows}
                console.print(draw(f"{number} photographs of {name} size", rows))
                if classifier.decision.thresholds:
                    found["auto"] = work_of_auto(classifier, folder, precision, batch_size)
                    console.print(what_auto_saves(rows, found["auto"]["work"]))
                found["previews_agree"] = same = agreement(classifier, folder)
                shares = f"{', '.join(f'{x:.1%}' for x in same)} by tier" if same else "none is large enough"
                console.print(f"Previews answer at the last level as whole photographs do: {shares}.")
                report["sizes"][name] = found
    if json_file:
        json_file.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    load = report["machine"]["load_before"]
    console.print(f"Medians of {rounds} rounds; {num_cores()} cores; load of the machine before: {load}.")


if __name__ == "__main__":
    sys.path.insert(0, os.fspath(Path(__file__).parent))
    typer.run(main)
