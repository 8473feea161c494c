"""How channels flow through the functions of traced code.

Functions are known by name (`torch.add`, `operator.iadd` and `Tensor.add_` are all "add") and fall into few kinds:
those that work element by element, those that move elements, those that mix along axes, products of matrices, and
functions over places. To add a function, add its name to the kind that it belongs to.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from hierclass.errors import BackboneError
from hierclass.nested.analysis.channel_groups import ChannelGroups, has_channels, varies
from hierclass.nested.analysis.layer_rules import respread
from hierclass.nested.analysis.matmul_rules import attention, einsum, product, relative_positions
from hierclass.nested.analysis.traced_call import TracedCall, elementwise


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


ELEMENTWISE = _names(
    """
    add sub rsub mul div truediv pow neg abs exp log log1p sqrt rsqrt square clamp clip maximum
    minimum lerp addcmul sigmoid tanh relu relu6 silu gelu hardswish hardsigmoid hardtanh mish elu
    leaky_relu softplus logsigmoid dropout where masked_fill maybe_add_mask to float half
    bfloat16 contiguous clone detach sin cos erf reciprocal nan_to_num xlogy drop_path
    """
)
"""Functions that work element by element: what meets belongs to one level."""

MOVING = _names(
    """
    reshape view flatten unflatten permute transpose swapaxes movedim unsqueeze squeeze expand
    expand_as repeat repeat_interleave tile broadcast_to unbind chunk split split_with_sizes
    tensor_split getitem roll flip narrow select t mT pixel_shuffle pixel_unshuffle window_partition
    window_reverse window_partition_nchw window_reverse_nchw grid_partition grid_reverse
    grid_partition_nchw grid_reverse_nchw blockify deblockify reshape_pre_pool reshape_post_pool
    view_as reshape_as
    """
)
"""Functions that move elements: they run on the ids themselves."""

REDUCING = _names("mean sum amax amin std var norm prod logsumexp")
"""Functions that reduce axes: along these, ids are mixed."""

COMPARING = {"softmax": 1, "log_softmax": 1, "normalize": 2, "cumsum": 1}
"""Functions that keep the shape and mix along one axis → position of the argument that names the axis."""

PLACES = _names(
    """
    interpolate max_pool2d avg_pool2d adaptive_avg_pool2d adaptive_max_pool2d pad upsample
    avg_pool2d_same max_pool2d_same adaptive_avg_pool1d resample_abs_pos_embed
    resample_abs_pos_embed_nhwc pad_same
    """
)
"""Functions over places that work channel by channel."""

RESHAPING = _names("reshape view expand broadcast_to unflatten")
SPLITTING = _names("chunk split split_with_sizes tensor_split")


def has_rule(name: str) -> bool:
    """Return whether ids of parameters are followed through a function; otherwise all levels share its result."""
    return name in ELEMENTWISE | MOVING | PLACES or name in ("cat", "stack", "getattr", "type_as")


def function_name(target: Any) -> str:
    """Return the name of a function or method without the mark of its in-place form: iadd, add_ → add."""
    name = str(target if isinstance(target, str) else getattr(target, "__name__", target)).lower()
    if getattr(target, "__module__", "") == "_operator" and name in IN_PLACE:
        return name[1:]
    return name.strip("_")


IN_PLACE = {"iadd": operator.add, "isub": operator.sub, "imul": operator.mul, "itruediv": operator.truediv}


def out_of_place(target: Any) -> Callable[..., Any]:
    """Return a function that computes what the traced one does and overwrites nothing."""
    if isinstance(target, str):
        plain = target.rstrip("_") if not target.startswith("__") else target
        method: Callable[..., Any] = getattr(Tensor, plain)
        return method
    name = getattr(target, "__name__", "")
    if name in IN_PLACE:
        return IN_PLACE[name]
    if name.endswith("_") and not name.startswith("_") and hasattr(torch, name[:-1]):
        plain_function: Callable[..., Any] = getattr(torch, name[:-1])
        return plain_function
    function: Callable[..., Any] = target
    return function


def propagate(call: TracedCall, channels: ChannelGroups) -> Any:
    """Return the ids of the result of a call that reads channels; unite ids in `channels`.

    Raises:
        BackboneError: there is no rule for the function.
    """
    name = call.name
    if name in ("cat", "concat", "concatenate"):
        return _concatenate(call, channels)
    if name == "stack":
        return torch.stack(
            [t.expand(call.args[0][0].shape) for t in call.args[0]], call.argument(1, "dim", default=0)
        )
    if name == "type_as":  # only the type of the second counts
        return call.args[0]
    if name in ELEMENTWISE:
        return elementwise(call.tensors, call.shape, channels)
    if name in MOVING:
        return _move(call, channels)
    if name in REDUCING:
        return _reduce(call, channels)
    if name in COMPARING:
        axis = call.argument(COMPARING[name], "dim", "axis", default=1 if name == "normalize" else None)
        if [a for a in range(call.args[0].ndim) if varies(call.args[0], a)] == [axis % call.args[0].ndim]:
            return call.args[0]  # within the slice
        return channels.mix(call.args[0], axis).expand(call.shape)
    if name in ("layer_norm", "rms_norm"):
        return call.args[0]
    if name in ("matmul", "bmm"):
        return product(call.args[0], call.args[1], call.shape, channels)
    if name == "unfold" and len(call.args) == 4:  # the method, over one axis
        return call.function(*call.args)
    if name == "unfold" and len(call.args[0].shape) == 4:
        row = channels.unite_along(call.args[0], 2, 3)[..., 0]
        return row.repeat_interleave(call.shape[1] // row.shape[1], 1).expand(call.shape)
    if name == "fold":
        shape = (len(call.args[0]), call.shape[1], -1, call.args[0].shape[2])
        return channels.unite_along(call.args[0].reshape(shape), 2, 3).expand(call.shape)
    if name == "scaled_dot_product_attention":
        return attention(call, channels)
    if name == "cal_rel_pos_type":
        return relative_positions(call, channels)
    if name == "einsum":
        return einsum(call, channels)
    if name in PLACES:
        return respread(call.args[0] if call.args else call.kwargs["input"], call.shape, channels)
    raise BackboneError("no rule for this operation")


def _concatenate(call: TracedCall, channels: ChannelGroups) -> Tensor:
    """Return the ids of a concatenation: channels lie side by side; along places, ids at the same place are united."""
    parts: list[Tensor] = list(call.args[0] if call.args else call.kwargs["tensors"])
    axis = call.argument(1, "dim", "axis", default=0) % len(call.shape)
    known = [ids for ids in parts if has_channels(ids)]
    firm = [ids for ids in known if not channels.is_loose(ids)]
    if any(varies(ids, axis) for ids in firm) or not firm or _all_rows(firm, axis):
        return torch.cat(parts, axis)
    row = firm[0].narrow(axis, 0, 1)
    for ids in known:
        channels.unite(row, ids)
    return row.expand(call.shape)


def _all_rows(parts: Sequence[Tensor], axis: int) -> bool:
    """Return whether parts of one channel each are laid side by side."""
    return all(not any(varies(ids, other) for other in range(ids.ndim)) for ids in parts) and any(
        ids.shape[axis] == 1 for ids in parts
    )


def _move(call: TracedCall, channels: ChannelGroups) -> Any:
    if call.name == "getitem" and isinstance(call.args[0], Tensor):
        return _index(call.args[0], call.args[1], call.shape, channels)
    function = (
        torch.Tensor.reshape if call.name == "view" else call.function
    )  # spread ids have no memory to view
    moved = function(*call.args, **call.kwargs)
    if call.name in (*SPLITTING, "unbind") and isinstance(moved, (tuple, list)):
        axis = call.argument(1 if call.name == "unbind" else 2, "dim", "axis", default=0)
        if isinstance(call.args[0], Tensor) and varies(call.args[0], axis):
            for part in moved:
                channels.mark(part)
    return moved


def _index(ids: Tensor, index: Any, shape: Sequence[int], channels: ChannelGroups) -> Tensor:
    """Return the ids of an indexing; a tensor as index mixes all places along its axis."""
    items = index if isinstance(index, tuple) else (index,)
    if not any(isinstance(item, Tensor) for item in items):
        moved: Tensor = ids[index]
        if isinstance(items[0], int) and varies(ids, 0):
            channels.mark(moved)
        return moved
    axis = next(i for i, item in enumerate(items) if isinstance(item, Tensor))
    if any(not isinstance(item, Tensor) and item != slice(None) for item in items):
        raise BackboneError("indexing with a tensor and other things has no rule")
    count = sum(isinstance(item, Tensor) for item in items)
    mixed = channels.mix(ids, *range(axis, axis + count))
    for _ in range(count):
        mixed = mixed.squeeze(axis)
    new = len(shape) - mixed.ndim
    for _ in range(new):
        mixed = mixed.unsqueeze(axis)
    return mixed.expand(tuple(shape))


def _reduce(call: TracedCall, channels: ChannelGroups) -> Tensor:
    ids = call.args[0] if call.args else call.kwargs["input"]
    position = 2 if call.name == "norm" else 1
    axes = call.argument(position, "dim", "axis")
    if axes is None:
        axes = tuple(range(ids.ndim))
    axes = tuple(axis % ids.ndim for axis in (axes if isinstance(axes, (tuple, list)) else (axes,)))
    mixed = channels.mix(ids, *axes)
    if len(call.shape) != ids.ndim:
        for axis in sorted(axes, reverse=True):
            mixed = mixed.squeeze(axis)
    return mixed.expand(call.shape)
