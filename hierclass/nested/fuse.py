"""A network made ready for inference: fewer, equal operations."""

from __future__ import annotations

import copy
import dataclasses
from collections import Counter
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from hierclass.errors import LevelError
from hierclass.nested.calls import Nothing
from hierclass.nested.level_graph import NOTHING, fuse_level
from hierclass.nested.masks import MaskedNetwork
from hierclass.nested.network import NestedNetwork
from hierclass.nested.prefix import PrefixNetwork
from hierclass.nested.program import Program, Step
from hierclass.nested.slices import SlicedNetwork


def fuse(network: NestedNetwork) -> NestedNetwork:
    """Return a copy for inference only, in evaluation mode, that gives the same logits up to rounding.

    Every batch norm that alone reads a convolution is folded into its weights, slice by slice, so that levels stay
    nested; layers that do nothing in evaluation mode are left out; activations overwrite what nothing else reads.
    """
    if isinstance(network, PrefixNetwork):
        return _Levels(network)
    if isinstance(network, MaskedNetwork):
        return network.plain()
    source = copy.deepcopy(network).eval()
    return _fuse_slices(source) if isinstance(source, SlicedNetwork) else source


class _Levels(NestedNetwork):
    """Levels that share nothing when they run, each a graph with its own copy of its weights, fused."""

    def __init__(self, network: PrefixNetwork) -> None:
        super().__init__(network.num_features, network.num_classes, network.input_size)
        self.structure = network.structure  # type: ignore[misc]
        self.heads = copy.deepcopy(network.heads)
        self.levels = nn.ModuleList(fuse_level(network.standalone(level)) for level in range(self.num_levels))
        self.to(next(network.parameters())).eval()

    def features(self, image: Tensor, level: int) -> Tensor:
        """Return the pooled features (B, num_features[level]) of one level."""
        features: Tensor = self.levels[level](image, ())[0]
        return features

    def level_tensors(self, level: int) -> Iterator[tuple[str, Tensor, bool]]:
        """Yield what the level's copy holds."""
        yield from ((name, value, True) for name, value in self.levels[level].named_parameters())
        yield from ((name, value, False) for name, value in self.levels[level].named_buffers())

    def spoil_above(self, level: int) -> None:
        """Set the copies of higher levels to NaN."""
        for value in self.levels[level + 1 :].parameters():
            value.data.fill_(torch.nan)

    def truncate(self, level: int) -> NestedNetwork:
        """Not for networks that are ready for inference."""
        raise LevelError("a fused network can't be truncated; truncate the network it was made of")


def _kind(parts: list[nn.Module]) -> nn.Module:
    """A layer that stands for those of all levels."""
    return next((part for part in parts if not isinstance(part, Nothing)), parts[0])


def _fuse_slices(source: SlicedNetwork) -> SlicedNetwork:
    layers = {step.name: list(source.layers[step.name]) for step in source.steps}  # type: ignore[call-overload]
    readers = Counter(value for step in source.steps for value in step.inputs)
    renamed: dict[int, int] = {}
    steps: list[Step] = []
    for step in source.steps:
        step = dataclasses.replace(step, inputs=tuple(renamed.get(value, value) for value in step.inputs))
        parts = layers[step.name]
        before = next((done for done in steps if step.inputs and done.output == step.inputs[0]), None)
        kind = _kind(parts)
        if isinstance(kind, nn.BatchNorm2d) and before is not None and readers[before.output] == 1:
            convolutions = layers[before.name]
            if isinstance(_kind(convolutions), nn.Conv2d):
                layers[before.name] = [
                    conv if isinstance(conv, Nothing) else fuse_conv_bn_eval(conv, norm)
                    for conv, norm in zip(convolutions, parts, strict=True)
                ]
                parts = layers[step.name] = [getattr(norm, "act", nn.Identity()) for norm in parts]
                kind = _kind(parts)
        if isinstance(kind, NOTHING):
            renamed[step.output] = step.inputs[0]
            readers[step.inputs[0]] += readers[step.output] - 1
            continue
        alone = before is not None and readers[before.output] == 1
        if alone and all(hasattr(part, "inplace") for part in parts):
            for part in parts:
                part.inplace = True
        steps.append(step)
    program = Program(tuple(steps), {step.name: layers[step.name] for step in steps}, source.num_features)
    fused = SlicedNetwork(program, source.num_classes, source.input_size)
    fused.heads = source.heads
    return fused.to(next(source.parameters()).device).eval()
