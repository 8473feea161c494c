"""What the levels of a network answer and cost."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol


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


@dataclass(frozen=True, slots=True)
class Level:
    """What one level answers, and the cost of its answer to one image, lower levels that it needs included."""

    index: int
    num_classes: int
    macs: int
    """Multiply-accumulates."""
    share: float
    """Multiply-accumulates relative to the last level's, 0 … 1."""
    step_macs: int
    """Multiply-accumulates of its step of `Classifier.refine`: what it adds, or all if nothing is reused."""
    step_share: float
    """`step_macs` relative to the last level's `macs`; the steps add up to more than 1 if nothing is reused."""
    parameters: int
    bytes: int
    accuracy: float | None
    """Share of right answers (0 … 1) on its own tier, on the dev split; None if it was not measured."""

    def __repr__(self) -> str:
        right = "" if self.accuracy is None else f", {self.accuracy:.0%} right"
        return f"<Level {self.index}: {self.num_classes:,} classes, {self.share:.0%} of the cost{right}>"


def cost_alike(levels: Sequence[Level]) -> bool:
    """Return whether every level runs the whole network: a coarser answer saves nothing (`from_timm`, masks)."""
    return len(levels) > 1 and levels[0].share > 0.995  # heads differ a little


def run_once(levels: Sequence[Level]) -> bool:
    """Return whether the first step of refining computes all that finer levels need (`from_timm`)."""
    return len(levels) > 1 and not any(level.step_macs for level in levels[1:])


def describe_levels(
    network: HasCosts, num_classes: Sequence[int], lower_weight: float, results: Mapping[str, Any]
) -> tuple[Level, ...]:
    """Return what each level answers and costs, where lower levels count with `lower_weight` in its answer.

    `results` are the measured figures of a model (`hierclass.checkpoints.description.ModelDescription`).
    """
    costs = answer_costs(network, lower_weight)
    included = [0, *(cost.macs for cost in costs)] if network.reuses or lower_weight else [0] * len(costs)
    steps = [cost.macs - lower for cost, lower in zip(costs, included, strict=False)]
    return tuple(
        Level(
            index=index,
            num_classes=num_classes[index],
            macs=cost.macs,
            share=cost.macs / costs[-1].macs,
            step_macs=steps[index],
            step_share=steps[index] / costs[-1].macs,
            parameters=cost.parameters,
            bytes=cost.bytes,
            accuracy=_measured_accuracy(results, index),
        )
        for index, cost in enumerate(costs)
    )


def _measured_accuracy(results: Mapping[str, Any], level: int) -> float | None:
    """`results["dev"]["levels"][level]["top1"]` if it was measured, else None."""
    try:
        return float(results["dev"]["levels"][level]["top1"])
    except (KeyError, IndexError, TypeError, ValueError):
        return None
