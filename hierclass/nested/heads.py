"""The classifiers of the levels: linear ones, and ones that score fine classes and sum them up."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from hierclass.errors import BackboneError

ClassGroups = Sequence[int]
"""For every fine class the class that it belongs to, 0, 1, …; every class has at least one."""


class SummedLinear(nn.Linear):
    """A linear classifier of fine classes whose probabilities are summed up to coarser classes.

    A level that tells the leaves apart while it trains is better on its own, coarser tier (arXiv 1901.07012;
    docs/training.md has our figures), and a coarse class whose leaves look nothing alike needs no single direction.
    """

    groups: Tensor

    def __init__(self, num_features: int, groups: ClassGroups):
        """Score `len(groups)` fine classes; fine class i belongs to class `groups[i]`."""
        num_classes = check_groups(groups)
        super().__init__(num_features, len(groups))
        self.num_classes = num_classes
        self.register_buffer("groups", torch.tensor(list(groups), dtype=torch.int64))

    def fine(self, features: Tensor) -> Tensor:
        """Return the logits (B, len(groups)) of the fine classes for pooled features (B, num_features)."""
        return super().forward(features)

    def sum_up(self, fine: Tensor) -> Tensor:
        """Return log-probabilities (B, num_classes), float32, for the logits (B, len(groups)) of the fine classes."""
        shares = fine.float().softmax(dim=1)
        summed = shares.new_zeros(shares.shape[0], self.num_classes).index_add(1, self.groups, shares)
        return summed.clamp_min(torch.finfo(torch.float32).tiny).log()

    def forward(self, features: Tensor) -> Tensor:
        """Return log-probabilities (B, num_classes) for pooled features (B, num_features)."""
        return self.sum_up(self.fine(features))


def make_heads(
    num_features: Iterable[int],
    num_classes: Iterable[int],
    groups: Sequence[ClassGroups | None] | None = None,
) -> nn.ModuleList:
    """Return one head per level: a `SummedLinear` where `groups` has something for a level, else a linear one.

    Raises:
        BackboneError: the groups of a level do not make its number of classes.
    """
    sizes = list(zip(num_features, num_classes, strict=True))
    groups = [None] * len(sizes) if groups is None else groups
    if len(groups) != len(sizes):
        raise BackboneError(
            f"groups are given for {len(groups)} of {len(sizes)} levels; give None for the others"
        )
    heads: list[nn.Module] = []
    for level, ((features, classes), group) in enumerate(zip(sizes, groups, strict=True)):
        if group is not None and check_groups(group) != classes:
            raise BackboneError(
                f"the groups of level {level} make {check_groups(group)} classes, not {classes}"
            )
        heads.append(nn.Linear(features, classes) if group is None else SummedLinear(features, group))
    return nn.ModuleList(heads)


def check_groups(groups: ClassGroups) -> int:
    """Return the number n of classes that the groups make: 0 … n - 1, none of them empty.

    Raises:
        BackboneError: one of these classes has no fine class.
    """
    present = sorted(set(groups))
    if not present or present != list(range(len(present))):
        raise BackboneError("groups must number their classes 0, 1, … and leave none out")
    return len(present)
