"""How the arguments of a traced call change with the level: sizes, splits, indices along the channels."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import fx

from hierclass.errors import BackboneError
from hierclass.nested.analysis.op_rules import ELEMENTWISE, RESHAPING, SPLITTING, function_name, out_of_place
from hierclass.nested.analysis.partition import Analysis, Partition, TracedValue
from hierclass.nested.level_graph import pick, scaled_shape, scaled_size

Call: TypeAlias = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]
"""A function and its arguments; computed values among them are nodes of the level's graph."""


@dataclass(frozen=True)
class CallSite:
    """A traced call that is written into the graph of one level."""

    analysis: Analysis
    node: fx.Node
    level: int
    value_of: Callable[[fx.Node], Any]
    """Returns the level's slice of a traced value."""
    add: Callable[..., fx.Node]
    """Adds the call of a function to the level's graph."""

    @property
    def name(self) -> str:
        """Return the name of the function."""
        return function_name(self.node.target)

    @property
    def function(self) -> Callable[..., Any]:
        """Return the function in a form that overwrites nothing."""
        return out_of_place(self.node.target)

    @property
    def args(self) -> tuple[Any, ...]:
        """Return the positional arguments as they were traced."""
        return self.node.args

    @property
    def kwargs(self) -> dict[str, Any]:
        """Return the arguments by name as they were traced."""
        return {key: value for key, value in self.node.kwargs.items() if key != "inplace"}

    @property
    def inputs(self) -> list[fx.Node]:
        """Return the traced values among the arguments, in order."""
        return self.node.all_input_nodes

    def fill(self, argument: Any) -> Any:
        """Return an argument with the level's values in place of traced ones."""
        if isinstance(argument, fx.Node):
            return self.value_of(argument) if argument.graph is self.node.graph else argument
        if isinstance(argument, (tuple, list)):
            return tuple(map(self.fill, argument))
        if isinstance(argument, slice):
            return slice(*map(self.fill, (argument.start, argument.stop, argument.step)))
        return argument

    def plain(self) -> Call:
        """Return the call with the level's values and else unchanged arguments."""
        return self.finished(self.function, *self.args, **self.kwargs)

    def finished(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Call:
        """Return a call with the level's values in it."""
        return function, self.fill(args), {key: self.fill(value) for key, value in kwargs.items()}

    def known(self, node: fx.Node) -> TracedValue:
        """Return what the analysis knows of a traced value."""
        return self.analysis.values[node]


def partitions_in(cut: Any) -> list[Partition]:
    """Return the partitions of all tensors of a value."""
    if isinstance(cut, (tuple, list)):
        return [each for item in cut for each in partitions_in(item)]
    return [cut] if isinstance(cut, Partition) else []


def fit_call(site: CallSite) -> Call:
    """Return the function and arguments that give the level's slice of the result of a call.

    Raises:
        BackboneError: no call gives the slice alone.
    """
    name, args, kwargs = site.name, site.args, site.kwargs
    function = torch.Tensor.reshape if name == "view" else site.function
    output = site.known(site.node).cut
    first = site.known(site.inputs[0]).cut if site.inputs else None
    if isinstance(output, Partition) and output.axis is not None:
        if name in RESHAPING:
            return _reshape(site, function, output, output.axis)
        if name in ("layer_norm", "rms_norm"):
            return site.finished(function, args[0], (len(output.index[site.level]),), *args[2:], **kwargs)
    if isinstance(first, Partition) and first.axis is not None:
        if name in SPLITTING:
            return _split(site, first, first.axis)
        if name == "getitem":
            return site.finished(operator.getitem, args[0], _index(site, args[1], first))
        if name in ("narrow", "select", "unbind"):
            axis = args[1] if len(args) > 1 else kwargs.get("dim", 0)
            if axis % site.known(site.inputs[0]).meta.ndim == first.axis:
                raise BackboneError("it takes single channels out")
    if name in ("cat", "concat", "concatenate", "stack"):
        return site.finished(function, _present(site, args[0], output), *args[1:], **kwargs)
    if isinstance(output, Partition) and _meets(name, output, site.known(site.node).meta.ndim):
        args = tuple(_meeting(site, argument, output) for argument in args)
        kwargs = {key: _meeting(site, argument, output) for key, argument in kwargs.items()}
    return site.finished(function, *args, **kwargs)


def _meets(name: str, output: Partition, ndim: int) -> bool:
    """Return whether operands of a call meet the channels of its result place by place."""
    if output.axis is None:
        return False
    heads = output.axis < ndim - 2
    return name in ELEMENTWISE or "attention" in name or (name in ("matmul", "bmm") and heads)


def _reshape(site: CallSite, function: Callable[..., Any], output: Partition, axis: int) -> Call:
    """Scale the size along the channels by the level's share of them."""
    args, kwargs = site.args, site.kwargs
    count, total = len(output.index[site.level]), output.size

    def scaled(size: Any) -> Any:
        if isinstance(size, fx.Node):
            return site.add(scaled_size, site.value_of(size), count, total)
        return scaled_size(size, count, total)

    if site.name == "unflatten":
        start = args[1] if len(args) > 1 else kwargs["dim"]
        sizes = list(args[2] if len(args) > 2 else kwargs["sizes"])
        if start < 0:
            raise BackboneError("it unflattens an axis counted from the end")
        if 0 <= axis - start < len(sizes):
            sizes[axis - start] = scaled(sizes[axis - start])
        return site.finished(function, args[0], start, tuple(sizes))
    if len(args) == 2 and isinstance(args[1], fx.Node) and len(site.known(site.node).meta.shape) > 1:
        shape = site.add(scaled_shape, site.value_of(args[1]), axis, count, total)
        return site.finished(function, args[0], shape)
    packed = len(args) == 1 or isinstance(args[1], (tuple, list))
    if len(args) == 1:
        sizes = list(kwargs.get("shape") or kwargs.get("size") or ())
    else:
        sizes = list(args[1]) if packed else list(args[1:])
    sizes[axis] = scaled(sizes[axis])
    return site.finished(function, args[0], *((tuple(sizes),) if packed else sizes))


def _split(site: CallSite, cut: Partition, along: int) -> Call:
    """Split the level's slice where the parts of the dense value end."""
    parts = site.known(site.node).meta
    axis = site.args[2] if len(site.args) > 2 else site.kwargs.get("dim", 0)
    if axis % parts[0].ndim != along:
        return site.plain()
    ends = np.cumsum([part.shape[along] for part in parts])
    inside = np.searchsorted(ends, cut.index[site.level], side="right")
    sizes = tuple(int((inside == part).sum()) for part in range(len(ends)))
    return site.finished(torch.split, site.args[0], sizes, along)


def _index(site: CallSite, index: Any, cut: Partition) -> Any:
    """Return an index along the channels as positions in the level's slice."""
    items = list(index) if isinstance(index, tuple) else [index]
    ndim = site.known(site.inputs[0]).meta.ndim
    if Ellipsis in [item for item in items if not isinstance(item, (fx.Node, slice))]:
        gap = items.index(Ellipsis)
        real = sum(item is not None and item is not Ellipsis for item in items)
        items[gap : gap + 1] = [slice(None)] * (ndim - real)
    axis = -1
    for place, item in enumerate(items):
        axis += item is not None
        if axis == cut.axis and item is not None:
            items[place] = _index_channels(site, item, cut)
            break
    return tuple(items)


def _index_channels(site: CallSite, item: Any, cut: Partition) -> Any:
    if not isinstance(item, slice):
        raise BackboneError("it takes single channels out")
    ends = (item.start, item.stop, item.step)
    known = [site.known(end).meta if isinstance(end, fx.Node) else end for end in ends]
    chosen = range(*slice(*known).indices(cut.size))
    if chosen == range(cut.size):
        return slice(None)
    here = np.flatnonzero(np.isin(cut.index[site.level], np.asarray(chosen)))
    if not len(here) or here[-1] - here[0] + 1 != len(here) or chosen.step != 1:
        raise BackboneError("it takes scattered channels out")
    return slice(int(here[0]), int(here[-1]) + 1)


def _present(site: CallSite, parts: Sequence[fx.Node], output: Any) -> tuple[Any, ...]:
    """Return the parts of a concatenation that the level has."""
    args = site.node.args[1:] or tuple(site.node.kwargs.values())
    axis = (args[0] if args and isinstance(args[0], int) else 0) % site.known(site.node).meta.ndim
    kept: list[Any] = []
    for part in parts:
        cut: Partition = site.known(part).cut
        if not site.known(part).meta.numel():
            continue
        if cut.shared and output.axis == axis:
            if site.level == 0:
                kept.append(part)
        elif cut.shared:
            kept.append(_meeting(site, part, output))
        elif len(cut.index[site.level]):
            kept.append(part)
    return tuple(kept)


def _meeting(site: CallSite, argument: Any, output: Partition) -> Any:
    """Return the positions of a shared value that meet the level's channels; other arguments as they are."""
    if not isinstance(argument, fx.Node):
        return argument
    value = site.known(argument)
    if not isinstance(value.cut, Partition) or not value.cut.shared or output.axis is None:
        return argument
    axis = output.axis - site.known(site.node).meta.ndim  # from the end: what is broadcast has fewer axes
    if value.meta.ndim < -axis or value.meta.shape[axis] != output.size or output.size == 1:
        return argument
    index = tuple(output.index[site.level].tolist())
    return site.add(pick, site.value_of(argument), axis, index)
