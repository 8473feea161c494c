"""Making up for classes of many and of few images: in the loss, or by how often images are drawn.

Both start from the leaves. The loss knows every tier by its own frequencies, which are sums over the leaves below each
class; sampling gives every leaf the same share of an epoch, and so a coarser class that of its leaves.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from taxonomy import Taxonomy
from training.data.samples import LeafArray

HINT_AT = 10
"""How many times as many images the largest class has as the smallest, from where the option is recommended."""


def log_priors(taxonomy: Taxonomy, leaf_counts: Sequence[int]) -> list[Tensor]:
    """Per tier the natural logarithm of each class's share of the training images, (num_classes[k],) float32.

    Added to the logits while training only, they make the network learn what tells classes apart apart from how
    frequent they are: logit adjustment with τ = 1, the loss of Menon et al. 2021, *Long-tail learning via logit
    adjustment* (arXiv 2007.07314), equation 10. A leaf without images counts as one image.
    """
    counts = np.maximum(np.asarray(leaf_counts, dtype=np.float64), 1)
    priors = []
    for tier, num_classes in enumerate(taxonomy.num_classes):
        sums = np.bincount(taxonomy.projection(tier), weights=counts, minlength=num_classes)
        priors.append(torch.tensor(np.log(sums / sums.sum()), dtype=torch.float32))
    return priors


def balanced_order(leaves: LeafArray, random: np.random.Generator) -> LeafArray:
    """The samples of one epoch, (N,) indices into ``leaves`` (N,): every leaf equally often, to within one.

    A leaf of few images has them repeated, each equally often to within one; of a leaf of many, a part is drawn.
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
