"""The loss of a nested network: one cross-entropy per level on its tier, and helpers for training only."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hierclass.nested import NestedNetwork
from taxonomy import Taxonomy


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
    ) -> None:
        """Take one weight per level; label smoothing is spread over the classes of each tier."""
        super().__init__()
        if len(level_weights) != taxonomy.num_tiers:
            raise ValueError(f"{len(level_weights)} level weights for {taxonomy.num_tiers} levels")
        self.level_weights = tuple(level_weights)
        self.finest_weight = finest_weight
        self.smoothing = smoothing
        self.distil = distil
        for tier in range(taxonomy.num_tiers):
            projection = torch.tensor(taxonomy.projection(tier), dtype=torch.long)
            self.register_buffer(f"projection{tier}", projection, persistent=False)
        self.num_classes = tuple(taxonomy.num_classes)

    def forward(self, levels: Sequence[Tensor], finest: Sequence[Tensor], target: Tensor) -> Tensor:
        """Logits per level (B, num_classes[k]), auxiliary logits (B, num_leaves), target → a scalar."""
        total = levels[-1].new_zeros(())
        for tier, (logits, weight) in enumerate(zip(levels, self.level_weights, strict=True)):
            if weight:
                total = total + weight * self.cross_entropy(logits, self.project(target, tier))
        if self.finest_weight:
            for logits in finest:
                total = total + self.finest_weight * self.cross_entropy(logits, target)
        if self.distil:
            total = total + self.distil * self.distillation(levels)
        return total

    def cross_entropy(self, logits: Tensor, target: Tensor) -> Tensor:
        """Mean cross-entropy with this loss's label smoothing; the target is an index or a distribution."""
        return F.cross_entropy(logits.float(), target, label_smoothing=self.smoothing)

    def project(self, target: Tensor, tier: int) -> Tensor:
        """A target on the leaves, (B,) or (B, num_leaves), as the target on a tier."""
        projection: Tensor = getattr(self, f"projection{tier}")
        if target.ndim == 1:
            return projection[target]
        return target.new_zeros(len(target), self.num_classes[tier]).index_add_(1, projection, target)

    def distillation(self, levels: Sequence[Tensor]) -> Tensor:
        """Mean KL divergence of each lower level from the last level's answer, summed up the tree."""
        answer = levels[-1].detach().float().softmax(dim=1)
        total = answer.new_zeros(())
        for tier, logits in enumerate(levels[:-1]):
            teacher = self.project(answer, tier)
            total = total + F.kl_div(logits.float().log_softmax(dim=1), teacher, reduction="batchmean")
        return total
