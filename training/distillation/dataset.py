"""Training data of a distillation: photographs split in two parts, their crops, and the teacher's answers."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Generator, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from accelerate import Accelerator
from torch import Tensor

from hierclass.checkpoints.description import stored_fields
from hierclass.errors import ImageError, InputError
from training.data.dataset_check import write_table
from training.data.sampler import BatchSampler, BatchShare
from training.data.samples import Unreadable
from training.distillation.crop_store import ANSWERS, SIDES, CropStore, StoreColumn, pixels_name
from training.distillation.crops import (
    CropSampler,
    Pixels,
    count_unanswered,
    make_crops,
    missing_blocks,
    shrink_pixels,
)
from training.distillation.photographs import Photographs, list_photographs
from training.distillation.recipe import DistilRecipe
from training.distillation.teacher import Teacher
from training.distillation.teacher_runtime import make_teacher_function
from training.evaluation.console import Reporter

Crops = npt.NDArray[np.uint8]
VAL_PHOTOGRAPHS = 64
"""Least number of held-out photographs, unless that is more than a tenth of all."""
CENTRES = 512
"""Number of photographs on which statistics of norms are measured."""
Indices = npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True, slots=True)
class CropBatch:
    """One process's crops of one update.

    ``images`` uint8 (n, 3, S, S) for every trained level, ``answers`` the teacher's logits of the leaves (n, leaves),
    float16; ``share`` gives the positions in the whole batch.
    """

    images: list[Tensor]
    answers: Tensor
    share: BatchShare

    def __len__(self) -> int:
        """Number of crops."""
        return len(self.answers)

    @property
    def errors(self) -> list[str]:
        """Always empty: unreadable photographs are left out of a `CropSet`."""
        return []


@dataclasses.dataclass(frozen=True, slots=True)
class CropSet:
    """Some crops of a store: ``indices`` (M,), ``pixels`` (N, S, S, 3) per level, ``answers`` (N, leaves)."""

    indices: npt.NDArray[np.int64]
    pixels: Sequence[Crops]
    answers: npt.NDArray[np.float16]

    def __len__(self) -> int:
        return len(self.indices)

    def take(self, places: Sequence[int]) -> tuple[list[Tensor], Tensor]:
        """Images uint8 (n, 3, S, S) per level and answers (n, leaves) of the crops at ``places`` of the set."""
        rows = self.indices[places]
        images = [
            torch.from_numpy(np.ascontiguousarray(each[rows])).permute(0, 3, 1, 2) for each in self.pixels
        ]
        return images, torch.from_numpy(np.ascontiguousarray(self.answers[rows]))

    def batches(self, size: int) -> Iterator[tuple[list[Tensor], Tensor]]:
        """Yield all crops in order, ``size`` at a time."""
        for first in range(0, len(self), size):
            yield self.take(range(first, min(first + size, len(self))))

    def stream(self, sampler: BatchSampler, first: int, last: int) -> Generator[CropBatch]:
        """Yield the batches of updates ``first`` … ``last`` - 1; each pass over the crops is shuffled anew."""
        while first < last:
            passing, start = divmod(first, len(sampler))
            for share in sampler.shares(passing, start=start):
                yield CropBatch(*self.take(share.indices), share)
                first += 1
                if first == last:
                    return


@dataclasses.dataclass(frozen=True)
class PhotographSplit:
    """Photographs, the rising indices of those held out, and how crops are cut."""

    photographs: Photographs
    held_out: Indices
    cutter: CropSampler

    @classmethod
    def find(cls, recipe: DistilRecipe, teacher: Teacher) -> PhotographSplit:
        """List the photographs of a recipe and split them; raises `InputError` for fewer than 2."""
        photographs = list_photographs(recipe.images)
        count = len(photographs)
        if count < 2:
            raise InputError("`images`: 1 photograph is too few; give thousands, 2 at least")
        low, high = recipe.crop_scale
        cutter = CropSampler(teacher.preprocessing, (low, high), recipe.seed, count)
        wanted = max(round(recipe.val_share * count), VAL_PHOTOGRAPHS)
        shuffled = np.random.default_rng((recipe.seed, 5)).permutation(count)
        return cls(photographs, np.sort(shuffled[: max(1, min(wanted, count // 10))]), cutter)

    def centres(self, most: int) -> Iterator[Pixels]:
        """Yield up to ``most`` training photographs, evenly spaced, as inference sees them: (S, S, 3) each."""
        places = np.setdiff1d(np.arange(len(self.photographs)), self.held_out)
        chosen = places[np.unique(np.linspace(0, len(places) - 1, min(most, len(places))).astype(int))]
        for index in chosen.tolist():
            with contextlib.suppress(ImageError):  # told of when crops are made
                image = self.photographs.image(index, min_side=self.cutter.min_side)
                yield self.cutter.centre(image)


@dataclasses.dataclass(frozen=True)
class DistilData:
    """Photographs with the store of their crops and of the teacher's answers."""

    gallery: PhotographSplit
    store: CropStore

    @classmethod
    def of(
        cls,
        gallery: PhotographSplit,
        recipe: DistilRecipe,
        teacher: Teacher,
        folder: Path,
        sides: Iterable[int],
    ) -> DistilData:
        """Name the files in ``folder`` of crops at the given sides in pixels; `make` makes them."""
        columns = {pixels_name(side): StoreColumn((side, side, 3), np.uint8) for side in sorted(set(sides))}
        columns[ANSWERS] = StoreColumn((len(teacher.taxonomy.leaves),), np.float16)
        columns[SIDES] = StoreColumn((2,), np.uint16)
        count = len(gallery.photographs)
        made_from = {
            "photographs": gallery.photographs.digest,
            "number_of_photographs": count,
            "seed": recipe.seed,
            "crop_scale": list(recipe.crop_scale),
            "preprocessing": stored_fields(teacher.preprocessing),
            "teacher": teacher.digest,
        }
        passes = recipe.crops_per_photo
        return cls(gallery, CropStore(folder, made_from, columns, num_photographs=count, passes=passes))

    def make(
        self,
        teacher: Teacher,
        accelerator: Accelerator,
        reporter: Reporter,
        *,
        workers: int,
        threads: int | None,
    ) -> None:
        """Make missing crops and answers; blocks are divided among processes."""
        main, store = accelerator.is_main_process, self.store
        with store.claim() if main else contextlib.nullcontext():
            if main:
                store.open()
            accelerator.wait_for_everyone()
            blocks = missing_blocks(store)
            if blocks:
                self._make(blocks, teacher, accelerator, reporter, workers=workers, threads=threads)
            accelerator.wait_for_everyone()

    def _make(
        self,
        blocks: Sequence[Any],
        teacher: Teacher,
        accelerator: Accelerator,
        reporter: Reporter,
        *,
        workers: int,
        threads: int | None,
    ) -> None:
        store, unanswered = self.store, count_unanswered(self.store)
        answer, runtime = make_teacher_function(teacher, accelerator.device, unanswered, threads=threads)
        total = sum(block.stop - block.first for block in blocks)
        answered = f"the teacher answers {unanswered} by {runtime}" if unanswered else "all are answered"
        reporter.line(f"{total} of {len(store)} crops are to be made in {store.folder}; {answered}")
        share = blocks[accelerator.process_index :: accelerator.num_processes]
        reporter.start(sum(block.stop - block.first for block in share))
        try:
            make_crops(
                store, self.gallery.photographs, self.gallery.cutter, share, answer, reporter, workers=workers
            )
        finally:
            reporter.close()

    def readable(self) -> npt.NDArray[np.bool_]:
        """Whether each photograph (P,) could be read."""
        sides = self.store.read(SIDES)[: len(self.gallery.photographs)]
        found: npt.NDArray[np.bool_] = np.asarray(sides[:, 1]) > 0
        return found

    def tell(self, unreadable: Path, sides: Iterable[int], reporter: Reporter) -> int:
        """Print unreadable photographs and how many crops are enlarged; return the number of unreadable photographs.

        ``unreadable`` is the table to list them in, ``sides`` those of the trained levels. Raises `InputError` if no
        photograph can be read.
        """
        broken = np.flatnonzero(~self.readable()).tolist()
        if not reporter.quiet:
            found = [Unreadable(name, why) for name, why in self.gallery.photographs.reasons(broken)]
            write_table(unreadable, found)
            if found:
                some = "; ".join(map(str, found[:5]))
                reporter.line(
                    f"{len(found)} of {len(self.gallery.photographs)} photographs cannot be read and are left out "
                    f"({unreadable}): {some}"
                )
        if len(broken) == len(self.gallery.photographs):
            raise InputError(f"`images`: none of the {len(broken)} photographs can be read")
        self._tell_small(sides, reporter)
        return len(broken)

    def _tell_small(self, sides: Iterable[int], reporter: Reporter) -> None:
        shown, whole = np.asarray(self.store.read(SIDES)).T
        total = int((whole > 0).sum())
        for side in sorted({*sides, self.gallery.cutter.preprocessing.size}):
            small = int(((whole > 0) & (whole < side)).sum())
            blurred = int(((whole > 0) & (shown < side)).sum())
            if blurred:
                who = (
                    "the teacher's side"
                    if side == self.gallery.cutter.preprocessing.size
                    else "a level's side"
                )
                reporter.line(
                    f"{blurred} of {total} crops show fewer than {side} pixels across, {who}, and are enlarged; "
                    f"{small} come from photographs that are smaller than that"
                )

    def crop_set(self, sides: Sequence[int], *, held_out: bool) -> CropSet:
        """The crops of the held-out photographs, or of the others, at one side per trained level."""
        wanted = np.isin(np.arange(len(self.gallery.photographs)), self.gallery.held_out) == held_out
        places = np.flatnonzero(wanted & self.readable())
        indices = np.concatenate(
            [places + passing * len(self.gallery.photographs) for passing in range(self.store.passes)]
        )
        if not len(indices):
            what = "held-out photographs" if held_out else "photographs to train on"
            raise InputError(f"`images`: none of the {what} can be read; give more photographs")
        return CropSet(
            indices, [self.store.read(pixels_name(side)) for side in sides], self.store.read(ANSWERS)
        )


def as_images(pixels: Sequence[Pixels], side: int) -> Tensor:
    """Pictures (S, S, 3) at a level's side: uint8 (N, 3, side, side)."""
    return torch.from_numpy(shrink_pixels(np.stack(pixels), side)).permute(0, 3, 1, 2).contiguous()
