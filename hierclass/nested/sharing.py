"""What levels share: blocks of common weights, found for every layer of a level, and what a level owns instead."""

from __future__ import annotations

import copy
import dataclasses
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from hierclass.errors import BackboneError
from hierclass.nested.flow import own_tensors
from hierclass.nested.rules import ChannelRule, rule_for

Index = tuple[NDArray[np.int64], ...]
"""Positions along every axis of a weight."""

LOWER = "lower/"
"""Begins the names of weights that levels which own everything share among themselves."""


@dataclass(frozen=True)
class Own:
    """What a level below the last owns instead of sharing it with the level above; heads are always own.

    Norms are always own. `depthwise`: the filters of convolutions that keep channels apart, too. `rank`: a low-rank
    correction of this rank is added to every block of the shared weights; 0 is none. `everything`: the level shares no
    weight with the last one; levels that own everything share one set among themselves.
    """

    depthwise: bool = False
    rank: int = 0
    everything: bool = False

    @classmethod
    def parse(cls, text: str) -> Own:
        """Read "norms", "norms+depthwise", either with "+rank16" (or another rank), or "everything".

        Raises:
            BackboneError: it is none of these.
        """
        if text == "everything":
            return cls(everything=True)
        found = re.fullmatch(r"norms(\+depthwise)?(?:\+rank([1-9]\d{0,3}))?", text)
        if found is None:
            raise BackboneError(
                f"own {text!r} is not known; give norms, norms+depthwise, one of these with +rank16 (or another "
                "rank), or everything"
            )
        return cls(depthwise=found[1] is not None, rank=int(found[2] or 0))

    def has(self, layer: nn.Module) -> bool:
        """Whether a level has all weights of a layer for itself."""
        return self.depthwise and is_depthwise(layer)


def is_depthwise(layer: nn.Module) -> bool:
    """Whether a layer is a convolution whose every output reads one channel."""
    return isinstance(layer, _ConvNd) and layer.groups > 1 and layer.groups == layer.in_channels


@dataclass(frozen=True)
class Part:
    """Where a layer of one level takes its weight `name` from: the positions `index` of the shared weight `weight`.

    `rank` is that of the level's own correction of it, 0 without one.
    """

    layer: str
    name: str
    weight: str
    index: Index
    rank: int = 0

    def moved(self, kept: Index) -> Part:
        """Return the same part of a weight of which only the positions `kept` are left."""
        index = tuple(np.searchsorted(k, i) for k, i in zip(kept, self.index, strict=True))
        return dataclasses.replace(self, index=index)

    @property
    def matrix_size(self) -> tuple[int, int]:
        """Rows and columns of the part as the matrix that a correction is added to."""
        sizes = [len(index) for index in self.index]
        return sizes[0], int(np.prod(sizes[1:]))


class Numbered:
    """A copy of a backbone in whose weights every element is a number of its own, to see where layers take theirs."""

    def __init__(self, backbone: nn.Module) -> None:
        """Number the weights of `backbone`."""
        memo: dict[int, Any] = {}
        self.starts: dict[str, int] = {}
        self.shapes: dict[str, torch.Size] = {}
        count = 0
        for name, value in backbone.named_parameters():
            self.starts[name] = count
            self.shapes[name] = value.shape
            numbers = torch.arange(count, count + value.numel()).reshape(value.shape)
            memo[id(value)] = nn.Parameter(numbers, requires_grad=False)
            count += value.numel()
        self.backbone: nn.Module = copy.deepcopy(backbone, memo)

    def share(self, name_of_layer: str, layer: nn.Module, numbered: nn.Module, own: Own) -> list[Part]:
        """Take the weights out of a layer, unless they are own, and say where they come from."""
        if isinstance(rule_for(layer), ChannelRule) or own.has(layer):
            return []
        names, firsts = list(self.starts), np.fromiter(self.starts.values(), np.int64)
        parts: list[Part] = []
        for name, value in own_tensors(layer):
            if not isinstance(value, nn.Parameter) or not value.numel():
                continue
            numbers = getattr(numbered, name).detach().numpy()
            number = int(np.searchsorted(firsts, numbers.flat[0], side="right")) - 1
            while not self.shapes[names[number]].numel():
                number -= 1
            shape = self.shapes[names[number]]
            index: list[NDArray[np.int64]] = []
            for axis, size in enumerate(shape):
                line = numbers[tuple(slice(None) if a == axis else 0 for a in range(numbers.ndim))]
                index.append((line - firsts[number]) // int(np.prod(shape[axis + 1 :])) % size)
            correct = own.rank and value.ndim > 1 and not is_depthwise(layer)
            rank = min(own.rank, len(index[0]), value.numel() // max(1, len(index[0]))) if correct else 0
            parts.append(Part(name_of_layer, name, parameter_name(names[number]), tuple(index), rank))
            layer._parameters[name] = None
        return parts


def parameter_name(path: str) -> str:
    """Return the path of a weight as the name of a parameter, which has no dots; names in code hold no slash."""
    return path.replace(".", "/")


def take_block(tensor: Tensor, index: Index) -> Tensor:
    """Copy the block of a weight at these positions."""
    for axis, kept in enumerate(index):
        tensor = tensor.index_select(axis, torch.from_numpy(kept).to(tensor.device))
    return tensor.clone()


def joined(indices: list[Index]) -> Index:
    """Return the positions, rising, that any of several blocks of one weight has."""
    union = indices[0]
    for index in indices[1:]:
        union = tuple(np.union1d(a, b) for a, b in zip(union, index, strict=True))
    return tuple(np.unique(index) for index in union)
