"""The classifier that Python, the command line and the page use: images in, predictions out."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hierclass.checkpoints.checkpoint import Checkpoint, load_checkpoint, stored_fields
from hierclass.decisions.calibration import Decision, Threshold
from hierclass.decisions.prediction import Prediction, combine_levels, to_predictions
from hierclass.errors import ImageError, InputError
from hierclass.files import BUNDLED
from hierclass.images.decoding import ImageSource
from hierclass.images.preprocessing import Preprocessing, normalise, read_square
from hierclass.nested import NestedNetwork, answer_costs
from taxonomy import Taxonomy

BATCH_SIZE = 64


@dataclass(frozen=True, slots=True)
class Level:
    """What one level answers, and the cost of its answer to one image, lower levels that it needs included."""

    index: int
    num_classes: int
    macs: int
    """Multiply-accumulates."""
    share: float
    """Multiply-accumulates relative to the last level's, 0 … 1."""
    step_macs: int
    """Multiply-accumulates of its step of `Classifier.refine`: what it adds, or all if nothing is reused."""
    step_share: float
    """`step_macs` relative to the last level's `macs`; the steps add up to more than 1 if nothing is reused."""
    parameters: int
    bytes: int
    accuracy: float | None
    """Share of right answers (0 … 1) on its own tier, on the dev split; None if it was not measured."""


def cost_alike(levels: Sequence[Level]) -> bool:
    """Return whether every level runs the whole network: a coarser answer saves nothing (`from_timm`, masks)."""
    return len(levels) > 1 and levels[0].share > 0.995  # heads differ a little


def run_once(levels: Sequence[Level]) -> bool:
    """Return whether the first step of refining computes all that finer levels need (`from_timm`)."""
    return len(levels) > 1 and not any(level.step_macs for level in levels[1:])


def load(path: str | os.PathLike[str] | None = None, device: str = "auto") -> Classifier:
    """Load a model folder, or the bundled model; `device` is "auto", "cpu", "cuda", "cuda:1", "mps" ….

    Raises:
        CheckpointError: there is no model at `path`, or this version can't read it.
        InputError: this machine has no such device.
    """
    return Classifier(load_checkpoint(BUNDLED if path is None else path), device=device)


class Classifier:
    """Classifies images at any level of one nested network. Safe to share between threads."""

    def __init__(self, checkpoint: Checkpoint, device: str = "auto"):
        """Copy the network of `checkpoint` to `device` and fuse its layers for inference."""
        self.checkpoint = checkpoint
        self.device = _find_device(device)
        self._network = checkpoint.network.fused().to(self.device)
        self._network.to(memory_format=torch.channels_last)
        self._decision = Decision.from_dict(checkpoint.decision, checkpoint.network.num_levels)
        self.levels = _describe_levels(checkpoint)

    @property
    def taxonomy(self) -> Taxonomy:
        """The tree of the classes; level k answers its tier k."""
        return self.checkpoint.taxonomy

    @property
    def preprocessing(self) -> Preprocessing:
        """How an image becomes the network's input."""
        return self.checkpoint.preprocessing

    def preprocessing_for(self, level: int | None = None) -> Preprocessing:
        """Return how an image is prepared if no level above `level` (None: the finest) is computed.

        For levels with a smaller image size, large photographs are decoded at a smaller scale, which is much faster,
        and resized to the network's size as always; nearly all answers stay the same (docs/labelling.md).

        Raises:
            LevelError: the model has no such level.
        """
        level, sizes = self.check_level(level), self.checkpoint.network.sizes
        if sizes is None or sizes[level] == self.preprocessing.size:
            return self.preprocessing
        return dataclasses.replace(self.preprocessing, detail=sizes[level])

    @property
    def reuses(self) -> bool:
        """Whether a finer level reuses what coarser levels computed, so that refining costs nothing extra."""
        return self._network.reuses

    @property
    def temperatures(self) -> tuple[float, ...] | None:
        """Temperature per level, fitted on held-out images; None: scores are not calibrated."""
        return self._decision.temperatures

    @property
    def lower_weight(self) -> float:
        """Weight of the answers of lower levels in that of a level (see `hierclass.decisions.prediction.consensus`)."""
        return self._decision.lower_weight

    @property
    def decision(self) -> Decision:
        """How the answers of levels are combined and what was fitted: weight, temperatures, thresholds."""
        return self._decision

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 sum of all that an answer depends on: weights, classes, preprocessing, decisions."""
        checkpoint = self.checkpoint
        made = [stored_fields(checkpoint.architecture), stored_fields(checkpoint.preprocessing)]
        texts = [*made, checkpoint.decision, checkpoint.taxonomy.to_dict()]
        found = hashlib.sha256(json.dumps(texts, sort_keys=True).encode())
        for name, tensor in sorted(checkpoint.network.state_dict().items()):
            found.update(f"{name} {tuple(tensor.shape)}".encode())
            found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        return found.hexdigest()

    @property
    def network(self) -> NestedNetwork:
        """The network, fused for inference, on `device`."""
        return self._network

    def to_input(self, images: NDArray[np.uint8]) -> torch.Tensor:
        """Return the network's input (B, 3, size, size) for images (B, size, size, 3) of `read_square`."""
        pixels = torch.from_numpy(images).to(self.device).permute(0, 3, 1, 2).float()
        mean, std = (
            torch.tensor(values, device=self.device)[:, None, None]
            for values in (self.preprocessing.mean, self.preprocessing.std)
        )
        return normalise(pixels, mean, std)

    def thresholds(self, precision: float = 0.9) -> tuple[tuple[Threshold, ...], ...]:
        """Return the thresholds from which on answers are right at a rate (0 … 1): `thresholds(0.9)[level][tier]`.

        They apply to the score `predict(image, level).path[tier].score`. They were fitted on held-out images and hold
        for images like those. Usual rates are 0.8, 0.9, 0.95 and 0.99.

        Raises:
            InputError: the model has no thresholds, or none for this precision.
        """
        return self._decision.at(precision)

    def check_level(self, level: int | None) -> int:
        """Return the level, the finest for None; raise `LevelError` if the model does not have it."""
        return self._network.check_level(level)

    def predict(self, image: ImageSource, level: int | None = None) -> Prediction:
        """Answer at one level (None: the finest). An image is a path, bytes, a PIL image or uint8 (H, W, 3), RGB.

        Raises:
            LevelError: the model has no such level.
            ImageError: the image can't be read.
        """
        return self.predict_batch([image], level)[0]

    def predict_batch(self, images: Sequence[ImageSource], level: int | None = None) -> list[Prediction]:
        """Answer for every image at one level, in order.

        Raises:
            LevelError: the model has no such level.
            ImageError: an image can't be read; the message says which. To get past broken files use
                `hierclass.label`.
        """
        level = self.check_level(level)
        predictions: list[Prediction] = []
        for start in range(0, len(images), BATCH_SIZE):
            batch = [
                self._prepare(image, start + i, len(images), level)
                for i, image in enumerate(images[start:][:BATCH_SIZE])
            ]
            predictions += self._answer(self.to_input(np.stack(batch)), level)
        return predictions

    def refine(self, image: ImageSource) -> Iterator[Prediction]:
        """Yield the prediction of level 0, then of each finer level; `Level.step_macs` is the cost of each step.

        If the network reuses what lower levels computed (structure slices), a step computes only what the level adds;
        otherwise (prefix, depths, masks) it runs the level from the start. See `reuses`. A level is computed when its
        prediction is asked for.

        Raises:
            ImageError: the image can't be read (on the call, before anything is computed).
        """
        return self._refine(self.to_input(np.stack([self._prepare(image, 0, 1, None)])))

    def predict_tensors(self, batch: NDArray[np.float32], level: int | None = None) -> list[Prediction]:
        """Answer for inputs float32 (B, 3, size, size) that `hierclass.images.preprocessing.preprocess` returned.

        Raises:
            LevelError: the model has no such level.
        """
        images = torch.from_numpy(batch).to(self.device)
        return self._answer(images.contiguous(memory_format=torch.channels_last), self.check_level(level))

    def _answer(self, images: torch.Tensor, level: int) -> list[Prediction]:
        """Answer for the network's input (B, 3, size, size)."""
        logits: list[NDArray[np.float32] | None]
        with torch.inference_mode():
            if self._decision.lower_weight:
                logits = [_numpy(values) for values in self._network.forward_all(images, level)]
            else:  # lower levels have no say, so none is run that the level itself does not need
                logits = [*[None] * level, _numpy(self._network(images, level))]
        return self._decide(logits)

    def _refine(self, images: torch.Tensor) -> Iterator[Prediction]:
        state = self._network.start(images)
        logits: list[NDArray[np.float32]] = []
        for _ in self.levels:
            with torch.inference_mode():
                logits.append(_numpy(self._network.refine(state)))
            yield self._decide(logits)[0]

    def _decide(self, logits: Sequence[NDArray[np.float32] | None]) -> list[Prediction]:
        weight, temperatures = self._decision.lower_weight, self._decision.temperatures
        return to_predictions(combine_levels(logits, self.taxonomy, weight, temperatures), self.taxonomy)

    def _prepare(self, image: ImageSource, index: int, count: int, level: int | None) -> NDArray[np.uint8]:
        try:
            return read_square(image, self.preprocessing_for(level))
        except ImageError as error:
            name = str(image) if isinstance(image, (str, os.PathLike)) else f"image {index + 1} of {count}"
            raise ImageError(f"{name}: {error}") from error


def _numpy(logits: torch.Tensor) -> NDArray[np.float32]:
    array: NDArray[np.float32] = logits.float().cpu().numpy()
    return array


def _find_device(name: str) -> torch.device:
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(f"device {name!r} can't be used on this machine; try auto or cpu") from error
    return device


def _describe_levels(checkpoint: Checkpoint) -> tuple[Level, ...]:
    network = checkpoint.network
    weight = float(checkpoint.decision.get("lower_weight", 0.0))
    costs = answer_costs(network, weight)
    included = [0, *(cost.macs for cost in costs)] if network.reuses or weight else [0] * len(costs)
    steps = [cost.macs - lower for cost, lower in zip(costs, included, strict=False)]
    return tuple(
        Level(
            index=index,
            num_classes=network.num_classes[index],
            macs=cost.macs,
            share=cost.macs / costs[-1].macs,
            step_macs=steps[index],
            step_share=steps[index] / costs[-1].macs,
            parameters=cost.parameters,
            bytes=cost.bytes,
            accuracy=_measured_accuracy(checkpoint.results, index),
        )
        for index, cost in enumerate(costs)
    )


def _measured_accuracy(results: dict[str, Any], level: int) -> float | None:
    """`results["dev"]["levels"][level]["top1"]` if it was measured, else None."""
    try:
        return float(results["dev"]["levels"][level]["top1"])
    except (KeyError, IndexError, TypeError, ValueError):
        return None
