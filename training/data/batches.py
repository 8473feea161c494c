"""Batches for training and for evaluation, prepared by worker processes that last as long as the run.

How an image is augmented depends on (seed, epoch, image) alone: not on which process or worker prepares it, nor on
what was prepared before.
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
from hierclass.images.decoding import preprocess, resize_side
from hierclass.images.preprocessing import Preprocessing
from training.data.sampler import BatchShare, image_seeds, seed_with
from training.data.samples import ImageSet, LeafArray
from training.trainer.interrupts import STOPPING

INTERPOLATION = "bilinear"
"""How images are resized, in training and in the answers alike: a network that learnt from one errs on another."""
ODD = 0x9E3779B97F4A7C15
"""Spreads small numbers over 64 bits (Knuth's multiplicative hashing)."""
BatchLike = tuple[Tensor, Tensor, list[str]]
"""Images (uint8 or float32, (B, 3, S, S)), leaves (B,), and one message per image that could not be read."""


@dataclasses.dataclass(frozen=True, slots=True)
class TrainingBatch:
    """One process's images for one update, as a worker sends them; ``share`` says which they are.

    ``images`` uint8 (n, 3, S, S), ``leaves`` (n,) and ``positions`` (n,), the places in the whole batch, are of the
    images that could be read; ``errors`` has one message for each of the others.
    """

    images: Tensor
    leaves: Tensor
    positions: Tensor
    share: BatchShare
    errors: list[str]

    def __len__(self) -> int:
        """Images that could be read."""
        return len(self.images)


class _PreparedBatch:
    """A `TrainingBatch` before it is made of tensors, whose memory would be shared with the worker."""

    def __init__(self, share: BatchShare, read: _ReadImages) -> None:
        self.share, self.read = share, read

    def tensors(self) -> TrainingBatch:
        positions = torch.tensor(self.share.positions)[self.read.kept]
        images, leaves = torch.from_numpy(self.read.images), torch.from_numpy(self.read.leaves)
        return TrainingBatch(images, leaves, positions, self.share, self.read.errors)

    def pin_memory(self, *_: Any) -> TrainingBatch:
        """Called by torch, in a thread of its own, where an accelerator is to copy from page-locked memory."""
        batch = self.tensors()
        pinned = {name: getattr(batch, name).pin_memory() for name in ("images", "leaves", "positions")}
        return dataclasses.replace(batch, **pinned)


@dataclasses.dataclass(slots=True)
class _ReadImages:
    """Images that could be read, (n, 3, S, S), their leaves (n,) and places in the list; errors of the others."""

    images: npt.NDArray[Any]
    leaves: LeafArray
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
    return _ReadImages(stacked, images.leaves[[indices[place] for place in kept]], kept, errors)


class _TrainingImages(Dataset[Any]):
    """Augmented images; what is asked for is a `BatchShare`."""

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
    """Images as inference sees them; what is asked for is a list of indices."""

    def __init__(self, images: ImageSet, preprocessing: Preprocessing) -> None:
        self.images, self.preprocessing = images, preprocessing

    def __len__(self) -> int:
        return len(self.images)

    def __getitems__(self, indices: Sequence[int]) -> tuple[npt.NDArray[Any], LeafArray, list[str]]:
        side = resize_side(self.preprocessing)
        read = _read(self.images, indices, self._prepare, min_side=side)
        return read.images, read.leaves, read.errors

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
    """A worker whose batch nobody takes any more would wait for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def read_batches(loader: DataLoader[Any]) -> Generator[BatchLike]:
    """The batches of an evaluation loader; close the generator when no more of them are wanted.

    Workers send arrays through a pipe: shared memory, which tensors would take, is small in many containers.
    """
    for images, leaves, errors in iterate_loader(loader):
        yield torch.from_numpy(images), torch.from_numpy(leaves), errors


def read_training_batches(loader: DataLoader[Any]) -> Generator[TrainingBatch]:
    """The batches of a training loader; close the generator to end its workers."""
    for prepared in iterate_loader(loader):
        yield prepared if isinstance(prepared, TrainingBatch) else prepared.tensors()


def iterate_loader(loader: DataLoader[Any]) -> Generator[Any]:
    """What a loader gives.

    While its workers start, Ctrl-C and SIGTERM wait: raised inside a fork, the exception would be lost.
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
    """A loader of what a data set prepares of whole batches, by processes that leave signals to this one."""
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
    """timm's random resized crop, flip and what else is on: image → (3, side, side) uint8.

    Raises `InputError` for an unknown policy of augmentation.
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
    """Augmented uint8 batches of the shares (`training_transform`).

    The shares may go over many epochs and change the side of the images among ``sides``: the workers stay, and
    prepare the first batches of an epoch before it begins. Raises `InputError` for an unknown policy of augmentation.
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
    """Float32 batches in order, preprocessed exactly as inference does; its workers end with the loader."""
    dataset = _EvaluationImages(images, preprocessing)
    return make_loader(dataset, workers, batch_size=batch_size, shuffle=False, persistent_workers=workers > 0)
