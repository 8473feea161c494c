"""The pieces of one run: network, loss, optimiser, schedule and moving average, built from a recipe."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from accelerate import Accelerator
from timm.optim import create_optimizer_v2, list_optimizers
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler
from torch import Tensor, nn

from hierclass.checkpoints.checkpoint import Architecture, Checkpoint, build, save_checkpoint
from hierclass.errors import InputError
from hierclass.images.preprocessing import Preprocessing
from hierclass.nested import STRUCTURES, NestedNetwork, create_backbone, default_shares
from hierclass.nested.network import evaluating
from taxonomy import Taxonomy
from training.data.batches import INTERPOLATION, TrainingBatch, training_transform
from training.data.mixup import Mixing
from training.data.sampler import seed_everything
from training.evaluation.calibration import decision_of
from training.recipe.recipe import SHARES, Recipe
from training.trainer.batch_dropout import deal_drops
from training.trainer.learner import Learner
from training.trainer.losses import NestedLoss, Trainee
from training.trainer.pretrained import cached_weights

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
FOR_ORDER = 256
"""Photographs over which it is found which channels matter."""


def make_architecture(recipe: Recipe, num_levels: int = 3) -> Architecture:
    """The architecture that a recipe names; shares that it leaves open are those for so many levels."""
    shares = {name: getattr(recipe, name) for name in SHARES}
    makes_levels = STRUCTURES[recipe.structure].shares
    shares[makes_levels] = shares[makes_levels] or default_shares(num_levels)
    return Architecture(
        backbone=recipe.backbone,
        backbone_args=recipe.backbone_args,
        stem_stride=recipe.stem_stride,
        heads=recipe.heads,
        structure=recipe.structure,
        sizes=recipe.sizes,
        own=recipe.own[0] if len(recipe.own) == 1 else recipe.own,
        **shares,
    )


def make_preprocessing(recipe: Recipe) -> Preprocessing:
    """Size and centre crop of the recipe, resized as in training; mean and deviation of a pretrained model."""
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    config = timm.get_pretrained_cfg(recipe.backbone, allow_unregistered=True) if recipe.pretrained else None
    if config is not None:
        mean, std = config.mean, config.std
    return Preprocessing(
        size=recipe.size,
        crop=recipe.crop,
        interpolation=INTERPOLATION,
        mean=(mean[0], mean[1], mean[2]),
        std=(std[0], std[1], std[2]),
    )


def make_network(
    recipe: Recipe, taxonomy: Taxonomy, *, fresh: bool = True, images: Tensor | None = None
) -> NestedNetwork:
    """The nested network of a recipe, initialised from its seed or from timm's pretrained weights.

    Where its order is by importance, this is what channels add over ``images``, normalised (N, 3, S, S).

    Weights in the local cache are read from there, without asking the network whether they are the newest. Without
    ``fresh`` the values of the weights are of no matter, and no pretrained ones are looked for.
    """
    seed_everything(recipe.seed)
    architecture = make_architecture(recipe, taxonomy.num_tiers)
    pretrained = recipe.pretrained and fresh
    cached = cached_weights(recipe.backbone) if pretrained else None
    if cached is not None:
        overlay = {"file": str(cached), "custom_load": False}
        arguments = {"pretrained_cfg_overlay": overlay, **architecture.backbone_args}
        architecture = dataclasses.replace(architecture, backbone_args=arguments)
    return build(
        architecture, taxonomy, recipe.size, pretrained=pretrained, order=recipe.order, images=images
    )


def check_parts(recipe: Recipe) -> None:
    """Raise `InputError` for what timm or the sizes would refuse later, before any image is read."""
    nothing = nn.Linear(1, 1)
    optimizer = make_optimizer(
        nothing, opt=recipe.opt, lr=recipe.lr, weight_decay=recipe.weight_decay, momentum=recipe.momentum
    )
    make_scheduler(recipe, optimizer, steps_per_epoch=1)
    training_transform(recipe.size, crop_scale=recipe.crop_scale, auto_augment=recipe.auto_augment)
    check_sizes(recipe, make_backbone(recipe))


@torch.no_grad()
def check_sizes(recipe: Recipe, network: nn.Module) -> None:
    """Raise `InputError` if a network does not take images of every size that ``start_size`` grows through."""
    sizes = {recipe.image_size(epoch) for epoch in range(recipe.epochs)} - {recipe.size}
    with evaluating(network):
        for size in sorted(sizes):
            try:
                network(torch.zeros(1, 3, size, size))
            except Exception as error:  # whatever a network of timm raises
                reason = (str(error) or type(error).__name__).splitlines()[0]
                raise InputError(
                    f"`start_size` {recipe.start_size} does not fit {recipe.backbone}: images of {size} pixels: "
                    f"{reason}; leave it out, or choose other sizes"
                ) from error


def make_backbone(recipe: Recipe) -> nn.Module:
    """The backbone of a recipe before it is cut, without pretrained weights."""
    return create_backbone(recipe.backbone, stem_stride=recipe.stem_stride, **recipe.backbone_args)


class Run(Learner):
    """Everything that changes while a recipe is trained, on the device and processes of an accelerator."""

    def __init__(
        self,
        recipe: Recipe,
        taxonomy: Taxonomy,
        *,
        steps_per_epoch: int,
        accelerator: Accelerator,
        leaf_counts: Sequence[int] | None = None,
        fresh: bool = True,
        images: Tensor | None = None,
    ) -> None:
        """Build everything from the recipe and its seed.

        ``leaf_counts``, training images of each leaf, are needed to balance the loss. Without ``fresh`` no
        pretrained weights are looked for, since a state will be loaded over them.
        """
        self.recipe, self.taxonomy = recipe, taxonomy
        self.total_updates = recipe.epochs * steps_per_epoch
        self.preprocessing = make_preprocessing(recipe)
        network = make_network(recipe, taxonomy, fresh=fresh, images=images)
        trainee = Trainee(network, len(taxonomy.leaves), auxiliary=recipe.finest_weight > 0)
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
            leaf_counts=leaf_counts if recipe.balance == "loss" else None,
        ).to(device)
        self.dealt = deal_drops(network, device)
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
        self.mixing = Mixing(recipe, self.preprocessing, len(taxonomy.leaves), device)

    def step(self, batch: TrainingBatch, *, epoch: int, step: int) -> Tensor:
        """One update on this process's share of a batch; returns the sum of the losses of its images, detached.

        An image that could not be read counts with loss 0, so that every other one counts alike on all processes.
        """
        if len(batch) < self.recipe.accumulate:
            raise InputError(f"no image of a whole batch could be read: {batch.errors[0]}")
        seed_everything(self.recipe.seed, epoch, step, 1)
        pixels, target = self.mixing(batch, step=step)
        self.model.train()
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
        """Add the gradients of one update, in as many parts as are accumulated; returns the sum of the losses."""
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
        """Mean loss of images, in float32 whatever the network computes in."""
        model = self.model if self.compiled is None else self._compiled_for(pixels.shape)
        with self.accelerator.autocast():
            levels, finest = model(pixels)
            teachers = self._teachers(pixels)
        loss: Tensor = self.loss(*_as_float32((levels, finest)), target, _as_float32(teachers))
        return loss

    @torch.no_grad()
    def _teachers(self, pixels: Tensor) -> list[Tensor] | None:
        """The moving average's logits to distil from, of all levels or the last alone; None: the live ones."""
        if not self.recipe.distil or self.recipe.distil_teacher == "live":
            return None
        if self.recipe.distil_from == "last":
            return [self.smoothed(pixels)]
        return self.smoothed.forward_all(pixels)

    def _compiled_for(self, shape: torch.Size) -> Any:
        """The network compiled for batches of one size of image; for smaller batches the plain one.

        torch keeps few compilations and then stops compiling: those of former sizes are dropped.
        """
        if shape[2:] != self._compiled_shape[2:] or shape[0] > self._compiled_shape[0]:
            torch.compiler.reset()
            self._compiled_shape = shape
        return self.compiled if shape == self._compiled_shape else self.model

    def load(self, path: Path) -> dict[str, Any]:
        """Continue from what `save` wrote; returns its progress."""
        progress = super().load(path)
        self.scheduler.step_update(self.updates)
        return progress

    def export(self, path: Path, results: dict[str, Any]) -> None:
        """Store the moving average as a product checkpoint."""
        save_checkpoint(
            path,
            Checkpoint(
                network=self.smoothed,
                taxonomy=self.taxonomy,
                preprocessing=self.preprocessing,
                architecture=make_architecture(self.recipe, self.taxonomy.num_tiers),
                results={"dev": results},
                decision=decision_of(results),
            ),
        )


def make_optimizer(
    model: nn.Module, *, opt: str, lr: float, weight_decay: float, momentum: float = 0.9
) -> torch.optim.Optimizer:
    """timm's optimiser of that name for all weights that are trained; biases and normalisation are not decayed."""
    try:
        optimizer: torch.optim.Optimizer = create_optimizer_v2(
            model, opt=opt, lr=lr, weight_decay=weight_decay, momentum=momentum
        )
    except (AssertionError, TypeError, ValueError) as error:
        if opt.lower() in list_optimizers():
            raise InputError(f"`opt` {opt}: {error}".splitlines()[0]) from error
        close = difflib.get_close_matches(opt, list_optimizers(), n=1) or ["adamw"]
        raise InputError(
            f"`opt` {opt} is no optimiser of timm; give {close[0]}, or sgd (the default)"
        ) from error
    return optimizer


def make_scheduler(recipe: Recipe, optimizer: torch.optim.Optimizer, steps_per_epoch: int) -> Scheduler:
    """timm's schedule of a recipe, stepped every update: warm-up from lr / 20, down to lr / 1000."""
    if recipe.warmup_epochs >= recipe.epochs:
        raise InputError(
            f"`warmup_epochs` {recipe.warmup_epochs} leaves no epoch of {recipe.epochs}; lower it"
        )
    scheduler: Scheduler | None = None
    # Versions of timm differ in what they say of an unknown one, and whether they raise.
    with contextlib.suppress(AssertionError, ValueError):
        scheduler, _ = create_scheduler_v2(
            optimizer,
            sched=recipe.schedule,
            num_epochs=recipe.epochs,
            warmup_epochs=recipe.warmup_epochs,
            warmup_lr=recipe.lr / 20,
            min_lr=recipe.lr * 1e-3,
            step_on_epochs=False,
            updates_per_epoch=steps_per_epoch,
        )
    if scheduler is None:
        raise InputError(
            f"`schedule` {recipe.schedule}: timm has no such schedule by updates; give cosine, poly, tanh, step or "
            "constant"
        )
    return scheduler


def untrained_weights(trainee: Trainee, loss: NestedLoss, size: int) -> list[str]:
    """Names of the weights that the loss does not reach; processes that share gradients have to know."""
    weight = next(trainee.parameters())
    with evaluating(trainee):
        levels, finest = trainee(torch.zeros(2, 3, size, size).to(weight))
        loss(levels, finest, torch.zeros(2, dtype=torch.long, device=weight.device)).backward()
    names = [name for name, value in trainee.named_parameters() if value.requires_grad and value.grad is None]
    trainee.zero_grad(set_to_none=True)
    return names


def _as_float32(values: Any) -> Any:
    """Tensors, in lists and tuples or alone, as float32; None stays."""
    if isinstance(values, Tensor):
        return values.float()
    return values if values is None else type(values)(_as_float32(value) for value in values)
