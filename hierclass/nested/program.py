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
from hierclass.nested.blocks import Block
from hierclass.nested.calls import Call, Nothing, Sizes, Slot, Weight
from hierclass.nested.flow import Flow, take
from hierclass.nested.flow import out_of_place as copy_out_of_place
from hierclass.nested.functions import function_name, out_of_place
from hierclass.nested.graph import Analysis, Cut, hinting, where
from hierclass.nested.rules import rule_for

Kind = Literal["slice", "prefix", "shared"]


@dataclass(frozen=True)
class Step:
    """One operation: it reads the values `inputs` and writes value `output` (value 0 is the image).

    `name` is also the key of its layers, one per level. The layer of level k is given its slice of the inputs
    ("slice"), or the prefix of slices 0 … k of the first, grown along `axis` ("prefix"). A "shared" step has one
    layer and runs once, on what level `born` gives: its result is the same for all levels from there on. Levels
    below `born` need the step only if they are refined.
    """

    name: str
    inputs: tuple[int, ...]
    output: int
    reads: Kind
    axis: int = 1
    born: int = 0


@dataclass(frozen=True)
class Program:
    """The steps in order, per step the layers of all levels, and the number of features of each level."""

    steps: tuple[Step, ...]
    layers: dict[str, list[nn.Module]]
    num_features: tuple[int, ...]


def write_program(analysis: Analysis, blocks: Sequence[Block] = ()) -> Program:
    """Make the steps of an analysed backbone, with copies of its weights.

    Levels below the first of a block of `blocks` leave it out: their slices of its input are those of its result.

    Raises:
        BackboneError: a layer or function can't be made smaller; the message names its path and type.
    """
    writer = _Writer(analysis, blocks)
    for node in analysis.nodes:
        with hinting():
            try:
                writer.write(node)
            except BackboneError as error:
                raise BackboneError(f"{where(node)} can't be cut into levels: {error}") from None
        if node is analysis.output:
            break
    if blocks:
        _drop_unused(writer.steps, writer.layers, analysis.levels)
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
    def __init__(self, analysis: Analysis, blocks: Sequence[Block]) -> None:
        self.analysis, self.levels = analysis, analysis.levels
        self.born = {node: block.born for block in blocks for node in block.nodes}
        self.ends = {block.output: block for block in blocks}
        self.early: dict[fx.Node, int] = {}
        """Of nodes in blocks: the first level at which what they read is there, though the block is run later."""
        self.numbers: dict[fx.Node, int] = {}
        self.steps: list[Step] = []
        self.layers: dict[str, list[nn.Module]] = {}

    def _first_level(self, node: fx.Node) -> int:
        """First level that has a layer for a node: a layer that reads a prefix needs the slices of lower levels.

        These cheap steps (a norm before the first matrix of a block) run early where the answer may be refined.
        """
        born = self.born.get(node, 0)
        found = self.analysis.flows.get(node)
        if born and not (found is not None and found.reads == "prefix"):
            ready = [self.early.get(n, self.born.get(n, 0)) for n in node.all_input_nodes]
            # A sum to which a later part of the block adds nothing yet is what is there.
            born = min(born, (min if function_name(node.target) == "add" else max)(ready, default=0))
        self.early[node] = born
        return born

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
        if node in self.ends:
            self._pass_by(node, self.ends[node])

    def _pass_by(self, node: fx.Node, block: Block) -> None:
        """Levels that leave a block out pass its input on."""
        layers: list[nn.Module] = [
            Call(_same, (Slot(0 if level < block.born else 1),), {}) for level in range(self.levels)
        ]
        number = len(self.steps) + 1
        inputs = (self.numbers[block.source], self.numbers[node])
        self.steps.append(Step(f"{node.name}_or_input", inputs, number, "slice"))
        self.layers[self.steps[-1].name] = layers
        self.numbers[node] = number

    def _add(
        self, node: fx.Node, inputs: Sequence[fx.Node], reads: Kind, layers: list[nn.Module], axis: int = 1
    ) -> None:
        self.numbers[node] = len(self.steps) + 1
        name = f"{node.name}_call" if hasattr(nn.ModuleDict, node.name) else node.name
        born = self._first_level(node)
        numbers = tuple(self.numbers[source] for source in inputs)
        needed = born if reads == "shared" else self.born.get(node, 0)
        self.steps.append(Step(name, numbers, self.numbers[node], reads, axis, needed))
        if reads != "shared":
            layers = [Nothing() if level < born else layer for level, layer in enumerate(layers)]
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
        born = self._first_level(node)
        layers: list[nn.Module] = []
        for level in [born] if outputs.shared else range(self.levels):
            writes = positions(outputs, 0 if outputs.shared else level, sizes[1])
            if not len(writes) or level < born:
                layers.append(Nothing())
                continue
            there = range(self.early.get(source, 0), level + 1)
            layers.append(_cut_layer(layer, flow, inputs, there, sizes[0], writes))
        reads: Kind = "prefix" if flow.reads == "prefix" else "slice"
        self._add(node, (source,), "shared" if outputs.shared else reads, layers, flow.axis)

    def _write_call(self, node: fx.Node) -> None:
        name = function_name(node.target)
        function = out_of_place(node.target)
        inputs, args, kwargs = _template(node)
        value = self.analysis.values[node]
        if name in ("getattr", "size", "dim") and value.ids is None:
            self._add(node, inputs[:1], "shared", [self._sizes(node, inputs[0], name, args)])
            return
        cuts, born = _cuts_in(value.cut), self._first_level(node)
        if all(cut.shared for cut in cuts):
            if any(not cut.shared for n in inputs for cut in _cuts_in(self.analysis.values[n].cut)):
                function, args, kwargs = adapt(
                    self.analysis, node, name, function, inputs, args, kwargs, born
                )
            self._add(node, inputs, "shared", [_layer_for(function, args, kwargs)])
            return
        layers: list[nn.Module] = []
        for level in range(self.levels):
            there = [n for n in inputs if self.early.get(n, 0) <= level]
            if level < born or not any(len(cut.index[level]) for cut in cuts):
                layers.append(Nothing())
            elif name == "add" and len(there) == 1 < len(inputs):
                layers.append(Call(_same, (Slot(inputs.index(there[0])),), {}))
            else:
                layers.append(
                    _layer_for(*adapt(self.analysis, node, name, function, inputs, args, kwargs, level))
                )
        self._add(node, inputs, "slice", layers)

    def _sizes(self, node: fx.Node, source: fx.Node, name: str, args: tuple[Any, ...]) -> nn.Module:
        """Sizes are those of the dense network: the code computes with them what it was written for."""
        if name == "getattr" and args[1] != "shape":
            return Call(getattr, args, {})
        cut = self.analysis.values[source].cut
        grown: tuple[int, int, int] | None = None
        if isinstance(cut, Cut) and cut.axis is not None:
            present = len(cut.index[self._first_level(node)])
            if not present:
                raise BackboneError("its first level has none of its channels")
            grown = (cut.axis, cut.size, present)
        return Sizes(name, args[1] if len(args) > 1 and name == "size" else None, grown)


def _same(value: Any) -> Any:
    return value


def _drop_unused(steps: Sequence[Step], layers: dict[str, list[nn.Module]], levels: int) -> None:
    """Leave out layers whose result nobody reads: of blocks that come later, what lower levels would hold in vain."""
    needed: dict[int, set[int]] = {steps[-1].output: set(range(levels))}
    for step in reversed(steps):
        parts, wanted = layers[step.name], needed.get(step.output, set())
        for level, part in enumerate(parts):
            if step.reads == "shared":
                reading = {step.born}
            elif level not in wanted and step.born:
                parts[level] = Nothing()
                continue
            else:
                reading = set(range(level + 1)) if step.reads == "prefix" else {level}
            if not isinstance(part, Nothing):
                for source in _sources(step, part):
                    needed.setdefault(source, set()).update(reading)


def _sources(step: Step, part: nn.Module) -> list[int]:
    slots = part.slots() if isinstance(part, Call) else range(len(step.inputs))
    return [step.inputs[slot] for slot in slots]


def _cut_layer(
    layer: nn.Module, flow: Flow, inputs: Cut, there: range, size: int, writes: Sequence[int]
) -> nn.Module:
    """The layer of the last level of those `there`: levels that have their slice of the input."""
    rule = rule_for(layer)
    assert rule is not None
    if flow.reads == "whole":
        return copy_out_of_place(copy.deepcopy(layer))
    if inputs.shared:
        reads: Sequence[int] = range(size)
    elif flow.reads == "prefix":
        reads = [i for level in there for i in positions(inputs, level, size)]
    else:
        reads = positions(inputs, there[-1], size)
    if not len(reads):
        raise BackboneError(f"level {there[-1]} gives it nothing to read")
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
