"""One update of a distillation: mirrored and mixed crops, and the loss of the levels against the teacher."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from hierclass.images.preprocessing import Preprocessing
from hierclass.nested.prefix import PrefixNetwork
from taxonomy import Taxonomy
from training.data.mixup import PixelNormaliser, blend
from training.data.sampler import seed_everything
from training.distillation.dataset import CropBatch
from training.distillation.losses import StudentLevels, TeacherLoss
from training.distillation.recipe import DistilRecipe
from training.distillation.student import level_names, trained_names
from training.trainer.optimizer import make_optimizer
from training.trainer.sync_batchnorm import hold_statistics
from training.trainer.trainer import Trainer


class DistilTrainer(Trainer):
    """Trains levels of a network on a teacher's answers."""

    def __init__(
        self,
        recipe: DistilRecipe,
        network: PrefixNetwork,
        levels: Sequence[int],
        taxonomy: Taxonomy,
        preprocessing: Preprocessing,
        accelerator: Accelerator,
    ) -> None:
        """Train the parameters of ``levels``; all others are frozen."""
        self.recipe, self.levels, self.preprocessing = recipe, tuple(levels), preprocessing
        self.trained = trained_names(network, levels, heads=recipe.train_heads)
        self.changed = level_names(network, levels, self.trained)
        """Names of all tensors that training changes."""
        for name, value in network.named_parameters():
            value.requires_grad_(name in self.trained)
        super().__init__(
            StudentLevels(network, levels),
            network,
            accelerator,
            ema_decay=recipe.ema_decay,
            channels_last=recipe.channels_last,
        )
        weights = {"leaf_weight": recipe.leaf_weight, "tier_weight": recipe.tier_weight}
        self.loss = TeacherLoss(taxonomy, levels, **weights).to(accelerator.device)
        self.normalise = PixelNormaliser(preprocessing, accelerator.device)
        self.began = {
            name: value.detach().clone() for name, value in network.named_parameters() if name in self.trained
        }
        """The trained weights before the first update."""
        self.join_processes(find_unused=False, sync_batch_norm=recipe.sync_batch_norm)
        self.prepare(
            make_optimizer(self.trainee, opt=recipe.opt, lr=recipe.lr, weight_decay=recipe.weight_decay)
        )

    def step(self, batch: CropBatch, *, epoch: int, step: int) -> Tensor:
        """Make one update on this process's share of a batch; return the detached sum of the losses of its crops."""
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
        """Normalised, mirrored and mixed images per level, and the teacher's probabilities, mixed alike.

        What is drawn depends on (seed, update, position in the batch) alone, however the batch is divided.
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
    """Mirror those images (n, 3, S, S) that ``which`` (n,) marks."""
    return torch.where(which.view(-1, 1, 1, 1), images.flip(3), images)
