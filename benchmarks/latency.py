"""How long each level takes: `python benchmarks/latency.py [--model FOLDER] [--busy N] [--json OUT]`.

Measured is the network alone, from squares of pixels in memory to logits: a level by itself, `refine` through all
levels, and for reference the dense timm backbone that the network was cut from, with a linear classifier. Reading and
decoding images is not in it. Torch, ONNX Runtime, and its 8-bit graphs where the model has them, stand side by side:
everything runs in one process and in rounds, each of which times every contender once, in an order shuffled anew, so
that a slow moment of the machine meets all of them alike. With `--busy N` all is measured again while N other
processes use a core each.
"""

from __future__ import annotations

import functools
import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from dense import dense_level
from numpy.typing import NDArray
from rich.table import Table
from timing import Call, busy_neighbours, describe_machine, measure_rounds, wide_console

import hierclass
from hierclass.checkpoints.description import read_config
from hierclass.classifier import Classifier
from hierclass.files import BUNDLED

TORCH = "torch"
"""The runtime that others are compared with."""


@dataclass(frozen=True)
class Timing:
    """What one contender took for one batch."""

    busy: int
    """Number of other processes that used a core each."""
    batch: int
    what: str
    runtime: str
    macs: int
    """Multiply-accumulates for one image."""
    milliseconds: float
    """Median over the rounds, for the whole batch."""
    low: float
    high: float
    """Quartiles, milliseconds."""
    of_last: float
    """Time relative to that of the last level, by the same runtime."""
    of_torch: float
    """How many times as fast as by torch, beside as many other processes."""
    of_quiet: float = 1.0
    """How fast relative to the same without other processes."""


@dataclass(frozen=True)
class LevelContender:
    """Something that gives logits for a batch."""

    what: str
    runtime: str
    macs: int
    call: Call


def open_runtimes(model: Path | None, device: str, threads: int | None) -> dict[str, Classifier]:
    """Load a model once for every way to run it: torch, and on a processor ONNX Runtime with the graphs it has."""
    found = {TORCH: hierclass.load(model, device, runtime="torch", threads=threads)}
    if found[TORCH].device != "cpu":
        return found
    folder = model or BUNDLED
    config, in_8_bits = read_config(folder), {"int8": True}
    for key, name, how in (("graphs", "onnx", {}), ("int8", "onnx int8", in_8_bits)):
        if key in config:
            found[name] = hierclass.load(folder, "cpu", runtime="onnx", threads=threads, **how)
    return found


def pixels(classifier: Classifier, batch: int, level: int | None = None) -> NDArray[np.uint8]:
    """Return squares (batch, S, S, 3) as images are prepared for a level."""
    preprocessing = classifier.preprocessing_for(level)
    side = preprocessing.detail or preprocessing.size
    return np.random.default_rng(0).integers(0, 256, (batch, side, side, 3), dtype=np.uint8)


def contenders(classifiers: dict[str, Classifier], batch: int) -> list[LevelContender]:
    """Return what is timed for a batch size."""
    found = []
    for name, classifier in classifiers.items():
        for level in range(len(classifier.levels)):
            call = functools.partial(run_level, classifier, pixels(classifier, batch, level), level)
            found.append(LevelContender(f"level {level}", name, classifier.runtime.cost(level).macs, call))
        climb = "refine " + "→".join(str(level.index) for level in classifier.levels)
        macs = sum(level.step_macs for level in classifier.levels)
        call = functools.partial(refine_all, classifier, pixels(classifier, batch))
        found.append(LevelContender(climb, name, macs, call))
    return [*found, dense_contender(classifiers[TORCH], batch)]


def run_level(classifier: Classifier, images: NDArray[np.uint8], level: int) -> object:
    """Compute one level."""
    return classifier.runtime.run(classifier.runtime.to_batch(images), level)


def refine_all(classifier: Classifier, images: NDArray[np.uint8]) -> object:
    """Climb from level 0 to the last, answering at every level."""
    state = classifier.runtime.start(images)
    return [classifier.runtime.refine(state) for _ in classifier.levels]


def dense_contender(classifier: Classifier, batch: int) -> LevelContender:
    """Return the dense network, run by torch as levels are: norms folded, channels last."""
    runtime, device = classifier.runtime, classifier.device
    dense = dense_level(classifier.checkpoint).eval().fused().to(device)
    dense.to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def call(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        logits: NDArray[np.float32] = dense(runtime.to_batch(images), 0).cpu().numpy()
        return logits

    with torch.utils.flop_counter.FlopCounterMode(display=False) as counter:
        call(pixels(classifier, 1))
    images = pixels(classifier, batch)
    return LevelContender("dense", TORCH, counter.get_total_flops() // 2, lambda: call(images))


def measure(
    classifiers: dict[str, Classifier], batches: Sequence[int], busy: Sequence[int], rounds: int
) -> list[Timing]:
    """Time every contender at every batch size beside as many busy processes; `rounds` is at least 2."""
    wait: Call = torch.cuda.synchronize if classifiers[TORCH].device.startswith("cuda") else lambda: None
    compared = {batch: contenders(classifiers, batch) for batch in batches}
    timings: list[Timing] = []
    for neighbours in busy:
        with busy_neighbours(neighbours):
            for batch, found in compared.items():
                samples = measure_rounds(
                    {(each.what, each.runtime): each.call for each in found}, rounds, wait
                )
                timings += relate(found, samples, batch, neighbours)
    quiet = {(row.batch, row.what, row.runtime): row.milliseconds for row in timings if not row.busy}
    return [
        replace(row, of_quiet=quiet[row.batch, row.what, row.runtime] / row.milliseconds) if quiet else row
        for row in timings
    ]


def relate(
    found: Sequence[LevelContender], samples: dict[tuple[str, str], list[float]], batch: int, busy: int
) -> list[Timing]:
    """Make rows of seconds per call, each related to the last level and to torch; rows of one kind together."""
    medians = {key: statistics.median(values) for key, values in samples.items()}
    last = max(each.what for each in found if each.what.startswith("level"))
    order = {each.what: number for number, each in reversed(list(enumerate(found)))}
    rows = []
    for each in sorted(found, key=lambda each: order[each.what]):
        values = samples[each.what, each.runtime]
        low, median, high = (1e3 * value for value in statistics.quantiles(values, n=4, method="inclusive"))
        rows.append(
            Timing(
                busy=busy,
                batch=batch,
                what=each.what,
                runtime=each.runtime,
                macs=each.macs,
                milliseconds=median,
                low=low,
                high=high,
                of_last=median / (1e3 * medians[last, each.runtime]),
                of_torch=1e3 * medians[each.what, TORCH] / median,
            )
        )
    return rows


def draw(timings: Sequence[Timing], title: str) -> Table:
    """Show one row per contender, batch size and number of busy processes."""
    table = Table(title=title)
    several = any(row.busy for row in timings)
    timed = ("MMACs", "ms (median)", "quartiles", "images/s", "of the last level", "of torch")
    busy, quiet = (("busy",), ("of quiet",)) if several else ((), ())
    for heading in (*busy, "batch", "what runs", "by", *timed, *quiet):
        table.add_column(heading, justify="left" if heading in ("what runs", "by") else "right")
    for before, row in zip((None, *timings), timings, strict=False):
        if before and (before.busy, before.batch) != (row.busy, row.batch):
            table.add_section()
        table.add_row(
            *([str(row.busy)] if several else []),
            str(row.batch),
            row.what,
            row.runtime,
            f"{row.macs / 1e6:.1f}",
            f"{row.milliseconds:.2f}",
            f"{row.low:.2f} – {row.high:.2f}",
            f"{1e3 * row.batch / row.milliseconds:.0f}",
            f"{row.of_last:.3f}",
            f"{row.of_torch:.2f} ×",
            *([f"{row.of_quiet:.2f} ×"] if several else []),
        )
    return table


def main(
    model: Annotated[Path | None, typer.Option(help="Model folder; the bundled model if left out.")] = None,
    batch: Annotated[list[int] | None, typer.Option(min=1, help="Batch size; may be given again.")] = None,
    busy: Annotated[
        int, typer.Option(min=0, help="Measure again beside so many processes that use a core each.")
    ] = 0,
    rounds: Annotated[int, typer.Option(min=2, help="How often everything is timed.")] = 30,
    threads: Annotated[int | None, typer.Option(min=1, help="Cores to use; all if left out.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda …")] = "cpu",
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the figures here.")] = None,
) -> None:
    """Time every level of a model, refining, and the dense backbone, by every runtime."""
    try:
        classifiers = open_runtimes(model, device, threads)
    except hierclass.HierclassError as error:
        print(error, file=sys.stderr)
        raise typer.Exit(2) from None
    torch.set_num_threads(classifiers[TORCH].runtime.threads)
    machine = describe_machine(device, classifiers[TORCH].runtime.threads)
    timings = measure(classifiers, batch or (1, 32), sorted({0, busy}), rounds)
    architecture = classifiers[TORCH].model.architecture
    side = classifiers[TORCH].preprocessing.size
    console = wide_console()
    console.print(draw(timings, f"{architecture.backbone}, {side} × {side}, network only"))
    console.print(
        f"Medians of {rounds} interleaved rounds after warm-up, on {machine['device']} with {machine['threads']} "
        f"threads, torch {machine['torch']}, ONNX Runtime {machine['onnxruntime']}. "
        f"Load of the machine before the run: {machine['load_before']}."
    )
    if json_file:
        report = {"machine": machine, "architecture": asdict(architecture), "rounds": rounds}
        rows = [asdict(timing) for timing in timings]
        json_file.write_text(json.dumps({**report, "timings": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
