"""Dropout and stochastic depth drawn for the whole batch of an update, whoever computes which of its images.

All processes and all parts of an update draw the same numbers and take those of their own images, so that what is
dropped depends on the seed, the update and the place of an image in the batch alone.
"""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from timm.layers import DropPath
from torch import Tensor, nn


@dataclasses.dataclass
class BatchPositions:
    """Which images of the whole batch the network is looking at: their ``positions`` (n,), out of ``size``."""

    positions: Tensor
    size: int = 1


def share_dropout(network: nn.Module, device: torch.device) -> BatchPositions:
    """Make the layers of a network that drop at random follow the value returned, which is to be set for every call."""
    dealt = BatchPositions(torch.zeros(1, dtype=torch.long, device=device))
    for module in network.modules():
        kind = type(module)
        if kind in (DropPath, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d):
            module.__class__ = type(f"Dealt{kind.__name__}", (_WholeBatchDropout, kind), {})
            module._dealt = dealt  # type: ignore[assignment]
    return dealt


class _WholeBatchDropout(nn.Module):
    """A layer that drops.

    It becomes a base of the layer's own class: a module keeps its identity, attributes and what it is an instance of.
    """

    _dealt: BatchPositions

    def forward(self, x: Tensor) -> Tensor:
        """(n · k, …) → the same shape; the k rows of an image follow each other."""
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
        """The shape of what is dropped in a row: all its values one by one, its channels, or all at once."""
        if isinstance(self, DropPath):
            return (1,) * (x.ndim - 1)
        return tuple(x.shape[1:]) if isinstance(self, nn.Dropout) else (x.shape[1], *(1,) * (x.ndim - 2))
