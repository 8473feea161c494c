"""Measure a checkpoint on labelled images, as JSON values, and calibrate it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypedDict, Unpack

import numpy as np
import torch
from accelerate import Accelerator

from hierclass.checkpoints.checkpoint import Checkpoint, load_checkpoint, save_checkpoint, stored_dtype
from hierclass.checkpoints.description import DIGEST, read_config
from hierclass.costs import HasCosts, answer_costs
from hierclass.decisions.calibration import Decision
from hierclass.errors import InputError
from taxonomy import Taxonomy
from training.data.sample_weights import Weighting, check_known_top1, weigh_images
from training.data.samples import UNKNOWN, ImageSet, read_images, split
from training.evaluation import calibration, metrics
from training.evaluation.calibration import LevelCalibration
from training.evaluation.predictions import Predictions, collect_predictions, weights_to_try
from training.trainer.export import update_card


def summarise(
    network: HasCosts,
    taxonomy: Taxonomy,
    predictions: Predictions,
    consensus: float | str = "auto",
    found: list[LevelCalibration] | None = None,
    weighting: Weighting | None = None,
) -> dict[str, Any]:
    """All measures of a network's predictions as JSON values.

    All but ``alone`` are of the answers that users get, which are paths of the tree. ``levels`` has a row per level:
    tier, classes, number of ``images`` whose class on that tier is known, top-1 (0 to 1) with its 95% Wilson interval,
    ``balanced`` the mean accuracy per class, cost. ``answers[k][j]`` is the accuracy on tier j when level k is asked.
    ``lower_weight`` is the weight used: the argument ``consensus``, or the best of those tried if that is "auto"; the
    result ``consensus`` has every level's top-1 for each weight. ``finest`` has the hierarchical measures of the finest
    level's answer, ``alone`` those of the levels without one another (`measures_alone`), ``calibration`` what was
    fitted (``found`` if given), None for too few images. Accuracies are unweighted; ``weighted_top1`` and
    ``weighted_answers`` are those by ``weighting``, or None. Raises `InputError` if no image is labelled down to the
    leaves.
    """
    counts, best = predictions.counts(taxonomy), predictions.chosen(consensus, taxonomy)
    if not counts[-1]:
        raise InputError(
            f"none of {len(predictions.labels)} images is labelled down to the finest tier; give images that are"
        )
    lower_weight = predictions.lower_weights[best]
    found = found or calibrate_if_enough(predictions, taxonomy, lower_weight, weighting)
    shares = [_shares(predictions, weight, taxonomy) for weight in range(len(predictions.lower_weights))]
    weighted = _shares(predictions, best, taxonomy, weighting.weights) if weighting else None
    return {
        "images": len(predictions.labels),
        "unreadable": len(predictions.errors),
        "levels": _level_rows(network, taxonomy, predictions, best, shares[best], weighted),
        "answers": shares[best],
        "weighted_answers": weighted,
        "lower_weight": lower_weight,
        "consensus": [
            {"lower_weight": weight, "top1": [row[-1] for row in each]}
            for weight, each in zip(predictions.lower_weights, shares, strict=True)
        ],
        "finest": hierarchical_measures(predictions, taxonomy, best),
        "alone": measures_alone(predictions, taxonomy),
        "calibration": calibration.to_results(found, weighting) if found else None,
    }


def _level_rows(
    network: HasCosts,
    taxonomy: Taxonomy,
    predictions: Predictions,
    weight: int,
    shares: list[list[float]],
    weighted: list[list[float]] | None,
) -> list[dict[str, Any]]:
    """The rows ``levels`` of `summarise`, of the accuracies [k][j] on tier j when level k is asked."""
    costs = answer_costs(network, predictions.lower_weights[weight])
    counts, truth = predictions.counts(taxonomy), predictions.truth(taxonomy)
    rows = []
    for level, cost in enumerate(costs):
        known = truth[:, level] != UNKNOWN
        rows.append(
            {
                "level": level,
                "tier": level,
                "classes": taxonomy.num_classes[level],
                "images": counts[level],
                "top1": shares[level][level],
                "interval": list(metrics.wilson_interval(shares[level][level], counts[level])),
                "weighted_top1": weighted[level][level] if weighted else None,
                "balanced": metrics.balanced_accuracy(
                    predictions.best[weight, level][known], truth[known, level]
                ),
                "macs": cost.macs,
                "share": cost.macs / costs[-1].macs,
                "parameters": cost.parameters,
            }
        )
    return rows


def _shares(
    predictions: Predictions, weight: int, taxonomy: Taxonomy, weights: metrics.Shares | None = None
) -> list[list[float]]:
    """Accuracy [k][j] on tier j when level k is asked, over the images whose class there is known, weighted or not."""
    known = (predictions.truth(taxonomy) != UNKNOWN).T
    return [
        [
            float(np.average(flags[own], weights=None if weights is None else weights[own]))
            for flags, own in zip(predictions.right(weight, level, taxonomy), known, strict=False)
        ]
        for level in range(taxonomy.num_tiers)
    ]


def calibrate_if_enough(
    predictions: Predictions, taxonomy: Taxonomy, lower_weight: float, weighting: Weighting | None = None
) -> list[LevelCalibration] | None:
    """Calibrate; None for too few images, which are refused only with a weighting."""
    if weighting is None and predictions.num_usable < calibration.MIN_IMAGES:
        return None
    return calibration.calibrate(predictions, taxonomy, lower_weight, weighting)


def hierarchical_measures(
    predictions: Predictions, taxonomy: Taxonomy, weight: int
) -> dict[str, float | None]:
    """Hierarchical measures of the finest level's answer (`training.evaluation.metrics`).

    ``weight`` indexes the predictions' lower weights. Images labelled with an inner node do not count.
    """
    known = predictions.labels < taxonomy.num_classes[-1]
    answers, leaves = predictions.best[weight, -1][known], predictions.labels[known]
    precision, recall, f1 = metrics.hierarchical_precision_recall(taxonomy, answers, leaves)
    return {
        "top1": metrics.accuracy(answers, leaves),
        "mistake_severity": metrics.mistake_severity(taxonomy, answers, leaves),
        "mean_lca_height": metrics.mean_lca_height(taxonomy, answers, leaves),
        "hierarchical_precision": precision,
        "hierarchical_recall": recall,
        "hierarchical_f1": f1,
    }


def measures_alone(predictions: Predictions, taxonomy: Taxonomy) -> dict[str, Any]:
    """Measures of the levels without one another: each level's own best class of its own tier.

    ``top1`` and ``balanced`` are lists with a number per level, ``top5`` and ``hierarchical_distance_at_5`` are of the
    finest level's ranking. ``full_path_accuracy`` and ``inconsistency_rate`` say how often all levels are right at
    once, and how often they contradict one another: an answer never does.
    """
    truth, known = predictions.truth(taxonomy), predictions.truth(taxonomy) != UNKNOWN
    pairs = [
        (own[there], true[there]) for own, true, there in zip(predictions.own, truth.T, known.T, strict=True)
    ]
    leaves, last = predictions.labels[known[:, -1]], known[:, -1]
    ranked = predictions.ranked[last]
    return {
        "top1": [metrics.accuracy(*pair) for pair in pairs],
        "balanced": [metrics.balanced_accuracy(*pair) for pair in pairs],
        "top5": float(np.mean((ranked == leaves[:, None]).any(axis=1))),
        "hierarchical_distance_at_5": metrics.hierarchical_distance_at(taxonomy, ranked, leaves),
        "full_path_accuracy": metrics.full_path_accuracy(
            taxonomy, [own[last] for own in predictions.own], leaves
        ),
        "inconsistency_rate": metrics.inconsistency_rate(taxonomy, predictions.own),
    }


@dataclasses.dataclass(frozen=True, slots=True)
class Evaluation:
    """A model, the labelled images it was run on, and its predictions.

    ``digest`` identifies the model's files (None for old models), ``calibration`` is fitted to the images (None if they
    are too few), and ``weighting`` weights them (None: all equal).
    """

    checkpoint: Checkpoint
    digest: str | None
    decision: Decision
    images: ImageSet
    predictions: Predictions
    calibration: list[LevelCalibration] | None
    weighting: Weighting | None


class EvaluationOptions(TypedDict, total=False):
    """How a checkpoint is run on labelled images; missing keys take the default."""

    dev_from: int | None
    """Only images numbered from here up by file name. Default: all."""
    dev_share: float | None
    """Only the share of every class that `training.data.samples.split` holds out. Default: all."""
    seed: int
    """Seed of that split. Default: 0."""
    split: str
    """Which held-out images of a table that has both are measured: val or test. Default: val."""
    known_top1: float | None
    """The last level's top-1 on representative images (`training.data.sample_weights`). Default: no weights."""
    batch_size: int | None
    """Images per call of the network. Default: `training.evaluation.predictions.suitable_batch`."""
    workers: int
    """Processes that prepare images. Default: 1."""
    threads: int | None
    """CPU threads. Default: torch's."""


def run_checkpoint(path: str | Path, data: Sequence[str], **options: Unpack[EvaluationOptions]) -> Evaluation:
    """Run a stored checkpoint on labelled images, all or those that the options hold out.

    Raises `CheckpointError` for the model and `InputError` for the data.
    """
    device = _prepare(options)
    checkpoint = load_checkpoint(path, device=str(device))
    return run_model(checkpoint, data, digest=read_config(Path(path)).get(DIGEST), **options)


def run_model(
    checkpoint: Checkpoint,
    data: Sequence[str],
    *,
    digest: str | None = None,
    **options: Unpack[EvaluationOptions],
) -> Evaluation:
    """Run a loaded model, for example of `hierclass.from_timm`, as `run_checkpoint` does.

    Raises `InputError` for the data.
    """
    device = _prepare(options)
    network, taxonomy = checkpoint.network.to(device), checkpoint.taxonomy
    images = labelled_images(data, taxonomy, options)
    decision = Decision.from_dict(checkpoint.decision, network.num_levels)
    predictions = collect_predictions(
        network,
        images,
        checkpoint.preprocessing,
        device,
        taxonomy,
        lower_weights=weights_to_try(decision.lower_weight),
        batch_size=options.get("batch_size"),
        workers=options.get("workers", 1),
    )
    known_top1 = options.get("known_top1")
    weighting = None if known_top1 is None else weigh_images(predictions, known_top1)
    found = calibrate_if_enough(predictions, taxonomy, decision.lower_weight, weighting)
    return Evaluation(checkpoint, digest, decision, images, predictions, found, weighting)


def check_options(options: EvaluationOptions) -> None:
    """Raise `InputError` for a top-1 that no images can have, and a split that is none."""
    if (part := options.get("split", "val")) not in ("val", "test"):
        raise InputError(f"`split` {part}: give val or test")
    if (known_top1 := options.get("known_top1")) is not None:
        check_known_top1(known_top1)


def _prepare(options: EvaluationOptions) -> torch.device:
    """Check the options, set the threads and return the device."""
    check_options(options)
    if threads := options.get("threads"):
        torch.set_num_threads(threads)
    device: torch.device = Accelerator().device
    return device


def labelled_images(data: Sequence[str], taxonomy: Taxonomy, options: EvaluationOptions) -> ImageSet:
    """The images that the options select. Raises `InputError` for the data."""
    dev_from, dev_share = options.get("dev_from"), options.get("dev_share")
    part_given = dev_from is not None or dev_share is not None
    images = read_images(data, taxonomy, part="all" if part_given else options.get("split", "val"))
    if not part_given:
        return images
    _, dev = split(images, dev_from=dev_from, dev_share=dev_share or 0.0, seed=options.get("seed", 0))
    return images.subset(dev)


def measures(evaluation: Evaluation) -> dict[str, Any]:
    """Results of `summarise`, ``notes`` on what was left out, the messages of ``unreadable`` images, and ``stored``.

    ``stored`` measures the checkpoint's own temperatures and thresholds on these images; None if it has none.
    """
    checkpoint, predictions = evaluation.checkpoint, evaluation.predictions
    weight = evaluation.decision.lower_weight
    results = summarise(
        checkpoint.network,
        checkpoint.taxonomy,
        predictions,
        weight,
        evaluation.calibration,
        evaluation.weighting,
    )
    fitted = evaluation.decision.temperatures is not None or evaluation.decision.thresholds
    stored = (
        calibration.measure_decision(
            predictions, checkpoint.taxonomy, evaluation.decision, evaluation.weighting
        )
        if fitted
        else None
    )
    return {
        **results,
        "notes": list(evaluation.images.notes),
        "unreadable": list(predictions.errors),
        "stored": stored,
    }


def calibrate_checkpoint(
    path: str | Path, data: Sequence[str], **options: Unpack[EvaluationOptions]
) -> dict[str, Any]:
    """Fit temperatures and thresholds to labelled images, and store them in the checkpoint.

    The weights stay; results (``results["dev"]["calibration"]``) and model card are updated. Returns the results.
    Raises as `run_checkpoint`, and `InputError` for too few images.
    """
    evaluation = run_checkpoint(path, data, **options)
    checkpoint = evaluation.checkpoint
    weight = evaluation.decision.lower_weight
    levels = evaluation.calibration or calibration.calibrate(
        evaluation.predictions, checkpoint.taxonomy, weight, evaluation.weighting
    )
    found = calibration.to_results(levels, evaluation.weighting)
    fitted = calibration.decision_of({"lower_weight": weight, "calibration": found})
    checkpoint.decision = {**checkpoint.decision, **fitted}
    dev = checkpoint.results.get("dev")
    checkpoint.results["dev"] = {**(dev if isinstance(dev, dict) else {}), "calibration": found}
    save_checkpoint(path, checkpoint, dtype=stored_dtype(path))
    update_card(Path(path), found)
    return {
        "calibration": found,
        "notes": list(evaluation.images.notes),
        "unreadable": list(evaluation.predictions.errors),
    }


def measure_checkpoint(
    path: str | Path, data: Sequence[str], **options: Unpack[EvaluationOptions]
) -> dict[str, Any]:
    """Measure a checkpoint on labelled images, calibrate it and store both; return what was measured.

    For models made without labels: ``results["dev"]`` becomes the result of `summarise`. With too few images nothing is
    fitted. Raises as `run_checkpoint`.
    """
    evaluation = run_checkpoint(path, data, **options)
    checkpoint = evaluation.checkpoint
    weight = evaluation.decision.lower_weight
    results = summarise(
        checkpoint.network,
        checkpoint.taxonomy,
        evaluation.predictions,
        weight,
        evaluation.calibration,
        evaluation.weighting,
    )
    checkpoint.decision = {**checkpoint.decision, **calibration.decision_of(results)}
    checkpoint.results["dev"] = results
    save_checkpoint(path, checkpoint, dtype=stored_dtype(path))
    update_card(Path(path), results["calibration"], results)
    return {**results, "unreadable": list(evaluation.predictions.errors)}
