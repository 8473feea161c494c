"""The pieces of one run: network, loss, optimiser, schedule and moving average, built from a recipe."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from accelerate import Accelerator
from timm.data import Mixup
from timm.data.random_erasing import RandomErasing
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from hierclass.checkpoint import Architecture, Checkpoint, Preprocessing, build, save_checkpoint
from hierclass.errors import CheckpointError, InputError
from hierclass.nested import STRUCTURES, NestedNetwork, create_backbone, default_shares
from hierclass.nested.network import evaluating
from taxonomy import Taxonomy
from training.batches import INTERPOLATION, seed_everything
from training.calibration import decision_of
from training.losses import NestedLoss, Trainee
from training.pretrained import cached_weights
from training.recipe import Recipe
from training.state import load_state, save_state

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def make_architecture(recipe: Recipe, num_levels: int = 3) -> Architecture:
    """The architecture that a recipe names; shares that it leaves open are those for so many levels."""
    shares = {name: getattr(recipe, name) for name in ("widths", "depths", "densities")}
    makes_levels = STRUCTURES[recipe.structure].shares
    shares[makes_levels] = shares[makes_levels] or default_shares(num_levels)
    return Architecture(
        backbone=recipe.backbone,
        backbone_args=recipe.backbone_args,
        stem_stride=recipe.stem_stride,
        heads=recipe.heads,
        structure=recipe.structure,
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


def make_network(recipe: Recipe, taxonomy: Taxonomy, *, fresh: bool = True) -> NestedNetwork:
    """The nested network of a recipe, initialised from its seed or from timm's pretrained weights.

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
    return build(architecture, taxonomy, recipe.size, pretrained=pretrained, order=recipe.order)


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
                    f"--start-size {recipe.start_size} does not fit {recipe.backbone}: images of {size} pixels: "
                    f"{reason}; leave it out, or choose other sizes"
                ) from error


def make_backbone(recipe: Recipe) -> nn.Module:
    """The backbone of a recipe before it is cut, without pretrained weights."""
    return create_backbone(recipe.backbone, stem_stride=recipe.stem_stride, **recipe.backbone_args)


class Run:
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
    ) -> None:
        """Build everything from the recipe and its seed.

        ``leaf_counts``, training images of each leaf, are needed to balance the loss. Without ``fresh`` no
        pretrained weights are looked for, since a state will be loaded over them.
        """
        self.recipe, self.taxonomy, self.accelerator = recipe, taxonomy, accelerator
        self.total_updates = recipe.epochs * steps_per_epoch
        self.preprocessing = make_preprocessing(recipe)
        network = make_network(recipe, taxonomy, fresh=fresh)
        self.trainee = Trainee(network, len(taxonomy.leaves), auxiliary=recipe.finest_weight > 0)
        check_sizes(recipe, network)
        self.trainee.to(accelerator.device)
        if recipe.channels_last:
            self.trainee.to(memory_format=torch.channels_last)
        self.ema = ModelEmaV3(self.trainee.network, decay=recipe.ema_decay, use_warmup=True)
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
        ).to(accelerator.device)
        optimizer = make_optimizer(recipe, self.trainee)
        self.scheduler = make_scheduler(recipe, optimizer, steps_per_epoch)
        self.model, self.optimizer = accelerator.prepare(self.trainee, optimizer)
        self.compiled = torch.compile(self.model, dynamic=False) if recipe.compile else None
        self._compiled_shape = torch.Size((0, 0, 0, 0))
        self.mixup = make_mixup(recipe, len(taxonomy.leaves))
        self.erase = RandomErasing(recipe.erase, mode="const", device="cpu") if recipe.erase else None
        self.updates = 0
        mean = torch.tensor(self.preprocessing.mean, device=accelerator.device)
        std = torch.tensor(self.preprocessing.std, device=accelerator.device)
        self._shift, self._scale = (mean * 255).view(1, 3, 1, 1), (1 / (std * 255)).view(1, 3, 1, 1)

    def step(self, images: Tensor, leaves: Tensor, *, epoch: int, step: int) -> Tensor:
        """One update on uint8 images (B, 3, S, S) and leaves (B,); returns the loss, detached."""
        seed_everything(self.recipe.seed, epoch, step, self.accelerator.process_index + 1)
        device = self.accelerator.device
        leaves = leaves.to(device, non_blocking=True)
        pixels = (images.to(device, non_blocking=True).float() - self._shift) * self._scale
        target = leaves
        if self.mixup is not None and len(pixels) % 2 == 0:
            pixels, target = self.mixup(pixels, leaves)
        if self.erase is not None:
            pixels = self.erase(pixels)
        if self.recipe.channels_last:
            pixels = pixels.contiguous(memory_format=torch.channels_last)
        self.model.train()
        self.trainee.network.train_progress(self.updates / self.total_updates)
        try:
            loss = self._backward(pixels, target)
        except RuntimeError as error:
            if not (self.recipe.compile and isinstance(error, torch._dynamo.exc.TorchDynamoException)):
                raise
            reason = " ".join(str(error).split("\n\n")[0].split())
            raise InputError(f"--compile: {reason}; leave it out, or install a C++ compiler") from error
        if self.recipe.clip_grad:
            self.accelerator.clip_grad_norm_(self.trainee.parameters(), self.recipe.clip_grad)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.updates += 1
        if self.updates == self.total_updates:
            self.trainee.network.train_progress(1.0)
        self.scheduler.step_update(self.updates)
        self.ema.update(self.trainee.network, step=self.updates)
        return loss.detach()

    def _backward(self, pixels: Tensor, target: Tensor) -> Tensor:
        """Add the gradients of one batch; returns its loss."""
        model = self.model if self.compiled is None else self._compiled_for(pixels.shape)
        with self.accelerator.autocast():
            levels, finest = model(pixels)
            loss: Tensor = self.loss(levels, finest, target, self._teachers(pixels))
        self.accelerator.backward(loss)
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

    @property
    def smoothed(self) -> NestedNetwork:
        """The moving average of the network: what is evaluated and shipped."""
        network = self.ema.module
        assert isinstance(network, NestedNetwork)
        return network

    def save(self, path: Path, progress: dict[str, Any]) -> None:
        """Write what a resumed run needs. Random generators are reseeded every step, so none is stored."""
        scaler = self.accelerator.scaler.state_dict() if self.accelerator.scaler is not None else None
        save_state(
            path,
            modules=self._modules(),
            optimizer=self.optimizer.state_dict(),
            progress={**progress, "updates": self.updates, "scaler": scaler},
        )

    def load(self, path: Path) -> dict[str, Any]:
        """Continue from what `save` wrote; returns its progress."""
        optimizer, progress = load_state(path, modules=self._modules())
        try:
            self.optimizer.load_state_dict(optimizer)
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{path} does not fit the optimiser of these options; give those that the run began with, or "
                "choose another --out"
            ) from error
        for parameter, state in self.optimizer.optimizer.state.items():
            for key, value in state.items():  # same memory format as in an unbroken run: same rounding
                if isinstance(value, Tensor) and value.shape == parameter.shape:
                    state[key] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
        if self.accelerator.scaler is not None and progress["scaler"]:
            self.accelerator.scaler.load_state_dict(progress["scaler"])
        self.updates = int(progress["updates"])
        self.scheduler.step_update(self.updates)
        return progress

    def _modules(self) -> dict[str, nn.Module]:
        return {"model": self.trainee, "ema": self.ema.module}

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


def make_optimizer(recipe: Recipe, model: nn.Module) -> torch.optim.Optimizer:
    """timm's optimiser of a recipe; biases and normalisation are not decayed."""
    try:
        optimizer: torch.optim.Optimizer = create_optimizer_v2(
            model, opt=recipe.opt, lr=recipe.lr, weight_decay=recipe.weight_decay, momentum=recipe.momentum
        )
    except (AssertionError, ValueError) as error:
        raise InputError(f"--opt {recipe.opt}: {error}".splitlines()[0]) from error
    return optimizer


def make_scheduler(recipe: Recipe, optimizer: torch.optim.Optimizer, steps_per_epoch: int) -> Scheduler:
    """timm's schedule of a recipe, stepped every update: warm-up from lr / 20, down to lr / 1000."""
    if recipe.warmup_epochs >= recipe.epochs:
        raise InputError(
            f"--warmup-epochs {recipe.warmup_epochs} leaves no epoch of {recipe.epochs}; lower it"
        )
    try:
        scheduler: Scheduler | None
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
    except (AssertionError, ValueError) as error:
        raise InputError(f"--schedule {recipe.schedule}: {error}".splitlines()[0]) from error
    if scheduler is None:
        raise InputError(f"--schedule {recipe.schedule} is no schedule of timm; use cosine, or constant")
    return scheduler


def make_mixup(recipe: Recipe, num_leaves: int) -> Mixup | None:
    """timm's mixup and cutmix of a recipe on leaf targets, or None when both are off."""
    if not (recipe.mixup or recipe.cutmix):
        return None
    return Mixup(
        mixup_alpha=recipe.mixup,
        cutmix_alpha=recipe.cutmix,
        prob=recipe.mix_prob,
        label_smoothing=0.0,  # NestedLoss smooths on every tier
        num_classes=num_leaves,
    )
