"""What happens to the pixels of an update on the device: normalised, mixed with others, erased in part.

Which images are mixed and what is erased depends on (seed, epoch, update, place in the batch) alone, however the
batch is dealt out to processes.
"""

from __future__ import annotations

import random

import numpy as np
import torch
from timm.data import Mixup
from timm.data.random_erasing import RandomErasing
from torch import Tensor

from hierclass.images.preprocessing import Preprocessing
from training.data.batches import TrainingBatch
from training.recipe.recipe import Recipe


class PixelNormaliser:
    """Makes of uint8 images what the network takes."""

    def __init__(self, preprocessing: Preprocessing, device: torch.device) -> None:
        """Normalise on a device, by the mean and deviation of a preprocessing."""
        mean = torch.tensor(preprocessing.mean, device=device)
        std = torch.tensor(preprocessing.std, device=device)
        self.device = device
        self._shift, self._scale = (mean * 255).view(1, 3, 1, 1), (1 / (std * 255)).view(1, 3, 1, 1)

    def __call__(self, images: Tensor) -> Tensor:
        """Images uint8 (B, 3, S, S) → normalised float32, on the device."""
        return (images.to(self.device, non_blocking=True).float() - self._shift) * self._scale


class BatchAugmentation:
    """Makes of a batch of uint8 images what the network and the loss take."""

    def __init__(
        self, recipe: Recipe, preprocessing: Preprocessing, num_leaves: int, device: torch.device
    ) -> None:
        """Take from the recipe what is on; ``num_leaves`` classes make the targets of mixed images."""
        self.device, self.seed, self.channels_last = device, recipe.seed, recipe.channels_last
        self.normalise = PixelNormaliser(preprocessing, device)
        self.mixup = make_mixup(recipe, num_leaves)
        self.erase = RandomErasing(recipe.erase, mode="const", device=device) if recipe.erase else None

    def __call__(self, batch: TrainingBatch, *, step: int) -> tuple[Tensor, Tensor]:
        """A batch → normalised float32 images (n, 3, S, S) on the device, and leaves (n,) or, mixed, (n, num_leaves).

        NumPy's generator must stand alike on all processes: it says how the batch is mixed.
        """
        target = batch.leaves.to(self.device, non_blocking=True)
        pixels = self.normalise(batch.images)
        if self.mixup is not None:
            partners = partner_positions(batch.positions, batch.share.batch).to(self.device)
            # timm mixes the first with the last, the second with the last but one …
            others, theirs = pixels[partners].flip(0), target[partners].flip(0)
            pixels, target = self.mixup(torch.cat([pixels, others]), torch.cat([target, theirs]))
            pixels, target = pixels[: len(partners)], target[: len(partners)]
        if self.erase is not None:
            seeds = np.random.SeedSequence((self.seed, batch.share.epoch, step, 3))
            numbers = seeds.generate_state(batch.share.batch, np.uint64)
            for image, position in zip(pixels, batch.positions.tolist(), strict=True):
                random.seed(int(numbers[position]))
                self.erase(image)
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        return pixels.contiguous(memory_format=layout), target


def partner_positions(positions: Tensor, size: int) -> Tensor:
    """Which of the images at ``positions`` (n,) of a batch each is mixed with, (n,).

    The first of the batch is paired with the last, the second with the last but one, and so on; whose other is missing,
    because it could not be read or there is none, with itself.
    """
    own = torch.arange(len(positions))
    where = torch.full((size,), -1)
    where[positions] = own
    partner = where[size - 1 - positions]
    return torch.where(partner < 0, own, partner)


def blend(values: Tensor, positions: Tensor, size: int, share: float) -> Tensor:
    """Mix a batch's values (n, …) with their partners' (`partner_positions`); each keeps a share of 0 to 1."""
    partners = partner_positions(positions, size).to(values.device)
    return share * values + (1 - share) * values[partners]


def make_mixup(recipe: Recipe, num_leaves: int) -> Mixup | None:
    """timm's mixup and cutmix of a recipe on leaf targets, or None when both are off."""
    if not (recipe.mixup or recipe.cutmix):
        return None
    return Mixup(
        mixup_alpha=recipe.mixup,
        cutmix_alpha=recipe.cutmix,
        prob=recipe.mix_prob,
        label_smoothing=0.0,  # NestedLoss smooths on every tier
        num_classes=num_leaves,
    )
