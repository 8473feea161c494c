"""How long each level takes: `python benchmarks/latency.py [--model FOLDER] [--threads N] [--json OUT]`.

Measured is the network alone, from prepared images in memory to logits: `NestedNetwork.forward` at one level, the
shrinking of images by a level that sees them smaller included, `refine` through all levels, and for reference the
dense timm backbone that the network was cut from, with a linear classifier. Reading and decoding images is not in
it. Everything runs in one process and in rounds: each round times every contender once, in an order shuffled anew, so
that a slow moment of the machine meets all of them alike.
"""

from __future__ import annotations

import json
import os
import platform
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import timm
import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import hierclass
from hierclass.checkpoints.description import WEIGHT_SOURCES, Architecture
from hierclass.nested import NestedNetwork, create_backbone, nest

SAMPLE_SECONDS = 0.05
"""A sample repeats its call until it takes about this long, so that the clock's grain does not matter."""

Call = Callable[[], object]


@dataclass(frozen=True)
class Timing:
    """What one contender took for one batch."""

    batch: int
    contender: str
    macs: int
    """Multiply-accumulates for one image."""
    milliseconds: float
    """Median over the rounds, for the whole batch."""
    low: float
    high: float
    """Quartiles, milliseconds."""
    images_per_second: float
    """At the median."""
    ratio: float
    """Median relative to that of the last level at the same batch."""


def dense_network(network: NestedNetwork, architecture: Architecture) -> nn.Sequential:
    """Return the un-nested network: the timm backbone with a classifier of the last level's classes."""
    arguments = {key: value for key, value in architecture.backbone_args.items() if key not in WEIGHT_SOURCES}
    backbone = create_backbone(architecture.backbone, stem_stride=architecture.stem_stride, **arguments)
    return nn.Sequential(backbone, nn.Linear(network.num_features[-1], network.num_classes[-1]))


def dense_level(network: NestedNetwork, architecture: Architecture) -> NestedNetwork:
    """Return the un-nested network as one level that is all of it: its norms can be folded as those of levels are."""
    backbone, _ = dense_network(network, architecture)
    classes, size = network.num_classes[-1:], network.input_size
    return nest(backbone, structure="prefix", widths=(1.0,), num_classes=classes, input_size=size)


def refine_all(network: NestedNetwork, images: Tensor) -> Tensor:
    """Climb from level 0 to the last, answering at every level."""
    state = network.start(images)
    for _ in range(network.num_levels - 1):
        network.refine(state)
    return network.refine(state)


def contenders(network: NestedNetwork, dense: nn.Module, images: Tensor) -> dict[str, Call]:
    """Name → call; each gives logits for the batch `images` (B, 3, H, W)."""
    calls: dict[str, Call] = {
        f"level {level}": lambda level=level: network(images, level)  # type: ignore[misc]
        for level in range(network.num_levels)
    }
    calls[refine_name(network)] = lambda: refine_all(network, images)
    calls["dense"] = lambda: dense(images)
    return calls


def refine_name(network: NestedNetwork) -> str:
    """Name of the contender that climbs through all levels."""
    return "refine " + "→".join(map(str, range(network.num_levels)))


def count_macs(network: NestedNetwork, dense: nn.Module, image: Tensor) -> dict[str, int]:
    """Multiply-accumulates of every contender for one image, counted while it runs."""
    counted: dict[str, int] = {}
    for name, call in contenders(network, dense, image).items():
        with torch.utils.flop_counter.FlopCounterMode(display=False) as counter, torch.no_grad():
            call()
        counted[name] = counter.get_total_flops() // 2
    return counted


def seconds_per_call(call: Call, repeats: int, wait: Call) -> float:
    """Mean time of `repeats` calls in a row, the device's queue drained before and after."""
    wait()
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    wait()
    return (time.perf_counter() - start) / repeats


def measure_rounds(calls: dict[str, Call], rounds: int, wait: Call, seed: int = 0) -> dict[str, list[float]]:
    """Time every call once per round, interleaved; return seconds per call, one value per round."""
    repeats = {}
    for name, call in calls.items():
        seconds_per_call(call, 3, wait)  # warm-up
        once = seconds_per_call(call, 3, wait)
        repeats[name] = max(1, round(SAMPLE_SECONDS / once))
    order = list(calls)
    shuffler = random.Random(seed)
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        shuffler.shuffle(order)
        for name in order:
            samples[name].append(seconds_per_call(calls[name], repeats[name], wait))
    return samples


@torch.inference_mode()
def measure(network: NestedNetwork, dense: nn.Module, batches: Sequence[int], rounds: int) -> list[Timing]:
    """Time every contender at every batch size; `rounds` is at least 2."""
    device = next(network.parameters()).device
    wait: Call = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    image = torch.randn(1, *network.input_size, device=device)
    macs = count_macs(network, dense, image)
    timings = []
    for batch in batches:
        images = image.expand(batch, -1, -1, -1).contiguous(memory_format=torch.channels_last)
        samples = measure_rounds(contenders(network, dense, images), rounds, wait)
        last = statistics.median(samples[f"level {network.num_levels - 1}"])
        for name, values in samples.items():
            low, median, high = statistics.quantiles(values, n=4, method="inclusive")
            timings.append(
                Timing(
                    batch,
                    name,
                    macs[name],
                    1e3 * median,
                    1e3 * low,
                    1e3 * high,
                    batch / median,
                    median / last,
                )
            )
    return timings


def describe_machine(device: str) -> dict[str, Any]:
    """What the figures were measured on."""
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else processor_name()
    return {
        "device": name,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_before": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "timm": timm.__version__,
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
    }


def processor_name() -> str:
    """Name of the processor as the system gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def draw(timings: Sequence[Timing], title: str) -> Table:
    """Show one row per contender and batch size."""
    table = Table(title=title)
    for heading in (
        "batch",
        "what runs",
        "MMACs",
        "ms (median)",
        "quartiles",
        "images/s",
        "of the last level",
    ):
        table.add_column(heading, justify="left" if heading == "what runs" else "right")
    for before, row in zip((None, *timings), timings, strict=False):
        if before and before.batch != row.batch:
            table.add_section()
        table.add_row(
            str(row.batch),
            row.contender,
            f"{row.macs / 1e6:.1f}",
            f"{row.milliseconds:.2f}",
            f"{row.low:.2f} – {row.high:.2f}",
            f"{row.images_per_second:.0f}",
            f"{row.ratio:.3f}",
        )
    return table


def main(
    model: Annotated[Path | None, typer.Option(help="Model folder; the bundled model if left out.")] = None,
    batch: Annotated[list[int] | None, typer.Option(min=1, help="Batch size; may be given again.")] = None,
    rounds: Annotated[int, typer.Option(min=2, help="How often everything is timed.")] = 30,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads; all cores if left out.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda …")] = "cpu",
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the figures here.")] = None,
) -> None:
    """Time every level of a model, refining, and the dense backbone."""
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        classifier = hierclass.load(model, device)
    except hierclass.HierclassError as error:
        print(error, file=sys.stderr)
        raise typer.Exit(2) from None
    # As the classifier runs it: batch norms folded into the convolutions, channels_last. The dense one alike.
    network = classifier.checkpoint.network.fused().to(classifier.device)
    architecture = classifier.checkpoint.architecture
    dense = dense_level(network, architecture).eval().fused().to(classifier.device)
    for contender in (network, dense):
        contender.to(memory_format=torch.channels_last)
    machine = describe_machine(classifier.device)
    timings = measure(network, dense, batch or (1, 32), rounds)
    size = "×".join(map(str, network.input_size))
    console = Console()
    console.print(draw(timings, f"{architecture.backbone}, {size}, float32, network only"))
    console.print(
        f"Medians of {rounds} interleaved rounds after warm-up, on {machine['device']} "
        f"with {machine['threads']} threads, torch {machine['torch']}, eager. "
        f"Load of the machine before the run: {machine['load_before']}."
    )
    if json_file:
        report = {"machine": machine, "architecture": asdict(architecture), "rounds": rounds}
        rows = [asdict(timing) for timing in timings]
        json_file.write_text(json.dumps({**report, "timings": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
