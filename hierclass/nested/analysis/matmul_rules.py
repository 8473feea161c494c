"""How channels flow through products of matrices: matmul, attention, einsum."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hierclass.errors import BackboneError
from hierclass.nested.analysis.channel_groups import (
    OWN_ID,
    ChannelGroups,
    has_channels,
    has_owned,
    touched,
    varies,
)
from hierclass.nested.analysis.traced_call import TracedCall, elementwise


def product(left: Tensor, right: Tensor, shape: Sequence[int], channels: ChannelGroups) -> Tensor:
    """Return the ids of a matrix product of `shape`: each element belongs to the level of all that it sums over.

    Where one side serves all channels of the other (a key that all heads read, the states of a state-space model),
    level 0 makes it and all levels see it.
    """
    rows = channels.mix(left, left.ndim - 1)
    rows_gone = _is_slice(left, rows)
    if rows_gone and channels.is_loose(right) and right.ndim == 2:  # a parameter with a row per channel
        channels.unite(left.movedim(-1, 0).flatten(1)[:, :1], right)
        return torch.full_like(rows, OWN_ID).expand(tuple(shape))
    columns = channels.mix(right, right.ndim - 2)
    columns_gone = _is_slice(right, columns)
    if rows_gone and not columns_gone and not channels.is_loose(columns):
        rows = _ground(rows, left, channels)
    if columns_gone and not rows_gone and not channels.is_loose(rows):
        columns = _ground(columns, right, channels)
    if channels.is_loose(rows) and touched(right):
        rows = channels.unite_along(rows, rows.ndim - 2).expand(rows.shape)
    if channels.is_loose(columns) and touched(left):
        columns = channels.unite_along(columns, columns.ndim - 1).expand(columns.shape)
    aligned = [ids.reshape([1] * (len(shape) - ids.ndim) + list(ids.shape)) for ids in (rows, columns)]
    known = [ids for ids in aligned if has_channels(ids)]
    if not known:
        return min(aligned, key=lambda ids: int(ids.min())).flatten()[0].expand(tuple(shape))
    if len(known) == 2:
        return _meet(aligned[0], aligned[1], shape, channels)
    return known[0].expand(tuple(shape))


def _meet(rows: Tensor, columns: Tensor, shape: Sequence[int], channels: ChannelGroups) -> Tensor:
    """Return the ids of a product whose sides both hold channels: heads meet heads, the side without any is shared."""
    ndim = len(shape)
    heads = [any(varies(ids, axis) for axis in range(ndim - 2)) for ids in (rows, columns)]
    crossing = varies(rows, ndim - 2) and varies(columns, ndim - 1)
    firm = not channels.is_loose(rows) and not channels.is_loose(columns)
    single = [not any(varies(ids, axis) for axis in range(ndim)) for ids in (rows, columns)]
    if firm and (heads == [True, False] or (crossing and not any(heads)) or single == [False, True]):
        channels.share(columns)
        return rows.expand(tuple(shape))
    if firm and (heads == [False, True] or single == [True, False]):
        channels.share(rows)
        return columns.expand(tuple(shape))
    if not (varies(rows, ndim - 2) or varies(columns, ndim - 1)):
        ids = [a[..., :1, :1] for a in (rows, columns)]
        return elementwise(ids, (*shape[:-2], 1, 1), channels).expand(tuple(shape))
    channels.unite(rows, columns)
    return _widest((rows, columns)).expand(tuple(shape))


def _is_slice(ids: Tensor, mixed: Tensor) -> bool:
    """Return whether a plain row of channels was summed over, so that each level owns the sum of its slice."""
    return has_owned(mixed) and not has_owned(ids)


def _ground(mixed: Tensor, ids: Tensor, channels: ChannelGroups) -> Tensor:
    channels.share(ids)
    return torch.zeros_like(mixed)


def _widest(known: Sequence[Tensor]) -> Tensor:
    return max(known, key=lambda ids: sum(varies(ids, axis) for axis in range(ids.ndim)))


def attention(call: TracedCall, channels: ChannelGroups) -> Tensor:
    """Return the ids of softmax(q · kᵀ + mask) · v: heads meet heads."""
    query, key, value = (call.argument(i, name) for i, name in enumerate(("query", "key", "value")))
    mask = call.argument(3, "attn_mask")
    logits_shape = (*call.shape[:-1], key.shape[-2])
    logits = product(query, key.transpose(-2, -1), logits_shape, channels)
    if isinstance(mask, Tensor):
        logits = elementwise((logits, mask), logits_shape, channels)
    logits = channels.mix(logits, len(logits_shape) - 1).expand(logits_shape)
    return product(logits, value, call.shape, channels)


def einsum(call: TracedCall, channels: ChannelGroups) -> Tensor:
    """Return the ids of an einsum: mix what the result sums over, unite what meets.

    Raises:
        BackboneError: the equation has no "->", has an ellipsis, or does not fit the operands.
    """
    equation, operands = call.args[0], call.args[1:]
    if len(operands) == 1 and isinstance(operands[0], (tuple, list)):
        operands = tuple(operands[0])
    inputs, arrow, output = equation.replace(" ", "").partition("->")
    letters = inputs.split(",")
    if not arrow or "." in equation or len(letters) != len(operands):
        raise BackboneError(f"einsum {equation!r} has no rule")
    aligned = []
    for names, ids in zip(letters, operands, strict=True):
        if has_channels(ids):
            ids = channels.mix(ids, *(i for i, name in enumerate(names) if name not in output))
        kept = [name for name in names if name in output]
        for axis in reversed([i for i, name in enumerate(names) if name not in output]):
            ids = ids.select(axis, 0)
        ids = ids.permute(*(kept.index(name) for name in output if name in kept))
        for axis, name in enumerate(output):
            if name not in kept:
                ids = ids.unsqueeze(axis)
        aligned.append(ids)
    return elementwise(aligned, call.shape, channels)


def relative_positions(call: TracedCall, channels: ChannelGroups) -> Tensor:
    """Return the ids of MViT v2's logits plus products of the queries with tables of relative positions."""
    logits, query, *tables = (*call.args[:2], *call.args[5:7])
    heads = channels.mix(query, query.ndim - 1)
    for table in tables:
        if _is_slice(query, heads):
            channels.unite(query.movedim(-1, 0).flatten(1)[:, 0], table)
        else:
            channels.share(table)
    return logits if _is_slice(query, heads) else elementwise((logits, heads), call.shape, channels)
