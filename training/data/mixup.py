"""Pixels of a batch on the device: normalise, mix, erase.

What is drawn depends on (seed, epoch, update, position in the batch) alone, however a batch is divided.
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
    """Normalise uint8 images for the network."""

    def __init__(self, preprocessing: Preprocessing, device: torch.device) -> None:
        """Use the mean and deviation of a preprocessing, on a device."""
        mean = torch.tensor(preprocessing.mean, device=device)
        std = torch.tensor(preprocessing.std, device=device)
        self.device = device
        self._shift, self._scale = (mean * 255).view(1, 3, 1, 1), (1 / (std * 255)).view(1, 3, 1, 1)

    def __call__(self, images: Tensor) -> Tensor:
        """Images uint8 (B, 3, S, S) → normalised float32 on the device."""
        return (images.to(self.device, non_blocking=True).float() - self._shift) * self._scale


class BatchAugmentation:
    """Normalise, mix and erase a batch of uint8 images."""

    def __init__(
        self, recipe: Recipe, preprocessing: Preprocessing, num_labels: int, device: torch.device
    ) -> None:
        """Take mixup, cutmix and erasing from the recipe; mixed targets have ``num_labels`` shares."""
        self.device, self.seed, self.channels_last = device, recipe.seed, recipe.channels_last
        self.normalise = PixelNormaliser(preprocessing, device)
        self.mixup = make_mixup(recipe, num_labels)
        self.erase = RandomErasing(recipe.erase, mode="const", device=device) if recipe.erase else None

    def __call__(self, batch: TrainingBatch, *, step: int) -> tuple[Tensor, Tensor]:
        """Return normalised float32 images (n, 3, S, S) and labels (n,) or, if mixed, shares (n, num_labels).

        NumPy's generator decides how the batch is mixed, so it must be in the same state in all processes.
        """
        target = batch.labels.to(self.device, non_blocking=True)
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
    """Index (n,) of the image that each image at ``positions`` (n,) is mixed with.

    First and last of the batch are partners, second and last but one, and so on; an image without a partner is its own.
    """
    own = torch.arange(len(positions))
    where = torch.full((size,), -1)
    where[positions] = own
    partner = where[size - 1 - positions]
    return torch.where(partner < 0, own, partner)


def blend(values: Tensor, positions: Tensor, size: int, share: float) -> Tensor:
    """Mix values (n, …) with those of their partners (`partner_positions`); ``share`` (0 to 1) of each is kept."""
    partners = partner_positions(positions, size).to(values.device)
    return share * values + (1 - share) * values[partners]


def make_mixup(recipe: Recipe, num_labels: int) -> Mixup | None:
    """timm's mixup and cutmix of a recipe on labels, or None if both are off."""
    if not (recipe.mixup or recipe.cutmix):
        return None
    return Mixup(
        mixup_alpha=recipe.mixup,
        cutmix_alpha=recipe.cutmix,
        prob=recipe.mix_prob,
        label_smoothing=0.0,  # NestedLoss smooths on every tier
        num_classes=num_labels,
    )
