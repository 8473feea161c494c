"""timm's optimiser and learning rate schedule, by name."""

from __future__ import annotations

import contextlib
import difflib

import torch
from timm.optim import create_optimizer_v2, list_optimizers
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler
from torch import nn

from hierclass.errors import InputError
from training.recipe.recipe import Recipe


def make_optimizer(
    model: nn.Module, *, opt: str, lr: float, weight_decay: float, momentum: float = 0.9
) -> torch.optim.Optimizer:
    """timm's optimiser by name for all trainable weights; biases and norms have no weight decay."""
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
