"""What a rule says about a layer type: how channels flow through it, and how it is made smaller.

The rules themselves are in `rules`.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from hierclass.errors import BackboneError
from hierclass.nested.channels import Channels, varies

Reads = Literal["slice", "prefix", "whole"]
Index = Sequence[int]


@dataclass(frozen=True)
class Flow:
    """Channels through a layer: the ids of its output, and what the layer of a level reads.

    "slice": the level's own slice; "prefix": all slices up to it; "whole": its slice, with a copy of the whole layer
    (one that mixes no channels of different levels, like one over the places of an image). Channels lie along `axis`.
    """

    ids: Tensor
    reads: Reads
    axis: int = 1


class Rule:
    """A layer that treats every channel alike and holds no weights: each level gets a copy of it.

    Subclass it for layers that mix channels or hold weights per channel.
    """

    reads_neighbours: ClassVar[bool] = False
    """Whether the order of channels matters to the layer."""

    def flow(self, layer: nn.Module, ids: Tensor, shape: Sequence[int], channels: Channels) -> Flow:
        """How channels go through: `ids` of the input, `shape` of the output; ties are made in `channels`."""
        return Flow(respread(ids, shape, channels), "whole")

    def select(self, layer: nn.Module, reads: Index, writes: Index) -> Mapping[str, tuple[Index | None, ...]]:
        """Which rows, columns … of each own parameter and buffer a smaller layer keeps (None: all).

        By default the first axis of each belongs to the output channels.
        """
        return {name: (writes,) for name, value in own_tensors(layer) if value.ndim}

    def resize(self, part: nn.Module, layer: nn.Module, reads: Index, writes: Index) -> None:
        """Set the numbers that a smaller layer `part`, a copy of `layer`, keeps about itself."""

    def cut(self, layer: nn.Module, reads: Index, writes: Index) -> nn.Module:
        """Make the smaller layer that reads and writes the given channels, with their weights."""
        if any(True for child in layer.children() for _ in child.parameters()):
            raise BackboneError("a layer inside it has weights of its own")
        own = dict(own_tensors(layer))
        part = out_of_place(copy.deepcopy(layer, {id(value): value for value in own.values()}))
        chosen = self.select(layer, reads, writes)
        for name, tensor in own.items():
            smaller = take(tensor.detach(), chosen.get(name, ()))
            if isinstance(tensor, nn.Parameter):
                setattr(part, name, nn.Parameter(smaller, tensor.requires_grad))
            else:
                part.register_buffer(name, smaller, name not in layer._non_persistent_buffers_set)
        self.resize(part, layer, reads, writes)
        return part


def own_tensors(layer: nn.Module) -> list[tuple[str, Tensor]]:
    """Name and value of a layer's own parameters and buffers."""
    return [*layer.named_parameters(recurse=False), *layer.named_buffers(recurse=False)]


def take(tensor: Tensor, kept: Sequence[Index | None]) -> Tensor:
    """Copy the given positions along the first axes of a tensor (None: all of an axis)."""
    for axis, index in enumerate(kept):
        if index is not None:
            tensor = tensor.index_select(axis, torch.as_tensor(index, dtype=torch.long, device=tensor.device))
    return tensor.clone()


def out_of_place(layer: nn.Module) -> nn.Module:
    """Refining reads a level's activations again: no layer may overwrite its input."""
    for module in layer.modules():
        if getattr(module, "inplace", False):
            module.inplace = False  # type: ignore[assignment]
    return layer


def respread(ids: Tensor, shape: Sequence[int], channels: Channels) -> Tensor:
    """Ids of a value of `shape` made place by place: what differs along axes that change is tied."""
    if tuple(ids.shape) == tuple(shape):
        return ids
    if ids.ndim != len(shape):
        raise BackboneError("it changes the number of axes in a way that has no rule")
    changed = [axis for axis, size in enumerate(shape) if size != ids.shape[axis]]
    return channels.mix(ids, *changed).expand(tuple(shape))


def varies_beside(ids: Tensor, axis: int) -> bool:
    """Whether ids differ along any axis but `axis`, or nowhere at all: not a plain row of channels there."""
    others = any(varies(ids, other) for other in range(ids.ndim) if other != axis % ids.ndim)
    return others or not varies(ids, axis)
