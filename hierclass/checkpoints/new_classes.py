"""Give a model's network new classes: the same weights and levels, fresh heads for the tiers of another tree."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hierclass.checkpoints.checkpoint import Checkpoint, build, num_levels_before
from hierclass.checkpoints.description import Architecture, ModelDescription, without_weight_sources
from hierclass.errors import BackboneError
from hierclass.nested import NestedNetwork
from hierclass.nested.heads import SummedLinear
from hierclass.nested.prefix import PrefixNetwork
from hierclass.nested.shared_weights import take_block
from taxonomy import Taxonomy

PER_LEVEL = ("widths", "depths", "densities", "sizes")
"""Fields of an architecture with a value per level."""


def with_new_classes(
    checkpoint: Checkpoint, taxonomy: Taxonomy, levels: Sequence[int], *, heads: str = "leaves"
) -> Checkpoint:
    """Return a model of another tree that runs the levels of a model, with the same weights and heads of zeros.

    Tier k of `taxonomy` is answered by level `levels[k]` of `checkpoint`. `levels` never fall and end with the last
    level; the last may be repeated, where the tree has more tiers than the model has levels. Heads score "leaves", and
    sum them up to their own tier, or the classes of "tiers". Decisions and measured results are left out.

    Raises:
        BackboneError: the structure can't give up or repeat levels (prefix and depths can), or the levels do not fit.
    """
    old, last = checkpoint.network, checkpoint.network.num_levels - 1
    rising = list(levels) == sorted(levels) and len(levels) > 0 and levels[0] >= 0 and levels[-1] == last
    repeated = any(low == high != last for low, high in itertools.pairwise(levels))
    if not rising or repeated or len(levels) != taxonomy.num_tiers:
        raise BackboneError(
            f"levels {list(levels)} do not answer {taxonomy.num_tiers} tiers: give a level per tier, rising, the last "
            f"{last}, which alone may be repeated"
        )
    same = list(levels) == list(range(last + 1))
    if not (same or isinstance(old, PrefixNetwork)):
        raise BackboneError(
            f"a tree of {taxonomy.num_tiers} tiers does not fit this model, whose {last + 1} levels (structure "
            f"{old.structure}) belong together; take a tree of {last + 1} tiers, or start from another model"
        )
    architecture = levels_of(checkpoint, taxonomy, levels, heads=heads)
    network = build(
        without_weight_sources(architecture),
        taxonomy,
        checkpoint.preprocessing.size,
        warn=False,
        proof=False,
    )
    if isinstance(old, PrefixNetwork) and isinstance(network, PrefixNetwork):
        _copy_levels(old, network, levels)
    else:
        network.load_stored({**_without_heads(old.stored()), **_heads_of(network)})
    for tier, head in enumerate(network.heads):
        _clear(head, taxonomy.projection(tier).tolist())
    return Checkpoint(taxonomy, architecture, checkpoint.preprocessing, network=network.eval())


def choose_levels(num_tiers: int, num_levels: int) -> list[int]:
    """Return the level of a model that answers each tier: evenly chosen ones, or the last repeatedly for the finest.

    >>> choose_levels(2, 3), choose_levels(1, 3), choose_levels(5, 3)
    ([0, 2], [2], [0, 1, 2, 2, 2])
    """
    last = num_levels - 1
    if num_tiers >= num_levels:
        return [min(tier, last) for tier in range(num_tiers)]
    return [last * tier // (num_tiers - 1) if num_tiers > 1 else last for tier in range(num_tiers)]


def levels_of(
    model: ModelDescription, taxonomy: Taxonomy, levels: Sequence[int], *, heads: str = "leaves"
) -> Architecture:
    """Return the architecture of `with_new_classes`; levels that compressing has left out stay left out."""
    old, count = model.architecture, model.taxonomy.num_tiers
    full = num_levels_before(old)
    kept = [*levels, *range(count, full)]
    chosen: dict[str, Any] = {
        name: tuple(values[level] for level in kept) for name in PER_LEVEL if (values := getattr(old, name))
    }
    if not isinstance(old.own, str):  # one for each level below the last
        chosen["own"] = tuple(old.own[level] if level < full - 1 else "norms" for level in kept[:-1])
    left_out = count < full
    return dataclasses.replace(
        old,
        **chosen,
        heads=heads,
        levels=len(levels) if left_out else None,
        leaves=len(taxonomy.leaves) if left_out and heads == "leaves" else None,
    )


@torch.no_grad()
def _copy_levels(old: PrefixNetwork, new: PrefixNetwork, levels: Sequence[int]) -> None:
    """Copy what each level of `new` uses from the level of `old` that it is, but for heads."""
    for level, source in enumerate(levels):
        for mine, theirs in zip(new.plans[level].parts, old.plans[source].parts, strict=True):
            block = take_block(old.weights[theirs.weight], theirs.index)
            new.weights[mine.weight][np.ix_(*mine.index)] = block.to(new.weights[mine.weight])
        pairs = zip(new.level_tensors(level), old.level_tensors(source), strict=True)
        for (name, value, _), (_, other, _) in pairs:
            if name.startswith(("layers.", "corrections.")):  # the others are copies of blocks
                value.copy_(other)


def _without_heads(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in tensors.items() if not name.startswith("heads.")}


def _heads_of(network: NestedNetwork) -> dict[str, Tensor]:
    return {name: value for name, value in network.state_dict().items() if name.startswith("heads.")}


def _clear(head: nn.Module, projection: Sequence[int]) -> None:
    """Set a head to zeros; one that scores leaves sums them up as the tree says."""
    assert isinstance(head, nn.Linear)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    if isinstance(head, SummedLinear):
        head.groups.copy_(torch.tensor(projection))
