"""How the constants of a traced call change with the level: sizes, splits, indices along the channels."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import fx

from hierclass.errors import BackboneError
from hierclass.nested.calls import Picked, Resized, Slot
from hierclass.nested.functions import ELEMENTWISE, RESHAPING, SPLITTING
from hierclass.nested.graph import Analysis, Cut

Adapted = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]


def adapt(
    analysis: Analysis,
    node: fx.Node,
    name: str,
    function: Callable[..., Any],
    inputs: list[fx.Node],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    level: int,
) -> Adapted:
    """Return the function and arguments that give the level's slice of the result of `node`.

    Raises:
        BackboneError: there is no way to give the slice alone.
    """
    output = analysis.values[node].cut
    first = analysis.values[inputs[0]].cut if inputs else None
    if name == "view":
        function = torch.Tensor.reshape
    if name in RESHAPING and isinstance(output, Cut) and output.axis is not None:
        return (*_resize(function, name, args, kwargs, output, level),)
    if name in SPLITTING and isinstance(first, Cut) and first.axis is not None:
        return _split(analysis, node, function, args, kwargs, first, level)
    if name == "getitem" and isinstance(first, Cut) and first.axis is not None:
        return operator.getitem, (args[0], _index(analysis, inputs, args[1], first, level)), {}
    if name in ("layer_norm", "rms_norm") and isinstance(output, Cut) and output.axis is not None:
        return function, (args[0], (len(output.index[level]),), *args[2:]), kwargs
    if name in ("narrow", "select", "unbind") and isinstance(first, Cut) and first.axis is not None:
        axis = args[1] if len(args) > 1 else kwargs.get("dim", 0)
        if axis % analysis.values[inputs[0]].meta.ndim == first.axis:
            raise BackboneError("it takes single channels out")
    if name in ("cat", "concat", "concatenate", "stack"):
        return function, (_present(analysis, node, inputs, args[0], level), *args[1:]), kwargs
    if (
        isinstance(output, Cut)
        and output.axis is not None
        and _meets(name, output, analysis.values[node].meta.ndim)
    ):
        args = tuple(_pick(analysis, inputs, arg, node, output, level) for arg in args)
        kwargs = {key: _pick(analysis, inputs, arg, node, output, level) for key, arg in kwargs.items()}
    return function, args, kwargs


def _meets(name: str, output: Cut, ndim: int) -> bool:
    """Whether operands of a call meet the channels of its result place by place."""
    heads = output.axis is not None and output.axis < ndim - 2
    return name in ELEMENTWISE or "attention" in name or (name in ("matmul", "bmm") and heads)


def _resize(
    function: Callable[..., Any],
    name: str,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    output: Cut,
    level: int,
) -> Adapted:
    """Scale the size along the channels by the level's share of them."""
    count, total, axis = len(output.index[level]), output.size, output.axis
    assert axis is not None
    if name == "unflatten":
        start = args[1] if len(args) > 1 else kwargs["dim"]
        sizes = list(args[2] if len(args) > 2 else kwargs["sizes"])
        if start < 0:
            raise BackboneError("it unflattens an axis counted from the end")
        if 0 <= axis - start < len(sizes):
            sizes[axis - start] = _scaled(sizes[axis - start], count, total)
        return function, (args[0], start, tuple(sizes)), {}
    packed = len(args) > 1 and isinstance(args[1], tuple)
    if len(args) == 1:
        sizes, packed = list(kwargs.get("shape") or kwargs.get("size") or ()), True
    elif len(args) == 2 and isinstance(args[1], Slot):  # a whole shape
        return function, (args[0], Resized(args[1], axis, count, total)), {}
    else:
        sizes = list(args[1]) if packed else list(args[1:])
    sizes[axis] = _scaled(sizes[axis], count, total)
    return function, (args[0], tuple(sizes)) if packed else (args[0], *sizes), {}


def _scaled(size: Any, count: int, total: int) -> Any:
    if isinstance(size, Slot):
        return Slot(size.index, count, total)
    return size if size == -1 else size * count // total


def _split(
    analysis: Analysis,
    node: fx.Node,
    function: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    cut: Cut,
    level: int,
) -> Adapted:
    """Split the level's slice where the parts of the dense value end."""
    value = analysis.values[node]
    axis = args[2] if len(args) > 2 else kwargs.get("dim", 0)
    if axis % value.meta[0].ndim != cut.axis:
        return function, args, kwargs
    ends = np.cumsum([part.shape[cut.axis] for part in value.meta])
    inside = np.searchsorted(ends, cut.index[level], side="right")
    return torch.split, (args[0], tuple(int((inside == i).sum()) for i in range(len(ends))), cut.axis), {}


def _index(analysis: Analysis, inputs: list[fx.Node], index: Any, cut: Cut, level: int) -> Any:
    """Move an index along the channels to where the level's slice holds what it means."""
    items = list(index) if isinstance(index, tuple) else [index]
    ndim = analysis.values[inputs[0]].meta.ndim
    if Ellipsis in [item for item in items if not isinstance(item, (Slot, slice))]:
        gap = items.index(Ellipsis)
        real = sum(item is not None and item is not Ellipsis for item in items)
        items[gap : gap + 1] = [slice(None)] * (ndim - real)
    axis = -1
    for place, item in enumerate(items):
        axis += item is not None
        if axis == cut.axis and item is not None:
            items[place] = _index_channels(analysis, inputs, item, cut, level)
            break
    return tuple(items)


def _index_channels(analysis: Analysis, inputs: list[fx.Node], item: Any, cut: Cut, level: int) -> Any:
    if not isinstance(item, slice):
        raise BackboneError("it takes single channels out")
    known = [
        analysis.values[inputs[end.index]].meta if isinstance(end, Slot) else end
        for end in (item.start, item.stop, item.step)
    ]
    chosen = range(*slice(*known).indices(cut.size))
    if chosen == range(cut.size):
        return slice(None)
    here = np.flatnonzero(np.isin(cut.index[level], np.asarray(chosen)))
    if not len(here) or here[-1] - here[0] + 1 != len(here) or chosen.step != 1:
        raise BackboneError("it takes scattered channels out")
    return slice(int(here[0]), int(here[-1]) + 1)


def _present(
    analysis: Analysis, node: fx.Node, inputs: list[fx.Node], parts: tuple[Any, ...], level: int
) -> tuple[Any, ...]:
    """The parts of a concatenation that the level has."""
    output = analysis.values[node].cut
    args = node.args[1:] or tuple(node.kwargs.values())
    axis = (args[0] if args and isinstance(args[0], int) else 0) % analysis.values[node].meta.ndim
    kept: list[Any] = []
    for part in parts:
        if not analysis.values[inputs[part.index]].meta.numel():
            continue
        cut: Cut = analysis.values[inputs[part.index]].cut
        if cut.shared and output.axis == axis:
            if level == 0:
                kept.append(part)
        elif cut.shared:
            kept.append(_pick(analysis, inputs, part, node, output, level))
        elif len(cut.index[level]):
            kept.append(part)
    return tuple(kept)


def _pick(
    analysis: Analysis, inputs: list[fx.Node], argument: Any, node: fx.Node, output: Cut, level: int
) -> Any:
    """Of what all levels share, the level takes the part that meets its channels."""
    if not isinstance(argument, Slot):
        return argument
    value = analysis.values[inputs[argument.index]]
    if not isinstance(value.cut, Cut) or not value.cut.shared or output.axis is None:
        return argument
    axis = output.axis - analysis.values[node].meta.ndim  # from the end: what is broadcast has fewer axes
    if value.meta.ndim < -axis or value.meta.shape[axis] != output.size or output.size == 1:
        return argument
    return Picked(argument, axis, tuple(output.index[level].tolist()))
