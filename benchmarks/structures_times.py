"""How long the compared networks take, answering and training: all in one process, in shuffled rounds.

Only shapes matter for time, so the networks are made again, untrained, from what the JSON file says of them.
"""

from __future__ import annotations

import functools
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from structures_rows import ROWS
from timing import Call, describe_machine, measure_rounds
from torch import Tensor

from hierclass.nested import STRUCTURES, NestedNetwork, create_backbone, nest
from training.trainer.losses import TrainingModel

BATCHES = (1, 32)
REFERENCE, UPDATE = "dense: level 2", "dense: update"
"""To what times are put in relation: the row, and what is run of it."""

Result = dict[str, Any]


def measure_times(results: Result, rounds: int) -> Result:
    """Time every network that is different from the others: levels, the climb through all, the pass of an update."""
    machine = describe_machine("cpu")
    settings = results["settings"]
    classes, size = tuple(settings["classes"]), int(settings["size"])
    rows = {row["name"]: row["networks"] for row in reversed(results["rows"]) if ROWS[row["name"]].timed}
    networks = {name: [_make(network, classes, size) for network in row] for name, row in rows.items()}
    timings = _time_updates(networks, classes, _images(int(settings["batch_size"]), size), rounds)
    fused = {name: [_ready(network) for network in made] for name, made in networks.items()}
    with torch.inference_mode():
        for batch in BATCHES:
            images = _images(batch, size)
            calls = {
                f"{name}: {what}": call
                for name, made in fused.items()
                for what, call in _answers(made, len(classes), images).items()
            }
            timings += _rows(measure_rounds(calls, rounds, lambda: None), batch, REFERENCE)
    return {"machine": machine, "rounds": rounds, "rows": timings}


def _time_updates(
    networks: Mapping[str, Sequence[NestedNetwork]], classes: Sequence[int], images: Tensor, rounds: int
) -> list[Result]:
    """Forward and backward pass of one batch, auxiliary heads included; data and the optimiser's step are not in it."""
    generator = torch.Generator().manual_seed(0)
    leaves = torch.randint(classes[-1], (len(images),), generator=generator)
    calls: dict[str, Call] = {}
    for name, made in networks.items():
        trainees = [
            TrainingModel(network, classes[-1]).train().to(memory_format=torch.channels_last)
            for network in made
        ]
        calls[f"{name}: update"] = functools.partial(_update, trainees, images, leaves)
    return _rows(measure_rounds(calls, rounds, lambda: None), len(images), UPDATE)


def _update(trainees: Sequence[TrainingModel], images: Tensor, leaves: Tensor) -> None:
    for trainee in trainees:
        levels, finest = trainee(images)
        losses = [F.cross_entropy(logits, leaves % logits.shape[1]) for logits in (*levels, *finest)]
        torch.stack(losses).sum().backward()  # type: ignore[no-untyped-call]
        trainee.zero_grad()


def _rows(samples: Mapping[str, Sequence[float]], batch: int, reference: str) -> list[Result]:
    """Milliseconds per batch, median and quartiles, and the median in relation to the reference's."""
    base = statistics.median(samples[reference]) if reference in samples else None
    rows = []
    for key, values in samples.items():
        name, _, what = key.partition(": ")
        low, median, high = (1e3 * value for value in statistics.quantiles(values, n=4, method="inclusive"))
        ratio = median / (1e3 * base) if base else None
        rows.append(
            {
                "batch": batch,
                "name": name,
                "what": what,
                "milliseconds": median,
                "low": low,
                "high": high,
                "ratio": ratio,
            }
        )
    return rows


def _images(batch: int, size: int) -> Tensor:
    images = torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(0))
    return images.contiguous(memory_format=torch.channels_last)


def _make(network: Mapping[str, Any], classes: Sequence[int], size: int) -> NestedNetwork:
    """The network of an architecture, untrained; one of a single level answers on the leaves."""
    shares = {key: network[key] for key in ("widths", "depths", "densities")}
    levels = len(shares[STRUCTURES[network["structure"]].shares])
    backbone = create_backbone(
        network["backbone"], stem_stride=network["stem_stride"], **network["backbone_args"]
    )
    return nest(
        backbone,
        structure=network["structure"],
        num_classes=classes if levels == len(classes) else classes[-1:],
        input_size=(3, size, size),
        **shares,
    )


def _ready(network: NestedNetwork) -> NestedNetwork:
    """The network as inference runs it."""
    network.train_progress(1.0)
    return network.eval().fused().to(memory_format=torch.channels_last)


def _answers(networks: Sequence[NestedNetwork], levels: int, images: Tensor) -> dict[str, Call]:
    """What is timed of a row: every level directly, and the climb through all levels, answering at each."""
    first = networks[0]
    if len(networks) > 1:
        calls: dict[str, Call] = {f"level {k}": lambda k=k: networks[k](images) for k in range(levels)}  # type: ignore[misc]
        return {**calls, "climb": lambda: [network(images) for network in networks]}
    if first.num_levels == 1:
        return {f"level {levels - 1}": lambda: first(images)}
    calls = {f"level {k}": lambda k=k: first(images, k) for k in range(levels)}  # type: ignore[misc]
    return {**calls, "climb": lambda: _refine_all(first, images)}


def _refine_all(network: NestedNetwork, images: Tensor) -> list[Tensor]:
    """Climb from level 0 to the last, answering at every level."""
    state = network.start(images)
    return [network.refine(state) for _ in range(network.num_levels)]
