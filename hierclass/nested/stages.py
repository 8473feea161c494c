"""What of a module differs between levels, masked weights and norms, and the stages that they belong to."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils.parametrize import ParametrizationList
from torch.nn.utils.weight_norm import WeightNorm

from hierclass.errors import BackboneError

Stages = tuple[tuple[str, ...], ...]
"""Names of the modules in each stage."""

MIN_SIZE = 16
"""Smaller weights stay dense."""


class LevelNorms(nn.ModuleList):
    """One copy per level of a norm with running statistics; the copy of the level that runs stands in for it."""


def with_level_norms(module: nn.Module, num_levels: int) -> nn.Module:
    """Return a copy in which every norm with running statistics is one copy per level.

    Raises:
        BackboneError: a part keeps weights that are computed from others, which can't be copied.
    """
    for path, part in module.named_modules():
        if any(isinstance(hook, WeightNorm) for hook in part._forward_pre_hooks.values()) or any(
            isinstance(value, Tensor) and not value.is_leaf for value in vars(part).values()
        ):
            raise BackboneError(
                f"{path or 'the module'} ({type(part).__name__}) keeps a weight that is computed from others; undo "
                "torch.nn.utils.weight_norm by remove_weight_norm, or use torch.nn.utils.parametrizations"
            )
    copies: dict[int, Any] = {
        id(part): LevelNorms(copy.deepcopy(part) for _ in range(num_levels))
        for part in module.modules()
        if any(part._buffers.get(name) is not None for name in ("running_mean", "running_var"))
        and all(weight.dim() < 2 for weight in part.parameters())
    }
    return copy.deepcopy(module, copies)


def level_parts(module: nn.Module, dense: Sequence[str]) -> Iterator[tuple[str, nn.Module | nn.Parameter]]:
    """Yield, in the order of the module tree, what differs between levels: norms and weights to be masked."""
    seen: set[int] = set()
    sources: tuple[str, ...] = ()
    for path, part in module.named_modules():
        if isinstance(part, LevelNorms):
            yield path, part
        if isinstance(part, ParametrizationList):
            sources += (f"{path}.",)
        if f"{path}.".startswith(sources):
            continue
        for key, weight in part._parameters.items():
            name = f"{path}.{key}" if path else key
            if weight is not None and id(weight) not in seen:
                seen.add(id(weight))
                if _worth_masking(part, weight) and not any(_inside(name, prefix) for prefix in dense):
                    yield name, weight


def _worth_masking(part: nn.Module, weight: nn.Parameter) -> bool:
    depthwise = isinstance(part, _ConvNd) and part.groups == part.in_channels > 1
    # A gain of shape (C, 1, 1, 1) or a class token (1, 1, C) is a vector; an attention vector (C, 1) is a matrix.
    vector = weight.dim() < 2 or (weight.dim() > 2 and weight.numel() == max(weight.shape))
    return weight.is_floating_point() and weight.numel() >= MIN_SIZE and not vector and not depthwise


def _inside(name: str, prefix: str) -> bool:
    return not prefix or name == prefix or name.startswith(f"{prefix}.")


def find_stages(module: nn.Module, names: Sequence[str]) -> Stages:
    """Return the stages of a timm model that hold masked weights, or the children that do."""
    info = getattr(module, "feature_info", None)
    found = [str(item.get("module", "")) for item in info] if isinstance(info, list) else []
    for prefixes in (found, [name for name, _ in module.named_children()]):
        kept: list[str] = []
        for prefix in prefixes:
            nested = any(_inside(prefix, other) or _inside(other, prefix) for other in kept)
            if prefix and not nested and any(_inside(name, prefix) for name in names):
                kept.append(prefix)
        if kept:
            return tuple((prefix,) for prefix in kept)
    return (("",),)


def as_stages(stages: Sequence[Sequence[str]]) -> Stages:
    """Return stages as tuples; a stage of one module may be given as its name alone."""
    return tuple((stage,) if isinstance(stage, str) else tuple(stage) for stage in stages)


def deal(stages: Stages, parts: Sequence[str]) -> dict[str, int]:
    """Return the stage of every part of `level_parts`; one that no stage names joins the stage before it.

    Raises:
        BackboneError: a stage has no part, or one that another stage has.
    """
    if not all(stages) or not stages:
        raise BackboneError("a stage is empty; give the names of its modules")
    for prefix in itertools.chain(*stages):
        if not any(_inside(part, prefix) for part in parts):
            raise BackboneError(f"stage {prefix!r} names no module with weights to mask")
    dealt, current = {}, 0
    for part in parts:
        found = [k for k, prefixes in enumerate(stages) if any(_inside(part, prefix) for prefix in prefixes)]
        if len(found) > 1:
            raise BackboneError(f"{part} is in stages {found[0]} and {found[1]}; name it in one")
        current = found[0] if found else current
        dealt[part] = current
    return dealt
