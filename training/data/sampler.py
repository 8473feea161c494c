"""Which images make an update, in which order, and which process takes which of them.

All of it depends on (seed, epoch) alone, never on what happened before or on how many processes there are: a
resumed run continues with the images that an unbroken one would have seen, and two processes together see what one
would.
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
from training.data.samples import LeafArray


def seed_everything(*parts: int) -> None:
    """Seed Python, NumPy and torch, on the devices in use, from a tuple of integers.

    `torch.manual_seed` would do, but where a GPU could be used and is not it takes most of a millisecond.
    """
    words = np.random.SeedSequence(parts).generate_state(2, dtype=np.uint32)
    seed_with(int(words[0]) << 32 | int(words[1]))


def seed_with(number: int) -> None:
    """Seed as `seed_everything` does, from one number of 64 bits; quick, for every image anew."""
    random.seed(number >> 32)
    np.random.seed(number >> 32)
    torch.default_generator.manual_seed(number)
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.manual_seed_all(number)
    if torch.backends.mps.is_available():
        torch.mps.manual_seed(number)


@functools.lru_cache(maxsize=2)
def image_seeds(seed: int, epoch: int, num_samples: int) -> list[int]:
    """A number of 64 bits for every image of an epoch."""
    numbers: list[int] = (
        np.random.SeedSequence((seed, epoch, 4)).generate_state(num_samples, np.uint64).tolist()
    )
    return numbers


@dataclasses.dataclass(frozen=True, slots=True)
class BatchShare:
    """What one process prepares for one update: images by index, and where they stand in the whole batch."""

    indices: list[int]
    positions: list[int]
    batch: int
    """Number of images of the update, of all processes together."""
    epoch: int
    side: int
    """Pixels per side."""


class BatchSampler:
    """Shuffled batches of an image set, dealt out to processes; an epoch's last incomplete batch is dropped.

    ``batch_size`` counts the images of all processes together; a smaller set is one batch. The images at positions
    i and B - 1 - i of a batch, which mixing pairs, go to one process.
    """

    def __init__(
        self,
        num_samples: int,
        batch_size: int,
        *,
        seed: int,
        process: int = 0,
        num_processes: int = 1,
        balance: LeafArray | None = None,
    ) -> None:
        """Raises `InputError` when there is no pair of images for every process.

        With ``balance``, the leaves (N,) of the samples, every leaf is drawn equally often (`balanced_order`).
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
        """This process's share of every update of an epoch, from update ``start`` on."""
        random_ = np.random.default_rng((self.seed, epoch))
        even = self.balance
        order = random_.permutation(self.num_samples) if even is None else balanced_order(even, random_)
        whole = order[: len(self) * self.batch_size].reshape(-1, self.batch_size)
        positions = self.positions.tolist()
        for indices in whole[start:, self.positions].tolist():
            yield BatchShare(indices, positions, self.batch_size, epoch, side)
