"""Read a timm backbone: which channels meet where, and so where every value of it is cut.

The backbone's own `forward` is traced once (torch.fx), so residual additions, gates, heads and concatenations come
from timm's code and no family needs code of ours. What can't be cut is refused here, by module path and type.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn

from hierclass.errors import BackboneError
from hierclass.nested.analysis.channel_groups import (
    OWN,
    SHARED,
    ChannelGroups,
    compact,
    settle,
    touched,
    varies,
)
from hierclass.nested.analysis.layer_rules import ChannelFlow, rule_for, type_name
from hierclass.nested.analysis.op_rules import function_name, has_rule, out_of_place, propagate
from hierclass.nested.analysis.trace import Trace, attribute, trace
from hierclass.nested.analysis.traced_call import TracedCall, tensors_in

HINT = "structure masks needs no cutting"
"""What an error proposes for a backbone that can't be cut."""


@dataclass(frozen=True)
class Partition:
    """How one value is assigned to levels: `index[k]` are the positions of level k along `axis` (of `size`).

    Where a value belongs to one level as a whole, `axis` is None and only that level's index is not empty. `shared`
    values are seen by every level; of `owned` values each level has its own.
    """

    index: tuple[NDArray[np.int64], ...]
    axis: int | None = None
    size: int = 1
    shared: bool = False
    owned: bool = False

    def up_to(self, level: int) -> NDArray[np.int64]:
        """Return the positions of levels 0 … `level`, one level after the other."""
        return np.concatenate(self.index[: level + 1])


@dataclass
class TracedValue:
    """What a node of the graph gives for one image: sizes (tensors without memory) and ids in the same layout."""

    meta: Any
    ids: Any
    cut: Any = None
    """A `Partition` for each tensor, in the same layout; None for other values."""


@dataclass
class Analysis:
    """A traced backbone with the partition of every value."""

    trace: Trace
    levels: int
    values: dict[fx.Node, TracedValue]
    flows: dict[fx.Node, ChannelFlow]
    channels: ChannelGroups
    output: fx.Node
    repeated: set[str] = field(default_factory=set)

    @property
    def nodes(self) -> list[fx.Node]:
        """Return the calls in order, the image first, without the output."""
        return [node for node in self.trace.graph.nodes if node.op != "output"]


def analyse(backbone: nn.Module, widths: Sequence[float], input_size: tuple[int, int, int]) -> Analysis:
    """Find the partition of every value of a backbone that maps (B, C, H, W) to pooled features (B, F).

    Raises:
        BackboneError: a layer or function can't be cut; the message names its module path and type.
    """
    with hinting():
        return _analyse(trace(backbone, input_size), widths, input_size)


def _analyse(traced: Trace, widths: Sequence[float], input_size: tuple[int, int, int]) -> Analysis:
    channels = ChannelGroups()
    reader = _ChannelReader(traced, channels, input_size)
    output = reader.read_all()
    analysis = Analysis(traced, len(widths), reader.values, reader.flows, channels, output)
    for attempt in range(4):
        levels = channels.levels(widths)
        torn = assign_levels(analysis, levels)
        if not torn:
            break
        if attempt == 3:
            raise BackboneError(f"{where(torn[0][0])} can't be cut into levels: channels meet crosswise")
        for node, ids in torn:
            channels.where = where(node)
            axes = [axis for axis in range(ids.ndim) if varies(ids, axis)]
            channels.unite_along(ids, *axes[1:])
    _check_features(analysis)
    return analysis


@contextlib.contextmanager
def hinting() -> Iterator[None]:
    """Add `HINT` to an error that says nothing about what to do instead."""
    try:
        yield
    except BackboneError as error:
        raise BackboneError(str(error) if ";" in str(error) else f"{error}; {HINT}") from error.__cause__


class _ChannelReader:
    """Runs the graph once on sizes and ids."""

    def __init__(self, traced: Trace, channels: ChannelGroups, input_size: tuple[int, int, int]) -> None:
        self.traced, self.channels, self.input_size = traced, channels, input_size
        self.values: dict[fx.Node, TracedValue] = {}
        self.flows: dict[fx.Node, ChannelFlow] = {}

    def read_all(self) -> fx.Node:
        for node in self.traced.graph.nodes:
            if node.op == "output":
                return _checked_output(node.args[0], self.values)
            self.channels.where = where(node)
            try:
                value = self._read(node)
                self.values[node] = TracedValue(value.meta, _map(value.ids, settle))
            except BackboneError as error:
                raise BackboneError(f"{where(node)} can't be cut into levels: {error}") from None
            except Exception as error:
                reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
                raise BackboneError(
                    f"{where(node)} does not run on an image of {self.input_size}: {reason}"
                ) from error
        raise AssertionError("a traced graph ends with its output")

    def _read(self, node: fx.Node) -> TracedValue:
        if node.op == "placeholder":
            if any(value.meta is not None for value in self.values.values()):
                return TracedValue(node.args[0] if node.args else None, None)
            shape = (1, *self.input_size)
            dtype = next((p.dtype for p in self.traced.skeleton.parameters()), torch.float32)
            return TracedValue(torch.zeros(shape, device="meta", dtype=dtype), shared_ids(shape))
        if node.op == "get_attr":
            return self._read_tensor(str(node.target))
        if node.op == "call_module":
            return self._read_layer(node)
        return self._read_call(node)

    def _read_tensor(self, path: str) -> TracedValue:
        tensor = attribute(self.traced.skeleton, path)
        if not isinstance(tensor, Tensor):
            return TracedValue(tensor, None)
        if tensor.numel() < 2 or not tensor.is_floating_point():
            return TracedValue(tensor, shared_ids(tensor.shape))
        return TracedValue(tensor, self.channels.loose(tensor.shape))

    def _read_layer(self, node: fx.Node) -> TracedValue:
        layer = self.traced.skeleton.get_submodule(str(node.target))
        rule = rule_for(layer)
        if rule is None:
            raise BackboneError("no rule for this layer type")
        if (
            len(node.args) != 1
            or not isinstance(node.args[0], fx.Node)
            or any(map(_holds_node, node.kwargs.values()))
        ):
            raise BackboneError("it takes more than one tensor")
        source = self.values[node.args[0]]
        if self.channels.is_loose(source.ids):  # a table that goes through layers serves all levels
            self.channels.share(source.ids)
            source = TracedValue(source.meta, shared_ids(source.ids.shape))
        with torch.no_grad():
            result = layer(source.meta, **node.kwargs)
        if not isinstance(result, Tensor):
            raise BackboneError("its result is no tensor")
        found = rule.propagate(layer, source.ids, tuple(result.shape), self.channels)
        self.flows[node] = found
        return TracedValue(result, found.ids)

    def _read_call(self, node: fx.Node) -> TracedValue:
        function = out_of_place(node.target)
        args, kwargs = _with(node, lambda value: value.meta, self.values)
        kwargs.pop("inplace", None)
        if "device" in kwargs and kwargs["device"] is not None:
            kwargs["device"] = "meta"
        with torch.no_grad():
            result = function(*args, **kwargs)
        tensors = tensors_in(result)
        if not tensors:
            return TracedValue(result, None)
        id_args, id_kwargs = _with(
            node, lambda value: value.meta if value.ids is None else value.ids, self.values
        )
        id_kwargs.pop("inplace", None)
        name = function_name(node.target)
        known = [ids for ids in tensors_in((id_args, id_kwargs)) if touched(ids)]
        if known and all(map(self.channels.is_loose, known)) and not has_rule(name):
            for ids in known:
                self.channels.share(ids)
            known = []
        if not known:
            return TracedValue(result, _map(result, lambda tensor: shared_ids(tensor.shape)))
        if name == "getattr":
            return TracedValue(result, getattr(id_args[0], id_args[1]))
        call = TracedCall(name, function, id_args, id_kwargs, tuple(tensors[0].shape))
        ids = propagate(call, self.channels)
        if isinstance(ids, Tensor) and not isinstance(result, Tensor):  # values and indices of max
            ids = _map(result, lambda tensor: ids)
        return TracedValue(result, ids)


def shared_ids(shape: Sequence[int]) -> Tensor:
    """Return the ids of a value that every level sees."""
    return torch.zeros((), dtype=torch.long).expand(tuple(shape))


def _with(
    node: fx.Node, pick: Any, values: dict[fx.Node, TracedValue]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments of a node, with `pick` of each value in its place."""
    args = fx.map_arg(node.args, lambda n: pick(values[n]))
    kwargs = fx.map_arg(node.kwargs, lambda n: pick(values[n]))
    return tuple(args), dict(kwargs)


def _map(value: Any, function: Any) -> Any:
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, (tuple, list)):
        return tuple(_map(item, function) for item in value)
    return None


def _checked_output(node: Any, values: dict[fx.Node, TracedValue]) -> fx.Node:
    meta = values[node].meta if isinstance(node, fx.Node) else node
    if not isinstance(node, fx.Node) or not isinstance(meta, Tensor) or meta.ndim != 2:
        shape = ("B", *meta.shape[1:]) if isinstance(meta, Tensor) else type(meta).__name__
        raise BackboneError(
            f"the backbone must end in pooled features (B, F), not in {shape}".replace("'", "")
            + "; make it with create_backbone, or take another model of its family"
        )
    return node


def assign_levels(analysis: Analysis, levels: NDArray[np.int64]) -> list[tuple[fx.Node, Tensor]]:
    """Set the partition of every value; return those that levels divide along more than one axis."""
    torn: list[tuple[fx.Node, Tensor]] = []

    def cut_of(node: fx.Node, ids: Tensor) -> Partition | None:
        try:
            found = make_partition(ids, levels, analysis.levels)
        except BackboneError as error:
            raise BackboneError(f"{where(node)} can't be cut into levels: {error}") from None
        if found is None:
            torn.append((node, ids))
        return found

    for node, value in analysis.values.items():
        value.cut = _map(value.ids, lambda ids, node=node: cut_of(node, ids))
    return torn


def make_partition(ids: Tensor, levels: NDArray[np.int64], num_levels: int) -> Partition | None:
    """Return the partition of a value with these ids, or None if levels change along more than one axis.

    Raises:
        BackboneError: channels of levels lie beside what each level owns.
    """
    assigned = torch.from_numpy(levels)[compact(ids)]
    axes = [
        axis for axis, size in enumerate(assigned.shape) if size > 1 and bool(assigned.diff(dim=axis).any())
    ]
    nothing = np.zeros(0, np.int64)
    if not axes:
        level = int(assigned.flatten()[0]) if assigned.numel() else SHARED
        index = tuple(np.zeros(1, np.int64) if level in (k, OWN) else nothing for k in range(num_levels))
        return Partition(index, shared=level == SHARED, owned=level == OWN)
    if len(axes) > 1:
        return None
    row = assigned.movedim(axes[0], 0).reshape(assigned.shape[axes[0]], -1)[:, 0].numpy()
    if (row == OWN).any():
        raise BackboneError("channels of levels and what each level makes for itself lie side by side")
    row = np.maximum(row, 0)  # what all levels see is made by level 0
    return Partition(tuple(np.flatnonzero(row == k) for k in range(num_levels)), axes[0], len(row))


def _check_features(analysis: Analysis) -> None:
    cut: Partition = analysis.values[analysis.output].cut
    size = analysis.values[analysis.output].meta.shape[1]
    mixing = analysis.channels.where_shared() if analysis.levels > 1 and cut.shared else ""
    if mixing:
        raise BackboneError(
            f"{mixing} can't be cut into levels: it lets all levels share all {size} pooled features"
        )
    if analysis.levels > 1 and (cut.axis != 1 or not all(len(index) for index in cut.index)):
        raise BackboneError(
            f"the {size} pooled features can't be shared by {analysis.levels} levels; "
            "use fewer levels or a wider backbone"
        )


def _holds_node(argument: Any) -> bool:
    if isinstance(argument, (tuple, list)):
        return any(_holds_node(item) for item in argument)
    return isinstance(argument, fx.Node)


def where(node: fx.Node) -> str:
    """Return module path and type in whose forward the node was traced, for messages."""
    if node.op == "call_module":
        owner = node.graph.owning_module
        path = str(node.target)
        layer = owner.get_submodule(path) if owner is not None else None
        stack = node.meta.get("nn_module_stack") or {}
        kind = next((k for p, k in stack.values() if p == path), None)
        return f"{path} ({type_name(layer) if layer is not None else getattr(kind, '__name__', kind)})"
    stack = node.meta.get("nn_module_stack") or {}
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
    if not stack:
        return f"backbone: {name}()"
    path, kind = list(stack.values())[-1]
    return f"{path or 'backbone'} ({getattr(kind, '__name__', kind)}): {name}()"


def positions(cut: Partition, level: int, size: int) -> Sequence[int]:
    """Return the positions of a level along the channels of a value that has `size` of them."""
    if cut.axis is not None:
        index: list[int] = cut.index[level].tolist()
        return index
    present = level == 0 if cut.shared else len(cut.index[level]) > 0
    return range(size) if present else range(0)
