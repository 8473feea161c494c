"""How each type of layer is cut: one `Rule` per type, registered in `RULES`.

A rule says how channels flow through the layer (which ids leave it, what it ties), and how the layer is made smaller:
`cut` keeps its weights between given input and output channels. The layer that a level runs then reads either its
own slice of the input, the prefix of all slices up to it (which makes the dense weight block lower-triangular), or
is a copy of the whole layer. To add a layer type, write a `Rule` and register it; the proof of nestedness checks the
rest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import timm.layers as timm_layers
from timm.layers.grn import GlobalResponseNorm
from timm.layers.std_conv import ScaledStdConv2d
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from hierclass.errors import BackboneError
from hierclass.nested.channels import Channels, has_channels, touched, varies
from hierclass.nested.flow import Flow, Index, Rule, own_tensors, respread, varies_beside


class MatrixRule(Rule):
    """Linear layers and ungrouped convolutions: `out_k = W_k · in_{0…k}`, a slice of rows that read the prefix.

    Over an axis that holds no channels (tokens), or inside each group of them (a head), every level runs a copy.
    """

    def flow(self, layer: nn.Module, ids: Tensor, shape: Sequence[int], channels: Channels) -> Flow:
        """New channels, unless the layer works inside each channel or group of channels."""
        axis = 1 if isinstance(layer, _ConvNd) else ids.ndim - 1
        if isinstance(layer, _ConvNd) and ids.ndim != layer.weight.ndim:
            raise BackboneError("its input has no batch axis")
        if touched(ids) and varies_beside(ids, axis):
            mixed = channels.tie_along(ids, axis)
            changed = [a for a in range(ids.ndim) if mixed.shape[a] != shape[a] and a != axis]
            return Flow(channels.tie_along(mixed, *changed).expand(tuple(shape)), "whole")
        return Flow(channels.new(shape, axis), "prefix", axis)

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

    def flow(self, layer: nn.Module, ids: Tensor, shape: Sequence[int], channels: Channels) -> Flow:
        """A group's outputs belong to the level of its inputs."""
        assert isinstance(layer, _ConvNd)
        if layer.groups == 1 or not has_channels(ids):
            return super().flow(layer, ids, shape, channels)
        if varies(ids, 0):  # heads behind the batch: all of them run a copy
            return Flow(channels.tie_along(ids, *range(1, ids.ndim)).expand(tuple(shape)), "whole")
        row = channels.tie_along(ids, *(axis for axis in range(ids.ndim) if axis != 1)).flatten()
        groups = channels.tie_along(row.reshape(layer.groups, -1), 1)
        outputs = groups.expand(layer.groups, layer.out_channels // layer.groups).reshape(-1)
        view = outputs.reshape(1, -1, *[1] * (ids.ndim - 2))
        return Flow(view.expand(tuple(shape)), "slice")

    def select(self, layer: nn.Module, reads: Index, writes: Index) -> Mapping[str, tuple[Index | None, ...]]:
        """Filters of the output and, if ungrouped, channels of the input."""
        assert isinstance(layer, _ConvNd)
        if layer.groups > 1:
            return Rule.select(self, layer, reads, writes)
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

    def flow(self, layer: nn.Module, ids: Tensor, shape: Sequence[int], channels: Channels) -> Flow:
        """As a convolution, ungrouped or channel by channel."""
        assert isinstance(layer, _ConvNd)
        if layer.groups > 1 and (layer.groups, layer.groups) != (layer.in_channels, layer.out_channels):
            raise BackboneError("it has groups of several channels")
        return super().flow(layer, ids, shape, channels)

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


class ChannelRule(Rule):
    """A layer with weights per channel: batch norm, and norms over channels, which see their slice alone.

    `axis` is where the channels lie: 1 behind the batch, or -1. `counts` are the layer's own names for their number.
    """

    def __init__(self, axis: int = 1, counts: Sequence[str] = ("num_features", "num_channels")) -> None:
        """Channels lie along `axis`."""
        self.axis, self.counts = axis, tuple(counts)

    def flow(self, layer: nn.Module, ids: Tensor, shape: Sequence[int], channels: Channels) -> Flow:
        """Channels stay what they are; inside a head or group, those of the group are tied and the layer is copied."""
        if tuple(ids.shape) != tuple(shape):
            raise BackboneError("its output has another shape than its input")
        axis = self.axis % ids.ndim
        if varies_beside(ids, axis) or not own_tensors(layer):
            groups = self.axis == 1 and not own_tensors(layer)
            return Flow(ids if groups else channels.tie_along(ids, axis).expand(tuple(shape)), "whole")
        return Flow(ids, "slice", axis)

    def resize(self, part: nn.Module, layer: nn.Module, reads: Index, writes: Index) -> None:
        """Numbers of channels."""
        for name in self.counts:
            if isinstance(getattr(part, name, None), int):
                setattr(part, name, len(writes))


class LayerNormRule(ChannelRule):
    """Layer norm, RMS norm: mean and variance are taken over the slice that is normalised."""

    def flow(self, layer: nn.Module, ids: Tensor, shape: Sequence[int], channels: Channels) -> Flow:
        """As any norm over channels; without weights it is told its new size all the same."""
        axis = self.axis % ids.ndim
        if varies_beside(ids, axis):
            return super().flow(layer, ids, shape, channels)
        return Flow(ids, "slice", axis)

    def select(self, layer: nn.Module, reads: Index, writes: Index) -> Mapping[str, tuple[Index | None, ...]]:
        """Weights of the slice, if it has any."""
        return {name: (writes,) for name, _ in own_tensors(layer)}

    def resize(self, part: nn.Module, layer: nn.Module, reads: Index, writes: Index) -> None:
        """The shape that is normalised."""
        if isinstance(getattr(layer, "normalized_shape", None), tuple):
            setattr(part, "normalized_shape", (len(writes),))  # noqa: B010 - a name that only some of these norms have


class GroupNormRule(ChannelRule):
    """Group norm: whole groups are dealt to the levels; a single group becomes one for each slice."""

    def flow(self, layer: nn.Module, ids: Tensor, shape: Sequence[int], channels: Channels) -> Flow:
        """Channels of a group are tied, if there are several groups."""
        assert isinstance(layer, nn.GroupNorm)
        if layer.num_groups > 1 and has_channels(ids):
            row = channels.tie_along(ids, *range(2, ids.ndim))
            channels.tie_along(row.reshape(len(ids), layer.num_groups, -1), 2)
        return super().flow(layer, ids, shape, channels)

    def resize(self, part: nn.Module, layer: nn.Module, reads: Index, writes: Index) -> None:
        """Numbers of channels and groups."""
        assert isinstance(part, nn.GroupNorm)
        assert isinstance(layer, nn.GroupNorm)
        part.num_channels = len(writes)
        if layer.num_groups > 1:
            part.num_groups = len(writes) * layer.num_groups // layer.num_channels


class ResponseNormRule(ChannelRule):
    """Global response norm (ConvNeXt V2): responses are compared within the slice."""

    def flow(self, layer: nn.Module, ids: Tensor, shape: Sequence[int], channels: Channels) -> Flow:
        """Channels stay what they are; they lie first or last, as the layer was told."""
        return ChannelRule(-1 if layer.channel_dim == -1 else 1).flow(layer, ids, shape, channels)


class NeighbourRule(Rule):
    """Efficient channel attention: each channel is weighed by its neighbours, here those of its slice."""

    reads_neighbours = True

    def flow(self, layer: nn.Module, ids: Tensor, shape: Sequence[int], channels: Channels) -> Flow:
        """Channels stay what they are."""
        return Flow(ids, "whole")


class BlurRule(ChannelRule):
    """A fixed filter per channel, kept by the layer once or once for each channel."""

    def select(self, layer: nn.Module, reads: Index, writes: Index) -> Mapping[str, tuple[Index | None, ...]]:
        """Filters of the slice."""
        many = {name for name, value in own_tensors(layer) if value.ndim and len(value) > 1}
        return dict.fromkeys(many, (writes,))

    def flow(self, layer: nn.Module, ids: Tensor, shape: Sequence[int], channels: Channels) -> Flow:
        """Channels stay what they are, places become fewer."""
        return Flow(respread(ids, shape, channels), "slice")

    def resize(self, part: nn.Module, layer: nn.Module, reads: Index, writes: Index) -> None:
        """Numbers of channels."""
        if isinstance(part, timm_layers.BlurPool2d) and part.channels is not None:
            part.channels = len(writes)


class UnfoldRule(Rule):
    """Patches of an image: each channel becomes as many as a patch has places."""

    def flow(self, layer: nn.Module, ids: Tensor, shape: Sequence[int], channels: Channels) -> Flow:
        """Channel by channel, the places of a patch."""
        row = channels.tie_along(ids, 2, 3)[..., 0]
        return Flow(row.repeat_interleave(shape[1] // ids.shape[1], 1).expand(tuple(shape)), "whole")


class SoftmaxRule(Rule):
    """A softmax ties what it compares."""

    def flow(self, layer: nn.Module, ids: Tensor, shape: Sequence[int], channels: Channels) -> Flow:
        """Everything along its axis belongs together."""
        assert isinstance(layer, nn.Softmax)
        return Flow(channels.mix(ids, layer.dim or 0).expand(tuple(shape)), "whole")


class FlattenRule(Rule):
    """Flattening keeps the order of the channels' values."""

    def flow(self, layer: nn.Module, ids: Tensor, shape: Sequence[int], channels: Channels) -> Flow:
        """Move the ids as the layer moves values."""
        moved: Tensor = layer(ids)
        return Flow(moved, "whole")


def _norms(names: str, rule: Rule) -> dict[type[nn.Module], Rule]:
    """timm's norms of these names, and their forms that compute in float32, as far as this timm has them."""
    wanted = [form for name in names.split() for form in (name, f"{name}Fp32")]
    return {getattr(timm_layers, name): rule for name in wanted if hasattr(timm_layers, name)}


RULES: dict[type[nn.Module], Rule] = {
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

ALIKE: tuple[type[nn.Module], ...] = (
    *(
        nn.Identity,
        nn.Dropout,
        nn.Dropout1d,
        nn.Dropout2d,
        timm_layers.DropPath,
        nn.ConstantPad2d,
        nn.ReflectionPad2d,
    ),
    *(
        nn.ReLU,
        nn.ReLU6,
        nn.LeakyReLU,
        nn.ELU,
        nn.CELU,
        nn.GELU,
        nn.SiLU,
        nn.Mish,
        nn.Sigmoid,
        nn.Tanh,
        nn.Softplus,
    ),
    *(nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh, timm_layers.Swish, timm_layers.Mish, timm_layers.GELUTanh),
    *(
        timm_layers.HardSwish,
        timm_layers.HardSigmoid,
        timm_layers.HardMish,
        timm_layers.Sigmoid,
        timm_layers.Tanh,
    ),
    *(timm_layers.GELU, timm_layers.QuickGELU),
    *(
        nn.MaxPool2d,
        nn.AvgPool2d,
        nn.AdaptiveAvgPool2d,
        nn.AdaptiveMaxPool2d,
        nn.AdaptiveAvgPool1d,
        nn.AvgPool1d,
    ),
    *(nn.Upsample, nn.UpsamplingBilinear2d),
)
"""Layers that treat every channel alike and hold no weights."""

RULES.update(dict.fromkeys(ALIKE, Rule()))


def rule_for(layer: nn.Module) -> Rule | None:
    """Return the rule of the layer's type or of its nearest base class; None if there is none."""
    return next((RULES[base] for base in type(layer).__mro__ if base in RULES), None)


def type_name(layer: Any) -> str:
    """Name of a layer's type, for messages."""
    return type(layer).__name__
