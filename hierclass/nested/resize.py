"""The image at a level's own size: the first operation of a level that sees fewer pixels than the last."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class Resize(nn.Module):
    """Shrink square images to `side` x `side` pixels by bicubic interpolation, antialiased, as Pillow does."""

    def __init__(self, side: int):
        """`side` is in pixels."""
        super().__init__()
        self.side = side

    def forward(self, image: Tensor) -> Tensor:
        """Images (B, C, H, W) → (B, C, side, side); images of that size stay as they are, number for number."""
        return F.interpolate(
            image, size=(self.side, self.side), mode="bicubic", align_corners=False, antialias=True
        )

    def macs(self, input_size: tuple[int, int, int]) -> int:
        """Multiply-accumulates for one image (C, H, W): the taps of the filter, first along rows, then columns."""
        channels, height, width = input_size
        return channels * (
            height * self.side * _taps(width, self.side) + self.side * self.side * _taps(height, self.side)
        )

    def extra_repr(self) -> str:
        """Name the side."""
        return f"side={self.side}"


def _taps(size: int, side: int) -> int:
    """Pixels that one output pixel is a weighted mean of, along one axis; none where nothing is resized."""
    return 0 if size == side else 4 * -(-max(size, side) // side)
