"""Batches for training and evaluation, decoded and augmented by worker processes that last as long as the run.

Augmentation depends on (seed, epoch, image) alone, not on the process or worker, nor on other images.
"""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from timm.data import create_transform
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from hierclass.errors import ImageError, InputError
from hierclass.images.preprocessing import Preprocessing, preprocess, resize_side
from training.data.sampler import BatchShare, image_seeds, seed_with
from training.data.samples import ImageSet, LabelArray
from training.trainer.interrupts import STOPPING

INTERPOLATION = "bilinear"
"""Interpolation of resizing in training and inference; both must be the same."""
ODD = 0x9E3779B97F4A7C15
"""Spreads small numbers over 64 bits (Knuth's multiplicative hashing)."""
EvaluationBatch = tuple[Tensor, Tensor, list[str]]
"""Images (uint8 or float32, (B, 3, S, S)), labels (B,), and one message per image that could not be read."""


@dataclasses.dataclass(frozen=True, slots=True)
class TrainingBatch:
    """One process's images of one update; ``share`` says which images of the batch they are.

    ``images`` uint8 (n, 3, S, S), ``labels`` (n,) (of `ImageSet`) and ``positions`` (n,) in the whole batch hold the
    readable images; ``errors`` has one message for each of the others.
    """

    images: Tensor
    labels: Tensor
    positions: Tensor
    share: BatchShare
    errors: list[str]

    def __len__(self) -> int:
        """Number of readable images."""
        return len(self.images)


class _PreparedBatch:
    """A `TrainingBatch` of NumPy arrays, as workers send it: tensors would use shared memory."""

    def __init__(self, share: BatchShare, read: _ReadImages) -> None:
        self.share, self.read = share, read

    def tensors(self) -> TrainingBatch:
        positions = torch.tensor(self.share.positions)[self.read.kept]
        images, labels = torch.from_numpy(self.read.images), torch.from_numpy(self.read.labels)
        return TrainingBatch(images, labels, positions, self.share, self.read.errors)

    def pin_memory(self, *_: Any) -> TrainingBatch:
        """Called by torch, in a thread of its own, where an accelerator is to copy from page-locked memory."""
        batch = self.tensors()
        pinned = {name: getattr(batch, name).pin_memory() for name in ("images", "labels", "positions")}
        return dataclasses.replace(batch, **pinned)


@dataclasses.dataclass(slots=True)
class _ReadImages:
    """Readable images (n, 3, S, S), their labels (n,), their places among those requested, and errors."""

    images: npt.NDArray[Any]
    labels: LabelArray
    kept: list[int]
    errors: list[str]


def _read(
    images: ImageSet, indices: Sequence[int], prepare: Callable[[Image.Image, int], Any], *, min_side: int
) -> _ReadImages:
    """Read images; `prepare` makes an array (3, S, S) of an image and its place among the indices."""
    arrays: list[npt.NDArray[Any]] = []
    kept: list[int] = []
    errors: list[str] = []
    for place, index in enumerate(indices):
        try:
            image = images.image(index, min_side=min_side)
        except ImageError as error:
            errors.append(str(error))
            continue
        arrays.append(np.asarray(prepare(image, place)))
        kept.append(place)
    stacked = np.stack(arrays) if arrays else np.empty((0, 3, 1, 1), dtype=np.uint8)
    return _ReadImages(stacked, images.labels[[indices[place] for place in kept]], kept, errors)


class _TrainingImages(Dataset[Any]):
    """Augmented images, indexed by a `BatchShare`."""

    def __init__(self, images: ImageSet, transforms: dict[int, Any], crop_scale: float, seed: int) -> None:
        self.images, self.transforms, self.crop_scale, self.seed = images, transforms, crop_scale, seed

    def __len__(self) -> int:
        return len(self.images)

    def __getitems__(self, share: BatchShare) -> _PreparedBatch:
        transform = self.transforms[share.side]
        seeds = image_seeds(self.seed, share.epoch, len(self.images))

        def augment(image: Image.Image, place: int) -> Any:
            # An image that is drawn twice in an epoch, as balanced sampling does, is augmented in two ways.
            seed_with((seeds[share.indices[place]] + share.positions[place] * ODD) % 2**64)
            return transform(image)

        smallest = max(share.side, round(share.side / self.crop_scale**0.5))
        return _PreparedBatch(share, _read(self.images, share.indices, augment, min_side=smallest))


class _EvaluationImages(Dataset[Any]):
    """Images preprocessed as for inference, indexed by a list of indices."""

    def __init__(self, images: ImageSet, preprocessing: Preprocessing) -> None:
        self.images, self.preprocessing = images, preprocessing

    def __len__(self) -> int:
        return len(self.images)

    def __getitems__(self, indices: Sequence[int]) -> tuple[npt.NDArray[Any], LabelArray, list[str]]:
        side = resize_side(self.preprocessing)
        read = _read(self.images, indices, self._prepare, min_side=side)
        return read.images, read.labels, read.errors

    def _prepare(self, image: Image.Image, _: int) -> npt.NDArray[np.float32]:
        return preprocess(image, self.preprocessing)


def _identity(batch: Any) -> Any:
    return batch


def _start_worker(_: int) -> None:
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)  # the main process is told as well, and ends its workers
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)


def _end_with_parent() -> None:
    """End a worker when its parent process is gone; it would wait forever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def read_batches(loader: DataLoader[Any]) -> Generator[EvaluationBatch]:
    """Yield the batches of an evaluation loader; close the generator to end its workers.

    Workers send arrays through a pipe, since shared memory is small in many containers.
    """
    for images, labels, errors in iterate_loader(loader):
        yield torch.from_numpy(images), torch.from_numpy(labels), errors


def read_training_batches(loader: DataLoader[Any]) -> Generator[TrainingBatch]:
    """Yield the batches of a training loader; close the generator to end its workers."""
    for prepared in iterate_loader(loader):
        yield prepared if isinstance(prepared, TrainingBatch) else prepared.tensors()


def iterate_loader(loader: DataLoader[Any]) -> Generator[Any]:
    """Yield what a loader gives.

    Ctrl-C and SIGTERM are held back while workers start: an exception inside a fork would be lost.
    """
    with _held_signals():
        iterator = iter(loader)
    try:
        yield from iterator
    finally:
        del iterator


@contextlib.contextmanager
def _held_signals() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    arrived: list[int] = []
    previous = {number: signal.signal(number, lambda got, _: arrived.append(got)) for number in STOPPING}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        for late in arrived:
            signal.raise_signal(late)


def make_loader(dataset: Dataset[Any], workers: int, **batches: Any) -> DataLoader[Any]:
    """A loader over a data set that is indexed by whole batches; its worker processes ignore signals to stop."""
    return DataLoader(
        dataset,
        collate_fn=_identity,
        num_workers=workers,
        worker_init_fn=_start_worker,
        prefetch_factor=4 if workers else None,
        **batches,
    )


def training_transform(
    side: int, *, crop_scale: tuple[float, float], color_jitter: float = 0.0, auto_augment: str | None = None
) -> Any:
    """timm's random resized crop, flip, colour jitter and augmentation policy: image → uint8 (3, side, side).

    Raises `InputError` for an unknown policy.
    """
    try:
        return create_transform(
            input_size=side,
            is_training=True,
            use_prefetcher=True,  # uint8 out; normalised per batch, where it is cheap
            scale=crop_scale,
            color_jitter=color_jitter or None,  # type: ignore[arg-type]  # None is documented as off
            auto_augment=auto_augment,
            interpolation=INTERPOLATION,
        )
    except (AssertionError, IndexError, KeyError, ValueError) as error:
        raise InputError(
            f"`auto_augment` {auto_augment} is no policy of timm; try rand-m7-n2-mstd0.5"
        ) from error


def training_loader(
    images: ImageSet,
    shares: Iterable[BatchShare],
    *,
    sides: Iterable[int],
    crop_scale: tuple[float, float],
    color_jitter: float,
    auto_augment: str | None,
    seed: int,
    workers: int,
    pin_memory: bool = False,
) -> DataLoader[Any]:
    """Augmented uint8 batches for the shares (`training_transform`).

    Shares may span many epochs with images of any of the ``sides``, so that workers prepare the next epoch early.
    Raises `InputError` for an unknown augmentation policy.
    """
    transforms = {
        side: training_transform(
            side, crop_scale=crop_scale, color_jitter=color_jitter, auto_augment=auto_augment
        )
        for side in set(sides)
    }
    dataset = _TrainingImages(images, transforms, crop_scale[0], seed)
    return make_loader(dataset, workers, batch_sampler=shares, pin_memory=pin_memory)


def evaluation_loader(
    images: ImageSet, preprocessing: Preprocessing, *, batch_size: int, workers: int
) -> DataLoader[Any]:
    """Float32 batches in order, preprocessed exactly as for inference."""
    dataset = _EvaluationImages(images, preprocessing)
    return make_loader(dataset, workers, batch_size=batch_size, shuffle=False, persistent_workers=workers > 0)
