"""Predictions of a network on labelled images, compact enough for a million images."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable, Sequence
from typing import Protocol, Self

import numpy as np
import numpy.typing as npt
import torch

from hierclass.decisions.prediction import consensus
from hierclass.errors import InputError
from hierclass.images.preprocessing import Preprocessing
from taxonomy import Taxonomy
from training.data.batches import evaluation_loader, read_batches
from training.data.samples import UNKNOWN, ImageSet, truth_table

LOWER_WEIGHTS = (0.0, 0.25, 0.5, 1.0)
"""Weights of lower levels that are measured; 0: each level answers alone."""
KEPT_NUMBERS = 2**25
"""Most logits that are kept, 64 MiB: those of 129,000 images for 13 + 47 + 200 classes, 29,000 for 16 + 112 + 1,000."""
LARGEST_BATCH, BATCH_PIXELS = 256, 2**19
"""Largest batch, and the most pixels of a batch on a processor.

EfficientNet-Lite0 at 224 pixels answers 27 images a second in batches of 8, but 13 in batches of 128, which exceed the
processor's caches.
"""

Indices = npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True, slots=True)
class Predictions:
    """Predictions for N images of a set, in the order of the set.

    ``positions`` (N,) are the images' indices in the set, ``labels`` (N,) the truth (as in `ImageSet`). ``best[w, k]``
    (N,) is the class of tier k that level k answers if lower levels count with ``lower_weights[w]``
    (`hierclass.decisions.prediction`); the first weight is 0. ``ranked`` (N, r) are the last level's own best leaves.
    ``errors`` has one message per unreadable image; those are in none of the arrays.

    Logits are kept of the images at ``kept`` (n,), indices in the set; a random part if all exceed `KEPT_NUMBERS`.
    ``logits[k]`` (n, num_classes[k]) are float16, each row less its highest, so that rounding affects unlikely classes.
    """

    positions: Indices
    labels: Indices
    lower_weights: tuple[float, ...]
    best: npt.NDArray[np.int32]
    ranked: npt.NDArray[np.int32]
    kept: Indices
    logits: tuple[npt.NDArray[np.float16], ...]
    errors: tuple[str, ...]

    @classmethod
    def join(cls, parts: Sequence[Self]) -> Self:
        """Join the predictions of several processes for parts of one set."""
        positions = np.concatenate([part.positions for part in parts])
        kept = np.concatenate([part.kept for part in parts])
        order, kept_order = positions.argsort(), kept.argsort()
        return cls(
            positions[order],
            np.concatenate([part.labels for part in parts])[order],
            parts[0].lower_weights,
            np.concatenate([part.best for part in parts], axis=2)[:, :, order],
            np.concatenate([part.ranked for part in parts])[order],
            kept[kept_order],
            tuple(
                np.concatenate(level)[kept_order]
                for level in zip(*(part.logits for part in parts), strict=True)
            ),
            tuple(message for part in parts for message in part.errors),
        )

    @property
    def own(self) -> tuple[npt.NDArray[np.int32], ...]:
        """Best class (N,) of each level's own head, without lower levels."""
        return tuple(self.best[0])

    @property
    def kept_labels(self) -> Indices:
        """The labels (n,) of the images whose logits are kept."""
        return self.labels[np.searchsorted(self.positions, self.kept)]

    @property
    def num_usable(self) -> int:
        """Number of images to calibrate on: those whose logits are kept and that are labelled down to the leaves."""
        return int((self.kept_labels < self.logits[-1].shape[1]).sum())

    def truth(self, taxonomy: Taxonomy) -> Indices:
        """The true class on every tier, (N, num_tiers), `UNKNOWN` below an inner node that is the label."""
        return truth_table(taxonomy)[self.labels]

    def kept_truth(self, taxonomy: Taxonomy) -> Indices:
        """The truth (n, num_tiers) of the images whose logits are kept."""
        return truth_table(taxonomy)[self.kept_labels]

    def counts(self, taxonomy: Taxonomy) -> list[int]:
        """Number of images of which the class on each tier is known."""
        found: list[int] = (self.truth(taxonomy) != UNKNOWN).sum(axis=0).tolist()
        return found

    def path(self, weight: int, level: int, taxonomy: Taxonomy) -> list[Indices]:
        """Answered class (N,) of each tier 0 … level when a level is asked; ``weight`` indexes ``lower_weights``."""
        found = [self.best[weight, level].astype(np.int64)]
        for tier in range(level, 0, -1):
            found.insert(0, taxonomy.parent_classes(tier)[found[0]])
        return found

    def right(self, weight: int, level: int, taxonomy: Taxonomy) -> list[npt.NDArray[np.bool_]]:
        """Whether each tier 0 … level is right (N,) when a level is asked; ``weight`` indexes ``lower_weights``.

        False where the truth is not known.
        """
        truth = self.truth(taxonomy)
        return [answer == truth[:, tier] for tier, answer in enumerate(self.path(weight, level, taxonomy))]

    def count_right(self, weight: int, level: int, taxonomy: Taxonomy) -> list[int]:
        """Number of images with each tier 0 … level right when a level is asked, by index of a lower weight."""
        return [int(flags.sum()) for flags in self.right(weight, level, taxonomy)]

    def chosen(self, lower_weight: float | str, taxonomy: Taxonomy) -> int:
        """Index of a lower weight; "auto": that of the highest accuracies, summed over levels on their own tiers.

        Of equal weights the lowest is taken.
        """
        if lower_weight != "auto":
            return self.lower_weights.index(float(lower_weight))
        counts = self.counts(taxonomy)
        most = max(
            counts
        )  # whole numbers where all images are labelled down to the leaves, so that ties are seen
        totals = [
            sum(
                self.count_right(weight, level, taxonomy)[level] * (most / max(count, 1))
                for level, count in enumerate(counts)
            )
            for weight in range(len(self.lower_weights))
        ]
        return totals.index(max(totals))


def weights_to_try(lower_weight: float | str) -> tuple[float, ...]:
    """Lower weights to measure with, rising from 0, the given one among them."""
    return tuple(sorted({*LOWER_WEIGHTS, *(() if lower_weight == "auto" else (float(lower_weight),))}))


class AllLevels(Protocol):
    """A network, or what runs one: images (B, 3, S, S), normalised → logits of all levels."""

    @property
    def num_classes(self) -> tuple[int, ...]:
        """Classes of each level."""
        ...

    @property
    def num_levels(self) -> int:
        """Number of levels."""
        ...

    def eval(self) -> object:
        """Switch to evaluation mode."""
        ...

    def forward_all(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Return the logits of all levels."""
        ...


@torch.inference_mode()
def collect_predictions(
    network: AllLevels,
    images: ImageSet,
    preprocessing: Preprocessing,
    device: torch.device,
    taxonomy: Taxonomy,
    *,
    part: Indices | None = None,
    lower_weights: Sequence[float] = LOWER_WEIGHTS,
    top: int = 5,
    batch_size: int | None = None,
    workers: int = 1,
) -> Predictions:
    """Run a network in evaluation mode over images, or over those at the indices ``part`` (M,).

    ``batch_size`` None is chosen for the device (`suitable_batch`). Raises `InputError` if no image can be read.
    """
    network.eval()
    batch_size = batch_size or suitable_batch(preprocessing.size, device)
    top = min(top, network.num_classes[-1])
    part = np.arange(len(images)) if part is None else part
    keep = images_to_keep(len(images), sum(network.num_classes))
    numbered = dataclasses.replace(images.subset(part), labels=part)  # batches bring places in the set
    loader = evaluation_loader(numbered, preprocessing, batch_size=batch_size, workers=workers)
    places, best, ranked, kept, errors = [], [], [], [], []
    logits: list[list[npt.NDArray[np.float16]]] = [[] for _ in range(network.num_levels)]
    with contextlib.closing(read_batches(loader)) as stream:
        for batch, positions, messages in stream:
            errors += messages
            if not len(batch):
                continue
            said = [level.float() for level in network.forward_all(batch.to(device))]
            places.append(positions.numpy())
            best.append(best_classes([level.cpu().numpy() for level in said], taxonomy, lower_weights))
            ranked.append(said[-1].topk(top, dim=1).indices.cpu().numpy().astype(np.int32))
            rows = np.isin(places[-1], keep, assume_unique=True)
            kept.append(places[-1][rows])
            for into, level in zip(logits, said, strict=True):
                into.append(shrink_logits(level.cpu()[torch.from_numpy(rows)]))
    if not places:
        raise InputError(f"none of the {len(errors)} images can be read: {'; '.join(errors[:3])}")
    found = np.concatenate(places)
    return Predictions(
        found,
        images.labels[found],
        tuple(lower_weights),
        np.concatenate(best, axis=2),
        np.concatenate(ranked),
        np.concatenate(kept),
        tuple(map(np.concatenate, logits)),
        tuple(errors),
    )


def suitable_batch(size: int, device: torch.device) -> int:
    """Fastest batch size for images of ``size`` pixels per side on a device."""
    return LARGEST_BATCH if device.type != "cpu" else max(min(BATCH_PIXELS // size**2, LARGEST_BATCH), 1)


def images_to_keep(num_images: int, num_logits: int) -> Indices:
    """Rising indices (n,) of the images whose logits are kept, the same in every process."""
    limit = max(KEPT_NUMBERS // num_logits, 1)
    if num_images <= limit:
        return np.arange(num_images)
    return np.sort(np.random.default_rng(0).choice(num_images, limit, replace=False))


def best_classes(
    logits: Sequence[npt.NDArray[np.float32]], taxonomy: Taxonomy, lower_weights: Iterable[float]
) -> npt.NDArray[np.int32]:
    """The class that each level answers on its tier, per weight of lower levels: (weights, levels, B).

    ``logits[k]`` (B, num_classes[k]) come from level k.
    """
    return np.array(
        [
            [consensus(logits[: level + 1], taxonomy, weight).argmax(axis=1) for level in range(len(logits))]
            for weight in lower_weights
        ],
        dtype=np.int32,
    )


def shrink_logits(logits: torch.Tensor) -> npt.NDArray[np.float16]:
    """Logits (B, C) as float16, each row less its highest, so that rounding affects unlikely classes."""
    lowest = torch.finfo(torch.float16).min
    shifted = logits - logits.amax(dim=1, keepdim=True)
    small: npt.NDArray[np.float16] = shifted.nan_to_num(lowest).clamp(min=lowest).half().numpy()
    return small
