"""The classifier that Python, the command line and the page use: images in, predictions out."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
from numpy.typing import NDArray

from hierclass.checkpoints.description import ModelDescription, stored_fields
from hierclass.costs import describe_levels
from hierclass.decisions.calibration import Decision, Threshold, warn_if_never_sure
from hierclass.decisions.cascade import PredictionCascade
from hierclass.decisions.exit_policy import ExitPolicy, LevelChoice, Request
from hierclass.decisions.prediction import Prediction, combine_levels, to_predictions
from hierclass.errors import ImageError, InputError
from hierclass.files import BUNDLED
from hierclass.images.preprocessing import Preprocessing, read_square
from hierclass.images.sources import ImageSource, is_one_image, name_of
from hierclass.runtime.interface import Logits, Runtime
from taxonomy import Taxonomy

if TYPE_CHECKING:
    from hierclass.checkpoints.checkpoint import Checkpoint
    from hierclass.nested import NestedNetwork
    from hierclass.runtime.torch_runtime import TorchRuntime

BATCH_SIZE = 64


def load(
    path: str | os.PathLike[str] | None = None,
    device: str = "auto",
    *,
    runtime: str = "auto",
    threads: int | None = None,
    int8: bool = False,
) -> Classifier:
    """Load a model folder, or the bundled model.

    On a processor ONNX Runtime runs it, elsewhere torch (extra `torch`).

    Args:
        path: the folder; None takes the model that comes with hierclass.
        device: "auto" (a GPU that torch can use, else the processor), "cpu", "cuda", "cuda:1", "mps" ….
        runtime: "auto", "onnx" or "torch".
        threads: number of the processor's cores to use; None: OMP_NUM_THREADS, else all that the process may use.
        int8: run the model's graphs in 8 bits (docs/export.md): faster, on a processor, and a little less exact.

    Raises:
        CheckpointError: there is no model at `path`, this version can't read it, or it has no graphs in 8 bits.
        InputError: this machine has no such device.
    """
    from hierclass.runtime.choice import open_model

    folder = Path(BUNDLED if path is None else path)
    description, found = open_model(folder, device, runtime, threads, int8)
    return Classifier(description, runtime=found, name=_name_of(folder))


class Classifier:
    """Classifies images at any level of one nested network. Safe to share between threads, and to fork."""

    def __init__(
        self,
        model: ModelDescription,
        device: str = "auto",
        *,
        runtime: Runtime | None = None,
        name: str | None = None,
    ) -> None:
        """Answer with what `runtime` runs; None: torch runs `model`, which then is a `Checkpoint`, on `device`.

        `name` is what `repr` calls it; None: as its backbone.
        """
        self.name = name or model.architecture.backbone
        """What it is called: the folder of its model, or the model of timm that it is made of."""
        self.model = model
        """Classes, architecture, preprocessing, decisions and measured results."""
        if runtime is None:
            from hierclass.runtime.torch_runtime import TorchRuntime

            runtime = TorchRuntime(cast("Checkpoint", model), device)
        self.runtime = runtime
        """What runs the levels."""
        self._decision = Decision.from_dict(model.decision, runtime.num_levels)
        self._kept_policy: tuple[Request, ExitPolicy] | None = None
        self.levels = describe_levels(runtime, runtime.num_classes, self.lower_weight, model.results)

    def __repr__(self) -> str:
        *lower, last = (f"{level.num_classes:,}" for level in self.levels)
        classes = f"{', '.join(lower)} and {last}" if lower else last
        how = f"{self.runtime.name}, 8 bits" if self.runtime.int8 else self.runtime.name
        return f"<Classifier {self.name}: levels of {classes} classes, on {self.device} by {how}>"

    @property
    def taxonomy(self) -> Taxonomy:
        """The tree of the classes; level k answers its tier k."""
        return self.model.taxonomy

    @property
    def preprocessing(self) -> Preprocessing:
        """How an image becomes the network's input."""
        return self.model.preprocessing

    @property
    def device(self) -> str:
        """Where levels run: "cpu", "cuda:0" …."""
        return self.runtime.device

    def preprocessing_for(self, level: int | None = None) -> Preprocessing:
        """Return how an image is prepared if no level above `level` (None: the finest) is computed.

        Levels with a smaller image size are given images of that size, and large photographs are decoded at a smaller
        scale, which is much faster; nearly all answers stay the same (docs/labelling.md).

        Raises:
            LevelError: the model has no such level.
        """
        level, sizes = self.check_level(level), self.runtime.sizes
        if sizes is None or sizes[level] == self.preprocessing.size:
            return self.preprocessing
        return dataclasses.replace(self.preprocessing, detail=sizes[level])

    @property
    def checkpoint(self) -> Checkpoint:
        """The model with its network of torch.

        Raises:
            InputError: ONNX Runtime runs this model; load it with `runtime="torch"`.
        """
        if self.runtime.name != "torch":
            raise InputError(
                "ONNX Runtime runs this model, without a network of torch; load it with runtime='torch'"
            )
        return cast("Checkpoint", self.model)

    @property
    def network(self) -> NestedNetwork:
        """The network of torch, fused for inference, on `device`; raises as `checkpoint` does."""
        assert self.checkpoint
        return cast("TorchRuntime", self.runtime).network

    @property
    def reuses(self) -> bool:
        """Whether a finer level reuses what coarser levels computed, so that refining costs nothing extra."""
        return self.runtime.reuses

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
        model = self.model
        made = [stored_fields(model.architecture), stored_fields(model.preprocessing)]
        texts = [*made, model.decision, model.taxonomy.to_dict()]
        found = hashlib.sha256(json.dumps(texts, sort_keys=True).encode())
        for name, value in self.runtime.weights():
            found.update(f"{name} {value.shape}".encode())
            found.update(np.ascontiguousarray(value).reshape(-1).view(np.uint8).data)
        return found.hexdigest()

    def thresholds(self, precision: float = 0.9) -> tuple[tuple[Threshold, ...], ...]:
        """Return the thresholds from which on answers are right at a rate (0 … 1): `thresholds(0.9)[level][tier]`.

        They apply to the score `predict(image, level).path[tier].score`. They were fitted on held-out images and hold
        for images like those. Between the rates that were fitted they are interpolated (`Decision.at`): any from 0.5 to
        the highest, mostly 0.99, will do.

        Raises:
            InputError: the model has no thresholds, or the rate is outside that range.
        """
        return self._decision.at(precision)

    def check_level(self, level: int | None) -> int:
        """Return the level, the finest for None; raise `LevelError` if the model does not have it."""
        return self.runtime.check_level(level)

    def predict(
        self,
        image: ImageSource,
        level: LevelChoice = None,
        *,
        precision: float | None = None,
        min_tier: int | None = None,
        only: str | Iterable[str] = (),
        exclude: str | Iterable[str] = (),
        prior: Mapping[str, float] | None = None,
    ) -> Prediction:
        """Answer at one level (None: the finest), or with "auto" at the lowest level that is enough.

        `image` is a path, bytes, a file object, a PIL image, an array or a tensor
        (`hierclass.images.sources.ImageSource`). The other arguments are those of `hierclass.label`:
        `hierclass.decisions.exit_policy.Request` explains them.

        Raises:
            LevelError: the model has no such level.
            InputError: another argument does not fit the model or the level.
            ImageError: the image can't be read.
        """
        (answer,) = self.predict_batch(
            [image],
            level,
            precision=precision,
            min_tier=min_tier,
            only=only,
            exclude=exclude,
            prior=prior,
        )
        return answer

    def predict_batch(
        self,
        images: Iterable[ImageSource],
        level: LevelChoice = None,
        *,
        precision: float | None = None,
        min_tier: int | None = None,
        only: str | Iterable[str] = (),
        exclude: str | Iterable[str] = (),
        prior: Mapping[str, float] | None = None,
    ) -> list[Prediction]:
        """Answer for every image as `predict` does, in order.

        `images` is any iterable; it is read batch by batch. An array (N, H, W, C) or a tensor (N, C, H, W) is N images.

        Raises:
            LevelError: the model has no such level.
            InputError: another argument does not fit the model or the level, or `images` is one image.
            ImageError: an image can't be read; the message says which. To get past broken files use
                `hierclass.label`.
        """
        fixed = None if level == "auto" else self.check_level(level)
        request = Request.of("auto" if fixed is None else fixed, min_tier, precision, only, exclude, prior)
        if fixed is None or request != Request(level=fixed):
            policy = self._policy_of(request)
            return PredictionCascade(self, policy, BATCH_SIZE).predict(self._batches(images, policy.last))
        return [
            answer for batch in self._batches(images, fixed) for answer in self.predict_pixels(batch, fixed)
        ]

    def features(self, images: Iterable[ImageSource], level: int | None = None) -> NDArray[np.float32]:
        """Return the features (N, F) of images at one level (None: the finest), in order.

        They are what the head of the level reads: pooled over the image and not scaled in any way; divide each row by
        its length to compare directions. Those of a timm classifier as it is (`from_timm`) are its logits. F is
        `num_features(level)`. Images are prepared as `predict` prepares them. `hierclass embed` writes the features of
        many images to a file, and gets past broken ones.

        Raises:
            LevelError: the model has no such level.
            ImageError: an image can't be read; the message says which.
            InputError: `images` is one image.
        """
        level = self.check_level(level)
        found = [
            self.runtime.run(self.runtime.to_batch(batch), level, "features")
            for batch in self._batches(images, level)
        ]
        return np.concatenate(found) if found else np.zeros((0, self.num_features(level)), np.float32)

    def num_features(self, level: int | None = None) -> int:
        """Return how many features a level (None: the finest) computes of an image; computes those of a black one.

        Raises:
            LevelError: the model has no such level.
        """
        level, size = self.check_level(level), self.preprocessing.size
        black = np.zeros((1, size, size, 3), np.uint8)
        return int(self.runtime.run(self.runtime.to_batch(black), level, "features").shape[1])

    def refine(self, image: ImageSource) -> Iterator[Prediction]:
        """Yield the prediction of level 0, then of each finer level; `Level.step_macs` is the cost of each step.

        If the network reuses what lower levels computed (structure slices), a step computes only what the level adds;
        otherwise (prefix, depths, masks) it runs the level from the start. See `reuses`. A level is computed when its
        prediction is asked for.

        Raises:
            ImageError: the image can't be read (on the call, before anything is computed).
        """
        return self.refine_pixels(np.stack([self._prepare(image, 0, 1, None)]))

    def predict_tensors(self, batch: NDArray[np.float32], level: int | None = None) -> list[Prediction]:
        """Answer for inputs float32 (B, 3, size, size) that `hierclass.images.preprocessing.preprocess` returned.

        They are turned back into the pixels, 0 … 255, that they were made of.

        Raises:
            LevelError: the model has no such level.
        """
        mean, std = (
            np.asarray(each)[:, None, None] for each in (self.preprocessing.mean, self.preprocessing.std)
        )
        pixels = np.clip(np.rint((batch * std + mean) * 255), 0, 255).astype(np.uint8)
        return self.predict_pixels(
            np.ascontiguousarray(pixels.transpose(0, 2, 3, 1)), self.check_level(level)
        )

    def predict_pixels(self, pixels: NDArray[np.uint8], level: int) -> list[Prediction]:
        """Answer for images uint8 (B, S, S, 3) that `hierclass.images.preprocessing.read_square` returned.

        They are prepared as `preprocessing_for(level)` says.
        """
        if self._decision.lower_weight:
            state = self.runtime.start(pixels)
            return self._decide([self.runtime.refine(state) for _ in range(level + 1)])
        # lower levels have no say, so none is run that the level itself does not need
        return self._decide([*[None] * level, self.runtime.run(self.runtime.to_batch(pixels), level)])

    def refine_pixels(self, pixels: NDArray[np.uint8]) -> Iterator[Prediction]:
        """Yield what `refine` yields, for an image uint8 (1, S, S, 3), prepared as `preprocessing_for()` says."""
        state = self.runtime.start(pixels)
        logits: list[Logits] = []
        for _ in self.levels:
            logits.append(self.runtime.refine(state))
            yield self._decide(logits)[0]

    def _policy_of(self, request: Request) -> ExitPolicy:
        """Return the exit policy of a request; the last one is kept, since finding classes takes milliseconds."""
        kept = self._kept_policy
        if kept is None or kept[0] != request:
            kept = self._kept_policy = request, ExitPolicy(request, self.taxonomy, self._decision)
            if request.level == "auto":
                warn_if_never_sure(self._decision, request.precision)
        return kept[1]

    def _decide(self, logits: Sequence[Logits | None]) -> list[Prediction]:
        weight, temperatures = self._decision.lower_weight, self._decision.temperatures
        return to_predictions(combine_levels(logits, self.taxonomy, weight, temperatures), self.taxonomy)

    def _batches(self, images: Iterable[ImageSource], level: int) -> Iterator[NDArray[np.uint8]]:
        """Read images for a level in batches (B, S, S, 3)."""
        if is_one_image(images):
            raise InputError("this takes many images, not one; put it into a list: [image]")
        try:
            numbered = enumerate(images)
        except TypeError:
            raise InputError(
                f"give a list of images, or another iterable, not {type(images).__name__}"
            ) from None
        count = len(images) if isinstance(images, Sized) else None
        while batch := [
            self._prepare(image, index, count, level)
            for index, image in itertools.islice(numbered, BATCH_SIZE)
        ]:
            yield np.stack(batch)

    def _prepare(
        self, image: ImageSource, index: int, count: int | None, level: int | None
    ) -> NDArray[np.uint8]:
        try:
            return read_square(image, self.preprocessing_for(level))
        except ImageError as error:
            number = "the image" if count == 1 else f"image {index + 1}{f' of {count}' if count else ''}"
            raise ImageError(f"{name_of(image) or number}: {error}") from error


def _name_of(folder: Path) -> str:
    """The last part of a folder's path, with the one above it if that says nothing: training writes OUT/model."""
    *above, last = folder.absolute().parts
    return "/".join([*above[-1:], last]) if last == "model" else last
