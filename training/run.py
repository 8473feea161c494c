"""The pieces of one run: network, loss, optimiser, schedule and moving average, built from a recipe."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from timm.optim import create_optimizer_v2, list_optimizers
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from hierclass.checkpoint import Architecture, Checkpoint, build, save_checkpoint
from hierclass.errors import CheckpointError, InputError
from hierclass.nested import STRUCTURES, NestedNetwork, create_backbone, default_shares
from hierclass.nested.network import evaluating
from hierclass.preprocessing import Preprocessing
from taxonomy import Taxonomy
from training.batches import INTERPOLATION, TrainingBatch, training_transform
from training.calibration import decision_of
from training.dropping import deal_drops
from training.losses import NestedLoss, Trainee
from training.mixing import Mixing
from training.norms import average_statistics, synchronise_norms
from training.order import seed_everything
from training.pretrained import cached_weights
from training.recipe import SHARES, Recipe
from training.state import load_state, save_state

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


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


def check_parts(recipe: Recipe) -> None:
    """Raise `InputError` for what timm or the sizes would refuse later, before any image is read."""
    nothing = nn.Linear(1, 1)
    make_scheduler(recipe, make_optimizer(recipe, nothing), steps_per_epoch=1)
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
        device = accelerator.device
        self.trainee.to(device)
        if recipe.channels_last:
            self.trainee.to(memory_format=torch.channels_last)
        self.ema = ModelEmaV3(network, decay=recipe.ema_decay, use_warmup=True)  # a copy as it is so far
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
        if accelerator.num_processes > 1:
            self._join_processes()
        optimizer = make_optimizer(recipe, self.trainee)
        self.scheduler = make_scheduler(recipe, optimizer, steps_per_epoch)
        with warnings.catch_warnings():  # torch renames broadcast_buffers, accelerate does not yet
            warnings.simplefilter("ignore", FutureWarning)
            self.model, self.optimizer = accelerator.prepare(self.trainee, optimizer)
        self.compiled = torch.compile(self.model, dynamic=False) if recipe.compile else None
        self._compiled_shape = torch.Size((0, 0, 0, 0))
        self.mixing = Mixing(recipe, self.preprocessing, len(taxonomy.leaves), device)
        self.updates = 0

    def _join_processes(self) -> None:
        """Make ready for gradients and statistics of several processes."""
        self.accelerator.ddp_handler = DistributedDataParallelKwargs(
            broadcast_buffers=False,  # statistics are the same everywhere, or are averaged
            find_unused_parameters=bool(untrained_weights(self.trainee, self.loss, self.recipe.size)),
            gradient_as_bucket_view=True,
        )
        if self.recipe.sync_batch_norm:
            synchronise_norms(self.trainee.network, self.accelerator.device)

    def step(self, batch: TrainingBatch, *, epoch: int, step: int) -> Tensor:
        """One update on this process's share of a batch; returns the sum of the losses of its images, detached.

        An image that could not be read counts with loss 0, so that every other one counts alike on all processes.
        """
        seed_everything(self.recipe.seed, epoch, step, 1)
        pixels, target = self.mixing(batch, step=step)
        self.model.train()
        self.trainee.network.train_progress(self.updates / self.total_updates)
        try:
            total = self._gradients(pixels, target, batch, seed=(self.recipe.seed, epoch, step, 2))
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
        if self.accelerator.num_processes > 1 and not self.recipe.sync_batch_norm:
            average_statistics(self.trainee.network)
        self.ema.update(self.trainee.network, step=self.updates)
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
    except (AssertionError, TypeError, ValueError) as error:
        if recipe.opt.lower() in list_optimizers():
            raise InputError(f"--opt {recipe.opt}: {error}".splitlines()[0]) from error
        close = difflib.get_close_matches(recipe.opt, list_optimizers(), n=1) or ["adamw"]
        raise InputError(
            f"--opt {recipe.opt} is no optimiser of timm; give {close[0]}, or sgd (the default)"
        ) from error
    return optimizer


def make_scheduler(recipe: Recipe, optimizer: torch.optim.Optimizer, steps_per_epoch: int) -> Scheduler:
    """timm's schedule of a recipe, stepped every update: warm-up from lr / 20, down to lr / 1000."""
    if recipe.warmup_epochs >= recipe.epochs:
        raise InputError(
            f"--warmup-epochs {recipe.warmup_epochs} leaves no epoch of {recipe.epochs}; lower it"
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
            f"--schedule {recipe.schedule}: timm has no such schedule by updates; give cosine, poly, tanh, step or "
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
