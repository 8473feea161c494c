"""Balance classes of different sizes, in the loss (`log_priors`) or by sampling (`balanced_order`).

The loss uses the frequencies of each tier, sums over the leaves below a class. Sampling draws all leaves equally often.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from taxonomy import Taxonomy
from training.data.samples import LeafArray

HINT_AT = 10
"""Ratio of the largest to the smallest class from which a balance is recommended."""


def log_priors(taxonomy: Taxonomy, leaf_counts: Sequence[int]) -> list[Tensor]:
    """Logarithm of each class's share of the training images, per tier: float32 (num_classes[k],).

    Added to the logits during training (logit adjustment with τ = 1: Menon et al. 2021, *Long-tail learning via logit
    adjustment*, arXiv 2007.07314, equation 10). A leaf without images counts as one image.
    """
    counts = np.maximum(np.asarray(leaf_counts, dtype=np.float64), 1)
    priors = []
    for tier, num_classes in enumerate(taxonomy.num_classes):
        sums = np.bincount(taxonomy.projection(tier), weights=counts, minlength=num_classes)
        priors.append(torch.tensor(np.log(sums / sums.sum()), dtype=torch.float32))
    return priors


def balanced_order(leaves: LeafArray, random: np.random.Generator) -> LeafArray:
    """Indices (N,) into ``leaves`` (N,) for one epoch that draw every leaf equally often, to within one.

    Images of small leaves are repeated, each equally often to within one; of large leaves a part is drawn.
    """
    present = random.permutation(np.unique(leaves))
    share, rest = divmod(len(leaves), len(present))
    drawn = []
    for place, leaf in enumerate(present):
        own = np.flatnonzero(leaves == leaf)
        wanted = share + (place < rest)
        rounds = [random.permutation(own) for _ in range(-(-wanted // len(own)))]
        drawn.append(np.concatenate([np.empty(0, dtype=np.int64), *rounds])[:wanted])
    return random.permutation(np.concatenate(drawn))
