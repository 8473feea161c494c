"""How each type of layer is cut: one `LayerRule` per type, registered in `RULES`.

A rule says how channels flow through the layer (which ids leave it, what it ties), and how the layer is made smaller:
`cut` keeps its weights between given input and output channels. The layer that a level runs then reads either its
own slice of the input, the prefix of all slices up to it (which makes the dense weight block lower-triangular), or
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
    """A layer that treats every channel alike and holds no weights: each level gets a copy of it.

    Subclass it for layers that mix channels or hold weights per channel.
    """

    reads_neighbours: ClassVar[bool] = False
    """Whether the order of channels matters to the layer."""

    def propagate(
        self, layer: nn.Module, ids: Tensor, shape: Sequence[int], channels: ChannelGroups
    ) -> ChannelFlow:
        """How channels go through: `ids` of the input, `shape` of the output; ties are made in `channels`."""
        return ChannelFlow(respread(ids, shape, channels), "whole")

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


def respread(ids: Tensor, shape: Sequence[int], channels: ChannelGroups) -> Tensor:
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


class MatrixRule(LayerRule):
    """Linear layers and ungrouped convolutions: `out_k = W_k · in_{0…k}`, a slice of rows that read the prefix.

    Over an axis that holds no channels (tokens), or inside each group of them (a head), every level runs a copy.
    """

    def axis_of(self, layer: nn.Module, ndim: int) -> int:
        """Return the axis of channels of a value with `ndim` axes."""
        return 1 if isinstance(layer, _ConvNd) else ndim - 1

    def propagate(
        self, layer: nn.Module, ids: Tensor, shape: Sequence[int], channels: ChannelGroups
    ) -> ChannelFlow:
        """New channels, unless the layer works inside each channel or group of channels."""
        axis = self.axis_of(layer, ids.ndim)
        if isinstance(layer, _ConvNd) and ids.ndim != layer.weight.ndim:
            raise BackboneError("its input has no batch axis")
        if touched(ids) and varies_beside(ids, axis):
            mixed = channels.unite_along(ids, axis)
            changed = [a for a in range(ids.ndim) if mixed.shape[a] != shape[a] and a != axis]
            return ChannelFlow(channels.unite_along(mixed, *changed).expand(tuple(shape)), "whole")
        return ChannelFlow(channels.new(shape, axis), "prefix", axis)

    def select(self, layer: nn.Module, reads: Index, writes: Index) -> Mapping[str, tuple[Index | None, ...]]:
        """Rows of the output and columns of the input."""
        return {
            name: (writes, reads) if name == "weight" else (writes,)
            for name, value in own_tensors(layer)
            if value.ndim
        }

    def resize(self, part: nn.Module, layer: nn.Module, reads: Index, writes: Index) -> None:
        """Numbers of features or channels."""
        if isinstance(part, nn.Linear):
            part.in_features, part.out_features = len(reads), len(writes)
            return
        assert isinstance(part, _ConvNd)
        part.in_channels, part.out_channels = len(reads), len(writes)
        _rescale(part, layer)


class ConvRule(MatrixRule):
    """Convolution. Ungrouped, it is a matrix; otherwise whole groups are dealt to the levels."""

    def propagate(
        self, layer: nn.Module, ids: Tensor, shape: Sequence[int], channels: ChannelGroups
    ) -> ChannelFlow:
        """A group's outputs belong to the level of its inputs."""
        assert isinstance(layer, _ConvNd)
        if layer.groups == 1 or not has_channels(ids):
            return super().propagate(layer, ids, shape, channels)
        if varies(ids, 0):  # heads behind the batch: all of them run a copy
            return ChannelFlow(channels.unite_along(ids, *range(1, ids.ndim)).expand(tuple(shape)), "whole")
        row = channels.unite_along(ids, *(axis for axis in range(ids.ndim) if axis != 1)).flatten()
        groups = channels.unite_along(row.reshape(layer.groups, -1), 1)
        outputs = groups.expand(layer.groups, layer.out_channels // layer.groups).reshape(-1)
        view = outputs.reshape(1, -1, *[1] * (ids.ndim - 2))
        return ChannelFlow(view.expand(tuple(shape)), "slice")

    def select(self, layer: nn.Module, reads: Index, writes: Index) -> Mapping[str, tuple[Index | None, ...]]:
        """Filters of the output and, if ungrouped, channels of the input."""
        assert isinstance(layer, _ConvNd)
        if layer.groups > 1:
            return LayerRule.select(self, layer, reads, writes)
        return super().select(layer, reads, writes)

    def resize(self, part: nn.Module, layer: nn.Module, reads: Index, writes: Index) -> None:
        """Numbers of channels and groups."""
        super().resize(part, layer, reads, writes)
        assert isinstance(part, _ConvNd)
        assert isinstance(layer, _ConvNd)
        if layer.groups > 1:
            part.groups = max(1, len(reads) * layer.groups // layer.in_channels)


class TransposedRule(ConvRule):
    """Transposed convolution: its weight has input channels first."""

    def propagate(
        self, layer: nn.Module, ids: Tensor, shape: Sequence[int], channels: ChannelGroups
    ) -> ChannelFlow:
        """As a convolution, ungrouped or channel by channel."""
        assert isinstance(layer, _ConvNd)
        if layer.groups > 1 and (layer.groups, layer.groups) != (layer.in_channels, layer.out_channels):
            raise BackboneError("it has groups of several channels")
        return super().propagate(layer, ids, shape, channels)

    def select(self, layer: nn.Module, reads: Index, writes: Index) -> Mapping[str, tuple[Index | None, ...]]:
        """Channels of the input, then of the output."""
        chosen = dict(super().select(layer, reads, writes))
        if getattr(layer, "groups", 1) == 1:
            chosen["weight"] = (reads, writes)
        return chosen


def _rescale(part: nn.Module, layer: nn.Module) -> None:
    """Weight standardisation (Brock et al. 2021) scales by the number of inputs of a filter."""
    if isinstance(part, ScaledStdConv2d) and isinstance(layer, ScaledStdConv2d):
        part.scale = layer.scale * (layer.weight[0].numel() / max(part.weight[0].numel(), 1)) ** 0.5


class ChannelRule(LayerRule):
    """A layer with weights per channel: batch norm, and norms over channels, which see their slice alone.

    `axis` is where the channels lie: 1 behind the batch, or -1. `counts` are the layer's own names for their number.
    """

    def __init__(self, axis: int = 1, counts: Sequence[str] = ("num_features", "num_channels")) -> None:
        """Channels lie along `axis`."""
        self.axis, self.counts = axis, tuple(counts)

    def propagate(
        self, layer: nn.Module, ids: Tensor, shape: Sequence[int], channels: ChannelGroups
    ) -> ChannelFlow:
        """Channels stay what they are; inside a head or group, those of the group are tied and the layer is copied."""
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
        """Numbers of channels."""
        for name in self.counts:
            if isinstance(getattr(part, name, None), int):
                setattr(part, name, len(writes))


class LayerNormRule(ChannelRule):
    """Layer norm, RMS norm: mean and variance are taken over the slice that is normalised."""

    def propagate(
        self, layer: nn.Module, ids: Tensor, shape: Sequence[int], channels: ChannelGroups
    ) -> ChannelFlow:
        """As any norm over channels; without weights it is told its new size all the same."""
        axis = self.axis % ids.ndim
        if varies_beside(ids, axis):
            return super().propagate(layer, ids, shape, channels)
        return ChannelFlow(ids, "slice", axis)

    def select(self, layer: nn.Module, reads: Index, writes: Index) -> Mapping[str, tuple[Index | None, ...]]:
        """Weights of the slice, if it has any."""
        return {name: (writes,) for name, _ in own_tensors(layer)}

    def resize(self, part: nn.Module, layer: nn.Module, reads: Index, writes: Index) -> None:
        """The shape that is normalised."""
        if isinstance(getattr(layer, "normalized_shape", None), tuple):
            setattr(part, "normalized_shape", (len(writes),))  # noqa: B010 - a name that only some of these norms have


class GroupNormRule(ChannelRule):
    """Group norm: whole groups are dealt to the levels; a single group becomes one for each slice."""

    def propagate(
        self, layer: nn.Module, ids: Tensor, shape: Sequence[int], channels: ChannelGroups
    ) -> ChannelFlow:
        """Channels of a group are tied, if there are several groups."""
        assert isinstance(layer, nn.GroupNorm)
        if layer.num_groups > 1 and has_channels(ids):
            row = channels.unite_along(ids, *range(2, ids.ndim))
            channels.unite_along(row.reshape(len(ids), layer.num_groups, -1), 2)
        return super().propagate(layer, ids, shape, channels)

    def resize(self, part: nn.Module, layer: nn.Module, reads: Index, writes: Index) -> None:
        """Numbers of channels and groups."""
        assert isinstance(part, nn.GroupNorm)
        assert isinstance(layer, nn.GroupNorm)
        part.num_channels = len(writes)
        if layer.num_groups > 1:
            part.num_groups = len(writes) * layer.num_groups // layer.num_channels


class ResponseNormRule(ChannelRule):
    """Global response norm (ConvNeXt V2): responses are compared within the slice."""

    def propagate(
        self, layer: nn.Module, ids: Tensor, shape: Sequence[int], channels: ChannelGroups
    ) -> ChannelFlow:
        """Channels stay what they are; they lie first or last, as the layer was told."""
        return ChannelRule(-1 if layer.channel_dim == -1 else 1).propagate(layer, ids, shape, channels)


class NeighbourRule(LayerRule):
    """Efficient channel attention: each channel is weighed by its neighbours, here those of its slice."""

    reads_neighbours = True

    def propagate(
        self, layer: nn.Module, ids: Tensor, shape: Sequence[int], channels: ChannelGroups
    ) -> ChannelFlow:
        """Channels stay what they are."""
        return ChannelFlow(ids, "whole")


class BlurRule(ChannelRule):
    """A fixed filter per channel, kept by the layer once or once for each channel."""

    def select(self, layer: nn.Module, reads: Index, writes: Index) -> Mapping[str, tuple[Index | None, ...]]:
        """Filters of the slice."""
        many = {name for name, value in own_tensors(layer) if value.ndim and len(value) > 1}
        return dict.fromkeys(many, (writes,))

    def propagate(
        self, layer: nn.Module, ids: Tensor, shape: Sequence[int], channels: ChannelGroups
    ) -> ChannelFlow:
        """Channels stay what they are, places become fewer."""
        return ChannelFlow(respread(ids, shape, channels), "slice")

    def resize(self, part: nn.Module, layer: nn.Module, reads: Index, writes: Index) -> None:
        """Numbers of channels."""
        if isinstance(part, timm_layers.BlurPool2d) and part.channels is not None:
            part.channels = len(writes)


class UnfoldRule(LayerRule):
    """Patches of an image: each channel becomes as many as a patch has places."""

    def propagate(
        self, layer: nn.Module, ids: Tensor, shape: Sequence[int], channels: ChannelGroups
    ) -> ChannelFlow:
        """Channel by channel, the places of a patch."""
        row = channels.unite_along(ids, 2, 3)[..., 0]
        return ChannelFlow(row.repeat_interleave(shape[1] // ids.shape[1], 1).expand(tuple(shape)), "whole")


class SoftmaxRule(LayerRule):
    """A softmax ties what it compares."""

    def propagate(
        self, layer: nn.Module, ids: Tensor, shape: Sequence[int], channels: ChannelGroups
    ) -> ChannelFlow:
        """Everything along its axis belongs together."""
        assert isinstance(layer, nn.Softmax)
        return ChannelFlow(channels.mix(ids, layer.dim or 0).expand(tuple(shape)), "whole")


class FlattenRule(LayerRule):
    """Flattening keeps the order of the channels' values."""

    def propagate(
        self, layer: nn.Module, ids: Tensor, shape: Sequence[int], channels: ChannelGroups
    ) -> ChannelFlow:
        """Move the ids as the layer moves values."""
        moved: Tensor = layer(ids)
        return ChannelFlow(moved, "whole")


def _norms(names: str, rule: LayerRule) -> dict[type[nn.Module], LayerRule]:
    """timm's norms of these names, and their forms that compute in float32, as far as this timm has them."""
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
    """Name of a layer's type, for messages."""
    return type(layer).__name__
