"""Calibrate the graphs of a model in 8 bits on labelled images; their scores differ a little from the float32 ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import torch
from torch import Tensor

from hierclass.checkpoints.description import INT8, config_text, read_config, read_int8
from hierclass.costs import Cost
from hierclass.files import CONFIG_FILE, replacing
from hierclass.images.preprocessing import Preprocessing
from hierclass.runtime.onnx_runtime import OnnxRuntime
from training.data.sample_weights import weigh_images
from training.evaluation import calibration
from training.evaluation.evaluate import EvaluationOptions, check_options, labelled_images, summarise
from training.evaluation.predictions import collect_predictions, weights_to_try


class Int8Levels:
    """The levels of a model in 8 bits, as a network: normalised images → logits."""

    def __init__(self, runtime: OnnxRuntime, preprocessing: Preprocessing) -> None:
        """Answer with what `runtime` runs for images normalised as `preprocessing` says."""
        self._runtime = runtime
        self._mean, self._std = (
            torch.tensor(each)[:, None, None] for each in (preprocessing.mean, preprocessing.std)
        )
        self.num_classes, self.num_levels, self.reuses = (
            runtime.num_classes,
            runtime.num_levels,
            runtime.reuses,
        )

    def eval(self) -> Int8Levels:
        """Return itself: graphs are only evaluated."""
        return self

    def cost(self, level: int) -> Cost:
        """Return what a level costs for one image."""
        return self._runtime.cost(level)

    def forward_all(self, images: Tensor) -> list[Tensor]:
        """Return the logits (B, num_classes[k]) of every level for images (B, 3, S, S)."""
        pixels = ((images * self._std + self._mean) * 255).round().clamp(0, 255)
        state = self._runtime.start(np.ascontiguousarray(pixels.permute(0, 2, 3, 1).numpy(), dtype=np.uint8))
        return [torch.from_numpy(self._runtime.refine(state)) for _ in range(self.num_levels)]


def calibrate_int8(
    path: str | Path, data: Sequence[str], **options: Unpack[EvaluationOptions]
) -> dict[str, Any]:
    """Fit temperatures and thresholds of the graphs in 8 bits to labelled images, and store them in the model.

    The results of `summarise` become ``config["int8"]["results"]["dev"]``; nothing else of the model is changed.
    Returns the results. Raises as `calibrate_checkpoint`, and `CheckpointError` if the model has no graphs in 8 bits.
    """
    check_options(options)
    folder = Path(path)
    description, graphs = read_int8(folder)
    taxonomy = description.taxonomy
    weight = float(description.decision.get("lower_weight", 0.0))
    levels = Int8Levels(
        OnnxRuntime(folder, description, graphs, options.get("threads")), description.preprocessing
    )
    images = labelled_images(data, taxonomy, options)
    predictions = collect_predictions(
        levels,
        images,
        description.preprocessing,
        torch.device("cpu"),
        taxonomy,
        lower_weights=weights_to_try(weight),
        batch_size=options.get("batch_size"),
        workers=options.get("workers", 1),
    )
    known_top1 = options.get("known_top1")
    weighting = None if known_top1 is None else weigh_images(predictions, known_top1)
    fitted = calibration.calibrate(predictions, taxonomy, weight, weighting)
    results = summarise(levels, taxonomy, predictions, weight, fitted, weighting)
    config = read_config(folder)
    config[INT8]["decision"] = {**config[INT8]["decision"], **calibration.decision_of(results)}
    config[INT8]["results"]["dev"] = results
    with replacing(folder / CONFIG_FILE) as file:
        file.write_text(config_text(config), encoding="utf-8")
    return {**results, "notes": list(images.notes), "unreadable": list(predictions.errors)}
