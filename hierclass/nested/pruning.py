"""Which weights a level uses: by magnitude, with densities that fall while training goes on."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hierclass.errors import BackboneError
from hierclass.nested.sparse import ESCAPE

SCHEDULE = (0.1, 0.6)
"""Shares of training at which pruning starts and ends."""

UPDATES = 100
"""How often masks are chosen anew between start and end."""


def check_densities(densities: Sequence[float]) -> tuple[float, ...]:
    """Return the densities as a tuple; raise `BackboneError` unless they rise strictly in (0, 1]."""
    densities = tuple(float(density) for density in densities)
    rising = all(low < high for low, high in itertools.pairwise(densities))
    if not 0 < len(densities) < ESCAPE or not rising or densities[0] <= 0 or not densities[-1] <= 1:
        raise BackboneError(
            f"densities {list(densities)} do not fit; give one share per level, rising in (0, 1], "
            "like 0.05,0.1,0.2"
        )
    return densities


def step_of(progress: float) -> int:
    """Return the number of the choice of masks, 0 … `UPDATES`, that is due at `progress` (0 … 1)."""
    start, end = SCHEDULE
    share = 1.0 if progress >= end else 0.0
    if start < progress < end:
        share = (progress - start) / (end - start)
    return math.floor(UPDATES * share)


def densities_at(share: float, densities: Sequence[float]) -> list[float]:
    """Return the density of every level, `share` (0 … 1) of the way from dense to `densities`.

    Source: Zhu & Gupta 2017, equation 1.
    """
    return [density + (1 - density) * (1 - share) ** 3 for density in densities]


def rank(weight: Tensor, densities: Sequence[float]) -> Tensor:
    """Return for every value the lowest level that uses it (uint8), `len(densities)` for none.

    Level k uses the `densities[k]` of largest magnitude, rounded and at least one; of equal ones the first.
    """
    size = weight.numel()
    magnitude = weight.detach().float().abs().flatten().nan_to_num(0)
    levels = torch.full_like(magnitude, len(densities), dtype=torch.uint8)
    for level in reversed(range(len(densities))):
        count = max(1, math.floor(densities[level] * size + 0.5))
        smallest = magnitude.kthvalue(size - count + 1).values
        used = magnitude > smallest
        used[(magnitude == smallest).nonzero()[: count - int(used.sum()), 0]] = True
        levels[used] = level
    return levels.view_as(weight)


def masked(weight: Tensor, unused: Tensor) -> Tensor:
    """Return the weight with zero where `unused`, laid out in memory as it is; `masked_fill` would not keep that."""
    return torch.where(unused, 0, weight)


class Through(torch.autograd.Function):
    """Zero where unused; the gradient passes to unused values too."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, unused: Tensor) -> Tensor:
        """Mask the weight."""
        return masked(weight, unused)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """Pass the gradient on whole."""
        return gradient, None
