"""What a network sees of an image."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Preprocessing:
    """From an RGB image to the network's input.

    The shorter side is resized to `size / crop` pixels, the centre `size` x `size` pixels are kept, values in
    0 … 1 are normalised with `mean` and `std` per channel. With `detail` the network itself shrinks what it sees to
    so many pixels a side, so that a picture need not be decoded in full; models are stored without it.
    """

    size: int
    crop: float = 1.0
    interpolation: str = "bicubic"
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    detail: int | None = None
