"""Dropout and stochastic depth drawn for the whole batch of an update, however it is divided.

All processes and parts of an update draw the same numbers and use those of their own images, so that dropout depends on
(seed, update, position in the batch) alone.
"""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from timm.layers import DropPath
from torch import Tensor, nn


@dataclasses.dataclass
class BatchPositions:
    """Positions (n,) of the current images in a batch of ``size``."""

    positions: Tensor
    size: int = 1


def share_dropout(network: nn.Module, device: torch.device) -> BatchPositions:
    """Make a network's dropout layers draw for the whole batch; set the returned positions before every call."""
    dealt = BatchPositions(torch.zeros(1, dtype=torch.long, device=device))
    for module in network.modules():
        kind = type(module)
        if kind in (DropPath, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d):
            module.__class__ = type(f"Dealt{kind.__name__}", (_WholeBatchDropout, kind), {})
            module._dealt = dealt  # type: ignore[assignment]
    return dealt


class _WholeBatchDropout(nn.Module):
    """A dropout layer that draws for the whole batch.

    Added as a base of the layer's own class, so that the module keeps its identity and attributes.
    """

    _dealt: BatchPositions

    def forward(self, x: Tensor) -> Tensor:
        """(n · k, …) → the same shape; the k rows of an image are consecutive."""
        rate = float(getattr(self, "drop_prob", getattr(self, "p", 0.0)))
        if not self.training or not rate:
            return x
        positions, size = self._dealt.positions, self._dealt.size
        rows = x.shape[0] // len(positions)
        shape = self._shape(x)
        whole = F.dropout(x.new_ones((size, rows, *shape)), rate)
        if not getattr(self, "scale_by_keep", True):
            whole = whole * (1 - rate)
        return x * whole[positions].view(x.shape[0], *shape)

    def _shape(self, x: Tensor) -> tuple[int, ...]:
        """Shape of the random values per row: all values, one per channel, or one."""
        if isinstance(self, DropPath):
            return (1,) * (x.ndim - 1)
        return tuple(x.shape[1:]) if isinstance(self, nn.Dropout) else (x.shape[1], *(1,) * (x.ndim - 2))
