"""What each level of `prefix` and `depths` runs: its graph, its layers, and its parts of shared weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import fx, nn

from hierclass.nested.blocks import Block
from hierclass.nested.graph import Analysis, Cut, positions
from hierclass.nested.lowering import Lowered, layer_name, lower
from hierclass.nested.sharing import LOWER, Index, Numbered, Own, Part, joined, parameter_name, take_block
from hierclass.nested.thin import thin_skeleton


@dataclass(frozen=True)
class LevelPlan:
    """One level: its graph, its layers, and the parts of shared weights that they use."""

    graph: fx.Graph
    """The level over layers that hold all their weights."""
    names: tuple[str, ...]
    """Names of its layers."""
    parts: tuple[Part, ...]
    features: tuple[int, ...]
    """Which of the backbone's pooled features it computes."""
    model: nn.Module
    """The level as a timm model without memory for weights."""
    paths: Mapping[str, str]
    """Name of a layer → path of it, or of its weight, in `model`."""


Layers = dict[str, list[nn.Module]]
"""Name of an operation → the layer of each level, without the weights that it shares."""
Weights = dict[str, nn.Parameter]
"""Name → shared weight."""


def make_plans(
    backbone: nn.Module,
    analyses: Sequence[Analysis],
    left_out: Sequence[Sequence[Block]],
    owned: Sequence[Own],
) -> tuple[list[LevelPlan], Layers, Weights]:
    """Return plan and layers of every level, and copies of the weights that levels share.

    There is one analysis per level (see `seen_by`), with the blocks that the level leaves out and what it owns.
    """
    numbered = Numbered(backbone)
    layers: dict[str, list[nn.Module]] = {}
    lowered: list[Lowered] = []
    parts: dict[int, list[Part]] = {}
    taken = dict[str, list[nn.Module]]()
    for level, (analysis, blocks) in enumerate(zip(analyses, left_out, strict=True)):
        if not level or analysis is not analyses[level - 1]:  # equally wide levels take the same weights
            traced = dataclasses.replace(analysis.trace, backbone=numbered.backbone)
            taken = lower(dataclasses.replace(analysis, trace=traced)).layers
        lowered.append(lower(analysis, left_out=blocks, first=level))
        parts[level] = []
        for name, (layer,) in lowered[-1].layers.items():
            parts[level] += numbered.share(name, layer, taken[name][0], owned[level])
            layers.setdefault(name, [nn.Identity() for _ in range(level)]).append(layer)
        for listed in layers.values():
            listed += [nn.Identity() for _ in range(level + 1 - len(listed))]
    weights = {parameter_name(name): value for name, value in backbone.named_parameters() if value.numel()}
    parts, shared = _shared(parts, weights, [level for level, own in enumerate(owned) if own.everything])
    plans = [
        LevelPlan(
            graph=lowered[level].graphs[0],
            names=tuple(lowered[level].layers),
            parts=tuple(parts[level]),
            features=_features(analysis),
            model=thin_skeleton(analysis, blocks),
            paths=_paths(analysis),
        )
        for level, (analysis, blocks) in enumerate(zip(analyses, left_out, strict=True))
    ]
    return plans, layers, shared


def _shared(
    parts: Mapping[int, list[Part]], weights: Mapping[str, nn.Parameter], lower: Sequence[int]
) -> tuple[dict[int, list[Part]], dict[str, nn.Parameter]]:
    """Copy the weights that any level uses; the levels `lower` have smaller copies of their own in common."""
    taken: dict[str, list[Index]] = {}
    for level in lower:
        for part in parts[level]:
            taken.setdefault(part.weight, []).append(part.index)
    kept = {name: joined(indices) for name, indices in taken.items()}
    found = {
        level: [
            dataclasses.replace(part.moved(kept[part.weight]), weight=LOWER + part.weight)
            if level in lower
            else part
            for part in listed
        ]
        for level, listed in parts.items()
    }
    used = {part.weight for listed in found.values() for part in listed}
    shared = {
        name: nn.Parameter(value.detach().clone(), value.requires_grad)
        for name, value in weights.items()
        if name in used
    }
    for name, index in kept.items():
        value = weights[name]
        shared[LOWER + name] = nn.Parameter(take_block(value.detach(), index), value.requires_grad)
    return found, shared


def seen_by(analysis: Analysis, level: int) -> Analysis:
    """The analysis of a network of one level: what `level` sees, channels in their given order."""

    def merged(cut: Any) -> Any:
        if isinstance(cut, tuple):
            return tuple(merged(item) for item in cut)
        if not isinstance(cut, Cut):
            return cut
        return dataclasses.replace(cut, index=(np.sort(cut.up_to(level))[: cut.size],))

    values = {
        node: dataclasses.replace(value, cut=merged(value.cut)) for node, value in analysis.values.items()
    }
    return dataclasses.replace(analysis, levels=1, values=values)


def _features(analysis: Analysis) -> tuple[int, ...]:
    value = analysis.values[analysis.output]
    return tuple(map(int, positions(value.cut, 0, value.meta.shape[1])))


def _paths(analysis: Analysis) -> dict[str, str]:
    made = analysis.trace.made
    return {
        layer_name(node): made.get(str(node.target), str(node.target))
        for node in analysis.nodes
        if node.op in ("call_module", "get_attr")
    }
