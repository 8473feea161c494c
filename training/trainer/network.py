"""The network of a recipe before training: architecture, preprocessing, initial weights, and early checks."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from hierclass.checkpoints.checkpoint import build, load_checkpoint
from hierclass.checkpoints.description import Architecture, read_description, without_weight_sources
from hierclass.checkpoints.new_classes import choose_levels, levels_of, with_new_classes
from hierclass.errors import InputError
from hierclass.images.preprocessing import Preprocessing
from hierclass.nested import STRUCTURES, NestedNetwork, create_backbone, default_shares
from hierclass.nested.network import evaluating
from taxonomy import Taxonomy
from training.data.batches import INTERPOLATION, training_transform
from training.data.sampler import seed_everything
from training.recipe.recipe import SHARES, Recipe
from training.trainer.optimizer import make_optimizer, make_scheduler
from training.trainer.pretrained import cached_weights

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
FOR_ORDER = 256
"""Number of images over which the importance of channels is measured."""


def make_architecture(recipe: Recipe, num_levels: int = 3) -> Architecture:
    """The architecture of a recipe; missing shares are the defaults for ``num_levels``."""
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
    """Image size and centre crop of a recipe; mean and deviation of its base or pretrained model, else ImageNet's."""
    if recipe.base:
        return read_description(Path(recipe.base))[0].preprocessing
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
    """The nested network of a recipe, with random weights of its seed or timm's pretrained ones.

    ``images``, normalised (N, 3, S, S), are needed to order channels by importance. Cached weights are read without
    contacting the hub. ``fresh`` False skips pretrained weights, for a network whose state will be loaded. A recipe
    with a ``base`` gives the network of that model.
    """
    seed_everything(recipe.seed)
    if recipe.base:
        return _network_of_base(recipe, taxonomy)
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


def _network_of_base(recipe: Recipe, taxonomy: Taxonomy) -> NestedNetwork:
    """The network of the model that a recipe begins with, with its heads only if its tree is the same."""
    base = load_checkpoint(recipe.base)
    levels = choose_levels(taxonomy.num_tiers, base.network.num_levels)
    thawed = dataclasses.replace(base, architecture=dataclasses.replace(base.architecture, frozen=False))
    network = with_new_classes(thawed, taxonomy, levels, heads=recipe.heads).network
    if base.taxonomy == taxonomy and base.architecture.heads == recipe.heads:
        network.heads.load_state_dict(base.network.heads.state_dict())
    return network.train()


def fields_of_base(base: Path, taxonomy: Taxonomy) -> dict[str, Any]:
    """The fields of a recipe that the model which a run begins with decides: network, image size and crop.

    Raises `InputError` for a compressed model, which lacks weights that a recipe describes.
    """
    model = read_description(base)[0]
    levels = choose_levels(taxonomy.num_tiers, model.taxonomy.num_tiers)
    found = without_weight_sources(levels_of(model, taxonomy, levels, heads=model.architecture.heads))
    if found.levels is not None:
        raise InputError(
            f"`base` {base}: the levels that were compressed away are needed to train all of it; give the whole "
            "model, or `tune` heads"
        )
    names = ("backbone", "backbone_args", "stem_stride", "structure", "heads", "sizes", *SHARES)
    own = (found.own,) if isinstance(found.own, str) else found.own
    return {
        **{name: getattr(found, name) for name in names},
        "own": own or ("norms",),
        "size": model.preprocessing.size,
        "crop": model.preprocessing.crop,
        "pretrained": False,
    }


def check_parts(recipe: Recipe) -> None:
    """Raise `InputError` for options that timm refuses, before any image is read."""
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
    """The backbone of a recipe before it is nested, without pretrained weights."""
    return create_backbone(recipe.backbone, stem_stride=recipe.stem_stride, **recipe.backbone_args)
