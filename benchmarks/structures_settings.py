"""What all rows of `benchmarks/structures.py` have in common, and plain networks of the same cost as a level."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from hierclass.nested import DEFAULT_SHARES, NestedNetwork, create_backbone, nest
from hierclass.nested.analysis.channel_groups import boundaries
from taxonomy import load_taxonomy
from training.recipe.recipe import Recipe

BACKBONE = "resnet10t"
STAGES = 4
LEVEL_WEIGHTS = (1.0, 1.0, 2.0)


@dataclass(frozen=True)
class Settings:
    """Data, network and recipe of a comparison."""

    data: tuple[str, ...]
    taxonomy: str
    dev_from: int | None
    size: int
    epochs: int
    limit: int
    batch_size: int
    channels: int
    """Of the first stage; every further stage has twice as many."""
    blocks: int
    """Residual blocks in every stage."""

    def to_dict(self) -> dict[str, Any]:
        """JSON values, without folders of this machine, and the number of classes of every tier."""
        classes = list(load_taxonomy(self.taxonomy).num_classes)
        names = [Path(path).name for path in self.data]
        return {**asdict(self), "data": names, "taxonomy": Path(self.taxonomy).name, "classes": classes}

    def backbone_args(self, channels: Sequence[int] | None = None) -> dict[str, Any]:
        """Arguments of timm for the backbone, or for one with other channels per stage."""
        channels = tuple(channels or (self.channels * 2**stage for stage in range(STAGES)))
        stem = max(4, round(channels[0] * 2 / 3 / 4) * 4)
        return {"layers": (self.blocks,) * STAGES, "channels": channels, "stem_width": stem}

    def recipe(self, seed: int, **changes: Any) -> Recipe:
        """The common recipe with some options of a row's own."""
        options: dict[str, Any] = {
            "data": self.data,
            "taxonomy": self.taxonomy,
            "backbone": BACKBONE,
            "backbone_args": self.backbone_args(),
            "size": self.size,
            "dev_from": self.dev_from,
            "limit": self.limit,
            "epochs": self.epochs,
            "batch_size": self.batch_size,
            "warmup_epochs": min(1, self.epochs - 1),
            "level_weights": LEVEL_WEIGHTS,
            "crop_scale": (0.5, 1.0),
            "consensus": 0.0,  # levels are judged alone; what consensus is worth is measured all the same
        }
        options.update(changes)
        options["eval_every"] = options["epochs"]  # no epoch is chosen by its result
        return Recipe(seed=seed, **options)


def nest_untrained(
    settings: Settings, channels: Sequence[int] | None = None, **arguments: Any
) -> NestedNetwork:
    """Nest the backbone of the settings, or one with other channels per stage, for its costs alone."""
    widths = arguments.setdefault("widths", DEFAULT_SHARES)
    return nest(
        create_backbone(BACKBONE, **settings.backbone_args(channels)),
        num_classes=(1,) * len(widths),
        input_size=(3, settings.size, settings.size),
        **arguments,
    )


def plain_macs(settings: Settings, channels: Sequence[int]) -> int:
    """Multiply-accumulates of a plain network with so many channels per stage, without its classifier."""
    backbone = create_backbone(BACKBONE, **settings.backbone_args(channels)).eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        backbone(torch.zeros(1, 3, settings.size, settings.size))
    return int(counter.get_total_flops()) // 2


@functools.cache
def matching_channels(settings: Settings) -> tuple[tuple[int, ...], ...]:
    """Per level of `slices`: channels per stage of a plain network of about the same multiply-accumulates."""
    slices = nest_untrained(settings)
    full = [settings.channels * 2**stage for stage in range(STAGES)]
    tried: dict[tuple[int, ...], int] = {tuple(full): plain_macs(settings, full)}
    found = []
    for level in range(slices.num_levels):
        wanted = slices.cost(level).macs
        guess = (wanted / tried[tuple(full)]) ** 0.5
        for percent in range(-24, 26, 2):
            share = guess * (1 + percent / 100)
            channels = tuple(max(2, round(count * share / 2) * 2) for count in full)
            if channels not in tried:
                tried[channels] = plain_macs(settings, channels)
        found.append(min(tried, key=lambda channels: abs(tried[channels] - wanted)))
    return tuple(found)


@functools.cache
def matching_widths(settings: Settings) -> tuple[float, ...]:
    """Widths of `prefix` on the plain network of the last level: each level costs about what that of slices does."""
    channels, slices = matching_channels(settings)[-1], nest_untrained(settings)
    costs: dict[float, int] = {}
    seen = set()
    for percent in range(20, 92, 4):
        widths = (percent / 100, 1.0)
        cut = tuple(boundaries(count, widths) for count in channels)
        if cut not in seen:
            costs[widths[0]] = (
                nest_untrained(settings, channels, structure="prefix", widths=widths).cost(0).macs
            )
        seen.add(cut)
    low, high = (
        min(costs, key=lambda width: abs(costs[width] - slices.cost(level).macs)) for level in (0, 1)
    )
    return (low, high, 1.0)
