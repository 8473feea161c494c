"""How each type of layer is cut: one `LayerRule` per type, registered in `RULES`.

A rule says how channels flow through the layer (the ids of its output, and which ids it unites), and how the layer is
made smaller: `cut` keeps the weights between given input and output channels. The layer of a level reads either its
own slice of the input, or the prefix of all slices up to it (which makes the dense weight block lower-triangular), or
is a copy of the whole layer. `hierclass.nested.extend` registers layers of your own.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import timm.layers as timm_layers
import torch
from timm.layers.grn import GlobalResponseNorm
from timm.layers.std_conv import ScaledStdConv2d
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from hierclass.errors import BackboneError
from hierclass.nested.analysis.channel_groups import ChannelGroups, has_channels, touched, varies

Reads = Literal["slice", "prefix", "whole"]
Index = Sequence[int]


@dataclass(frozen=True)
class ChannelFlow:
    """Channels through a layer: the ids of its output, and what the layer of a level reads.

    "slice": the level's own slice; "prefix": all slices up to it; "whole": its slice, with a copy of the whole layer
    (one that mixes no channels of different levels, like one over the places of an image). Channels lie along `axis`.
    """

    ids: Tensor
    reads: Reads
    axis: int = 1


class LayerRule:
    """The rule of a layer that treats every channel alike and holds no weights: each level gets a copy of it.

    Subclass it for layers that mix channels or hold weights per channel.
    """

    reads_neighbours: ClassVar[bool] = False
    """Whether the order of channels matters to the layer."""

    def propagate(
        self, layer: nn.Module, ids: Tensor, shape: Sequence[int], channels: ChannelGroups
    ) -> ChannelFlow:
        """Return how channels go from an input with `ids` to an output of `shape`; unite ids in `channels`."""
        return ChannelFlow(respread(ids, shape, channels), "whole")

    def select(self, layer: nn.Module, reads: Index, writes: Index) -> Mapping[str, tuple[Index | None, ...]]:
        """Return which positions a smaller layer keeps along the axes of each own parameter and buffer (None: all).

        By default the first axis of each belongs to the output channels.
        """
        return {name: (writes,) for name, value in own_tensors(layer) if value.ndim}

    def resize(self, part: nn.Module, layer: nn.Module, reads: Index, writes: Index) -> None:
        """Set the attributes of a smaller layer `part`, a copy of `layer`, that depend on its number of channels."""

    def cut(self, layer: nn.Module, reads: Index, writes: Index) -> nn.Module:
        """Return the smaller layer that reads and writes the given channels, with their weights.

        Raises:
            BackboneError: a layer inside it has weights of its own.
        """
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
    """Return name and value of a layer's own parameters and buffers."""
    return [*layer.named_parameters(recurse=False), *layer.named_buffers(recurse=False)]


def take(tensor: Tensor, kept: Sequence[Index | None]) -> Tensor:
    """Copy the given positions along the first axes of a tensor (None: all of an axis)."""
    for axis, index in enumerate(kept):
        if index is not None:
            tensor = tensor.index_select(axis, torch.as_tensor(index, dtype=torch.long, device=tensor.device))
    return tensor.clone()


def out_of_place(layer: nn.Module) -> nn.Module:
    """Let no part of a layer overwrite its input, which refining may read again; return the layer."""
    for module in layer.modules():
        if getattr(module, "inplace", False):
            module.inplace = False  # type: ignore[assignment]
    return layer


def respread(ids: Tensor, shape: Sequence[int], channels: ChannelGroups) -> Tensor:
    """Return ids of `shape` for a layer over places: unite ids along axes whose size changes.

    Raises:
        BackboneError: the number of axes changes.
    """
    if tuple(ids.shape) == tuple(shape):
        return ids
    if ids.ndim != len(shape):
        raise BackboneError("it changes the number of axes in a way that has no rule")
    changed = [axis for axis, size in enumerate(shape) if size != ids.shape[axis]]
    return channels.mix(ids, *changed).expand(tuple(shape))


def varies_beside(ids: Tensor, axis: int) -> bool:
    """Return whether ids are not a plain row along `axis`: they differ along another axis, or nowhere."""
    others = any(varies(ids, other) for other in range(ids.ndim) if other != axis % ids.ndim)
    return others or not varies(ids, axis)


class MatrixRule(LayerRule):
    """The rule of linear layers and ungrouped convolutions: `out_k = W_k · in_{0…k}`, rows that read the prefix.

    Over an axis that holds no channels (tokens), or inside each group of them (a head), every level runs a copy.
    """

    def axis_of(self, layer: nn.Module, ndim: int) -> int:
        """Return the axis of channels of a value with `ndim` axes."""
        return 1 if isinstance(layer, _ConvNd) else ndim - 1

    def propagate(
        self, layer: nn.Module, ids: Tensor, shape: Sequence[int], channels: ChannelGroups
    ) -> ChannelFlow:
        """Make new channels, unless the layer works inside each channel or group of channels."""
        axis = self.axis_of(layer, ids.ndim)
        if isinstance(layer, _ConvNd) and ids.ndim != layer.weight.ndim:
            raise BackboneError("its input has no batch axis")
        if touched(ids) and varies_beside(ids, axis):
            mixed = channels.unite_along(ids, axis)
            changed = [a for a in range(ids.ndim) if mixed.shape[a] != shape[a] and a != axis]
            return ChannelFlow(channels.unite_along(mixed, *changed).expand(tuple(shape)), "whole")
        return ChannelFlow(channels.new(shape, axis), "prefix", axis)

    def select(self, layer: nn.Module, reads: Index, writes: Index) -> Mapping[str, tuple[Index | None, ...]]:
        """Keep the rows of the output and the columns of the input."""
        return {
            name: (writes, reads) if name == "weight" else (writes,)
            for name, value in own_tensors(layer)
            if value.ndim
        }

    def resize(self, part: nn.Module, layer: nn.Module, reads: Index, writes: Index) -> None:
        """Set the numbers of features or channels."""
        if isinstance(part, nn.Linear):
            part.in_features, part.out_features = len(reads), len(writes)
            return
        assert isinstance(part, _ConvNd)
        part.in_channels, part.out_channels = len(reads), len(writes)
        _rescale(part, layer)


class ConvRule(MatrixRule):
    """The rule of convolutions: ungrouped they are matrices; else whole groups are assigned to levels."""

    def propagate(
        self, layer: nn.Module, ids: Tensor, shape: Sequence[int], channels: ChannelGroups
    ) -> ChannelFlow:
        """Assign a group's outputs to the level of its inputs."""
        assert isinstance(layer, _ConvNd)
        if layer.groups == 1 or not has_channels(ids):
            return super().propagate(layer, ids, shape, channels)
        if varies(ids, 0):  # heads in the batch axis: every level runs a copy
            return ChannelFlow(channels.unite_along(ids, *range(1, ids.ndim)).expand(tuple(shape)), "whole")
        row = channels.unite_along(ids, *(axis for axis in range(ids.ndim) if axis != 1)).flatten()
        groups = channels.unite_along(row.reshape(layer.groups, -1), 1)
        outputs = groups.expand(layer.groups, layer.out_channels // layer.groups).reshape(-1)
        view = outputs.reshape(1, -1, *[1] * (ids.ndim - 2))
        return ChannelFlow(view.expand(tuple(shape)), "slice")

    def select(self, layer: nn.Module, reads: Index, writes: Index) -> Mapping[str, tuple[Index | None, ...]]:
        """Keep the filters of the output and, if ungrouped, the channels of the input."""
        assert isinstance(layer, _ConvNd)
        if layer.groups > 1:
            return LayerRule.select(self, layer, reads, writes)
        return super().select(layer, reads, writes)

    def resize(self, part: nn.Module, layer: nn.Module, reads: Index, writes: Index) -> None:
        """Set the numbers of channels and groups."""
        super().resize(part, layer, reads, writes)
        assert isinstance(part, _ConvNd)
        assert isinstance(layer, _ConvNd)
        if layer.groups > 1:
            part.groups = max(1, len(reads) * layer.groups // layer.in_channels)


class TransposedRule(ConvRule):
    """The rule of transposed convolutions, whose weights have input channels first."""

    def propagate(
        self, layer: nn.Module, ids: Tensor, shape: Sequence[int], channels: ChannelGroups
    ) -> ChannelFlow:
        """Treat it as a convolution, ungrouped or depth-wise.

        Raises:
            BackboneError: it has groups of several channels.
        """
        assert isinstance(layer, _ConvNd)
        if layer.groups > 1 and (layer.groups, layer.groups) != (layer.in_channels, layer.out_channels):
            raise BackboneError("it has groups of several channels")
        return super().propagate(layer, ids, shape, channels)

    def select(self, layer: nn.Module, reads: Index, writes: Index) -> Mapping[str, tuple[Index | None, ...]]:
        """Keep the channels of the input, then those of the output."""
        chosen = dict(super().select(layer, reads, writes))
        if getattr(layer, "groups", 1) == 1:
            chosen["weight"] = (reads, writes)
        return chosen


def _rescale(part: nn.Module, layer: nn.Module) -> None:
    """Set the scale of standardised weights (Brock et al. 2021), which depends on the inputs of a filter."""
    if isinstance(part, ScaledStdConv2d) and isinstance(layer, ScaledStdConv2d):
        part.scale = layer.scale * (layer.weight[0].numel() / max(part.weight[0].numel(), 1)) ** 0.5


class ChannelRule(LayerRule):
    """The rule of a layer with weights per channel: batch norm, and norms over channels, which see their slice alone.

    `axis` is the axis of channels: 1 behind the batch, or -1. `counts` names the attributes that count them.
    """

    def __init__(self, axis: int = 1, counts: Sequence[str] = ("num_features", "num_channels")) -> None:
        """Hold the axis of channels, and the names of the attributes that count them."""
        self.axis, self.counts = axis, tuple(counts)

    def propagate(
        self, layer: nn.Module, ids: Tensor, shape: Sequence[int], channels: ChannelGroups
    ) -> ChannelFlow:
        """Keep the channels; where they lie inside heads or groups, unite those of each and copy the layer."""
        if tuple(ids.shape) != tuple(shape):
            raise BackboneError("its output has another shape than its input")
        axis = self.axis % ids.ndim
        if varies_beside(ids, axis) or not own_tensors(layer):
            groups = self.axis == 1 and not own_tensors(layer)
            return ChannelFlow(
                ids if groups else channels.unite_along(ids, axis).expand(tuple(shape)), "whole"
            )
        return ChannelFlow(ids, "slice", axis)

    def resize(self, part: nn.Module, layer: nn.Module, reads: Index, writes: Index) -> None:
        """Set the numbers of channels."""
        for name in self.counts:
            if isinstance(getattr(part, name, None), int):
                setattr(part, name, len(writes))


class LayerNormRule(ChannelRule):
    """The rule of layer norm and RMS norm: each level takes mean and variance over its slice."""

    def propagate(
        self, layer: nn.Module, ids: Tensor, shape: Sequence[int], channels: ChannelGroups
    ) -> ChannelFlow:
        """Keep the channels; each level normalises its slice, also where the norm has no weights."""
        axis = self.axis % ids.ndim
        if varies_beside(ids, axis):
            return super().propagate(layer, ids, shape, channels)
        return ChannelFlow(ids, "slice", axis)

    def select(self, layer: nn.Module, reads: Index, writes: Index) -> Mapping[str, tuple[Index | None, ...]]:
        """Keep the weights of the slice."""
        return {name: (writes,) for name, _ in own_tensors(layer)}

    def resize(self, part: nn.Module, layer: nn.Module, reads: Index, writes: Index) -> None:
        """Set the shape that is normalised."""
        if isinstance(getattr(layer, "normalized_shape", None), tuple):
            setattr(part, "normalized_shape", (len(writes),))  # noqa: B010 - a name that only some of these norms have


class GroupNormRule(ChannelRule):
    """The rule of group norm: whole groups are assigned to levels; a single group becomes one per slice."""

    def propagate(
        self, layer: nn.Module, ids: Tensor, shape: Sequence[int], channels: ChannelGroups
    ) -> ChannelFlow:
        """Unite the channels of each group if there are several groups."""
        assert isinstance(layer, nn.GroupNorm)
        if layer.num_groups > 1 and has_channels(ids):
            row = channels.unite_along(ids, *range(2, ids.ndim))
            channels.unite_along(row.reshape(len(ids), layer.num_groups, -1), 2)
        return super().propagate(layer, ids, shape, channels)

    def resize(self, part: nn.Module, layer: nn.Module, reads: Index, writes: Index) -> None:
        """Set the numbers of channels and groups."""
        assert isinstance(part, nn.GroupNorm)
        assert isinstance(layer, nn.GroupNorm)
        part.num_channels = len(writes)
        if layer.num_groups > 1:
            part.num_groups = len(writes) * layer.num_groups // layer.num_channels


class ResponseNormRule(ChannelRule):
    """The rule of global response norm (ConvNeXt V2): responses are compared within the slice."""

    def propagate(
        self, layer: nn.Module, ids: Tensor, shape: Sequence[int], channels: ChannelGroups
    ) -> ChannelFlow:
        """Keep the channels, which lie along the layer's `channel_dim`."""
        return ChannelRule(-1 if layer.channel_dim == -1 else 1).propagate(layer, ids, shape, channels)


class NeighbourRule(LayerRule):
    """The rule of efficient channel attention: a channel is weighted by its neighbours, here those of its slice."""

    reads_neighbours = True

    def propagate(
        self, layer: nn.Module, ids: Tensor, shape: Sequence[int], channels: ChannelGroups
    ) -> ChannelFlow:
        """Keep the channels."""
        return ChannelFlow(ids, "whole")


class BlurRule(ChannelRule):
    """The rule of a fixed filter per channel, which the layer holds once or once per channel."""

    def select(self, layer: nn.Module, reads: Index, writes: Index) -> Mapping[str, tuple[Index | None, ...]]:
        """Keep the filters of the slice."""
        many = {name for name, value in own_tensors(layer) if value.ndim and len(value) > 1}
        return dict.fromkeys(many, (writes,))

    def propagate(
        self, layer: nn.Module, ids: Tensor, shape: Sequence[int], channels: ChannelGroups
    ) -> ChannelFlow:
        """Keep the channels; places become fewer."""
        return ChannelFlow(respread(ids, shape, channels), "slice")

    def resize(self, part: nn.Module, layer: nn.Module, reads: Index, writes: Index) -> None:
        """Set the number of channels."""
        if isinstance(part, timm_layers.BlurPool2d) and part.channels is not None:
            part.channels = len(writes)


class UnfoldRule(LayerRule):
    """The rule of patches of an image: each channel becomes as many as a patch has places."""

    def propagate(
        self, layer: nn.Module, ids: Tensor, shape: Sequence[int], channels: ChannelGroups
    ) -> ChannelFlow:
        """Repeat the id of each channel for the places of a patch."""
        row = channels.unite_along(ids, 2, 3)[..., 0]
        return ChannelFlow(row.repeat_interleave(shape[1] // ids.shape[1], 1).expand(tuple(shape)), "whole")


class SoftmaxRule(LayerRule):
    """The rule of softmax, which mixes what it compares."""

    def propagate(
        self, layer: nn.Module, ids: Tensor, shape: Sequence[int], channels: ChannelGroups
    ) -> ChannelFlow:
        """Mix the ids along its axis."""
        assert isinstance(layer, nn.Softmax)
        return ChannelFlow(channels.mix(ids, layer.dim or 0).expand(tuple(shape)), "whole")


class FlattenRule(LayerRule):
    """The rule of layers that move values and compute nothing."""

    def propagate(
        self, layer: nn.Module, ids: Tensor, shape: Sequence[int], channels: ChannelGroups
    ) -> ChannelFlow:
        """Move the ids as the layer moves values."""
        moved: Tensor = layer(ids)
        return ChannelFlow(moved, "whole")


def _norms(names: str, rule: LayerRule) -> dict[type[nn.Module], LayerRule]:
    """Return the rule by type for timm's norms of these names and their float32 forms, where this timm has them."""
    wanted = [form for name in names.split() for form in (name, f"{name}Fp32")]
    return {getattr(timm_layers, name): rule for name in wanted if hasattr(timm_layers, name)}


RULES: dict[type[nn.Module], LayerRule] = {
    nn.Linear: MatrixRule(),
    **dict.fromkeys((nn.Conv1d, nn.Conv2d, nn.Conv3d), ConvRule()),
    **dict.fromkeys((nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d), TransposedRule()),
    _BatchNorm: ChannelRule(),
    nn.GroupNorm: GroupNormRule(),
    nn.LayerNorm: LayerNormRule(-1),
    **_norms("LayerNorm2d LayerNormAct2d RmsNorm2d RmsNormAct2d SimpleNorm2d", LayerNormRule(1)),
    **_norms("RmsNorm RmsNormAct SimpleNorm", LayerNormRule(-1)),
    GlobalResponseNorm: ResponseNormRule(),
    timm_layers.EcaModule: NeighbourRule(),
    timm_layers.CecaModule: NeighbourRule(),
    timm_layers.BlurPool2d: BlurRule(),
    nn.Softmax: SoftmaxRule(),
    nn.Unfold: UnfoldRule(),
    nn.Flatten: FlattenRule(),
    nn.Unflatten: FlattenRule(),
    nn.PixelShuffle: FlattenRule(),
    nn.PixelUnshuffle: FlattenRule(),
}
"""Layer type → rule. A subclass follows the rule of its nearest base class."""

_ALIKE = {
    nn: """
        Identity Dropout Dropout1d Dropout2d ConstantPad2d ReflectionPad2d
        ReLU ReLU6 LeakyReLU ELU CELU GELU SiLU Mish Sigmoid Tanh Softplus Hardswish Hardsigmoid Hardtanh
        MaxPool2d AvgPool2d AdaptiveAvgPool2d AdaptiveMaxPool2d AdaptiveAvgPool1d AvgPool1d
        Upsample UpsamplingBilinear2d
    """,
    timm_layers: """
        DropPath Swish Mish GELUTanh HardSwish HardSigmoid HardMish Sigmoid Tanh GELU QuickGELU
    """,
}
ALIKE: tuple[type[nn.Module], ...] = tuple(
    getattr(module, name) for module, names in _ALIKE.items() for name in names.split()
)
"""Layers that treat every channel alike and hold no weights."""

RULES.update(dict.fromkeys(ALIKE, LayerRule()))


def rule_for(layer: nn.Module) -> LayerRule | None:
    """Return the rule of the layer's type or of its nearest base class; None if there is none."""
    return next((RULES[base] for base in type(layer).__mro__ if base in RULES), None)


def type_name(layer: Any) -> str:
    """Return the name of a layer's type, for messages."""
    return type(layer).__name__
