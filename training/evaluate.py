"""Answers of a network on labelled images, and the measures taken of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader

from hierclass.checkpoint import load_checkpoint
from hierclass.errors import InputError
from hierclass.nested import NestedNetwork
from taxonomy import Taxonomy
from training import metrics
from training.batches import evaluation_loader
from training.data import read_images, split


@dataclasses.dataclass(frozen=True, slots=True)
class Answers:
    """What a network said: per level the highest class (N,), the k best leaves (N, k), and the truth (N,).

    ``errors`` holds one message per image that could not be read; those are in none of the arrays.
    """

    per_level: tuple[npt.NDArray[np.int64], ...]
    ranked: npt.NDArray[np.int64]
    leaves: npt.NDArray[np.int64]
    errors: tuple[str, ...]


@torch.inference_mode()
def collect_answers(
    network: NestedNetwork, loader: DataLoader[Any], device: torch.device, *, top: int = 5
) -> Answers:
    """Run a network, put in evaluation mode, over preprocessed batches; each level answers alone."""
    network.eval()
    top = min(top, network.num_classes[-1])
    per_level: list[list[torch.Tensor]] = [[] for _ in range(network.num_levels)]
    ranked, leaves, errors = [], [], []
    for images, target, messages in loader:
        errors += messages
        if not len(images):
            continue
        logits = network.forward_all(images.to(device))
        for answers, level in zip(per_level, logits, strict=True):
            answers.append(level.argmax(dim=1).cpu())
        ranked.append(logits[-1].topk(top, dim=1).indices.cpu())
        leaves.append(target)
    if not leaves:
        raise InputError(f"none of the {len(errors)} images can be read: {'; '.join(errors[:3])}")
    return Answers(
        tuple(torch.cat(answers).numpy() for answers in per_level),
        torch.cat(ranked).numpy(),
        torch.cat(leaves).numpy(),
        tuple(errors),
    )


def count_right(answers: Answers, taxonomy: Taxonomy) -> list[int]:
    """How many answers of each level are right on its tier."""
    return [
        int((answer == taxonomy.projection(tier)[answers.leaves]).sum())
        for tier, answer in enumerate(answers.per_level)
    ]


def level_rows(
    network: NestedNetwork, taxonomy: Taxonomy, right: list[int], count: int
) -> list[dict[str, Any]]:
    """One row per level: tier, classes, top-1 (0 to 1), its 95% Wilson interval, cost, share of all MACs."""
    last = network.cost(network.num_levels - 1)
    rows = []
    for level, num_right in enumerate(right):
        cost = network.cost(level)
        low, high = metrics.wilson_interval(num_right / count, count)
        rows.append(
            {
                "level": level,
                "tier": level,
                "classes": taxonomy.num_classes[level],
                "top1": num_right / count,
                "interval": [low, high],
                "macs": cost.macs,
                "share": cost.macs / last.macs,
                "parameters": cost.parameters,
            }
        )
    return rows


def finest_measures(answers: Answers, taxonomy: Taxonomy) -> dict[str, float | None]:
    """The hierarchical measures of the finest level (`training.metrics` defines them)."""
    finest, leaves = answers.per_level[-1], answers.leaves
    precision, recall, f1 = metrics.hierarchical_precision_recall(taxonomy, finest, leaves)
    return {
        "top1": metrics.accuracy(finest, leaves),
        "top5": float(np.mean((answers.ranked == leaves[:, None]).any(axis=1))),
        "full_path_accuracy": metrics.full_path_accuracy(taxonomy, answers.per_level, leaves),
        "inconsistency_rate": metrics.inconsistency_rate(taxonomy, answers.per_level),
        "mistake_severity": metrics.mistake_severity(taxonomy, finest, leaves),
        "mean_lca_height": metrics.mean_lca_height(taxonomy, finest, leaves),
        "hierarchical_distance_at_5": metrics.hierarchical_distance_at(taxonomy, answers.ranked, leaves),
        "hierarchical_precision": precision,
        "hierarchical_recall": recall,
        "hierarchical_f1": f1,
    }


def evaluate_checkpoint(
    path: str | Path,
    data: Sequence[str],
    *,
    dev_from: int | None = None,
    dev_share: float | None = None,
    seed: int = 0,
    batch_size: int = 256,
    workers: int = 1,
    threads: int | None = None,
) -> dict[str, Any]:
    """Measures of a stored checkpoint as JSON values: ``images``, ``unreadable``, ``levels``, ``finest``.

    On all the labelled images, or on those that ``dev_from`` or ``dev_share`` hold out. Raises
    `CheckpointError` for the model and `InputError` for the data.
    """
    if threads:
        torch.set_num_threads(threads)
    device = Accelerator().device
    checkpoint = load_checkpoint(path, device=str(device))
    images = read_images(data, checkpoint.taxonomy)
    if dev_from is not None or dev_share is not None:
        _, dev = split(images, dev_from=dev_from, dev_share=dev_share or 0.0, seed=seed)
        images = images.subset(dev)
    loader = evaluation_loader(images, checkpoint.preprocessing, batch_size=batch_size, workers=workers)
    answers = collect_answers(checkpoint.network, loader, device)
    right = count_right(answers, checkpoint.taxonomy)
    return {
        "images": len(answers.leaves),
        "unreadable": list(answers.errors),
        "levels": level_rows(checkpoint.network, checkpoint.taxonomy, right, len(answers.leaves)),
        "finest": finest_measures(answers, checkpoint.taxonomy),
    }
