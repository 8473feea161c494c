"""Which weights and norms of a module differ between levels, their stages, and how masks are chosen by magnitude."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils.parametrize import ParametrizationList
from torch.nn.utils.weight_norm import WeightNorm

from hierclass.errors import BackboneError
from hierclass.nested.masks.codec import ESCAPE

MIN_SIZE = 16
"""Weights of fewer values stay dense."""


class LevelNorms(nn.ModuleList):
    """One copy per level of a norm with running statistics; a call replaces it by the copy of its level."""


def with_level_norms(module: nn.Module, num_levels: int) -> nn.Module:
    """Return a copy of a module with one copy per level of every norm with running statistics.

    Raises:
        BackboneError: a submodule keeps weights that are computed from others, which can't be copied.
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


def level_parts(module: nn.Module) -> Iterator[tuple[str, nn.Module | nn.Parameter]]:
    """Yield the norms and the weights to mask, which differ between levels, in the order of the module tree."""
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
                if _worth_masking(part, weight):
                    yield name, weight


def _worth_masking(part: nn.Module, weight: nn.Parameter) -> bool:
    depthwise = isinstance(part, _ConvNd) and part.groups == part.in_channels > 1
    # A gain of shape (C, 1, 1, 1) or a class token (1, 1, C) is a vector; an attention vector (C, 1) is a matrix.
    vector = weight.dim() < 2 or (weight.dim() > 2 and weight.numel() == max(weight.shape))
    return weight.is_floating_point() and weight.numel() >= MIN_SIZE and not vector and not depthwise


def _inside(name: str, prefix: str) -> bool:
    return not prefix or name == prefix or name.startswith(f"{prefix}.")


def find_stages(module: nn.Module, names: Sequence[str]) -> tuple[str, ...]:
    """Return the stages of a timm model that hold some of the weights `names`, or the children that do."""
    info = getattr(module, "feature_info", None)
    found = [str(item.get("module", "")) for item in info] if isinstance(info, list) else []
    for prefixes in (found, [name for name, _ in module.named_children()]):
        kept: list[str] = []
        for prefix in prefixes:
            nested = any(_inside(prefix, other) or _inside(other, prefix) for other in kept)
            if prefix and not nested and any(_inside(name, prefix) for name in names):
                kept.append(prefix)
        if kept:
            return tuple(kept)
    return ("",)


def stage_numbers(stages: Sequence[str], parts: Sequence[str]) -> dict[str, int]:
    """Return the stage of each of `parts` (of `level_parts`); one outside all stages joins the stage before it."""
    numbers, current = dict[str, int](), 0
    for part in parts:
        current = next((k for k, prefix in enumerate(stages) if _inside(part, prefix)), current)
        numbers[part] = current
    return numbers


SCHEDULE = (0.1, 0.6)
"""Shares of training (0 to 1) at which pruning starts and ends."""

UPDATES = 100
"""Number of times that masks are chosen between start and end."""


def check_densities(densities: Sequence[float]) -> tuple[float, ...]:
    """Return the densities as a tuple; raise `BackboneError` unless they rise strictly in (0, 1]."""
    densities = tuple(float(density) for density in densities)
    rising = all(low < high for low, high in itertools.pairwise(densities))
    if not 0 < len(densities) < ESCAPE or not rising or densities[0] <= 0 or not densities[-1] <= 1:
        raise BackboneError(
            f"densities {list(densities)} do not fit; give one share per level, rising in (0, 1], "
            "like 0.05,0.1,0.2"
        )
    return densities


def step_of(progress: float) -> int:
    """Return the number of the choice of masks, 0 … `UPDATES`, that is due at `progress` (0 to 1)."""
    start, end = SCHEDULE
    share = 1.0 if progress >= end else 0.0
    if start < progress < end:
        share = (progress - start) / (end - start)
    return math.floor(UPDATES * share)


def densities_at(share: float, densities: Sequence[float]) -> list[float]:
    """Return the density of every level, `share` (0 to 1) of the way from dense to `densities`.

    Source: Zhu & Gupta 2017, equation 1.
    """
    return [density + (1 - density) * (1 - share) ** 3 for density in densities]


def rank(weight: Tensor, densities: Sequence[float]) -> Tensor:
    """Return the lowest level that uses each value (uint8), `len(densities)` for none.

    Level k uses the share `densities[k]` of largest magnitude, rounded and at least one value; of equal ones the first.
    """
    size = weight.numel()
    magnitude = weight.detach().float().abs().flatten().nan_to_num(0)
    levels = torch.full_like(magnitude, len(densities), dtype=torch.uint8)
    for level in reversed(range(len(densities))):
        count = max(1, math.floor(densities[level] * size + 0.5))
        smallest = magnitude.kthvalue(size - count + 1).values
        used = magnitude > smallest
        used[(magnitude == smallest).nonzero()[: count - int(used.sum()), 0]] = True
        levels[used] = level
    return levels.view_as(weight)


def masked(weight: Tensor, unused: Tensor) -> Tensor:
    """Return the weight with zero where `unused`, in the same memory format (which `masked_fill` would not keep)."""
    return torch.where(unused, 0, weight)


class StraightThrough(torch.autograd.Function):
    """Sets unused values to zero; the gradient passes to them unchanged."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, unused: Tensor) -> Tensor:
        """Return the masked weight."""
        return masked(weight, unused)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """Return the gradient unchanged."""
        return gradient, None
