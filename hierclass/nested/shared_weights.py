"""The blocks of shared weights that the layers of each level use, and what a level owns instead."""

from __future__ import annotations

import copy
import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn
from torch.nn.modules.conv import _ConvNd

from hierclass.errors import BackboneError
from hierclass.nested.analysis.layer_rules import ChannelRule, own_tensors, rule_for
from hierclass.nested.analysis.partition import Analysis, Partition, positions
from hierclass.nested.analysis.residual_blocks import ResidualBlock
from hierclass.nested.extract import ThinModel
from hierclass.nested.level_graph import graph_from_rows, graph_to_rows
from hierclass.nested.lowering import Lowered, layer_name, lower

Index = tuple[NDArray[np.int64], ...]
"""Positions along every axis of a weight."""

LOWER = "lower/"
"""Prefix of the names of weights that levels with `everything` of their own share among themselves."""


@dataclass(frozen=True)
class OwnWeights:
    """What a level below the last owns instead of sharing it with the level above; heads are always own.

    Norms are always own. `depthwise`: the filters of depth-wise convolutions, too. `rank`: a low-rank correction of
    this rank is added to every block of the shared weights; 0 is none. `everything`: the level shares no weight with
    the last one; levels that own everything share one set among themselves.
    """

    depthwise: bool = False
    rank: int = 0
    everything: bool = False

    @classmethod
    def parse(cls, text: str) -> OwnWeights:
        """Return what "norms", "norms+depthwise", either with "+rank16" (or another rank), or "everything" means.

        Raises:
            BackboneError: the text is none of these.
        """
        if text == "everything":
            return cls(everything=True)
        found = re.fullmatch(r"norms(\+depthwise)?(?:\+rank([1-9]\d{0,3}))?", text)
        if found is None:
            raise BackboneError(
                f"own {text!r} is not known; give norms, norms+depthwise, one of these with +rank16 (or another "
                "rank), or everything"
            )
        return cls(depthwise=found[1] is not None, rank=int(found[2] or 0))

    def has(self, layer: nn.Module) -> bool:
        """Return whether a level owns all weights of a layer."""
        return self.depthwise and is_depthwise(layer)


def is_depthwise(layer: nn.Module) -> bool:
    """Return whether a layer is a convolution with one group per input channel."""
    return isinstance(layer, _ConvNd) and layer.groups > 1 and layer.groups == layer.in_channels


@dataclass(frozen=True)
class WeightBlock:
    """Where a layer of one level takes its weight `name` from: the positions `index` of the shared weight `weight`.

    `rank` is that of the level's own correction of it, 0 without one.
    """

    layer: str
    name: str
    weight: str
    index: Index
    rank: int = 0

    def moved(self, kept: Index) -> WeightBlock:
        """Return the same block of a weight of which only the positions `kept` are left."""
        index = tuple(np.searchsorted(k, i) for k, i in zip(kept, self.index, strict=True))
        return dataclasses.replace(self, index=index)

    @property
    def matrix_size(self) -> tuple[int, int]:
        """Return rows and columns of the block as the matrix to which a correction is added."""
        sizes = [len(index) for index in self.index]
        return sizes[0], int(np.prod(sizes[1:]))


class NumberedBackbone:
    """A copy of a backbone whose weights hold a different number in every element, to see where layers take theirs."""

    def __init__(self, backbone: nn.Module) -> None:
        """Copy `backbone` and number its weights."""
        memo: dict[int, Any] = {}
        self.starts: dict[str, int] = {}
        self.shapes: dict[str, torch.Size] = {}
        count = 0
        for name, value in backbone.named_parameters():
            self.starts[name] = count
            self.shapes[name] = value.shape
            numbers = torch.arange(count, count + value.numel()).reshape(value.shape)
            memo[id(value)] = nn.Parameter(numbers, requires_grad=False)
            count += value.numel()
        self.backbone: nn.Module = copy.deepcopy(backbone, memo)

    def share(
        self, name_of_layer: str, layer: nn.Module, numbered: nn.Module, own: OwnWeights
    ) -> list[WeightBlock]:
        """Take the weights out of a layer, unless a level owns them, and return the blocks that they are."""
        if isinstance(rule_for(layer), ChannelRule) or own.has(layer):
            return []
        names, firsts = list(self.starts), np.fromiter(self.starts.values(), np.int64)
        parts: list[WeightBlock] = []
        for name, value in own_tensors(layer):
            if not isinstance(value, nn.Parameter) or not value.numel():
                continue
            numbers = getattr(numbered, name).detach().numpy()
            number = int(np.searchsorted(firsts, numbers.flat[0], side="right")) - 1
            while not self.shapes[names[number]].numel():
                number -= 1
            shape = self.shapes[names[number]]
            index: list[NDArray[np.int64]] = []
            for axis, size in enumerate(shape):
                line = numbers[tuple(slice(None) if a == axis else 0 for a in range(numbers.ndim))]
                index.append((line - firsts[number]) // int(np.prod(shape[axis + 1 :])) % size)
            correct = own.rank and value.ndim > 1 and not is_depthwise(layer)
            rank = min(own.rank, len(index[0]), value.numel() // max(1, len(index[0]))) if correct else 0
            parts.append(WeightBlock(name_of_layer, name, parameter_name(names[number]), tuple(index), rank))
            layer._parameters[name] = None
        return parts


def parameter_name(path: str) -> str:
    """Return the path of a weight as the name of a parameter, which has no dots."""
    return path.replace(".", "/")


def take_block(tensor: Tensor, index: Index) -> Tensor:
    """Return a copy of the block of a weight at these positions."""
    for axis, kept in enumerate(index):
        tensor = tensor.index_select(axis, torch.from_numpy(kept).to(tensor.device))
    return tensor.clone()


def joined(indices: list[Index]) -> Index:
    """Return the positions, rising, that are in any of several blocks of one weight."""
    union = indices[0]
    for index in indices[1:]:
        union = tuple(np.union1d(a, b) for a, b in zip(union, index, strict=True))
    return tuple(np.unique(index) for index in union)


@dataclass(frozen=True)
class LevelPlan:
    """One level: its graph, its layers, and the blocks of shared weights that they use."""

    graph: fx.Graph
    """The level's graph over layers that hold all their weights."""
    names: tuple[str, ...]
    """Names of its layers."""
    parts: tuple[WeightBlock, ...]
    features: tuple[int, ...]
    """Positions of the backbone's pooled features that the level computes."""
    model: ThinModel
    """The level as a timm model without memory for weights."""
    paths: dict[str, str]
    """Name of a layer → path of it, or of its weight, in `model`."""

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "graph": graph_to_rows(self.graph)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update({**state, "graph": graph_from_rows(state["graph"])})


Layers = dict[str, list[nn.Module]]
"""Name of an operation → the layer of each level, without the weights that it shares."""
Weights = dict[str, nn.Parameter]
"""Name → shared weight."""


def make_plans(
    backbone: nn.Module,
    analyses: Sequence[Analysis],
    left_out: Sequence[Sequence[ResidualBlock]],
    owned: Sequence[OwnWeights],
) -> tuple[list[LevelPlan], Layers, Weights]:
    """Return plan and layers of every level, and copies of the weights that levels share.

    Level k has `analyses[k]` (see `seen_by`), leaves out the blocks `left_out[k]` and owns `owned[k]`.
    """
    numbered = NumberedBackbone(backbone)
    layers: dict[str, list[nn.Module]] = {}
    lowered: list[Lowered] = []
    parts: dict[int, list[WeightBlock]] = {}
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
            model=ThinModel(analysis, blocks),
            paths=_paths(analysis),
        )
        for level, (analysis, blocks) in enumerate(zip(analyses, left_out, strict=True))
    ]
    return plans, layers, shared


def _shared(
    parts: Mapping[int, list[WeightBlock]], weights: Mapping[str, nn.Parameter], lower: Sequence[int]
) -> tuple[dict[int, list[WeightBlock]], dict[str, nn.Parameter]]:
    """Return the blocks of each level and copies of their weights; the levels `lower` share smaller copies."""
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
    """Return the analysis of a network of one level: what `level` sees, channels in their given order."""

    def merged(cut: Any) -> Any:
        if isinstance(cut, tuple):
            return tuple(merged(item) for item in cut)
        if not isinstance(cut, Partition):
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
