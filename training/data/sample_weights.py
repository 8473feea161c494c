"""How much each image counts, where the images are easier, or harder, than those that a model will meet.

Of the last level one thing is known: its top-1 on representative images, as a published network's is. The images
that it has wrong count more, or less, by one factor, so that its weighted top-1 here is that number; whatever is
fitted or measured with these weights stands for representative images, as far as the images that it has wrong here
are like those that it has wrong there.
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
    """How much each of N images counts, so that the last level's top-1 is the one that is known.

    ``top1`` is that number, ``measured`` the share that the last level, alone, has right; an image that it has wrong
    counts ``factor`` times as much as one it has right. ``weights`` (N,) are of the images of `Predictions`, their
    mean is 1; ``kept`` (n,) are those of the images whose logits are kept.
    """

    level: int
    top1: float
    measured: float
    factor: float
    weights: Shares
    kept: Shares

    def to_dict(self) -> dict[str, Any]:
        """JSON values; ``effective_images``: as many equal ones would say as much as those whose logits are kept."""
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
    """Weights of the images under which the last level's top-1 is the one that is known.

    With R images that it has right and W that it has wrong, one that it has wrong counts R (1 - p) / (W p) times as
    much as one that it has right, so that R / (R + factor W) is p. Raises `InputError` for a number that is no share,
    and where all images are right, or wrong, so that no factor does it.
    """
    check_known_top1(known_top1)
    right = predictions.own[-1] == predictions.leaves
    images, num_right = len(right), int(right.sum())
    if num_right in (0, images):
        which = "none" if not num_right else "all"
        raise InputError(
            f"the last level has {which} of the {images} images right, so that no weights make that "
            f"{known_top1:.1%}; leave `known_top1` out, or give more images"
        )
    share = num_right / images
    weights = np.where(right, known_top1 / share, (1 - known_top1) / (1 - share))
    factor = num_right * (1 - known_top1) / ((images - num_right) * known_top1)
    kept = weights[np.searchsorted(predictions.positions, predictions.kept)]
    return Weighting(len(predictions.own) - 1, known_top1, share, factor, weights, kept)
