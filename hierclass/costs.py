"""What the levels of a network cost."""

from __future__ import annotations

import dataclasses
import itertools
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Cost:
    """What one level costs for one image, everything below it included."""

    macs: int
    """Multiply-accumulates of convolutions, linear layers and matrix products, counted while they run."""
    parameters: int
    """Number of weights that the level uses."""
    bytes: int
    """Memory of those weights and of the normalisation statistics in float32."""


class HasCosts(Protocol):
    """A network, or what runs one."""

    @property
    def reuses(self) -> bool:
        """Whether a level is computed from what lower levels computed."""
        ...

    @property
    def num_levels(self) -> int:
        """Number of levels."""
        ...

    def cost(self, level: int) -> Cost:
        """Return what a level costs for one image."""
        ...


def answer_costs(network: HasCosts, lower_weight: float = 0.0) -> list[Cost]:
    """Return what an answer at each level costs, where lower levels count with `lower_weight` in it.

    Levels that share no computing are all run where all have a say: their multiply-accumulates add up.
    """
    costs = [network.cost(level) for level in range(network.num_levels)]
    if network.reuses or not lower_weight:
        return costs
    totals = itertools.accumulate(cost.macs for cost in costs)
    return [dataclasses.replace(cost, macs=total) for cost, total in zip(costs, totals, strict=True)]
