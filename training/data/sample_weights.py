"""Weight images that are easier or harder than those the model will meet.

The last level's top-1 on representative images is known. Images that it gets wrong are weighted by one factor such that
its weighted top-1 equals that number. Measures and thresholds with these weights hold for representative images, as far
as the wrong ones here resemble the wrong ones there.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from hierclass.errors import InputError
from training.evaluation.metrics import Shares, effective_size
from training.evaluation.predictions import Predictions


@dataclasses.dataclass(frozen=True, slots=True)
class Weighting:
    """Weights of N images that make the last level's weighted top-1 the known one.

    ``top1`` is the known value, ``measured`` the unweighted one; a wrong image counts ``factor`` times as much as a
    right one. ``weights`` (N,) have mean 1; ``kept`` (n,) are those of the images whose logits are kept
    (`Predictions`).
    """

    level: int
    top1: float
    measured: float
    factor: float
    weights: Shares
    kept: Shares

    def to_dict(self) -> dict[str, Any]:
        """JSON values; ``effective_images`` is the effective sample size of the kept images."""
        return {
            "level": self.level,
            "top1": self.top1,
            "measured": self.measured,
            "factor": self.factor,
            "effective_images": effective_size(self.kept),
        }


def check_known_top1(known_top1: float) -> None:
    """Raise `InputError` unless a known top-1 lies between 0 and 1."""
    if not 0 < known_top1 < 1:
        raise InputError(
            f"`known_top1` {known_top1:g}: give more than 0, less than 1, such as 0.751 for 75.1%"
        )


def weigh_images(predictions: Predictions, known_top1: float) -> Weighting:
    """Weights that make the last level's top-1 equal ``known_top1`` = p.

    With R right and W wrong images, a wrong one counts factor = R (1 - p) / (W p) times as much as a right one, so that
    R / (R + factor W) = p. An image that is labelled with an inner node, of which that is not known, has weight 1.
    Raises `InputError` unless 0 < p < 1, or where all images are right, or all wrong.
    """
    check_known_top1(known_top1)
    known = predictions.labels < predictions.logits[-1].shape[1]
    right = predictions.own[-1] == predictions.labels
    images, num_right = int(known.sum()), int(right.sum())
    if num_right in (0, images):
        which = "none" if not num_right else "all"
        raise InputError(
            f"the last level has {which} of the {images} images right, so that no weights make that "
            f"{known_top1:.1%}; leave `known_top1` out, or give more images"
        )
    share = num_right / images
    weights = np.where(right, known_top1 / share, np.where(known, (1 - known_top1) / (1 - share), 1.0))
    factor = num_right * (1 - known_top1) / ((images - num_right) * known_top1)
    kept = weights[np.searchsorted(predictions.positions, predictions.kept)]
    return Weighting(len(predictions.own) - 1, known_top1, share, factor, weights, kept)
