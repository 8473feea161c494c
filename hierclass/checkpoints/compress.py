"""Make a model of a model's first levels, and measure what that saves."""

from __future__ import annotations

import dataclasses
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hierclass.checkpoints.checkpoint import Checkpoint, num_levels_before
from hierclass.checkpoints.description import Architecture
from hierclass.decisions.calibration import first_levels
from hierclass.files import is_part_of_model
from hierclass.nested import NestedNetwork

BATCHES = (1, 32)
"""Images per timed call."""
ROUNDS = 25
SAMPLE_SECONDS = 0.02
"""A sample repeats its call for about this long, so that the clock's resolution does not matter."""


@dataclass(frozen=True)
class Footprint:
    """What answering at one level of one model costs."""

    name: str
    bytes: int
    """Size of the model's files."""
    parameters: int
    macs: int
    """Multiply-accumulates for one image."""
    seconds: Mapping[int, float]
    """Images per call → median time of a call of the network."""


def compress(checkpoint: Checkpoint, level: int) -> Checkpoint:
    """Return a checkpoint of levels 0 … `level` only; they answer as those of the whole one.

    Its tree and its results end at the tier of that level.

    Raises:
        LevelError: the model has no such level.
    """
    levels = checkpoint.network.check_level(level) + 1
    return Checkpoint(
        network=checkpoint.network.truncate(level),
        taxonomy=checkpoint.taxonomy.truncate(level),
        architecture=_truncated(checkpoint, levels),
        preprocessing=checkpoint.preprocessing,
        decision=first_levels(checkpoint.decision, levels),
        results={name: _first_levels(part, levels) for name, part in checkpoint.results.items()},
    )


def _truncated(checkpoint: Checkpoint, levels: int) -> Architecture:
    architecture = checkpoint.architecture
    if levels == num_levels_before(architecture):
        return architecture
    leaves = architecture.leaves or len(checkpoint.taxonomy.leaves)  # the former if it was compressed before
    return dataclasses.replace(
        architecture, levels=levels, leaves=leaves if architecture.heads == "leaves" else None
    )


def compare(before: Path, whole: Checkpoint, after: Path, small: Checkpoint) -> list[Footprint]:
    """Measure a model stored in `before` and a compressed one stored in `after`, on the processor.

    Returns footprints of the whole model's last level, of the small model's last level inside the whole model (if it
    is another level), and of the small model. All are timed in the same rounds, in shuffled order.
    """
    last, level = whole.network.num_levels - 1, small.network.num_levels - 1
    kept = [("whole", before, whole, last), (f"its level {level}", before, whole, level)]
    kept = [*kept[: 1 if level == last else 2], ("small", after, small, level)]
    networks = {id(one): _for_inference(one.network) for one in (whole, small)}
    seconds = {
        batch: _medians([_call(networks[id(one)], level, batch) for _, _, one, level in kept])
        for batch in BATCHES
    }
    found = []
    for index, (name, folder, checkpoint, level) in enumerate(kept):
        cost = checkpoint.network.cost(level)
        size = sum(file.stat().st_size for file in folder.iterdir() if is_part_of_model(file.name))
        times = {batch: medians[index] for batch, medians in seconds.items()}
        found.append(Footprint(name, size, cost.parameters, cost.macs, times))
    return found


def saves(footprints: Sequence[Footprint]) -> bool:
    """Whether the last footprint is smaller than the first by more than a hundredth, on disk or in computing."""
    whole, small = footprints[0], footprints[-1]
    return small.bytes < 0.99 * whole.bytes or small.macs < 0.99 * whole.macs


def _first_levels(results: Any, levels: int) -> Any:
    """Cut measured results (a part of `Checkpoint.results`) to the first levels; leave malformed values out."""
    rows = results.get("levels") if isinstance(results, dict) else None
    if not isinstance(rows, list) or len(rows) <= levels or not all(isinstance(row, dict) for row in rows):
        return results
    # "finest" and "alone" measure the leaves, which the tree does not have any more.
    cut = {key: value for key, value in results.items() if key not in ("finest", "alone")}
    cut["levels"] = _with_shares(rows[:levels])
    for name in ("answers", "weighted_answers"):
        if isinstance(answers := cut.pop(name, None), list):
            cut[name] = answers[:levels]
    consensus = cut.pop("consensus", None)
    if isinstance(consensus, list) and all(_is_measured(row) for row in consensus):
        cut["consensus"] = [{**row, "top1": row["top1"][:levels]} for row in consensus]
    if isinstance(calibration := cut.pop("calibration", None), dict):
        cut["calibration"] = _first_calibrated(calibration, levels)
    return cut


def _first_calibrated(calibration: Mapping[str, Any], levels: int) -> dict[str, Any]:
    """Cut measured temperatures and thresholds: lists whose rows name their level."""
    return {
        key: [row for row in value if isinstance(row, dict) and row.get("level") in range(levels)]
        if isinstance(value, list)
        else value
        for key, value in calibration.items()
    }


def _is_measured(row: Any) -> bool:
    return isinstance(row, dict) and isinstance(row.get("top1"), list)


def _with_shares(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Set the costs of levels relative to the last one, if all are known."""
    costs = [row.get("macs") for row in rows]
    if not all(isinstance(cost, int) and cost > 0 for cost in costs):
        return [{key: value for key, value in row.items() if key != "share"} for row in rows]
    return [{**row, "share": row["macs"] / costs[-1]} for row in rows]


def _for_inference(network: NestedNetwork) -> NestedNetwork:
    """The network as `hierclass.Classifier` runs it."""
    return network.fused().to(memory_format=torch.channels_last)


def _call(network: NestedNetwork, level: int, batch: int) -> Callable[[], object]:
    images = torch.randn(batch, *network.input_size).contiguous(memory_format=torch.channels_last)
    return lambda: network(images, level)


@torch.inference_mode()
def _medians(calls: Sequence[Callable[[], object]]) -> list[float]:
    """Median seconds of every call; each round times all once, in shuffled order, so that they share slow moments."""
    repeats = []
    for call in calls:
        _seconds(call, 3)  # warm-up
        repeats.append(max(1, round(SAMPLE_SECONDS / _seconds(call, 3))))
    shuffler, order = random.Random(0), list(range(len(calls)))
    samples: list[list[float]] = [[] for _ in calls]
    for _ in range(ROUNDS):
        shuffler.shuffle(order)
        for index in order:
            samples[index].append(_seconds(calls[index], repeats[index]))
    return [statistics.median(values) for values in samples]


def _seconds(call: Callable[[], object], repeats: int) -> float:
    """Mean time of calls in a row."""
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats
