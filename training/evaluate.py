"""Answers of a network on labelled images, and the measures taken of them."""

from __future__ import annotations

import contextlib
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
from hierclass.decisions import agree
from hierclass.errors import InputError
from hierclass.nested import NestedNetwork, answer_costs
from taxonomy import Taxonomy
from training import metrics
from training.batches import evaluation_loader, read_batches
from training.data import read_images, split

LOWER_WEIGHTS = (0.0, 0.25, 0.5, 1.0)
"""How much lower levels count in an answer, in the answers that are measured; 0: each level answers alone."""


@dataclasses.dataclass(frozen=True, slots=True)
class Answers:
    """What a network said: per level the highest class (N,), the k best leaves (N, k), and the truth (N,).

    ``right[w, k, j]`` counts the images whose tier j is right when level k is asked and lower levels count
    with ``lower_weights[w]`` (`hierclass.decisions`). ``errors`` holds one message per image that could not
    be read; those are in none of the arrays.
    """

    per_level: tuple[npt.NDArray[np.int64], ...]
    ranked: npt.NDArray[np.int64]
    leaves: npt.NDArray[np.int64]
    lower_weights: tuple[float, ...]
    right: npt.NDArray[np.int64]
    errors: tuple[str, ...]

    @classmethod
    def join(cls, parts: Sequence[Answers]) -> Answers:
        """The answers of several processes as one."""
        return cls(
            tuple(np.concatenate(level) for level in zip(*(part.per_level for part in parts), strict=True)),
            np.concatenate([part.ranked for part in parts]),
            np.concatenate([part.leaves for part in parts]),
            parts[0].lower_weights,
            np.sum([part.right for part in parts], axis=0),
            tuple(message for part in parts for message in part.errors),
        )

    def chosen(self, consensus: float | str) -> int:
        """Index of a lower weight; "auto": that with most right answers, each level on its tier, first of equals."""
        if consensus != "auto":
            return self.lower_weights.index(float(consensus))
        return int(np.trace(self.right, axis1=1, axis2=2).argmax())


def weights_to_try(consensus: float | str) -> tuple[float, ...]:
    """The lower weights that answers are measured with, rising from 0, the chosen one among them."""
    return tuple(sorted({*LOWER_WEIGHTS, *(() if consensus == "auto" else (float(consensus),))}))


@torch.inference_mode()
def collect_answers(
    network: NestedNetwork,
    loader: DataLoader[Any],
    device: torch.device,
    taxonomy: Taxonomy,
    *,
    lower_weights: Sequence[float] = LOWER_WEIGHTS,
    top: int = 5,
) -> Answers:
    """Run a network, put in evaluation mode, over preprocessed batches (B, 3, S, S) and their leaves."""
    network.eval()
    right = np.zeros((len(lower_weights), network.num_levels, network.num_levels), dtype=np.int64)
    top = min(top, network.num_classes[-1])
    per_level: list[list[torch.Tensor]] = [[] for _ in range(network.num_levels)]
    ranked, leaves, errors = [], [], []
    with contextlib.closing(read_batches(loader)) as stream:
        for images, target, messages in stream:
            errors += messages
            if not len(images):
                continue
            logits = network.forward_all(images.to(device))
            right += count_right(logits, target.numpy(), taxonomy, lower_weights)
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
        tuple(lower_weights),
        right,
        tuple(errors),
    )


def count_right(
    logits: Sequence[torch.Tensor],
    leaves: npt.NDArray[np.int64],
    taxonomy: Taxonomy,
    lower_weights: Sequence[float],
) -> npt.NDArray[np.int64]:
    """Right answers of a batch as the product decides: (weights, levels, tiers), as in `Answers.right`.

    ``logits[k]`` (B, num_classes[k]) come from level k; ``leaves`` (B,) are the truth.
    """
    arrays = [values.float().cpu().numpy() for values in logits]
    right = np.zeros((len(lower_weights), len(arrays), len(arrays)), dtype=np.int64)
    for w, weight in enumerate(lower_weights):
        for level in range(len(arrays)):
            answer = agree(arrays[: level + 1], taxonomy, weight)[level].argmax(axis=1)
            for tier in range(level, -1, -1):
                right[w, level, tier] = (answer == taxonomy.projection(tier)[leaves]).sum()
                answer = taxonomy.parent_classes(tier)[answer] if tier else answer
    return right


def summarise(
    network: NestedNetwork, taxonomy: Taxonomy, answers: Answers, consensus: float | str = "auto"
) -> dict[str, Any]:
    """All measures of a network's answers as JSON values.

    ``levels`` has a row per level: tier, classes, top-1 of the product's answer (0 to 1) with its 95% Wilson
    interval, ``balanced`` the mean accuracy per class of the level's own answer, cost;
    ``answers[k][j]`` the accuracy on tier j when level k is asked; ``lower_weight`` what both
    were measured with: ``consensus``, or the best of those tried where that is "auto"; ``consensus`` every
    level's top-1 with each weight tried; ``finest`` the hierarchical measures of the finest level.
    """
    count, best = len(answers.leaves), answers.chosen(consensus)
    costs = answer_costs(network, answers.lower_weights[best])
    levels = []
    for level, cost in enumerate(costs):
        top1 = float(answers.right[best, level, level]) / count
        levels.append(
            {
                "level": level,
                "tier": level,
                "classes": taxonomy.num_classes[level],
                "top1": top1,
                "interval": list(metrics.wilson_interval(top1, count)),
                "balanced": metrics.balanced_accuracy(
                    answers.per_level[level], taxonomy.projection(level)[answers.leaves]
                ),
                "macs": cost.macs,
                "share": cost.macs / costs[-1].macs,
                "parameters": cost.parameters,
            }
        )
    return {
        "images": count,
        "unreadable": len(answers.errors),
        "levels": levels,
        "answers": [
            (answers.right[best, level, : level + 1] / count).tolist() for level in range(network.num_levels)
        ],
        "lower_weight": answers.lower_weights[best],
        "consensus": [
            {"lower_weight": weight, "top1": (np.diagonal(right) / count).tolist()}
            for weight, right in zip(answers.lower_weights, answers.right, strict=True)
        ],
        "finest": finest_measures(answers, taxonomy),
    }


def finest_measures(answers: Answers, taxonomy: Taxonomy) -> dict[str, float | None]:
    """The hierarchical measures of the finest level's head (`training.metrics` defines them)."""
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
    """Measures of a stored checkpoint as JSON values: ``images``, ``unreadable`` and what `summarise` gives.

    On all the labelled images, or on those that ``dev_from`` or ``dev_share`` hold out. Raises
    `CheckpointError` for the model and `InputError` for the data.
    """
    if threads:
        torch.set_num_threads(threads)
    device = Accelerator().device
    checkpoint = load_checkpoint(path, device=str(device))
    part_given = dev_from is not None or dev_share is not None
    images = read_images(data, checkpoint.taxonomy, held_out_only=not part_given)
    if part_given:
        _, dev = split(images, dev_from=dev_from, dev_share=dev_share or 0.0, seed=seed)
        images = images.subset(dev)
    loader = evaluation_loader(images, checkpoint.preprocessing, batch_size=batch_size, workers=workers)
    weight = float(checkpoint.decision.get("lower_weight", 0.0))
    answers = collect_answers(
        checkpoint.network, loader, device, checkpoint.taxonomy, lower_weights=weights_to_try(weight)
    )
    results = summarise(checkpoint.network, checkpoint.taxonomy, answers, weight)
    return {**results, "unreadable": list(answers.errors)}
