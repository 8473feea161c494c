"""One call of traced code with ids for tensors, and how channels flow through one that works element by element."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hierclass.errors import BackboneError
from hierclass.nested.analysis.channel_groups import ChannelGroups, has_channels, has_owned, varies


@dataclass(frozen=True)
class TracedCall:
    """One call of traced code: its arguments with ids for tensors, and the shape of its result."""

    name: str
    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    shape: tuple[int, ...]

    @property
    def tensors(self) -> list[Tensor]:
        """Return all tensors of ids among the arguments."""
        return tensors_in((self.args, self.kwargs))

    def argument(self, position: int, *names: str, default: Any = None) -> Any:
        """Return an argument by position or by one of its names."""
        if len(self.args) > position:
            return self.args[position]
        return next((self.kwargs[name] for name in names if name in self.kwargs), default)


def tensors_in(value: Any) -> list[Tensor]:
    """Return all tensors of nested tuples, lists and dictionaries."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = tuple(value.values())
    if isinstance(value, (tuple, list)):
        return [tensor for item in value for tensor in tensors_in(item)]
    return []


def elementwise(operands: Sequence[Tensor], shape: Sequence[int], channels: ChannelGroups) -> Tensor:
    """Unite ids that meet in a result of `shape`, and return its ids; share ids that meet several channels alike.

    Raises:
        BackboneError: what each level makes of its own slice meets channels of all levels.
    """
    aligned = [ids.reshape([1] * (len(shape) - ids.ndim) + list(ids.shape)) for ids in operands]
    known = [ids for ids in aligned if has_channels(ids)]
    owned = [ids for ids in aligned if has_owned(ids)]
    if owned and all(channels.is_loose(ids) for ids in known):
        for ids in known:
            channels.share(ids)
        return owned[0].flatten()[0].expand(tuple(shape))
    firm = [ids for ids in known if not channels.is_loose(ids)]
    rows = [ids for ids in (firm or known) if not _serves_all(ids, firm or known)]
    if not rows:
        return torch.zeros((), dtype=torch.long).expand(tuple(shape))
    if any(_lies_across(ids, row) for ids in owned for row in rows):
        raise BackboneError("what each level makes of its own slice meets channels of all levels")
    for ids in known:
        if _serves_all(ids, rows):
            channels.share(ids)
        else:
            channels.unite(rows[0], ids)
    merged = rows[0]
    for ids in rows[1:]:  # one operand may vary where another was spread
        if any(varies(ids, axis) and merged.shape[axis] == 1 for axis in range(merged.ndim)):
            merged = ids
    return merged.expand(tuple(shape))


def _lies_across(ids: Tensor, row: Tensor) -> bool:
    return any(ids.shape[axis] > 1 and varies(row, axis) for axis in range(row.ndim))


def _serves_all(ids: Tensor, others: Sequence[Tensor]) -> bool:
    return any(
        ids.shape[axis] == 1 and other.shape[axis] > 1 and varies(other, axis)
        for other in others
        if other is not ids
        for axis in range(ids.ndim)
    )
