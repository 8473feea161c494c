"""Balance classes of different sizes, in the loss (`log_priors`) or by sampling (`balanced_order`).

The loss uses the frequencies of each tier, over the images whose label says something of it. Sampling draws all labels,
leaves and inner nodes, equally often.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from taxonomy import Taxonomy
from training.data.samples import UNKNOWN, LabelArray, truth_table

HINT_AT = 10
"""Ratio of the largest to the smallest class from which a balance is recommended."""


def log_priors(taxonomy: Taxonomy, label_counts: Sequence[int]) -> list[Tensor]:
    """Logarithm of each class's share of the training images, per tier: float32 (num_classes[k],).

    Added to the logits during training (logit adjustment with τ = 1: Menon et al. 2021, *Long-tail learning via logit
    adjustment*, arXiv 2007.07314, equation 10). ``label_counts`` are images by label (rows of
    `training.data.samples.truth_table`); a leaf without images counts as one image.
    """
    counts, num_leaves = np.array(label_counts, dtype=np.float64), len(taxonomy.leaves)
    counts[:num_leaves] = np.maximum(counts[:num_leaves], 1)
    priors = []
    for truth, num_classes in zip(truth_table(taxonomy)[: len(counts)].T, taxonomy.num_classes, strict=True):
        known = truth != UNKNOWN
        sums = np.bincount(truth[known], weights=counts[known], minlength=num_classes)
        priors.append(torch.tensor(np.log(sums / sums.sum()), dtype=torch.float32))
    return priors


def balanced_order(labels: LabelArray, random: np.random.Generator) -> LabelArray:
    """Indices (N,) into ``labels`` (N,) for one epoch that draw every label equally often, to within one.

    Images of rare labels are repeated, each equally often to within one; of frequent ones a part is drawn.
    """
    present = random.permutation(np.unique(labels))
    share, rest = divmod(len(labels), len(present))
    drawn = []
    for place, label in enumerate(present):
        own = np.flatnonzero(labels == label)
        wanted = share + (place < rest)
        rounds = [random.permutation(own) for _ in range(-(-wanted // len(own)))]
        drawn.append(np.concatenate([np.empty(0, dtype=np.int64), *rounds])[:wanted])
    return random.permutation(np.concatenate(drawn))
