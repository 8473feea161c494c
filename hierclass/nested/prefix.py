"""Structures `prefix` and `depths`: every level is a smaller dense network, whose weights are part of the full ones.

Level k of `prefix` runs the first channels of every layer (the dense top-left block of every weight), level k of
`depths` the first blocks of every stage. A level's values differ from those of the level above, so each level has
norms of its own, and nothing is reused when an answer is refined.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hierclass.nested.blocks import Block
from hierclass.nested.flow import own_tensors
from hierclass.nested.graph import Analysis, Cut
from hierclass.nested.network import NestedNetwork, evaluating
from hierclass.nested.program import Program, Step, write_program
from hierclass.nested.rules import ChannelRule, rule_for
from hierclass.nested.thin import check_thin, fill, thin_skeleton, with_classifier

Index = tuple[NDArray[np.int64], ...]
"""Positions along every axis of a weight."""

IMAGE = 0


@dataclass(frozen=True)
class Part:
    """Where a layer of one level takes a weight from: the positions `index` of the shared weight `weight`."""

    step: str
    name: str
    weight: str
    index: Index


@dataclass(frozen=True)
class LevelPlan:
    """One level: its steps, and the parts of shared weights that they use."""

    steps: tuple[Step, ...]
    parts: tuple[Part, ...]
    num_features: int
    model: nn.Module
    """The level as a timm model without memory for weights."""
    paths: Mapping[int, str]
    """Output of a step → path of its layer or weight in `model`."""


class PrefixNetwork(NestedNetwork):
    """Level k runs a smaller dense network with the top-left blocks of shared weights and norms of its own.

    Sources: channel and layer scheduling of NestedNet (Kim et al. 2018); own norms per width of slimmable networks
    (Yu et al. 2018).
    """

    structure = "prefix"

    def __init__(
        self,
        plans: Sequence[LevelPlan],
        layers: Mapping[str, Sequence[nn.Module]],
        weights: Mapping[str, nn.Parameter],
        num_classes: Sequence[int],
        input_size: tuple[int, int, int],
        structure: str = "prefix",
    ):
        """Made by `nest_prefix`: `layers` hold what levels own, `weights` what they share."""
        super().__init__([plan.num_features for plan in plans], num_classes, input_size)
        self.structure = structure  # type: ignore[misc]
        self.plans = tuple(plans)
        self.layers = nn.ModuleDict({name: nn.ModuleList(parts) for name, parts in layers.items()})
        self.weights = nn.ParameterDict(dict(weights))
        self._taken = [
            [_Taken(part, tuple(self.weights[part.weight].shape)) for part in plan.parts]
            for plan in self.plans
        ]
        for level, taken in enumerate(self._taken):
            for number, each in enumerate(taken):
                for axis, index in each.scattered.items():
                    self.register_buffer(f"_index_{level}_{number}_{axis}", index, persistent=False)

    def features(self, image: Tensor, level: int) -> Tensor:
        """Return the pooled features (B, num_features[level]) of one level, computing nothing else."""
        weights: dict[str, dict[str, Tensor]] = {}
        for number, taken in enumerate(self._taken[level]):
            part = self._part(level, number, taken)
            weights.setdefault(taken.part.step, {})[taken.part.name] = part
        values: dict[int, Any] = {IMAGE: image}
        for step in self.plans[level].steps:
            layer = self._layer(step.name, level)
            if step.name in weights:
                layer = _with_weights(layer, weights[step.name])
            values[step.output] = layer(*(values[i] for i in step.inputs))
        features: Tensor = values[self.plans[level].steps[-1].output]
        return features

    def level_tensors(self, level: int) -> Iterator[tuple[str, Tensor, bool]]:
        """Yield the blocks of the shared weights that `level` uses, and its own norms."""
        for number, taken in enumerate(self._taken[level]):
            yield taken.part.weight, self._part(level, number, taken).detach(), True
        used = {step.name for step in self.plans[level].steps}
        for name, parts in self.layers.items():
            if name in used:
                for key, value in _own(parts, level):
                    yield f"layers.{name}.{level}.{key}", value, isinstance(value, nn.Parameter)

    def spoil_above(self, level: int) -> None:
        """Set what lies outside the level's blocks of the shared weights, and the norms of higher levels, to NaN."""
        with torch.no_grad():
            for name, weight in self.weights.items():
                used = torch.zeros_like(weight, dtype=torch.bool)
                for below in range(level + 1):
                    for part in self.plans[below].parts:
                        if part.weight == name:
                            used[np.ix_(*part.index)] = True
                weight[~used] = torch.nan
            for parts in self.layers.values():
                for above in range(level + 1, self.num_levels):
                    for _, value in _own(parts, above):
                        if value.is_floating_point():
                            value.fill_(torch.nan)

    def truncate(self, level: int) -> PrefixNetwork:
        """Return a stand-alone network of levels 0 … `level`: the weights of the last, with the others inside them."""
        keep = self.check_level(level) + 1
        kept: dict[str, Index] = {}
        for below in range(keep):
            for part in self.plans[below].parts:
                known = kept.get(part.weight, part.index)
                kept[part.weight] = tuple(np.union1d(a, b) for a, b in zip(known, part.index, strict=True))
        weights = {
            name: nn.Parameter(_take(self.weights[name].detach(), index), self.weights[name].requires_grad)
            for name, index in kept.items()
        }
        plans = [
            dataclasses.replace(plan, parts=tuple(_moved(part, kept[part.weight]) for part in plan.parts))
            for plan in self.plans[:keep]
        ]
        layers = {
            name: [copy.deepcopy(part) for part in list(parts)[:keep]] for name, parts in self._all_layers()
        }
        network = PrefixNetwork(
            plans, layers, weights, self.num_classes[:keep], self.input_size, self.structure
        )
        network.heads = copy.deepcopy(self.heads[:keep])
        return network.train(self.training).to(next(self.parameters()))

    def extract(self, level: int) -> nn.Module:
        """Return a level as an ordinary thinner timm model, (B, 3, H, W) → logits, that runs without our code.

        The head becomes its classifier. Where timm's classifier is more than one linear layer (RepViT) the result is an
        `nn.Sequential` of the thinner timm model, without a classifier, and the head.

        Raises:
            BackboneError: the backbone's code keeps numbers of channels where they can't be found.
        """
        level = self.check_level(level)
        plan, tensors = self.plans[level], dict[str, Tensor]()
        outputs = {step.name: step.output for step in plan.steps}
        for step in plan.steps:
            if path := plan.paths.get(step.output):
                for key, value in _own(self.layers[step.name], level):
                    tensors[_joined(path, key)] = value
        for number, taken in enumerate(self._taken[level]):
            path = plan.paths[outputs[taken.part.step]]
            tensors[_joined(path, taken.part.name)] = self._part(level, number, taken)
        model = fill(plan.model, tensors).train(self.training)
        generator = torch.Generator().manual_seed(0)
        image = torch.randn(2, *self.input_size, generator=generator).to(next(self.parameters()))
        with evaluating(self), torch.no_grad():
            check_thin(model, self.features(image, level), image, level)
        return with_classifier(model, self.heads[level], self.input_size)

    def standalone(self, level: int) -> Program:
        """Return the program of one level alone, with copies of its weights."""
        layers: dict[str, list[nn.Module]] = {}
        for step in self.plans[level].steps:
            layers[step.name] = [copy.deepcopy(self._layer(step.name, level))]
        for number, taken in enumerate(self._taken[level]):
            value = nn.Parameter(self._part(level, number, taken).detach().clone())
            setattr(layers[taken.part.step][0], taken.part.name, value)
        return Program(self.plans[level].steps, layers, (self.num_features[level],))

    def _all_layers(self) -> list[tuple[str, nn.ModuleList]]:
        return [(name, parts) for name, parts in self.layers.items() if isinstance(parts, nn.ModuleList)]

    def _layer(self, name: str, level: int) -> nn.Module:
        parts = self.layers[name]
        assert isinstance(parts, nn.ModuleList)
        return parts[level]

    def _part(self, level: int, number: int, taken: _Taken) -> Tensor:
        weight: Tensor = self.weights[taken.part.weight]
        for axis, (start, stop) in taken.runs.items():
            weight = weight.narrow(axis, start, stop - start)
        for axis in taken.scattered:
            weight = weight.index_select(axis, self.get_buffer(f"_index_{level}_{number}_{axis}"))
        return weight


class _Taken:
    """A part of a shared weight, by runs of positions where it can be a view."""

    def __init__(self, part: Part, shape: tuple[int, ...]) -> None:
        self.part = part
        self.runs: dict[int, tuple[int, int]] = {}
        self.scattered: dict[int, Tensor] = {}
        for axis, (index, size) in enumerate(zip(part.index, shape, strict=True)):
            if len(index) == size:
                continue
            if len(index) and index[-1] - index[0] + 1 == len(index):
                self.runs[axis] = (int(index[0]), int(index[-1]) + 1)
            else:
                self.scattered[axis] = torch.from_numpy(index)


def nest_prefix(
    backbone: nn.Module,
    analyses: Sequence[Analysis],
    left_out: Sequence[Sequence[Block]],
    num_classes: Sequence[int],
    input_size: tuple[int, int, int],
    structure: str,
) -> PrefixNetwork:
    """Make the network from one analysis per level (see `seen_by`) and the blocks that each level leaves out."""
    weights = {name: value for name, value in backbone.named_parameters() if value.numel()}
    numbered, starts = _numbered(backbone)
    plans: list[LevelPlan] = []
    layers: dict[str, list[nn.Module]] = {}
    for level, (analysis, blocks) in enumerate(zip(analyses, left_out, strict=True)):
        traced = analysis.trace
        program = leave_out(write_program(analysis), analysis, blocks)
        positions = write_program(
            dataclasses.replace(analysis, trace=dataclasses.replace(traced, backbone=numbered))
        )
        parts: list[Part] = []
        for name, (layer,) in program.layers.items():
            parts += _share(name, layer, positions.layers[name][0], starts, weights)
            layers.setdefault(name, [nn.Identity() for _ in range(level)]).append(layer)
        for listed in layers.values():
            listed += [nn.Identity() for _ in range(level + 1 - len(listed))]
        model, paths = thin_skeleton(analysis, blocks), _paths(analysis)
        plans.append(LevelPlan(program.steps, tuple(parts), program.num_features[0], model, paths))
    used = {part.weight for plan in plans for part in plan.parts}
    shared = {
        _key(name): nn.Parameter(value.detach().clone(), value.requires_grad)
        for name, value in weights.items()
        if _key(name) in used
    }
    return PrefixNetwork(plans, layers, shared, num_classes, input_size, structure)


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


def leave_out(program: Program, analysis: Analysis, blocks: Sequence[Block]) -> Program:
    """Drop the steps of residual blocks; what reads a block's result reads its input instead."""
    numbers = {node: number for number, node in enumerate(n for n in analysis.nodes if _is_step(n, analysis))}
    dropped = {numbers[node] for block in blocks for node in block.nodes if node in numbers}
    renamed: dict[int, int] = {}
    for block in blocks:
        source = numbers[block.source]
        renamed[numbers[block.output]] = renamed.get(source, source)
    steps = [
        dataclasses.replace(step, inputs=tuple(renamed.get(i, i) for i in step.inputs))
        for step in program.steps
        if step.output not in dropped
    ]
    return Program(
        tuple(steps), {step.name: program.layers[step.name] for step in steps}, program.num_features
    )


def _paths(analysis: Analysis) -> dict[int, str]:
    nodes = [node for node in analysis.nodes if _is_step(node, analysis)]
    return {
        number: analysis.trace.made.get(str(node.target), str(node.target))
        for number, node in enumerate(nodes)
        if node.op in ("call_module", "get_attr")
    }


def _joined(path: str, key: str) -> str:
    """Path of a tensor: the `value` of a stand-alone weight and the matrix of a made layer are at `path` itself."""
    whole = key == "value" or (key == "weight" and path.rpartition(".")[2] == "weight")
    return path if whole else f"{path}.{key}"


def _is_step(node: Any, analysis: Analysis) -> bool:
    first = next(n for n in analysis.nodes if n.op == "placeholder")
    return node.op != "placeholder" or node is first


def _numbered(backbone: nn.Module) -> tuple[nn.Module, dict[str, int]]:
    """A copy of the backbone whose weights hold numbers, each another, and the first number of each weight."""
    memo: dict[int, Any] = {}
    starts: dict[str, int] = {}
    count = 0
    for name, value in backbone.named_parameters():
        starts[name] = count
        numbers = torch.arange(count, count + value.numel()).reshape(value.shape)
        memo[id(value)] = nn.Parameter(numbers, requires_grad=False)
        count += value.numel()
    return copy.deepcopy(backbone, memo), starts


def _share(
    step: str,
    layer: nn.Module,
    numbered: nn.Module,
    starts: Mapping[str, int],
    weights: Mapping[str, nn.Parameter],
) -> list[Part]:
    """Take the weights out of a layer, unless it is a norm, and say where they come from."""
    if isinstance(rule_for(layer), ChannelRule):
        return []
    names, firsts = list(starts), np.fromiter(starts.values(), np.int64)
    parts: list[Part] = []
    for name, value in own_tensors(layer):
        if not isinstance(value, nn.Parameter) or not value.numel():
            continue
        numbers = getattr(numbered, name).detach().numpy()
        number = int(np.searchsorted(firsts, numbers.flat[0], side="right")) - 1
        while weights.get(names[number]) is None:
            number -= 1
        shape = weights[names[number]].shape
        index: list[NDArray[np.int64]] = []
        for axis, size in enumerate(shape):
            line = numbers[tuple(slice(None) if a == axis else 0 for a in range(numbers.ndim))]
            index.append((line - firsts[number]) // int(np.prod(shape[axis + 1 :])) % size)
        parts.append(Part(step, name, _key(names[number]), tuple(index)))
        layer._parameters[name] = None
    return parts


def _with_weights(layer: nn.Module, weights: Mapping[str, Tensor]) -> nn.Module:
    """A shallow copy of a layer that uses these weights; the layer stays as it is, for other threads."""
    made = copy.copy(layer)
    made.__dict__["_parameters"] = {**layer._parameters, **weights}
    return made


def _own(parts: Any, level: int) -> list[tuple[str, Tensor]]:
    part = parts[level]
    return [*part.named_parameters(), *part.named_buffers()]


def _take(tensor: Tensor, index: Index) -> Tensor:
    for axis, kept in enumerate(index):
        tensor = tensor.index_select(axis, torch.from_numpy(kept).to(tensor.device))
    return tensor.clone()


def _moved(part: Part, kept: Index) -> Part:
    """The same part of a weight of which only the positions `kept` are left."""
    index = tuple(np.searchsorted(k, i) for k, i in zip(kept, part.index, strict=True))
    return dataclasses.replace(part, index=index)


def _key(name: str) -> str:
    """Return the name of a weight as the name of a parameter, which has no dots; names in code hold no slash."""
    return name.replace(".", "/")
