"""Write one graph per level, and make the layers that the graphs call, from the partition of every value.

A graph computes the level's own slice of every value. It reads from `kept` the slices of lower levels where a layer
mixes channels ("prefix"), and shared values where a lower level has computed them. What does not depend on the image
(sizes, tables of positions) is computed anew by each level.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from hierclass.errors import BackboneError
from hierclass.nested.analysis.layer_rules import out_of_place as layer_out_of_place
from hierclass.nested.analysis.layer_rules import rule_for, take
from hierclass.nested.analysis.op_rules import function_name
from hierclass.nested.analysis.partition import Analysis, Partition, hinting, positions, where
from hierclass.nested.analysis.residual_blocks import ResidualBlock
from hierclass.nested.analysis.traced_call import tensors_in
from hierclass.nested.call_arguments import CallSite, fit_call, partitions_in
from hierclass.nested.level_graph import (
    Weight,
    drop_dead_code,
    fold_rows,
    kept_reads,
    scaled_shape,
    unfold_rows,
)

Key: TypeAlias = tuple[str, fx.Node, int]
"""What a level keeps for the next ones: "prefix", "shared" or "slice", the value, and the level of a slice."""


class _Absent:
    """Stands for a value of which a level has nothing."""


ABSENT = _Absent()


@dataclass(frozen=True)
class Lowered:
    """One graph per level, the layers that they call as `layers.NAME.LEVEL`, and each level's number of features.

    A layer that all levels share is alone in its list; where a level has none, there is an `nn.Identity`.
    """

    graphs: tuple[fx.Graph, ...]
    layers: dict[str, list[nn.Module]]
    num_features: tuple[int, ...]


def lower(
    analysis: Analysis,
    blocks: Sequence[ResidualBlock] = (),
    *,
    left_out: Sequence[ResidualBlock] = (),
    first: int = 0,
) -> Lowered:
    """Return the graphs of all levels of an analysed backbone and their layers, with copies of its weights.

    Levels below the first that runs a block of `blocks` pass its input on; no level runs a block of `left_out`. Levels
    are numbered from `first`.

    Raises:
        BackboneError: a layer or function can't be made smaller; the message names its path and type.
    """
    lowering = _Lowering(analysis, blocks, left_out)
    levels: list[_LevelWriter] = []
    for level in range(analysis.levels):
        writer = _LevelWriter(lowering, level, first, levels)
        levels.append(writer)
        with hinting():
            for node in lowering.nodes:
                try:
                    writer.write(node)
                except BackboneError as error:
                    raise BackboneError(f"{where(node)} can't be cut into levels: {error}") from None
    wanted: list[Key] = []
    for writer in reversed(levels):
        wanted = writer.finish(wanted)
    if blocks:
        lowering.drop_uncalled(levels)
    features: Partition = analysis.values[analysis.output].cut
    size = analysis.values[analysis.output].meta.shape[1]
    counts = [len(positions(features, level, size)) for level in range(analysis.levels)]
    graphs = tuple(writer.graph for writer in levels)
    return Lowered(graphs, lowering.layers, tuple(np.cumsum(counts).tolist()))


class _Lowering:
    """What all levels have in common: the order of values, the first level of each block, and the layers."""

    def __init__(
        self, analysis: Analysis, blocks: Sequence[ResidualBlock], left_out: Sequence[ResidualBlock]
    ) -> None:
        self.analysis = analysis
        self.nodes = list(_up_to_output(analysis))
        self.born = {node: block.born for block in blocks for node in block.nodes}
        self.left_out = {node for block in left_out for node in block.nodes}
        self.ends = {block.output: block for block in (*blocks, *left_out)}
        self.layers: dict[str, list[nn.Module]] = {}
        self.early: dict[fx.Node, int] = {}
        """Lowest level that has a value. Inside a block: the lowest that has what it reads, though the block is run
        later, unless it is a layer that reads the slices of lower levels too. These cheap steps (a norm before the
        first matrix of a block) run early where the answer may be refined.
        """
        self.axes: dict[fx.Node, int] = {}
        """Axis of channels of each value whose prefix is read."""
        self.of_image: set[fx.Node] = set()
        """Tensors that are computed from the image."""
        for node in self.nodes:
            self.early[node] = self._first_level(node)
            tensors = tensors_in(analysis.values[node].meta)
            if tensors and (node is self.nodes[0] or self.of_image.intersection(_read_values(node))):
                self.of_image.add(node)

    def _first_level(self, node: fx.Node) -> int:
        born = self.born.get(node, 0)
        found = self.analysis.flows.get(node)
        if born and not (found is not None and found.reads == "prefix"):
            ready = [self.early[source] for source in node.all_input_nodes]
            # While a later branch adds nothing yet, the sum is the other operand.
            born = min(born, (min if function_name(node.target) == "add" else max)(ready, default=0))
        return born

    def add_layer(self, node: fx.Node, level: int | None, layer: nn.Module) -> None:
        """Hold the layer of a level, or with None the one of all levels."""
        count = 1 if level is None else self.analysis.levels
        layers = self.layers.setdefault(layer_name(node), [nn.Identity() for _ in range(count)])
        layers[level or 0] = layer

    def drop_uncalled(self, levels: Sequence[_LevelWriter]) -> None:
        """Drop the layers of blocks that no graph calls."""
        called = {str(node.target) for writer in levels for node in writer.graph.nodes}
        for node in self.born:
            layers = self.layers.get(layer_name(node), ())
            for level in range(len(layers) if len(layers) > 1 else 0):
                if f"layers.{layer_name(node)}.{level}" not in called:
                    self.layers[layer_name(node)][level] = nn.Identity()


class _LevelWriter:
    """Writes the graph of one level, value by value."""

    def __init__(
        self, lowering: _Lowering, level: int, first: int, lower_levels: Sequence[_LevelWriter]
    ) -> None:
        self.lowering, self.level, self.first = lowering, level, first
        self.analysis = lowering.analysis
        self.below = tuple(lower_levels)
        self.graph = fx.Graph()
        self.image = self.graph.placeholder("image")
        self.kept = self.graph.placeholder("kept")
        self.values: dict[fx.Node, Any] = {}
        """This level's slice of every value, the shared value, or `ABSENT`."""
        self.keys: dict[Key, fx.Node] = {}
        """Nodes that read `kept`, by what they read."""
        self.prefixes: dict[fx.Node, Any] = {}

    def write(self, node: fx.Node) -> None:
        """Add what the level computes of a value."""
        if node.op == "placeholder":
            first = node is self.lowering.nodes[0]
            self.values[node] = self.image if first else self.analysis.values[node].meta
        elif node in self.lowering.left_out:
            self.values[node] = self._size(node) if self._is_size(node) else ABSENT
        elif self._is_size(node):
            self.values[node] = self._size(node)
        elif all(cut is not None and cut.shared for cut in self._cuts(node)):
            self.values[node] = self._shared(node)
        elif self.level < self.lowering.early[node]:
            self.values[node] = ABSENT
        else:
            self.values[node] = self._slice(node)
        block = self.lowering.ends.get(node)
        if block is not None and (node in self.lowering.left_out or self.level < block.born):
            self.values[node] = self.values[block.source]

    def finish(self, wanted: Sequence[Key]) -> list[Key]:
        """End the graph with the features and the values of `wanted`; return what the graph reads of `kept`."""
        output = self.analysis.output
        shared = self.analysis.values[output].cut.shared
        features = self.values[output] if shared else self.prefix(output, 1)
        self.graph.output((features, tuple(self._to_keep(key) for key in wanted)))
        drop_dead_code(self.graph)
        keys = list(self.keys)
        reads = kept_reads(self.graph)
        read = sorted(set(reads.values()))
        for node, index in reads.items():
            node.args = (self.kept, read.index(index))
        self.graph.lint()
        return [keys[index] for index in read]

    def prefix(self, node: fx.Node, axis: int) -> Any:
        """Return the slices of all levels up to this one, one after the other along `axis`."""
        self.lowering.axes[node] = axis
        if node not in self.prefixes:
            parts = [self.values[node]]
            if any(writer.values[node] is not ABSENT for writer in self.below):
                parts.insert(0, self._past(("prefix", node, 0)))
            parts = [part for part in parts if part is not ABSENT]
            if not parts:
                raise BackboneError(f"level {self.level + self.first} gives it nothing to read")
            self.prefixes[node] = parts[0] if len(parts) == 1 else self.call(torch.cat, tuple(parts), axis)
        return self.prefixes[node]

    def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> fx.Node:
        """Add a call of a function."""
        return self.graph.call_function(function, args, kwargs)

    def value(self, node: fx.Node) -> Any:
        """Return this level's slice of a value, or the shared value."""
        found = self.values[node]
        if found is ABSENT and node in self.lowering.left_out:
            raise BackboneError("it reads a size from inside a residual block that some level leaves out")
        if found is ABSENT:
            raise BackboneError(f"level {self.level + self.first} gives it nothing to read")
        return found

    def _past(self, key: Key) -> fx.Node:
        """Return what a lower level has computed, read from `kept`."""
        if key not in self.keys:
            read = self.call(operator.getitem, self.kept, len(self.keys))
            self.keys[key] = self.call(fold_rows, read) if self._holds_rows(key[1]) else read
        return self.keys[key]

    def _to_keep(self, key: Key) -> Any:
        """Return what a higher level reads of a value, with images along the first axis."""
        kind, node, level = key
        if kind == "prefix":
            found = self.prefix(node, self.lowering.axes[node])
        else:
            found = self._past(key) if kind == "slice" and level != self.level else self.values[node]
        return self.call(unfold_rows, found, self.image) if self._holds_rows(node) else found

    def _holds_rows(self, node: fx.Node) -> bool:
        """Return whether a value holds several rows per image: windows, heads."""
        return node in self.lowering.of_image and self.analysis.values[node].meta.shape[:1] not in ((), (1,))

    def _cuts(self, node: fx.Node) -> list[Partition]:
        return partitions_in(self.analysis.values[node].cut)

    def _at(self, node: fx.Node, level: int) -> Any:
        """Return the slice of this or a lower level, or the shared value."""
        if level == self.level or all(cut.shared for cut in self._cuts(node)):
            return self.value(node)
        if node.op == "get_attr":
            return self._call_layer(node, level)
        return self._past(("slice", node, level))

    def _call_layer(self, node: fx.Node, level: int, *args: Any) -> fx.Node:
        target = f"layers.{layer_name(node)}.{self.first + level}"
        return self.graph.create_node("call_module", target, args)

    def _is_size(self, node: fx.Node) -> bool:
        known = node.op in ("call_function", "call_method") and self.analysis.values[node].ids is None
        return known and function_name(node.target) in ("getattr", "size", "dim")

    def _size(self, node: fx.Node) -> Any:
        """Add a size of a value as the dense network has it, since timm's code computes with those."""
        source = node.args[0]
        assert isinstance(source, fx.Node)
        with_it = [writer.level for writer in (self, *self.below) if writer.values[source] is not ABSENT]
        if not with_it:
            return ABSENT
        level, name, args = with_it[0], function_name(node.target), node.args[1:]
        value, cut = self._at(source, level), self.analysis.values[source].cut
        if name == "dim":
            return self.call(torch.Tensor.dim, value)
        if name == "getattr" and args[0] != "shape":
            return self.call(getattr, value, args[0])
        if isinstance(cut, Partition) and cut.axis is not None:
            shape = self.call(scaled_shape, value, cut.axis, cut.size, len(cut.index[level]))
        else:
            shape = self.call(getattr, value, "shape")
        return self.call(operator.getitem, shape, args[0]) if name == "size" and args else shape

    def _shared(self, node: fx.Node) -> Any:
        """Add a shared value, or read it where a lower level has computed it."""
        level = next((writer.level for writer in self.below if writer.values[node] is not ABSENT), self.level)
        one = isinstance(self.analysis.values[node].meta, Tensor)  # of several, each is kept for itself
        if level != self.level and node in self.lowering.of_image and one:
            return self._past(("shared", node, 0))
        inputs = node.all_input_nodes
        missing = any(self.values[source] is ABSENT for source in inputs)
        if level == self.level and (level < self.lowering.early[node] or missing):
            return ABSENT  # inside a block that a later level is the first to run
        if node.op == "get_attr":
            tensor = self.analysis.trace.tensor(str(node.target))
            if not isinstance(tensor, Tensor):
                return tensor
            if level == self.level:
                self.lowering.add_layer(node, None, _weight(tensor, ()))
            return self._call_layer(node, 0)
        if node.op == "call_module":
            (source,) = inputs
            if level == self.level:
                self.lowering.add_layer(node, None, self._cut_layer(node, source, level, shared=True))
            return self._call_layer(node, 0, self._at(source, level))
        fits = all(cut.shared for source in inputs for cut in self._cuts(source))
        return self._call(node, level, shared=True, fits=fits)

    def _slice(self, node: fx.Node) -> Any:
        """Add the level's own slice of a value."""
        cuts = self._cuts(node)
        if node.op == "call_module":
            (source,) = node.all_input_nodes
            found = self.analysis.flows[node]
            if not len(positions(cuts[0], self.level, self.analysis.values[node].meta.shape[found.axis])):
                return ABSENT
            self.lowering.add_layer(node, self.level, self._cut_layer(node, source, self.level))
            whole = found.reads != "prefix" or self.analysis.values[source].cut.shared
            return self._call_layer(
                node, self.level, self.value(source) if whole else self.prefix(source, found.axis)
            )
        if not any(len(cut.index[self.level]) for cut in cuts):
            return ABSENT
        if node.op == "get_attr":
            tensor: Tensor = self.analysis.trace.tensor(str(node.target))
            kept: list[Any] = [None] * tensor.ndim
            if cuts[0].axis is not None:
                kept[cuts[0].axis] = cuts[0].index[self.level]
            self.lowering.add_layer(node, self.level, _weight(tensor, kept))
            return self._call_layer(node, self.level)
        there = [source for source in node.all_input_nodes if self.lowering.early[source] <= self.level]
        if function_name(node.target) == "add" and len(there) == 1 < len(node.all_input_nodes):
            return self.value(there[0])
        return self._call(node, self.level)

    def _call(self, node: fx.Node, level: int, *, shared: bool = False, fits: bool = False) -> fx.Node:
        """Add a call of a function for a level; with `fits` no argument changes with the level."""
        read = _read_values(node)

        def value_of(source: fx.Node) -> Any:
            here = source not in read and self.values[source] is not ABSENT
            return self.values[source] if here else self._at(source, level)

        site = CallSite(self.analysis, node, level, value_of, self.call)
        function, args, kwargs = site.plain() if fits else fit_call(site)
        if function is F.dropout:
            # The traced call is fixed in the mode of tracing; a layer follows the network's mode.
            dropout = nn.Dropout(args[1] if len(args) > 1 else kwargs.get("p", 0.5))
            self.lowering.add_layer(node, None if shared else level, dropout)
            return self._call_layer(node, 0 if shared else level, args[0])
        return self.call(function, *args, **kwargs)

    def _cut_layer(self, node: fx.Node, source: fx.Node, level: int, *, shared: bool = False) -> nn.Module:
        """Return the layer of `level`, or with `shared` the one of all levels, which reads what `level` has."""
        layer, found = self.analysis.trace.layer(str(node.target)), self.analysis.flows[node]
        rule = rule_for(layer)
        assert rule is not None
        if found.reads == "whole":
            return layer_out_of_place(copy.deepcopy(layer))
        inputs, outputs = (self.analysis.values[each].cut for each in (source, node))
        sizes = [self.analysis.values[each].meta.shape[found.axis] for each in (source, node)]
        levels = range(self.lowering.early[source], level + 1) if found.reads == "prefix" else [level]
        reads: Sequence[int] = range(sizes[0])
        if not inputs.shared:
            reads = [position for each in levels for position in positions(inputs, each, sizes[0])]
        if not len(reads):
            raise BackboneError(f"level {level} gives it nothing to read")
        return rule.cut(layer, reads, positions(outputs, 0 if shared else level, sizes[1]))


def layer_name(node: fx.Node) -> str:
    """Return the name of a traced node's layers in a network; it differs from all attributes of `nn.ModuleDict`."""
    return f"{node.name}_call" if hasattr(nn.ModuleDict, node.name) else node.name


def _weight(tensor: Tensor, kept: Sequence[Any]) -> Weight:
    """Return a layer that holds a copy of the positions `kept` of a parameter or buffer, as `take` picks them."""
    part = take(tensor.detach(), kept)
    return Weight(nn.Parameter(part, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else part)


def _read_values(node: fx.Node) -> list[fx.Node]:
    """Return the inputs whose values are read; `type_as` reads only the type of its second."""
    return node.all_input_nodes[: 1 if function_name(node.target) == "type_as" else None]


def _up_to_output(analysis: Analysis) -> Iterator[fx.Node]:
    for node in analysis.nodes:
        yield node
        if node is analysis.output:
            return
