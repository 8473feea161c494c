"""A plain module made ready for inference: batch norms folded into the convolutions before them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from timm.layers import Conv2dSame
from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from hierclass.errors import BackboneError
from hierclass.nested.trace import trace

FOLDABLE = (nn.Conv2d, Conv2dSame)
"""Convolutions that use their weights as they are; subclasses may standardise them first."""


def foldable(module: nn.Module, input_size: tuple[int, int, int]) -> list[tuple[str, str]]:
    """Return the paths of every convolution and of the batch norm that alone reads it.

    There are none where the code can't be traced for images of `input_size` (C, H, W). While it is traced no other
    thread may run a module.
    """
    try:
        graph = trace(module, input_size).graph
    except BackboneError:
        return []
    calls = Counter(str(node.target) for node in graph.nodes if node.op == "call_module")
    reads = {str(node.target).rpartition(".")[0] for node in graph.nodes if node.op == "get_attr"}
    pairs = []
    for node in graph.nodes:
        source = node.args[0] if node.op == "call_module" and node.args else None
        if not isinstance(source, fx.Node) or source.op != "call_module" or len(source.users) > 1:
            continue
        pair = str(source.target), str(node.target)
        if calls[pair[0]] == calls[pair[1]] == 1 and reads.isdisjoint(pair):
            conv, norm = (_at(module, path) for path in pair)
            if type(conv) in FOLDABLE and isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None:
                pairs.append(pair)
    return pairs


def fold(module: nn.Module, pairs: Sequence[tuple[str, str]]) -> nn.Module:
    """Return `module`, changed in place, in evaluation mode and without gradients for its weights.

    The norm of each pair that it has is folded into the convolution; where it was stays its activation, or nothing.
    """
    module.eval().requires_grad_(False)
    for before, path in pairs:
        conv, norm = _at(module, before), _at(module, path)
        if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
            _put(module, before, fuse_conv_bn_eval(conv, norm).requires_grad_(False))
            _put(module, path, getattr(norm, "act", nn.Identity()))
    return module


def _at(module: nn.Module, path: str) -> nn.Module | None:
    """Return a part that nobody watches by hooks; layers that only the trace has are none."""
    try:
        part = module.get_submodule(path)
    except AttributeError:
        return None
    return None if part._forward_hooks or part._forward_pre_hooks else part


def _put(module: nn.Module, path: str, part: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    module.get_submodule(parent)._modules[name] = part
