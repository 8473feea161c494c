"""An update of a distillation: crops from the store, mirrored and mixed, and what the levels learn from them."""

from __future__ import annotations

import dataclasses
from collections.abc import Generator, Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch
from accelerate import Accelerator
from torch import Tensor

from hierclass.images.preprocessing import Preprocessing
from hierclass.nested.prefix import PrefixNetwork
from taxonomy import Taxonomy
from training.data.mixup import Normalise, blend
from training.data.sampler import Order, Share, seed_everything
from training.distillation.objective import Pupils, TeacherLoss
from training.distillation.recipe import DistilRecipe
from training.distillation.student import level_names, trained_names
from training.trainer.learner import Learner
from training.trainer.optimizer import make_optimizer
from training.trainer.sync_batchnorm import hold_statistics

Crops = npt.NDArray[np.uint8]


@dataclasses.dataclass(frozen=True, slots=True)
class CropBatch:
    """One process's crops for one update.

    ``images`` uint8 (n, 3, S, S) for every level that is trained, ``answers`` the teacher's logits of the leaves
    (n, leaves), float16; ``share`` says where the crops stand in the whole batch.
    """

    images: list[Tensor]
    answers: Tensor
    share: Share

    def __len__(self) -> int:
        """Number of crops."""
        return len(self.answers)

    @property
    def errors(self) -> list[str]:
        """Nothing: crops of unreadable photographs are not in the store's order."""
        return []


@dataclasses.dataclass(frozen=True, slots=True)
class CropSet:
    """Some crops of a store: ``indices`` (M,) among all, ``pixels`` (N, S, S, 3) per level, ``answers`` (N, leaves)."""

    indices: npt.NDArray[np.int64]
    pixels: Sequence[Crops]
    answers: npt.NDArray[np.float16]

    def __len__(self) -> int:
        return len(self.indices)

    def take(self, places: Sequence[int]) -> tuple[list[Tensor], Tensor]:
        """Images uint8 (n, 3, S, S) per level, and answers (n, leaves), of the crops at some places of the set."""
        rows = self.indices[places]
        images = [
            torch.from_numpy(np.ascontiguousarray(each[rows])).permute(0, 3, 1, 2) for each in self.pixels
        ]
        return images, torch.from_numpy(np.ascontiguousarray(self.answers[rows]))

    def batches(self, size: int) -> Iterator[tuple[list[Tensor], Tensor]]:
        """All crops in their order, so many at a time."""
        for first in range(0, len(self), size):
            yield self.take(range(first, min(first + size, len(self))))

    def stream(self, order: Order, first: int, last: int) -> Generator[CropBatch]:
        """The batches of updates ``first`` … ``last`` - 1, shuffled anew whenever all crops have been seen."""
        while first < last:
            passing, start = divmod(first, len(order))
            for share in order.shares(passing, start=start):
                yield CropBatch(*self.take(share.indices), share)
                first += 1
                if first == last:
                    return


class DistilRun(Learner):
    """Levels of a network that learn from a teacher's answers, on the device and processes of an accelerator."""

    def __init__(
        self,
        recipe: DistilRecipe,
        network: PrefixNetwork,
        levels: Sequence[int],
        taxonomy: Taxonomy,
        preprocessing: Preprocessing,
        accelerator: Accelerator,
    ) -> None:
        """Train what belongs to some levels of a network that is made ready to begin; all else is held fixed."""
        self.recipe, self.levels, self.preprocessing = recipe, tuple(levels), preprocessing
        self.trained = trained_names(network, levels, heads=recipe.train_heads)
        self.changed = level_names(network, levels, self.trained)
        """Names of all tensors that training changes."""
        for name, value in network.named_parameters():
            value.requires_grad_(name in self.trained)
        super().__init__(
            Pupils(network, levels),
            network,
            accelerator,
            ema_decay=recipe.ema_decay,
            channels_last=recipe.channels_last,
        )
        weights = {"leaf_weight": recipe.leaf_weight, "tier_weight": recipe.tier_weight}
        self.loss = TeacherLoss(taxonomy, levels, **weights).to(accelerator.device)
        self.normalise = Normalise(preprocessing, accelerator.device)
        self.began = {
            name: value.detach().clone() for name, value in network.named_parameters() if name in self.trained
        }
        """What the trained weights were before the first update."""
        self.join_processes(find_unused=False, sync_batch_norm=recipe.sync_batch_norm)
        self.prepare(
            make_optimizer(self.trainee, opt=recipe.opt, lr=recipe.lr, weight_decay=recipe.weight_decay)
        )

    def step(self, batch: CropBatch, *, epoch: int, step: int) -> Tensor:
        """One update on this process's share of a batch; returns the sum of the losses of its crops, detached."""
        recipe = self.recipe
        rate = recipe.rate(self.updates)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group.get("lr_scale", 1.0)
        images, answer = self.prepare_batch(batch)
        self.model.train()
        if recipe.statistics == "pretrained":
            hold_statistics(self.network)
        with self.accelerator.autocast():
            logits = self.model(images)
        loss: Tensor = self.loss(logits, answer)
        weight = (
            len(batch) * self.accelerator.num_processes / batch.share.batch
        )  # processes average gradients
        self.accelerator.backward(loss * weight)
        self.apply_gradients(recipe.clip_grad)
        self.average()
        return loss.detach() * len(batch)

    def prepare_batch(self, batch: CropBatch) -> tuple[list[Tensor], Tensor]:
        """Normalised images per level, mirrored and mixed, and the teacher's shares of the leaves, mixed alike.

        What is drawn depends on (seed, update, place in the batch) alone, however the batch is dealt out.
        """
        recipe, share = self.recipe, batch.share
        seed_everything(recipe.seed, self.updates, 1)
        positions, size = torch.tensor(share.positions), share.batch
        mirrored = torch.rand(size)[positions] < 0.5
        mixed = recipe.mixup > 0 and np.random.random() < recipe.mix_prob
        kept = float(np.random.beta(recipe.mixup, recipe.mixup)) if mixed else 1.0
        answer = batch.answers.to(self.accelerator.device).float().softmax(dim=1)
        prepared = []
        for images in batch.images:
            pixels = self.normalise(_mirror(images, mirrored) if recipe.flip else images)
            pixels = blend(pixels, positions, size, kept) if mixed else pixels
            layout = torch.channels_last if recipe.channels_last else torch.contiguous_format
            prepared.append(pixels.contiguous(memory_format=layout))
        return prepared, blend(answer, positions, size, kept) if mixed else answer


def _mirror(images: Tensor, which: Tensor) -> Tensor:
    """Images (n, 3, S, S) of which some are seen in a mirror."""
    return torch.where(which.view(-1, 1, 1, 1), images.flip(3), images)
