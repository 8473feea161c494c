"""Choose the images of each update and divide them among processes.

Everything depends on (seed, epoch) alone: a resumed run sees the images of an unbroken one, and several processes
together see those of one.
"""

from __future__ import annotations

import dataclasses
import functools
import random
from collections.abc import Iterator

import numpy as np
import torch

from hierclass.errors import InputError
from training.data.class_balance import balanced_order
from training.data.samples import LabelArray


def seed_everything(*parts: int) -> None:
    """Seed Python, NumPy and torch, on the devices in use, from a tuple of integers.

    Faster than `torch.manual_seed`, which takes most of a millisecond where a GPU exists but is not used.
    """
    words = np.random.SeedSequence(parts).generate_state(2, dtype=np.uint32)
    seed_with(int(words[0]) << 32 | int(words[1]))


def seed_with(number: int) -> None:
    """Seed as `seed_everything` does, from one 64-bit number; fast enough for every image."""
    random.seed(number >> 32)
    np.random.seed(number >> 32)
    torch.default_generator.manual_seed(number)
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.manual_seed_all(number)
    if torch.backends.mps.is_available():
        torch.mps.manual_seed(number)


@functools.lru_cache(maxsize=2)
def image_seeds(seed: int, epoch: int, num_samples: int) -> list[int]:
    """A 64-bit seed for every image of an epoch."""
    numbers: list[int] = (
        np.random.SeedSequence((seed, epoch, 4)).generate_state(num_samples, np.uint64).tolist()
    )
    return numbers


@dataclasses.dataclass(frozen=True, slots=True)
class BatchShare:
    """One process's share of an update: image indices, and their positions in the whole batch."""

    indices: list[int]
    positions: list[int]
    batch: int
    """Images of the update over all processes."""
    epoch: int
    side: int
    """Pixels per side."""


class BatchSampler:
    """Shuffled batches, divided among processes; an epoch's last incomplete batch is dropped.

    ``batch_size`` counts the images of all processes; a smaller data set is one batch. Positions i and B - 1 - i, which
    are mixed with each other, go to the same process.
    """

    def __init__(
        self,
        num_samples: int,
        batch_size: int,
        *,
        seed: int,
        process: int = 0,
        num_processes: int = 1,
        balance: LabelArray | None = None,
    ) -> None:
        """``balance``, the labels (N,) of the samples, draws every label equally often (`balanced_order`).

        Raises `InputError` if there is no pair of images for every process.
        """
        self.num_samples, self.seed, self.balance = num_samples, seed, balance
        self.batch_size = min(num_samples, batch_size)
        if self.batch_size < 2 * num_processes:
            what = (
                f"`batch_size` {batch_size} is" if batch_size < num_samples else f"{num_samples} images are"
            )
            raise InputError(f"{what} too few to train on; give at least {2 * num_processes}")
        places = np.arange(self.batch_size)
        pairs = np.minimum(places, places[::-1])
        self.positions = np.flatnonzero(pairs % num_processes == process)

    def __len__(self) -> int:
        """Updates per epoch."""
        return self.num_samples // self.batch_size

    def shares(self, epoch: int, *, side: int = 0, start: int = 0) -> Iterator[BatchShare]:
        """Yield this process's share of every update of an epoch, from update ``start`` on."""
        random_ = np.random.default_rng((self.seed, epoch))
        even = self.balance
        order = random_.permutation(self.num_samples) if even is None else balanced_order(even, random_)
        whole = order[: len(self) * self.batch_size].reshape(-1, self.batch_size)
        positions = self.positions.tolist()
        for indices in whole[start:, self.positions].tolist():
            yield BatchShare(indices, positions, self.batch_size, epoch, side)
