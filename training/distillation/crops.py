"""Random resized crops of photographs: cut, shrunk to a side, and made block by block with the teacher's answers.

Which part of a photograph a crop shows, and whether it is mirrored, depends on (seed, pass, photograph) alone.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch.utils.data import Dataset
from torchvision.transforms import RandomResizedCrop

from hierclass.errors import ImageError
from hierclass.images.preprocessing import Preprocessing, resize_side, square
from hierclass.nested.level_graph import resize
from training.data.batches import iterate_loader, make_loader
from training.data.sampler import image_seeds, seed_with
from training.distillation.crop_store import ANSWERS, SIDES, CropBlock, CropStore, pixels_name
from training.distillation.photographs import Photographs
from training.distillation.teacher_runtime import TeacherFunction
from training.evaluation.console import Reporter
from training.evaluation.predictions import shrink_logits

RATIOS = (3 / 4, 4 / 3)
"""Lowest and highest aspect ratio (width / height) of a crop before it is resized to a square."""
Pixels = npt.NDArray[np.uint8]


@dataclasses.dataclass(frozen=True, slots=True)
class Crop:
    """One crop: pixels (S, S, 3), and the shorter sides in pixels of the part shown and of the photograph."""

    pixels: Pixels
    shown: int
    photograph: int


@dataclasses.dataclass(frozen=True, slots=True)
class CropSampler:
    """Cuts random crops out of photographs at the side and interpolation of a teacher's ``preprocessing``."""

    preprocessing: Preprocessing
    scale: tuple[float, float]
    """Lowest and highest area of a crop, as a share of the photograph."""
    seed: int
    num_photographs: int

    @property
    def min_side(self) -> int:
        """Shorter side in pixels above which a larger photograph makes no better crop."""
        side = self.preprocessing.size
        return max(math.ceil(side / math.sqrt(self.scale[0])), resize_side(self.preprocessing))

    def cut(self, image: Image.Image, number: int, index: int) -> Crop:
        """The crop of pass ``number`` (from 0) of the photograph at an index; reseeds the random generators."""
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
        """The photograph as inference sees it, (S, S, 3)."""
        return square(image, self.preprocessing)


@torch.no_grad()
def shrink_pixels(images: Pixels, side: int) -> Pixels:
    """Resize images (N, S, S, 3) to a level's side, (N, side, side, 3), as the level's graph does."""
    if images.shape[1] == side:
        return images
    resized = resize(torch.from_numpy(images).permute(0, 3, 1, 2).float(), side)
    found: Pixels = resized.round().clamp(0, 255).byte().permute(0, 2, 3, 1).contiguous().numpy()
    return found


COMMIT_EVERY = 20.0
"""Seconds between commits to the store."""


def missing_blocks(store: CropStore) -> list[CropBlock]:
    """Blocks that are incomplete in any file, in order."""
    whole = np.ones(0, dtype=bool)
    for name in store.columns:
        done = store.done(name).astype(bool)
        whole = done if not len(whole) else whole & done
    return [block for block in store.blocks() if not whole[block.number]]


def count_unanswered(store: CropStore) -> int:
    """Number of crops that the teacher has not answered yet."""
    done = store.done(ANSWERS)
    return sum(block.stop - block.first for block in store.blocks() if not done[block.number])


def make_crops(
    store: CropStore,
    photographs: Photographs,
    cutter: CropSampler,
    blocks: Sequence[CropBlock],
    answer: TeacherFunction,
    reporter: Reporter,
    *,
    workers: int,
) -> None:
    """Make incomplete blocks: crops at all sides of the store, and the teacher's answers to them.

    Crops and sides of unreadable photographs are zeros. What is made is kept if the run is stopped.
    """
    done = {name: store.done(name) for name in store.columns}
    sides = [side for side in _sides(store) if any(not done[pixels_name(side)][b.number] for b in blocks)]
    wanted = [(block, not done[ANSWERS][block.number]) for block in blocks]
    dataset = _CropBlocks(Photographs(photographs), cutter, sides)  # workers open files of their own
    committed = started = time.monotonic()
    made = 0
    with contextlib.closing(iterate_loader(make_loader(dataset, workers, batch_sampler=wanted))) as stream:
        try:
            for (block, unanswered), full, smaller, shown in stream:
                for side, pixels in zip(sides, smaller, strict=True):
                    store.write(pixels_name(side), block, pixels)
                if unanswered:
                    store.write(ANSWERS, block, _answers(answer, full, shown))
                store.write(SIDES, block, shown)
                made += block.stop - block.first
                if time.monotonic() - committed > COMMIT_EVERY:
                    store.commit()
                    committed = time.monotonic()
                rate = made / max(time.monotonic() - started, 1e-9)
                what = f"crops: {block.passing * store.num_photographs + block.stop} of {len(store)}"
                reporter.advance(what, rate=rate, work=block.stop - block.first)
        finally:
            store.commit()


def _sides(store: CropStore) -> list[int]:
    return [store.columns[name].shape[0] for name in store.columns if name.startswith("pixels-")]


def _answers(
    answer: TeacherFunction, full: npt.NDArray[np.uint8], shown: npt.NDArray[np.uint16]
) -> npt.NDArray[np.float16]:
    return shrink_logits(torch.from_numpy(answer(full)))


class _CropBlocks(Dataset[Any]):
    """Blocks of crops, indexed by a pair: a block, and whether the teacher needs its full-size crops."""

    def __init__(self, photographs: Photographs, cutter: CropSampler, sides: Sequence[int]) -> None:
        self.photographs, self.cutter, self.sides = photographs, cutter, sides

    def __len__(self) -> int:
        return len(self.photographs)

    def __getitems__(self, wanted: tuple[CropBlock, bool]) -> Any:
        block, unanswered = wanted
        side = self.cutter.preprocessing.size
        full = np.zeros((block.stop - block.first, side, side, 3), dtype=np.uint8)
        shown = np.zeros((len(full), 2), dtype=np.uint16)
        for place, index in enumerate(range(block.first, block.stop)):
            try:
                image = self.photographs.image(index, min_side=self.cutter.min_side)
            except ImageError:  # told of all at once, when the crops are made
                continue
            crop = self.cutter.cut(image, block.passing, index)
            full[place] = crop.pixels
            shown[place] = min(crop.shown, 65535), min(crop.photograph, 65535)
        smaller = [shrink_pixels(full, each) for each in self.sides]
        return wanted, full if unanswered else full[:0], smaller, shown
