"""The loss of a nested network: one cross-entropy per level on its tier, with helpers for training."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hierclass.nested import NestedNetwork
from hierclass.nested.heads import SummedLinear
from taxonomy import Taxonomy
from training.data.class_balance import log_priors
from training.data.samples import UNKNOWN, truth_table


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

    Targets are labels, rows of `training.data.samples.truth_table`: indices (B,) or, mixed by mixup or cutmix, shares
    (B, num_labels). Tiers of which a label says nothing are left out for that image, or for its share of a mixed one:
    what is summed over tiers is divided by all B images, known or not, so that parts of a batch add up to the whole.
    """

    leaf_shares: Tensor

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
        label_counts: Sequence[int] | None = None,
    ) -> None:
        """Take one weight per level; ``smoothing`` is the share of every target that goes to other classes.

        Along the "tier" smoothing is spread evenly over its classes; along the "tree" evenly over the true class's
        groups of every tier and the root, and in each evenly over its leaves. ``distil_from`` is the level that teaches
        a lower one: the "last", or the "next" higher; it teaches its answer on the lower level's "tier", or (last level
        only) on the "leaves" (``distil_to``). ``label_counts``, training images of each label, balance the loss by
        logit adjustment (`training.data.class_balance.log_priors`).
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
        table = torch.tensor(truth_table(taxonomy), dtype=torch.long)
        self.num_labels = len(table)
        for tier in range(taxonomy.num_tiers):
            self.register_buffer(f"truth{tier}", table[:, tier].contiguous(), persistent=False)
            projection = torch.tensor(taxonomy.projection(tier), dtype=torch.long)
            self.register_buffer(f"projection{tier}", projection, persistent=False)
            if tier and distil_from == "next":
                parents = torch.tensor(taxonomy.parent_classes(tier), dtype=torch.long)
                self.register_buffer(f"parents{tier}", parents, persistent=False)
            sizes = torch.bincount(projection, minlength=taxonomy.num_classes[tier])
            self.register_buffer(f"sizes{tier}", sizes, persistent=False)
        self.num_classes = tuple(taxonomy.num_classes)
        if self.tree_smoothing:
            self.register_buffer("leaf_shares", _leaf_shares(taxonomy), persistent=False)
        self.balanced = label_counts is not None
        for tier, prior in enumerate(log_priors(taxonomy, label_counts) if label_counts is not None else ()):
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
        if self.balanced:
            levels, finest = self._adjusted(levels), [logits + self._prior(-1) for logits in finest]
            teachers = self._adjusted(teachers) if teachers else None
        total = levels[-1].new_zeros(())
        for tier, (logits, weight) in enumerate(zip(levels, self.level_weights, strict=True)):
            if weight:
                total = total + weight * self.cross_entropy(logits, self.project(target, tier))
        if self.finest_weight:
            for logits in finest:
                total = total + self.finest_weight * self.cross_entropy(
                    logits, self.project(target, len(self.num_classes) - 1)
                )
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
        """Mean cross-entropy with this loss's label smoothing, unknown targets (`project`) counting 0."""
        if target.ndim == 1:
            total = F.cross_entropy(
                logits.float(), target, ignore_index=UNKNOWN, label_smoothing=self.smoothing, reduction="sum"
            )
            return total / len(target)
        even = target.sum(dim=1, keepdim=True) / target.shape[1]
        return F.cross_entropy(logits.float(), (1 - self.smoothing) * target + self.smoothing * even)

    def smooth(self, target: Tensor) -> Tensor:
        """Spread a share of a target, (B,) or (B, num_labels), along the tree: (B, num_leaves).

        An inner node counts as all leaves below it alike. Soft labels by closeness in the tree (Bertinetto et al. 2020,
        *Making Better Mistakes*, section 3.2); here a sum over tiers replaces the exponential of heights, so that there
        is no second parameter.
        """
        target = self._as_shares(target)
        target = target @ self.leaf_shares[: target.shape[1]]
        spread = target.sum(dim=1, keepdim=True).expand_as(target) / self.num_classes[-1]
        for tier in range(len(self.num_classes) - 1):
            projection, sizes = getattr(self, f"projection{tier}"), getattr(self, f"sizes{tier}")
            spread = spread + (self._sum_up(target, projection, tier) / sizes)[:, projection]
        return (1 - self.tree_smoothing) * target + self.tree_smoothing / len(self.num_classes) * spread

    def project(self, target: Tensor, tier: int) -> Tensor:
        """The target on a tier: class indices (B,), `UNKNOWN` where a label says nothing, or shares (B, C).

        Shares of labels that say nothing are left out, so that those of an image sum to less than 1.
        """
        truth: Tensor = getattr(self, f"truth{tier}")
        if target.ndim == 1 and not self.tree_smoothing:
            return truth[target]
        shares = self._as_shares(target)
        truth = truth[: shares.shape[1]]
        known = shares * (truth != UNKNOWN)
        if self.tree_smoothing:
            return self._sum_up(self.smooth(known), getattr(self, f"projection{tier}"), tier)
        return self._sum_up(known, truth.clamp_min(0), tier)

    def _as_shares(self, target: Tensor) -> Tensor:
        return F.one_hot(target, self.num_labels).float() if target.ndim == 1 else target

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


def _leaf_shares(taxonomy: Taxonomy) -> Tensor:
    """Every label as equal shares of the leaves below it: (num_labels, num_leaves), float32."""
    table = truth_table(taxonomy)
    leaves, inner = np.split(table, [len(taxonomy.leaves)])
    below = ((inner[:, None, :] == leaves) | (inner[:, None, :] == UNKNOWN)).all(axis=2).astype(np.float32)
    return torch.from_numpy(
        np.concatenate([np.eye(len(leaves), dtype=np.float32), below / below.sum(1, keepdims=True)])
    )


def sum_up(shares: Tensor, classes: Tensor, num_classes: int) -> Tensor:
    """Sum probabilities (B, C) of finer classes to those (B, num_classes) of their coarser ``classes`` (C,)."""
    return shares.new_zeros(len(shares), num_classes).index_add_(1, classes, shares)
