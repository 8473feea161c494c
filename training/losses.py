"""The loss of a nested network: one cross-entropy per level on its tier, and helpers for training only."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hierclass.nested import NestedNetwork
from taxonomy import Taxonomy
from training.balance import log_priors


class Trainee(nn.Module):
    """A nested network with an auxiliary linear head onto the leaves for every level but the last.

    The heads exist while training only: a low level that also sees the finest labels is better on its own
    tier (FACTS.md; Bilal et al. 2017, arXiv 1901.07012). The last level's own tier is the leaves already.
    """

    def __init__(self, network: NestedNetwork, num_leaves: int, *, auxiliary: bool = True) -> None:
        """Wrap a network; without ``auxiliary`` no head is added."""
        super().__init__()
        self.network = network
        lower = network.num_features[:-1] if auxiliary else ()
        self.finest = nn.ModuleList(nn.Linear(num_features, num_leaves) for num_features in lower)

    def forward(self, images: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Images (B, 3, H, W) → logits of every level on its tier and of the auxiliary heads on leaves."""
        features = self.network.features_all(images)
        levels = [self.network.classify(feature, level) for level, feature in enumerate(features)]
        finest = [head(feature) for head, feature in zip(self.finest, features, strict=False)]
        return levels, finest


class NestedLoss(nn.Module):
    """Weighted sum of the levels' cross-entropies, of the auxiliary finest ones and of the distillation.

    Targets are leaves: indices (B,) or, mixed by mixup or cutmix, soft (B, num_leaves). A soft target of a
    coarser tier is the sum over the leaves below each class, so that all levels always learn one consistent
    answer.
    """

    def __init__(
        self,
        taxonomy: Taxonomy,
        *,
        level_weights: Sequence[float],
        finest_weight: float,
        smoothing: float = 0.0,
        distil: float = 0.0,
        distil_from: str = "last",
        leaf_counts: Sequence[int] | None = None,
    ) -> None:
        """Take one weight per level; label smoothing is spread over the classes of each tier.

        ``leaf_counts`` (training images of each leaf) balance the loss: every tier's logits are adjusted by how
        frequent its classes are (`training.balance.log_priors`).

        ``distil_from`` is the level that teaches a lower one: the "last", or the "next" higher.
        """
        super().__init__()
        if len(level_weights) != taxonomy.num_tiers:
            raise ValueError(f"{len(level_weights)} level weights for {taxonomy.num_tiers} levels")
        self.level_weights = tuple(level_weights)
        self.finest_weight = finest_weight
        self.smoothing = smoothing
        self.distil = distil
        self.distil_from = distil_from
        for tier in range(taxonomy.num_tiers):
            projection = torch.tensor(taxonomy.projection(tier), dtype=torch.long)
            self.register_buffer(f"projection{tier}", projection, persistent=False)
            if tier and distil_from == "next":
                parents = torch.tensor(taxonomy.parent_classes(tier), dtype=torch.long)
                self.register_buffer(f"parents{tier}", parents, persistent=False)
        self.num_classes = tuple(taxonomy.num_classes)
        self.balanced = leaf_counts is not None
        for tier, prior in enumerate(log_priors(taxonomy, leaf_counts) if leaf_counts is not None else ()):
            self.register_buffer(f"prior{tier}", prior, persistent=False)

    def forward(
        self,
        levels: Sequence[Tensor],
        finest: Sequence[Tensor],
        target: Tensor,
        teachers: Sequence[Tensor] | None = None,
    ) -> Tensor:
        """Logits per level (B, num_classes[k]), auxiliary logits (B, num_leaves), target → a scalar.

        ``teachers`` are the logits to distil from, per level like ``levels`` (which is None's meaning); where
        the last level teaches, its own are enough.
        """
        if self.balanced:
            levels, finest = self._adjusted(levels), [logits + self._prior(-1) for logits in finest]
            teachers = self._adjusted(teachers) if teachers else None
        total = levels[-1].new_zeros(())
        for tier, (logits, weight) in enumerate(zip(levels, self.level_weights, strict=True)):
            if weight:
                total = total + weight * self.cross_entropy(logits, self.project(target, tier))
        if self.finest_weight:
            for logits in finest:
                total = total + self.finest_weight * self.cross_entropy(logits, target)
        if self.distil:
            total = total + self.distil * self.distillation(levels, teachers or levels)
        return total

    def _adjusted(self, levels: Sequence[Tensor]) -> list[Tensor]:
        """Logits of the last levels (all, or the last alone) with the frequency of their classes added."""
        return [logits + self._prior(place - len(levels)) for place, logits in enumerate(levels)]

    def _prior(self, place: int) -> Tensor:
        prior: Tensor = getattr(self, f"prior{len(self.num_classes) + place}")
        return prior

    def cross_entropy(self, logits: Tensor, target: Tensor) -> Tensor:
        """Mean cross-entropy with this loss's label smoothing; the target is an index or a distribution."""
        return F.cross_entropy(logits.float(), target, label_smoothing=self.smoothing)

    def project(self, target: Tensor, tier: int) -> Tensor:
        """A target on the leaves, (B,) or (B, num_leaves), as the target on a tier."""
        projection: Tensor = getattr(self, f"projection{tier}")
        return projection[target] if target.ndim == 1 else self._sum_up(target, projection, tier)

    def distillation(self, levels: Sequence[Tensor], teachers: Sequence[Tensor]) -> Tensor:
        """Sum over the lower levels: mean KL divergence from the teaching level's answer, summed up the tree.

        A higher level teaches the ones inside it (NestedNet, Kim et al. 2018).
        """
        total = levels[-1].new_zeros((), dtype=torch.float32)
        for tier, logits in enumerate(levels[:-1]):
            if self.distil_from == "next":
                source, classes = teachers[tier + 1], getattr(self, f"parents{tier + 1}")
            else:
                source, classes = teachers[-1], getattr(self, f"projection{tier}")
            answer = self._sum_up(source.detach().float().softmax(dim=1), classes, tier)
            total = total + F.kl_div(logits.float().log_softmax(dim=1), answer, reduction="batchmean")
        return total

    def _sum_up(self, shares: Tensor, classes: Tensor, tier: int) -> Tensor:
        """Shares (B, C) of finer classes as shares (B, num_classes[tier]) of ``classes`` (C,), theirs in a tier."""
        return shares.new_zeros(len(shares), self.num_classes[tier]).index_add_(1, classes, shares)
