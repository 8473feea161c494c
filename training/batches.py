"""Batches for training and for evaluation: augmentation in workers, the same in every run of one seed.

Order and augmentation depend on (seed, epoch, batch) alone, never on what happened before: a resumed run
continues with the batches that an unbroken one would have seen.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import signal
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from timm.data import create_transform
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from hierclass.checkpoint import Preprocessing
from hierclass.errors import ImageError, InputError
from hierclass.images import preprocess, resize_side
from training.balance import balanced_order
from training.data import ImageSet, LeafArray

INTERPOLATION = "bilinear"
"""How images are resized, in training and in the answers alike: a network that learnt from one errs on another."""
STOPPING = (signal.SIGINT, signal.SIGTERM)
Batch = tuple[Tensor, Tensor, list[str]]
"""Images (uint8 or float32, (B, 3, S, S)), leaves (B,), and one message per image that could not be read."""


def seed_everything(*parts: int) -> None:
    """Seed Python, NumPy and torch from a tuple of integers."""
    words = np.random.SeedSequence(parts).generate_state(2, dtype=np.uint32)
    random.seed(int(words[0]))
    np.random.seed(int(words[0]))
    torch.manual_seed(int(words[0]) << 32 | int(words[1]))


class EpochBatches(Sampler[list[int]]):
    """Shuffled batches of indices of one epoch, dealt out to processes; the last incomplete batch is dropped.

    ``batch_size`` counts the images of all processes together; a smaller set is one batch.
    """

    def __init__(
        self,
        num_samples: int,
        batch_size: int,
        *,
        seed: int,
        epoch: int,
        process: int = 0,
        num_processes: int = 1,
        balance: LeafArray | None = None,
    ) -> None:
        """Draw the order; raises `InputError` when the batch size does not fit.

        With ``balance``, the leaves (N,) of the samples, every leaf is drawn equally often (`balanced_order`).
        """
        if batch_size % num_processes:
            raise InputError(
                f"--batch-size {batch_size} cannot be dealt out evenly to {num_processes} processes"
            )
        if num_samples < batch_size:
            batch_size = num_samples // (2 * num_processes) * 2 * num_processes  # mixing takes pairs
        if not batch_size:
            raise InputError(f"{num_samples} training images are too few; give at least {2 * num_processes}")
        random_ = np.random.default_rng((seed, epoch))
        order = random_.permutation(num_samples) if balance is None else balanced_order(balance, random_)
        whole = order[: num_samples // batch_size * batch_size].reshape(-1, batch_size)
        self.batches = whole[:, process::num_processes].tolist()

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.batches)


class _Images(Dataset[Any]):
    """Whole batches of one image set; `prepare` makes an array (3, S, S) of an image."""

    def __init__(
        self,
        images: ImageSet,
        prepare: Callable[[Image.Image], Any],
        *,
        min_side: int,
        seed: tuple[int, ...] | None,
    ) -> None:
        self.images, self.prepare, self.min_side, self.seed = images, prepare, min_side, seed

    def __len__(self) -> int:
        return len(self.images)

    def __getitems__(self, indices: Sequence[int]) -> tuple[npt.NDArray[Any], LeafArray, list[str]]:
        if self.seed is not None:
            seed_everything(*self.seed, indices[0])
        arrays: list[npt.NDArray[Any]] = []
        kept: list[int] = []
        errors: list[str] = []
        for index in indices:
            try:
                image = self.images.image(index, min_side=self.min_side)
            except ImageError as error:
                errors.append(str(error))
                continue
            arrays.append(np.asarray(self.prepare(image)))
            kept.append(index)
        stacked = np.stack(arrays) if arrays else np.empty((0, 3, 1, 1), dtype=np.uint8)
        return stacked, self.images.leaves[kept], errors


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


def read_batches(loader: DataLoader[Any]) -> Generator[Batch]:
    """The batches of a loader; close the generator to end its workers.

    Workers send arrays through a pipe: shared memory, which tensors would take, is small in many containers.
    While the workers start, Ctrl-C and SIGTERM wait: raised inside a fork, the exception would be lost.
    """
    with _held_signals():
        iterator = iter(loader)
    try:
        for images, leaves, errors in iterator:
            yield torch.from_numpy(images), torch.from_numpy(leaves), errors
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


def _loader(dataset: _Images, batches: Any, workers: int) -> DataLoader[Any]:
    return DataLoader(
        dataset,
        collate_fn=_identity,
        num_workers=workers,
        worker_init_fn=_start_worker,
        prefetch_factor=4 if workers else None,
        **({"batch_sampler": batches} if isinstance(batches, Sampler) else batches),
    )


def training_loader(
    images: ImageSet,
    batches: EpochBatches,
    *,
    size: int,
    crop_scale: tuple[float, float],
    color_jitter: float,
    auto_augment: str | None,
    seed: tuple[int, int],
    workers: int,
) -> DataLoader[Any]:
    """Augmented uint8 batches of one epoch (timm's random resized crop, flip and what else is on)."""
    try:
        transform = create_transform(
            input_size=size,
            is_training=True,
            use_prefetcher=True,  # uint8 out; normalised per batch, where it is cheap
            scale=crop_scale,
            color_jitter=color_jitter or None,  # type: ignore[arg-type]  # None is documented as off
            auto_augment=auto_augment,
            interpolation=INTERPOLATION,
        )
    except (AssertionError, KeyError, ValueError) as error:
        raise InputError(
            f"--auto-augment {auto_augment} is no policy of timm; try rand-m7-n2-mstd0.5"
        ) from error
    smallest = max(size, round(size / crop_scale[0] ** 0.5))
    return _loader(_Images(images, transform, min_side=smallest, seed=seed), batches, workers)


class _Preprocess:
    def __init__(self, preprocessing: Preprocessing) -> None:
        self.preprocessing = preprocessing

    def __call__(self, image: Image.Image) -> npt.NDArray[np.float32]:
        return preprocess(image, self.preprocessing)


def evaluation_loader(
    images: ImageSet, preprocessing: Preprocessing, *, batch_size: int, workers: int
) -> DataLoader[Any]:
    """Float32 batches in order, preprocessed exactly as inference does."""
    dataset = _Images(images, _Preprocess(preprocessing), min_side=resize_side(preprocessing), seed=None)
    return _loader(dataset, {"batch_size": batch_size, "shuffle": False}, workers)
