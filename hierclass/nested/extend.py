"""Rules for layer types of your own, so that backbones that hold them can be cut.

A module whose `forward` is made of known layers and functions needs none. `PerChannel` and `MixesChannels` do for
most others; a subclass of `LayerRule` for the rest. docs/nested.md has examples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar, overload

from torch import nn

from hierclass.errors import BackboneError
from hierclass.nested.analysis.channel_groups import ChannelGroups
from hierclass.nested.analysis.layer_rules import (
    RULES,
    ChannelFlow,
    ChannelRule,
    Index,
    LayerRule,
    MatrixRule,
    own_tensors,
)

__all__ = ["ChannelFlow", "ChannelGroups", "LayerRule", "MixesChannels", "PerChannel", "register_layer"]

PerChannel = ChannelRule
"""The rule of a layer that treats every channel for itself and has weights per channel, along their first axis."""

RuleClass = TypeVar("RuleClass", bound=type[LayerRule])


class MixesChannels(MatrixRule):
    """The rule of a layer whose outputs each read all input channels: a linear layer, a convolution.

    Weights of two and more dimensions have outputs along their first axis and inputs along the second; vectors belong
    to the outputs.
    """

    def __init__(
        self,
        axis: int = -1,
        inputs: Sequence[str] = ("in_features", "in_channels"),
        outputs: Sequence[str] = ("out_features", "out_channels"),
    ) -> None:
        """Hold the axis of channels of input and output, and the names of the attributes that count them."""
        self.axis, self.inputs, self.outputs = axis, tuple(inputs), tuple(outputs)

    def axis_of(self, layer: nn.Module, ndim: int) -> int:
        """Return the axis of channels of a value with `ndim` axes."""
        return self.axis % ndim

    def select(self, layer: nn.Module, reads: Index, writes: Index) -> Mapping[str, tuple[Index | None, ...]]:
        """Keep the rows of the output and the columns of the input."""
        return {
            name: (writes, reads) if value.ndim > 1 else (writes,)
            for name, value in own_tensors(layer)
            if value.ndim
        }

    def resize(self, part: nn.Module, layer: nn.Module, reads: Index, writes: Index) -> None:
        """Set the numbers of channels."""
        for names, index in ((self.inputs, reads), (self.outputs, writes)):
            for name in names:
                if isinstance(getattr(part, name, None), int):
                    setattr(part, name, len(index))


@overload
def register_layer(kind: type[nn.Module], rule: LayerRule) -> None: ...
@overload
def register_layer(kind: type[nn.Module]) -> Callable[[RuleClass], RuleClass]: ...
def register_layer(
    kind: type[nn.Module], rule: LayerRule | None = None
) -> Callable[[RuleClass], RuleClass] | None:
    """Let layers of a type, and of its subclasses, be cut by a rule: `register_layer(MyLayer, PerChannel())`.

    Without a rule it decorates the class of one, which is made without arguments. `nest` verifies every network that
    it makes, so that a wrong rule is found. Do not call it while another thread cuts a network.

    Raises:
        BackboneError: `kind` is no layer type, or `rule` no rule.
    """
    if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
        raise BackboneError(f"{kind!r} is no layer type; give a subclass of torch.nn.Module")
    if rule is None:

        def register(made: RuleClass) -> RuleClass:
            register_layer(kind, made())
            return made

        return register
    if not isinstance(rule, LayerRule):
        raise BackboneError(f"{rule!r} is no rule for {kind.__name__}; give one like PerChannel()")
    RULES[kind] = rule
    return None
