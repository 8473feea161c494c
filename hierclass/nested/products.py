"""How channels flow through products of matrices: matmul, attention, einsum."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from hierclass.errors import BackboneError
from hierclass.nested.channels import Channels, has_channels, touched, varies
from hierclass.nested.elementwise import FlowCall, elementwise


def product(left: Tensor, right: Tensor, shape: Sequence[int], channels: Channels) -> Tensor:
    """Matrix product: each element belongs to the level of all it sums over."""
    rows, columns = channels.mix(left, left.ndim - 1), channels.mix(right, right.ndim - 2)
    if channels.is_loose(rows) and touched(right):
        rows = channels.tie_along(rows, rows.ndim - 2).expand(rows.shape)
    if channels.is_loose(columns) and touched(left):
        columns = channels.tie_along(columns, columns.ndim - 1).expand(columns.shape)
    ndim = len(shape)
    aligned = [ids.reshape([1] * (ndim - ids.ndim) + list(ids.shape)) for ids in (rows, columns)]
    known = [ids for ids in aligned if has_channels(ids)]
    if not known:
        return min(aligned, key=lambda ids: int(ids.min())).flatten()[0].expand(tuple(shape))
    if len(known) == 2:
        if not (varies(aligned[0], ndim - 2) or varies(aligned[1], ndim - 1)):
            flat = (*shape[:-2], 1, 1)
            ids = [a[..., :1, :1] for a in aligned]
            return elementwise(ids, flat, channels).expand(tuple(shape))
        channels.tie(aligned[0], aligned[1])
    return known[0].expand(tuple(shape)) if len(known) == 1 else _widest(known).expand(tuple(shape))


def _widest(known: Sequence[Tensor]) -> Tensor:
    return max(known, key=lambda ids: sum(varies(ids, axis) for axis in range(ids.ndim)))


def attention(call: FlowCall, channels: Channels) -> Tensor:
    """softmax(q · kᵀ + mask) · v: heads meet heads."""
    query, key, value = (call.argument(i, name) for i, name in enumerate(("query", "key", "value")))
    mask = call.argument(3, "attn_mask")
    logits_shape = (*call.shape[:-1], key.shape[-2])
    logits = product(query, key.transpose(-2, -1), logits_shape, channels)
    if isinstance(mask, Tensor):
        logits = elementwise((logits, mask), logits_shape, channels)
    logits = channels.mix(logits, len(logits_shape) - 1).expand(logits_shape)
    return product(logits, value, call.shape, channels)


def einsum(call: FlowCall, channels: Channels) -> Tensor:
    """Sums over the letters that the result lacks: what is summed over is tied, what meets is tied."""
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
