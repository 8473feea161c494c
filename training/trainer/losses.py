"""The loss of a nested network: one cross-entropy per level on its tier, with helpers for training."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hierclass.nested import NestedNetwork
from hierclass.nested.heads import SummedLinear
from taxonomy import Taxonomy
from training.data.class_balance import log_priors


class TrainingModel(nn.Module):
    """A nested network whose lower levels also score the leaves while training.

    Learning the finest labels improves a low level on its own tier (arXiv 1901.07012). `SummedLinear` heads score
    leaves anyway; other levels get an auxiliary linear head for training only. The last level's own tier is the leaves.
    """

    def __init__(self, network: NestedNetwork, num_leaves: int, *, auxiliary: bool = True) -> None:
        """Wrap a network; without ``auxiliary`` no head is added, and the leaves of lower levels are not scored."""
        super().__init__()
        self.network = network
        self.auxiliary = auxiliary
        lower = zip(network.heads[:-1], network.num_features[:-1], strict=True) if auxiliary else ()
        self.finest = nn.ModuleList(
            nn.Linear(features, num_leaves) for head, features in lower if not isinstance(head, SummedLinear)
        )

    def forward(self, images: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Images (B, 3, H, W) → logits of every level on its tier, and of all but the last on the leaves."""
        levels: list[Tensor] = []
        finest: list[Tensor] = []
        auxiliary = iter(self.finest)
        for head, features in zip(self.network.heads, self.network.features_all(images), strict=True):
            if isinstance(head, SummedLinear):
                finest.append(head.fine(features))
                levels.append(head.sum_up(finest[-1]))
            else:
                levels.append(head(features))
                if self.auxiliary and len(levels) < len(self.network.heads):
                    finest.append(next(auxiliary)(features))
        return levels, finest if self.auxiliary else []


class NestedLoss(nn.Module):
    """Weighted sum of the levels' cross-entropies on their tiers, those on the leaves, and distillation.

    Targets are leaves: indices (B,) or, mixed by mixup or cutmix, shares (B, num_leaves). The target of a coarser tier
    is the sum over the leaves below each class.
    """

    def __init__(
        self,
        taxonomy: Taxonomy,
        *,
        level_weights: Sequence[float],
        finest_weight: float,
        smoothing: float = 0.0,
        smoothing_along: str = "tier",
        distil: float = 0.0,
        distil_from: str = "last",
        distil_to: str = "tier",
        leaf_counts: Sequence[int] | None = None,
    ) -> None:
        """Take one weight per level; ``smoothing`` is the share of every target that goes to other classes.

        Along the "tier" smoothing is spread evenly over its classes; along the "tree" evenly over the true class's
        groups of every tier and the root, and in each evenly over its leaves. ``distil_from`` is the level that teaches
        a lower one: the "last", or the "next" higher; it teaches its answer on the lower level's "tier", or (last level
        only) on the "leaves" (``distil_to``). ``leaf_counts``, training images of each leaf, balance the loss by logit
        adjustment (`training.data.class_balance.log_priors`).
        """
        super().__init__()
        if len(level_weights) != taxonomy.num_tiers:
            raise ValueError(f"{len(level_weights)} level weights for {taxonomy.num_tiers} levels")
        self.level_weights = tuple(level_weights)
        self.finest_weight = finest_weight
        self.smoothing = smoothing if smoothing_along == "tier" else 0.0
        self.tree_smoothing = smoothing if smoothing_along == "tree" else 0.0
        self.distil = distil
        self.distil_from = distil_from
        self.distil_to = distil_to
        for tier in range(taxonomy.num_tiers):
            projection = torch.tensor(taxonomy.projection(tier), dtype=torch.long)
            self.register_buffer(f"projection{tier}", projection, persistent=False)
            if tier and distil_from == "next":
                parents = torch.tensor(taxonomy.parent_classes(tier), dtype=torch.long)
                self.register_buffer(f"parents{tier}", parents, persistent=False)
            sizes = torch.bincount(projection, minlength=taxonomy.num_classes[tier])
            self.register_buffer(f"sizes{tier}", sizes, persistent=False)
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
        """Logits per level (B, num_classes[k]), those of lower levels on the leaves (B, num_leaves), target → a scalar.

        ``teachers`` are the logits to distil from, per level (or the last alone if it teaches); None: ``levels``.
        """
        if self.tree_smoothing:
            target = self.smooth(target)
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
            total = total + self.distil * self.distillation(levels, finest, teachers or levels)
        return total

    def _adjusted(self, levels: Sequence[Tensor]) -> list[Tensor]:
        """Logits of the last levels (all, or the last alone) with the logarithms of class frequencies added."""
        return [logits + self._prior(place - len(levels)) for place, logits in enumerate(levels)]

    def _prior(self, place: int) -> Tensor:
        prior: Tensor = getattr(self, f"prior{len(self.num_classes) + place}")
        return prior

    def cross_entropy(self, logits: Tensor, target: Tensor) -> Tensor:
        """Mean cross-entropy with this loss's label smoothing; the target is an index or a distribution."""
        return F.cross_entropy(logits.float(), target, label_smoothing=self.smoothing)

    def smooth(self, target: Tensor) -> Tensor:
        """Spread a share of a target on the leaves, (B,) or (B, num_leaves), along the tree: (B, num_leaves).

        Soft labels by closeness in the tree (Bertinetto et al. 2020, *Making Better Mistakes*, section 3.2); here a sum
        over tiers replaces the exponential of heights, so that there is no second parameter.
        """
        if target.ndim == 1:
            target = F.one_hot(target, self.num_classes[-1]).float()
        spread = target.sum(dim=1, keepdim=True).expand_as(target) / self.num_classes[-1]
        for tier in range(len(self.num_classes) - 1):
            projection, sizes = getattr(self, f"projection{tier}"), getattr(self, f"sizes{tier}")
            spread = spread + (self._sum_up(target, projection, tier) / sizes)[:, projection]
        return (1 - self.tree_smoothing) * target + self.tree_smoothing / len(self.num_classes) * spread

    def project(self, target: Tensor, tier: int) -> Tensor:
        """Project a target on the leaves, (B,) or (B, num_leaves), to a tier."""
        projection: Tensor = getattr(self, f"projection{tier}")
        return projection[target] if target.ndim == 1 else self._sum_up(target, projection, tier)

    def distillation(
        self, levels: Sequence[Tensor], finest: Sequence[Tensor], teachers: Sequence[Tensor]
    ) -> Tensor:
        """Sum over lower levels of the mean KL divergence from the teaching level.

        A higher level teaches the ones inside it (NestedNet, Kim et al. 2018).
        """
        total = levels[-1].new_zeros((), dtype=torch.float32)
        if self.distil_to == "leaves":
            answer = teachers[-1].detach().float().softmax(dim=1)
            for logits in finest:
                total = total + F.kl_div(logits.float().log_softmax(dim=1), answer, reduction="batchmean")
            return total
        for tier, logits in enumerate(levels[:-1]):
            if self.distil_from == "next":
                source, classes = teachers[tier + 1], getattr(self, f"parents{tier + 1}")
            else:
                source, classes = teachers[-1], getattr(self, f"projection{tier}")
            answer = self._sum_up(source.detach().float().softmax(dim=1), classes, tier)
            total = total + F.kl_div(logits.float().log_softmax(dim=1), answer, reduction="batchmean")
        return total

    def _sum_up(self, shares: Tensor, classes: Tensor, tier: int) -> Tensor:
        return sum_up(shares, classes, self.num_classes[tier])


def sum_up(shares: Tensor, classes: Tensor, num_classes: int) -> Tensor:
    """Sum probabilities (B, C) of finer classes to those (B, num_classes) of their coarser ``classes`` (C,)."""
    return shares.new_zeros(len(shares), num_classes).index_add_(1, classes, shares)
