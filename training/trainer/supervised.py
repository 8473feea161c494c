"""Train a network on labelled images: network, loss, optimiser, schedule and moving average, and one update of them."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from hierclass.errors import InputError
from hierclass.nested.network import evaluating
from taxonomy import Taxonomy
from training.data.batches import TrainingBatch
from training.data.mixup import BatchAugmentation
from training.data.sampler import seed_everything
from training.data.samples import truth_table
from training.recipe.recipe import Recipe
from training.trainer.batch_dropout import share_dropout
from training.trainer.losses import NestedLoss, TrainingModel
from training.trainer.network import check_sizes, make_network, make_preprocessing
from training.trainer.optimizer import make_optimizer, make_scheduler
from training.trainer.sync_batchnorm import hold_statistics
from training.trainer.trainer import Trainer


class SupervisedTrainer(Trainer):
    """Trains the network of a recipe on labelled images."""

    def __init__(
        self,
        recipe: Recipe,
        taxonomy: Taxonomy,
        *,
        steps_per_epoch: int,
        accelerator: Accelerator,
        label_counts: Sequence[int] | None = None,
        fresh: bool = True,
        images: Tensor | None = None,
    ) -> None:
        """Build everything from the recipe and its seed.

        ``label_counts``, training images of each label, are needed to balance the loss. ``fresh`` False skips
        pretrained weights, for a state that will be loaded.
        """
        self.recipe, self.taxonomy = recipe, taxonomy
        self.total_updates = recipe.epochs * steps_per_epoch
        self.preprocessing = make_preprocessing(recipe)
        network = make_network(recipe, taxonomy, fresh=fresh, images=images)
        trainee = TrainingModel(network, len(taxonomy.leaves), auxiliary=recipe.finest_weight > 0)
        check_sizes(recipe, network)
        super().__init__(
            trainee, network, accelerator, ema_decay=recipe.ema_decay, channels_last=recipe.channels_last
        )
        device = accelerator.device
        self.loss = NestedLoss(
            taxonomy,
            level_weights=recipe.level_weights or (1.0,) * taxonomy.num_tiers,
            finest_weight=recipe.finest_weight,
            smoothing=recipe.smoothing,
            smoothing_along=recipe.smoothing_along,
            distil=recipe.distil,
            distil_from=recipe.distil_from,
            distil_to=recipe.distil_to,
            label_counts=label_counts if recipe.balance == "loss" else None,
        ).to(device)
        self.dealt = share_dropout(network, device)
        unused = accelerator.num_processes > 1 and untrained_weights(trainee, self.loss, recipe.size)
        self.join_processes(find_unused=bool(unused), sync_batch_norm=recipe.sync_batch_norm)
        optimizer = make_optimizer(
            trainee,
            opt=recipe.opt,
            lr=recipe.lr,
            weight_decay=recipe.weight_decay,
            momentum=recipe.momentum,
        )
        self.scheduler = make_scheduler(recipe, optimizer, steps_per_epoch)
        self.prepare(optimizer)
        self.compiled = torch.compile(self.model, dynamic=False) if recipe.compile else None
        self._compiled_shape = torch.Size((0, 0, 0, 0))
        self.mixing = BatchAugmentation(recipe, self.preprocessing, len(truth_table(taxonomy)), device)

    def step(self, batch: TrainingBatch, *, epoch: int, step: int) -> Tensor:
        """Make one update on this process's share of a batch; return the detached sum of the losses of its images.

        Unreadable images count with loss 0, so that the others count alike on all processes.
        """
        if len(batch) < self.recipe.accumulate:
            raise InputError(f"no image of a whole batch could be read: {batch.errors[0]}")
        seed_everything(self.recipe.seed, epoch, step, 1)
        pixels, target = self.mixing(batch, step=step)
        self.model.train()
        if self.recipe.statistics == "pretrained":
            hold_statistics(self.network)
        self.network.train_progress(self.updates / self.total_updates)
        try:
            total = self._gradients(pixels, target, batch, seed=(self.recipe.seed, epoch, step, 2))
        except RuntimeError as error:
            if not (self.recipe.compile and isinstance(error, torch._dynamo.exc.TorchDynamoException)):
                raise
            reason = " ".join(str(error).split("\n\n")[0].split())
            raise InputError(f"`compile`: {reason}; leave it out, or install a C++ compiler") from error
        self.apply_gradients(self.recipe.clip_grad)
        if self.updates == self.total_updates:
            self.network.train_progress(1.0)
        self.scheduler.step_update(self.updates)
        self.average()
        return total

    def _gradients(
        self, pixels: Tensor, target: Tensor, batch: TrainingBatch, *, seed: tuple[int, ...]
    ) -> Tensor:
        """Add the gradients of one update, part by part; return the sum of the losses."""
        parts, size = self.recipe.accumulate, batch.share.batch
        positions = batch.positions.to(self.accelerator.device, non_blocking=True)
        split = zip(*(values.tensor_split(parts) for values in (pixels, target, positions)), strict=True)
        total = torch.zeros((), device=self.accelerator.device)
        for number, (images, answers, places) in enumerate(split):
            seed_everything(*seed)  # every part draws for the whole batch what is dropped
            self.dealt.positions, self.dealt.size = places, size
            apart = number + 1 < parts  # gradients travel with the last part alone
            with self.accelerator.no_sync(self.model) if apart else contextlib.nullcontext():
                loss = self._loss_of(images, answers)
                # processes average their gradients
                weight = len(images) * self.accelerator.num_processes / size
                self.accelerator.backward(loss * weight)
            total += loss.detach() * len(images)
        return total

    def _loss_of(self, pixels: Tensor, target: Tensor) -> Tensor:
        """Mean loss of images, in float32."""
        model = self.model if self.compiled is None else self._compiled_for(pixels.shape)
        with self.accelerator.autocast():
            levels, finest = model(pixels)
            teachers = self._teachers(pixels)
        loss: Tensor = self.loss(*_as_float32((levels, finest)), target, _as_float32(teachers))
        return loss

    @torch.no_grad()
    def _teachers(self, pixels: Tensor) -> list[Tensor] | None:
        """Logits of the moving average to distil from, of all levels or the last alone; None for live teachers."""
        if not self.recipe.distil or self.recipe.distil_teacher == "live":
            return None
        if self.recipe.distil_from == "last":
            return [self.smoothed(pixels)]
        return self.smoothed.forward_all(pixels)

    def _compiled_for(self, shape: torch.Size) -> Any:
        """The network compiled for one batch shape; the plain one for smaller batches.

        torch keeps few compilations and then stops compiling, so former sizes are dropped.
        """
        if shape[2:] != self._compiled_shape[2:] or shape[0] > self._compiled_shape[0]:
            torch.compiler.reset()
            self._compiled_shape = shape
        return self.compiled if shape == self._compiled_shape else self.model

    def load(self, path: Path) -> dict[str, Any]:
        """Load what `save` wrote; return its progress."""
        progress = super().load(path)
        self.scheduler.step_update(self.updates)
        return progress


def untrained_weights(trainee: TrainingModel, loss: NestedLoss, size: int) -> list[str]:
    """Names of the weights without a gradient; processes that share gradients must know them."""
    weight = next(trainee.parameters())
    with evaluating(trainee):
        levels, finest = trainee(torch.zeros(2, 3, size, size).to(weight))
        loss(levels, finest, torch.zeros(2, dtype=torch.long, device=weight.device)).backward()
    names = [name for name, value in trainee.named_parameters() if value.requires_grad and value.grad is None]
    trainee.zero_grad(set_to_none=True)
    return names


def _as_float32(values: Any) -> Any:
    """Convert tensors, alone or in lists and tuples, to float32; None stays."""
    if isinstance(values, Tensor):
        return values.float()
    return values if values is None else type(values)(_as_float32(value) for value in values)
