"""From the cut of every value to steps: which operation reads which values, and one layer of it per level."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch.nn.functional as F
from torch import Tensor, fx, nn

from hierclass.errors import BackboneError
from hierclass.nested.adapt import adapt
from hierclass.nested.calls import Call, Nothing, Sizes, Slot, Weight
from hierclass.nested.flow import Flow, take
from hierclass.nested.flow import out_of_place as copy_out_of_place
from hierclass.nested.functions import function_name, out_of_place
from hierclass.nested.graph import Analysis, Cut, where
from hierclass.nested.rules import rule_for

Kind = Literal["slice", "prefix", "shared"]


@dataclass(frozen=True)
class Step:
    """One operation: it reads the values `inputs` and writes value `output` (value 0 is the image).

    `name` is also the key of its layers, one per level. The layer of level k is given its slice of the inputs
    ("slice"), or the prefix of slices 0 … k of the first, grown along `axis` ("prefix"). A "shared" step has one
    layer and runs once: its result is the same for all levels.
    """

    name: str
    inputs: tuple[int, ...]
    output: int
    reads: Kind
    axis: int = 1


@dataclass(frozen=True)
class Program:
    """The steps in order, per step the layers of all levels, and the number of features of each level."""

    steps: tuple[Step, ...]
    layers: dict[str, list[nn.Module]]
    num_features: tuple[int, ...]


def write_program(analysis: Analysis) -> Program:
    """Make the steps of an analysed backbone, with copies of its weights.

    Raises:
        BackboneError: a layer or function can't be made smaller; the message names its path and type.
    """
    writer = _Writer(analysis)
    for node in analysis.nodes:
        try:
            writer.write(node)
        except BackboneError as error:
            raise BackboneError(f"{where(node)} can't be cut into levels: {error}") from None
        if node is analysis.output:
            break
    features: Cut = analysis.values[analysis.output].cut
    size = analysis.values[analysis.output].meta.shape[1]
    counts = [len(positions(features, level, size)) for level in range(analysis.levels)]
    return Program(tuple(writer.steps), writer.layers, tuple(np.cumsum(counts).tolist()))


def positions(cut: Cut, level: int, size: int) -> Sequence[int]:
    """Positions of a level along the channels of a value that has `size` of them."""
    if cut.axis is not None:
        index: list[int] = cut.index[level].tolist()
        return index
    present = level == 0 if cut.shared else len(cut.index[level]) > 0
    return range(size) if present else range(0)


class _Writer:
    def __init__(self, analysis: Analysis) -> None:
        self.analysis, self.levels = analysis, analysis.levels
        self.numbers: dict[fx.Node, int] = {}
        self.steps: list[Step] = []
        self.layers: dict[str, list[nn.Module]] = {}

    def write(self, node: fx.Node) -> None:
        if node.op == "placeholder":
            if not self.numbers:
                self.numbers[node] = 0
            return
        if node.op == "get_attr":
            self._write_tensor(node)
        elif node.op == "call_module":
            self._write_layer(node)
        else:
            self._write_call(node)

    def _add(
        self, node: fx.Node, inputs: Sequence[fx.Node], reads: Kind, layers: list[nn.Module], axis: int = 1
    ) -> None:
        self.numbers[node] = len(self.steps) + 1
        name = f"{node.name}_call" if hasattr(nn.ModuleDict, node.name) else node.name
        self.steps.append(
            Step(name, tuple(self.numbers[source] for source in inputs), self.numbers[node], reads, axis)
        )
        self.layers[name] = layers

    def _write_tensor(self, node: fx.Node) -> None:
        tensor = self.analysis.trace.tensor(str(node.target))
        cut = self.analysis.values[node].cut
        if cut is None or cut.shared:
            layer = Weight(tensor.clone()) if isinstance(tensor, Tensor) else Call(lambda: tensor, (), {})
            if isinstance(tensor, nn.Parameter):
                layer = Weight(nn.Parameter(tensor.detach().clone(), tensor.requires_grad))
            self._add(node, (), "shared", [layer])
            return
        layers: list[nn.Module] = []
        for level in range(self.levels):
            kept: list[Any] = [None] * tensor.ndim
            if cut.axis is not None:
                kept[cut.axis] = cut.index[level]
            part = take(tensor.detach(), kept)
            if not len(cut.index[level]):
                layers.append(Nothing())
            elif isinstance(tensor, nn.Parameter):
                layers.append(Weight(nn.Parameter(part, tensor.requires_grad)))
            else:
                layers.append(Weight(part))
        self._add(node, (), "slice", layers)

    def _write_layer(self, node: fx.Node) -> None:
        source = node.args[0]
        assert isinstance(source, fx.Node)
        layer = self.analysis.trace.layer(str(node.target))
        flow: Flow = self.analysis.flows[node]
        inputs: Cut = self.analysis.values[source].cut
        outputs: Cut = self.analysis.values[node].cut
        sizes = [self.analysis.values[n].meta.shape[flow.axis] for n in (source, node)]
        levels = range(1 if outputs.shared else self.levels)
        layers: list[nn.Module] = []
        for level in levels:
            writes = positions(outputs, level, sizes[1])
            if not len(writes):
                layers.append(Nothing())
                continue
            layers.append(_cut_layer(layer, flow, inputs, level, sizes[0], writes))
        reads: Kind = "prefix" if flow.reads == "prefix" else "slice"
        self._add(node, (source,), "shared" if outputs.shared else reads, layers, flow.axis)

    def _write_call(self, node: fx.Node) -> None:
        name = function_name(node.target)
        function = out_of_place(node.target)
        inputs, args, kwargs = _template(node)
        value = self.analysis.values[node]
        if name in ("getattr", "size", "dim") and value.ids is None:
            self._add(node, inputs[:1], "shared", [self._sizes(inputs[0], name, args)])
            return
        cuts = _cuts_in(value.cut)
        if all(cut.shared for cut in cuts):
            if any(not cut.shared for n in inputs for cut in _cuts_in(self.analysis.values[n].cut)):
                function, args, kwargs = adapt(self.analysis, node, name, function, inputs, args, kwargs, 0)
            self._add(node, inputs, "shared", [_layer_for(function, args, kwargs)])
            return
        layers: list[nn.Module] = []
        for level in range(self.levels):
            if not any(len(cut.index[level]) for cut in cuts):
                layers.append(Nothing())
            else:
                layers.append(
                    _layer_for(*adapt(self.analysis, node, name, function, inputs, args, kwargs, level))
                )
        self._add(node, inputs, "slice", layers)

    def _sizes(self, source: fx.Node, name: str, args: tuple[Any, ...]) -> nn.Module:
        """Sizes are those of the dense network: the code computes with them what it was written for."""
        if name == "getattr" and args[1] != "shape":
            return Call(getattr, args, {})
        cut = self.analysis.values[source].cut
        grown: tuple[int, int, int] | None = None
        if isinstance(cut, Cut) and cut.axis is not None:
            if not len(cut.index[0]):
                raise BackboneError("level 0 has none of its channels")
            grown = (cut.axis, cut.size, len(cut.index[0]))
        return Sizes(name, args[1] if len(args) > 1 and name == "size" else None, grown)


def _cut_layer(
    layer: nn.Module, flow: Flow, inputs: Cut, level: int, size: int, writes: Sequence[int]
) -> nn.Module:
    """The layer of one level."""
    rule = rule_for(layer)
    assert rule is not None
    if flow.reads == "whole":
        return copy_out_of_place(copy.deepcopy(layer))
    if inputs.shared:
        reads: Sequence[int] = range(size)
    elif flow.reads == "prefix":
        reads = [i for below in range(level + 1) for i in positions(inputs, below, size)]
    else:
        reads = positions(inputs, level, size)
    if not len(reads):
        raise BackboneError(f"level {level} gives it nothing to read")
    return rule.cut(layer, reads, writes)


def _template(node: fx.Node) -> tuple[list[fx.Node], tuple[Any, ...], dict[str, Any]]:
    """The nodes that a call reads, and its arguments with slots in their places."""
    inputs: list[fx.Node] = []

    def slot(source: fx.Node) -> Slot:
        if source not in inputs:
            inputs.append(source)
        return Slot(inputs.index(source))

    args = _replace(node.args, slot)
    kwargs = {key: _replace(value, slot) for key, value in node.kwargs.items() if key != "inplace"}
    return inputs, args, kwargs


def _replace(value: Any, slot: Callable[[fx.Node], Slot]) -> Any:
    if isinstance(value, fx.Node):
        return slot(value)
    if isinstance(value, (tuple, list)):
        return tuple(_replace(item, slot) for item in value)
    if isinstance(value, slice):
        return slice(*(_replace(item, slot) for item in (value.start, value.stop, value.step)))
    return value


def _cuts_in(value: Any) -> list[Cut]:
    if isinstance(value, Cut):
        return [value]
    if isinstance(value, (tuple, list)):
        return [cut for item in value for cut in _cuts_in(item)]
    return []


def _layer_for(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> nn.Module:
    if function is F.dropout:
        # The traced call holds the mode of the moment it was traced in; a layer follows the network's mode.
        return nn.Dropout(args[1] if len(args) > 1 else kwargs.get("p", 0.5))
    return Call(function, args, kwargs)
