"""Loss of a distillation: divergence from the teacher on the leaves and on each level's tier."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hierclass.nested import NestedNetwork
from hierclass.nested.heads import SummedLinear
from taxonomy import Taxonomy
from training.trainer.losses import sum_up


class StudentLevels(nn.Module):
    """The levels that are trained together; each gets images at its own side and scores the leaves."""

    def __init__(self, network: NestedNetwork, levels: Sequence[int]) -> None:
        """Wrap a network; parts of other levels alone are not run."""
        super().__init__()
        self.network, self.levels = network, tuple(levels)

    def forward(self, images: Sequence[Tensor]) -> list[Tensor]:
        """Images (B, 3, S, S) per level → logits of the leaves (B, leaves) per level."""
        return [
            score_leaves(self.network, each, level) for each, level in zip(images, self.levels, strict=True)
        ]


def score_leaves(network: NestedNetwork, images: Tensor, level: int) -> Tensor:
    """A level's logits of the leaves (B, leaves) for images (B, 3, S, S)."""
    head, features = network.heads[level], network.features(images, level)
    logits: Tensor = head.fine(features) if isinstance(head, SummedLinear) else head(features)
    return logits


class TeacherLoss(nn.Module):
    """Weighted sum over levels of the divergence from the teacher, on the leaves and on the level's tier."""

    def __init__(
        self, taxonomy: Taxonomy, levels: Sequence[int], *, leaf_weight: float = 1.0, tier_weight: float = 1.0
    ) -> None:
        """Level k answers tier k of the taxonomy."""
        super().__init__()
        self.levels, self.leaf_weight, self.tier_weight = tuple(levels), leaf_weight, tier_weight
        self.num_classes = taxonomy.num_classes
        for level in levels:
            projection = torch.tensor(taxonomy.projection(level), dtype=torch.long)
            self.register_buffer(f"projection{level}", projection, persistent=False)

    def forward(self, logits: Sequence[Tensor], answer: Tensor) -> Tensor:
        """Logits of the leaves per level and the teacher's probabilities (B, leaves) → a scalar."""
        total = answer.new_zeros(())
        for level, each in zip(self.levels, logits, strict=True):
            leaf, tier = self.divergences(each, answer, level)
            total = total + self.leaf_weight * leaf.mean() + self.tier_weight * tier.mean()
        return total

    def divergences(self, logits: Tensor, answer: Tensor, level: int) -> tuple[Tensor, Tensor]:
        """Kullback-Leibler divergence (nats) from the teacher, per image, on the leaves and on the level's tier."""
        logs = logits.float().log_softmax(dim=1)
        leaf = F.kl_div(logs, answer, reduction="none").sum(dim=1)
        tiny = torch.finfo(torch.float32).tiny
        ours = self.to_tier(logs.exp(), level).clamp_min(tiny).log()
        return leaf, F.kl_div(ours, self.to_tier(answer, level), reduction="none").sum(dim=1)

    def to_tier(self, shares: Tensor, level: int) -> Tensor:
        """Probabilities of the leaves (B, leaves) → those of a level's tier (B, num_classes[level])."""
        return sum_up(shares, getattr(self, f"projection{level}"), self.num_classes[level])


@torch.no_grad()
def compare_to_teacher(
    network: NestedNetwork, loss: TeacherLoss, level: int, batches: Iterable[tuple[Tensor, Tensor]]
) -> dict[str, Any]:
    """Compare a level, in evaluation mode, with the teacher over batches of images and the teacher's probabilities.

    Returns mean divergences in nats, and the share of images (0 to 1) with the same best leaf and best class of the
    tier.
    """
    rows = []
    for images, answer in batches:
        logits = score_leaves(network, images, level).float()
        leaf, tier = loss.divergences(logits, answer, level)
        shares = logits.softmax(dim=1)
        same_leaf = shares.argmax(dim=1) == answer.argmax(dim=1)
        classes = [loss.to_tier(each, level).argmax(dim=1) for each in (shares, answer)]
        rows.append(torch.stack([leaf, tier, same_leaf.float(), (classes[0] == classes[1]).float()], dim=1))
    means = torch.cat(rows).double().mean(dim=0).tolist()
    names = ("kl_leaf", "kl_tier", "agree_leaf", "agree_tier")
    return {"level": level, **{name: round(value, 5) for name, value in zip(names, means, strict=True)}}
