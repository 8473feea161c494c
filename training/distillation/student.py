"""The student: the nested network before training, and which of its tensors belong to which level."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from hierclass.checkpoints.checkpoint import Checkpoint, load_checkpoint
from hierclass.checkpoints.description import Architecture, read_config
from hierclass.errors import BackboneError, InputError
from hierclass.nested import default_shares, nest
from hierclass.nested.prefix import PrefixNetwork
from training.distillation.recipe import DistilRecipe
from training.distillation.teacher import Teacher


def make_architecture(recipe: DistilRecipe, teacher: Teacher) -> Architecture:
    """The architecture of the nested network that a recipe makes of a teacher."""
    own = recipe.own[0] if len(recipe.own) == 1 else recipe.own
    return Architecture(
        backbone=teacher.name,
        backbone_args=teacher.backbone_args,
        stem_stride=teacher.stem_stride,
        heads="leaves",
        structure=recipe.structure,
        widths=recipe.widths or default_shares(teacher.taxonomy.num_tiers),
        sizes=recipe.sizes,
        own=own,
        frozen=recipe.frozen,
    )


def nest_teacher(recipe: DistilRecipe, teacher: Teacher, images: Tensor) -> Checkpoint:
    """Nest a teacher's backbone; its classifier is the last level's head and the initial head of lower levels.

    Channels are ordered by their importance over ``images``, normalised photographs (N, 3, S, S).
    """
    architecture, tree = make_architecture(recipe, teacher), teacher.taxonomy
    side = teacher.preprocessing.size
    try:
        network = nest(
            copy.deepcopy(teacher.backbone).requires_grad_(True),
            structure=architecture.structure,
            widths=architecture.widths,
            sizes=architecture.sizes,
            own=architecture.own,
            frozen=architecture.frozen,
            order="importance",
            images=images,
            classifier=teacher.head,
            num_classes=tree.num_classes,
            groups=[*(tree.projection(tier).tolist() for tier in range(tree.num_tiers - 1)), None],
            input_size=(3, side, side),
        )
    except BackboneError as error:
        raise BackboneError(f"{teacher.name} can't be nested so: {error}") from error
    return Checkpoint(tree, architecture, teacher.preprocessing, network=network.eval())


def start_from_model(path: Path, recipe: DistilRecipe, teacher: Teacher) -> Checkpoint:
    """Load a model that was distilled before, to start from.

    Raises `InputError` for another architecture or another teacher.
    """
    found = load_checkpoint(path)
    wanted = make_architecture(recipe, teacher)
    if found.architecture != wanted or list(found.taxonomy.leaves) != list(teacher.taxonomy.leaves):
        raise InputError(
            f"`start` {path} is of another teacher, tree, structure, widths, sizes or own; give those of that model"
        )
    side, last = teacher.preprocessing.size, found.network.num_levels - 1
    images = torch.randn(4, 3, side, side, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours, theirs = found.network(images, last), teacher.classifier(images)
    if recipe.frozen and float((ours - theirs).abs().max()) > 0.05 * float(theirs.abs().max()):
        raise InputError(f"`start` {path}: its last level is another classifier than the teacher")
    return Checkpoint(found.taxonomy, found.architecture, found.preprocessing, network=found.network)


def statistics_of(path: Path, levels: Sequence[int]) -> str:
    """Statistics that norms of a model's levels were trained with: "batch" or "pretrained"."""
    known = read_config(path).get("results", {}).get("distillation", {}).get("levels", [])
    found = {row.get("statistics") for row in known if row.get("level") in levels}
    return "pretrained" if found == {"pretrained"} else "batch"


def groups_to_train(network: PrefixNetwork, level: int | None) -> list[tuple[int, ...]]:
    """Groups of levels that are trained together, in order; ``level`` selects one level.

    A frozen last level is not trained. Raises `InputError` if the selected level can't be trained alone.
    """
    last = network.num_levels - 1
    trained = tuple(range(last if network.frozen else last + 1))
    if level is not None and level not in trained:
        is_teacher = f"; level {last} is the teacher itself" if level == last else ""
        raise InputError(f"`level` {level}: give 0 to {trained[-1]}{is_teacher}")
    if network.levels_alone:
        return [(each,) for each in trained if level in (None, each)]
    if level is not None and len(trained) > 1:
        raise InputError(
            f"`level` {level}: these levels share weights that are trained, so they are trained together; leave it "
            "out, or give another `own`"
        )
    return [trained]


def trained_names(network: PrefixNetwork, levels: Sequence[int], *, heads: bool) -> set[str]:
    """Names of the parameters that are trained with the levels, with or without their ``heads``."""
    if network.levels_alone:
        names = {name for level in levels for name, _ in network.own_parameters(level)}
    else:
        names = {name for name, value in network.named_parameters() if value.requires_grad}
    return {name for name in names if heads or not name.startswith("heads.")}


def level_names(network: PrefixNetwork, levels: Iterable[int], trained: Iterable[str]) -> set[str]:
    """Names of all tensors that training changes: the parameters ``trained``, and statistics of norms."""
    buffers = {
        id(value) for level in levels for _, value, is_weight in network.level_tensors(level) if not is_weight
    }
    return {*trained, *(name for name, value in network.named_buffers() if id(value) in buffers)}
