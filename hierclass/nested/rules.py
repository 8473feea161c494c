"""How each type of layer is cut: one `Rule` per type, registered in `RULES`.

A layer of a dense network becomes one ordinary, smaller layer per level. The layer of level k writes slice k
of the output. What it reads is the rule's choice: its own slice of the input (batch norm, depth-wise
convolution, pooling, activations), or the whole prefix of slices 0 … k (convolution, linear), which makes the
dense weight block lower-triangular. To add a layer type, write a `Rule` and register it; the proof of
nestedness checks the rest.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Literal

import timm.layers as timm_layers
from torch import nn

from hierclass.errors import BackboneError
from hierclass.nested.boundaries import Boundaries, Chart

Reads = Literal["slice", "prefix"]


class Rule:
    """A layer that treats every channel alike and holds no weights: each level gets a copy of it.

    Subclass it for layers that mix channels or hold weights per channel.
    """

    def reads(self, layer: nn.Module) -> Reads:
        """Whether the layer of level k reads its slice of the input or the whole prefix."""
        return "slice"

    def groups(self, layer: nn.Module) -> Mapping[int, int]:
        """Channel count → width of the channel groups in it that must stay whole."""
        return {}

    def boundaries(self, layer: nn.Module, inputs: Boundaries, channels: int, chart: Chart) -> Boundaries:
        """Boundaries of the output, which has `channels` channels, given those of the input."""
        return inputs

    def cut(self, layer: nn.Module, reads: range, writes: range) -> nn.Module:
        """Make one level's layer, with the weights of `layer` between the channels it reads and writes."""
        return _out_of_place(copy.deepcopy(layer))


def _out_of_place(layer: nn.Module) -> nn.Module:
    """Refining reads a level's activations again: no layer may overwrite its input."""
    for module in layer.modules():
        if getattr(module, "inplace", False):
            module.inplace = False  # type: ignore[assignment]
    return layer


def _part(layer: nn.Module, writes: range, columns: range | None = None) -> nn.Module:
    """Copy a layer, keeping of its weights and buffers the given outputs (rows) and inputs (columns)."""
    if any(True for child in layer.children() for _ in child.parameters()):
        raise BackboneError("a layer inside it has weights of its own")
    part = _out_of_place(copy.deepcopy(layer))
    for name, tensor in (*layer.named_parameters(recurse=False), *layer.named_buffers(recurse=False)):
        kept = tensor.detach()
        if kept.ndim:
            kept = kept[writes.start : writes.stop]
        if kept.ndim > 1 and columns is not None:
            kept = kept[:, columns.start : columns.stop]
        if isinstance(tensor, nn.Parameter):
            setattr(part, name, nn.Parameter(kept.clone(), tensor.requires_grad))
        else:
            part.register_buffer(name, kept.clone())
    return part


class LinearRule(Rule):
    """`out_k = W_k · in_{0…k}`: a slice of rows that read the prefix."""

    def reads(self, layer: nn.Module) -> Reads:
        """Always the prefix."""
        return "prefix"

    def boundaries(self, layer: nn.Module, inputs: Boundaries, channels: int, chart: Chart) -> Boundaries:
        """Those of its number of output features."""
        return chart[channels]

    def cut(self, layer: nn.Module, reads: range, writes: range) -> nn.Module:
        """Keep the rows of the slice and the columns of the prefix."""
        part = _part(layer, writes, reads)
        assert isinstance(part, nn.Linear)
        part.in_features, part.out_features = len(reads), len(writes)
        return part


class ConvRule(Rule):
    """Convolution. Ungrouped, it reads the prefix; otherwise whole groups are dealt to the slices."""

    def reads(self, layer: nn.Module) -> Reads:
        """The slice if the convolution is grouped, else the prefix."""
        assert isinstance(layer, nn.Conv2d)
        return "slice" if layer.groups > 1 else "prefix"

    def groups(self, layer: nn.Module) -> Mapping[int, int]:
        """Channels per group, of the input and of the output."""
        assert isinstance(layer, nn.Conv2d)
        if layer.groups == 1:
            return {}
        widths = {layer.in_channels: layer.in_channels // layer.groups}
        widths[layer.out_channels] = max(
            layer.out_channels // layer.groups, widths.get(layer.out_channels, 1)
        )
        return widths

    def boundaries(self, layer: nn.Module, inputs: Boundaries, channels: int, chart: Chart) -> Boundaries:
        """Those of its number of output channels; a grouped convolution's follow the groups of its input."""
        assert isinstance(layer, nn.Conv2d)
        if layer.groups == 1:
            return chart[channels]
        width_in = layer.in_channels // layer.groups
        width_out = layer.out_channels // layer.groups
        outputs = tuple(end // width_in * width_out for end in inputs)
        if any(end % width_in for end in inputs) or outputs != chart[channels]:
            raise BackboneError(
                f"its {layer.groups} groups can't be dealt to the slices {inputs} of its input; "
                "try other widths"
            )
        return outputs

    def cut(self, layer: nn.Module, reads: range, writes: range) -> nn.Module:
        """Keep the filters of the slice and, if ungrouped, the input channels of the prefix."""
        assert isinstance(layer, nn.Conv2d)
        part = _part(layer, writes, reads if layer.groups == 1 else None)
        assert isinstance(part, nn.Conv2d)
        part.in_channels, part.out_channels = len(reads), len(writes)
        if layer.groups > 1:
            part.groups = len(reads) * layer.groups // layer.in_channels
        return part


class BatchNormRule(Rule):
    """Batch norm (with activation, too): statistics are per channel, so each slice has its own."""

    def cut(self, layer: nn.Module, reads: range, writes: range) -> nn.Module:
        """Keep the weights and running statistics of the slice."""
        part = _part(layer, writes)
        assert isinstance(part, nn.BatchNorm2d)
        part.num_features = len(writes)
        return part


class FlattenRule(Rule):
    """Flattening (C, H, W) keeps each channel's values together, so boundaries grow by H x W."""

    def boundaries(self, layer: nn.Module, inputs: Boundaries, channels: int, chart: Chart) -> Boundaries:
        """Those of the input, H x W times."""
        return tuple(end * (channels // inputs[-1]) for end in inputs)


RULES: dict[type[nn.Module], Rule] = {
    nn.Conv2d: ConvRule(),
    nn.Linear: LinearRule(),
    nn.BatchNorm2d: BatchNormRule(),
    nn.Flatten: FlattenRule(),
}
"""Layer type → rule. A subclass follows the rule of its nearest base class."""

ALIKE: tuple[type[nn.Module], ...] = (
    *(nn.Identity, nn.Dropout, nn.Dropout2d, timm_layers.DropPath),
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Mish, nn.Sigmoid, nn.Tanh),
    *(nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh, timm_layers.Swish, timm_layers.Mish, timm_layers.GELUTanh),
    *(timm_layers.HardSwish, timm_layers.HardSigmoid, timm_layers.Sigmoid, timm_layers.Tanh),
    *(nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d),
)
"""Layers that treat every channel alike and hold no weights."""

RULES.update(dict.fromkeys(ALIKE, Rule()))


def rule_for(layer: nn.Module) -> Rule | None:
    """Return the rule of the layer's type or of its nearest base class; None if there is none."""
    return next((RULES[base] for base in type(layer).__mro__ if base in RULES), None)
