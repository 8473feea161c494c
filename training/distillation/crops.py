"""Random resized crops of photographs, as the teacher sees them and as the levels do.

Which part of a photograph a crop shows, and whether it is mirrored, depends on (seed, pass, photograph) alone.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torchvision.transforms import RandomResizedCrop

from hierclass.images.preprocessing import Preprocessing, resize_side, square
from hierclass.nested.level_graph import resize
from training.data.sampler import image_seeds, seed_with

RATIOS = (3 / 4, 4 / 3)
"""Width to height of a crop before it is made square, lowest and highest."""
Pixels = npt.NDArray[np.uint8]


@dataclasses.dataclass(frozen=True, slots=True)
class Crop:
    """One crop: pixels (S, S, 3), and the shorter sides in pixels of the part that it shows and of the photograph."""

    pixels: Pixels
    shown: int
    photograph: int


@dataclasses.dataclass(frozen=True, slots=True)
class Cutter:
    """Cuts crops out of photographs, for a teacher's ``preprocessing`` (its side and interpolation)."""

    preprocessing: Preprocessing
    scale: tuple[float, float]
    """Area of a crop, lowest and highest share of the photograph's."""
    seed: int
    num_photographs: int

    @property
    def min_side(self) -> int:
        """The shorter side in pixels from which on a larger photograph makes no better crop."""
        side = self.preprocessing.size
        return max(math.ceil(side / math.sqrt(self.scale[0])), resize_side(self.preprocessing))

    def cut(self, image: Image.Image, number: int, index: int) -> Crop:
        """The crop of pass ``number`` (0, 1, …) of the photograph at an index; changes the random generators."""
        seed_with(image_seeds(self.seed, number, self.num_photographs)[index])
        top, left, height, width = RandomResizedCrop.get_params(image, list(self.scale), list(RATIOS))
        mirrored = bool(torch.rand(()) < 0.5)
        side = self.preprocessing.size
        filter_ = Image.Resampling[self.preprocessing.interpolation.upper()]
        part = image.resize((side, side), filter_, box=(left, top, left + width, top + height))
        if mirrored:
            part = part.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return Crop(np.asarray(part), min(width, height), min(image.size))

    def centre(self, image: Image.Image) -> Pixels:
        """What inference sees of a photograph, (S, S, 3)."""
        return square(image, self.preprocessing)


@torch.no_grad()
def shrink_pixels(images: Pixels, side: int) -> Pixels:
    """Images (N, S, S, 3) at a level's own side, (N, side, side, 3), resized as the level's graph resizes."""
    if images.shape[1] == side:
        return images
    resized = resize(torch.from_numpy(images).permute(0, 3, 1, 2).float(), side)
    found: Pixels = resized.round().clamp(0, 255).byte().permute(0, 2, 3, 1).contiguous().numpy()
    return found
