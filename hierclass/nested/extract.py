"""A level as an ordinary, thinner timm model: the backbone's own code with smaller layers and smaller numbers in it."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, Self

import torch
from torch import Tensor, fx, nn

from hierclass.errors import BackboneError
from hierclass.nested.analysis.layer_rules import rule_for
from hierclass.nested.analysis.op_rules import RESHAPING, SPLITTING, function_name
from hierclass.nested.analysis.partition import Analysis, Partition, positions
from hierclass.nested.analysis.residual_blocks import ResidualBlock
from hierclass.nested.analysis.trace import attribute, without_weights
from hierclass.nested.network import evaluating


class ThinModel:
    """Makes a level as a timm model without memory for its weights; a deep copy of it is the object itself."""

    def __init__(self, analysis: Analysis, blocks: Sequence[ResidualBlock]) -> None:
        """Hold the analysis of one level (`seen_by`) without weights, and the blocks that it leaves out."""
        trace = dataclasses.replace(analysis.trace, backbone=analysis.trace.skeleton)
        self._analysis, self._blocks = dataclasses.replace(analysis, trace=trace), tuple(blocks)
        self._made: nn.Module | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def make(self) -> nn.Module:
        """Return the model, on device meta.

        Raises:
            BackboneError: a layer can't be made smaller.
        """
        return self._made or thin_skeleton(self._analysis, self._blocks)

    def __getstate__(self) -> dict[str, Any]:
        return {"_made": self.make()}


def thin_skeleton(analysis: Analysis, blocks: Sequence[ResidualBlock]) -> nn.Module:
    """Return the thinner model of an analysis of one level (`seen_by`), without memory for its weights (device meta).

    Left-out blocks become `nn.Identity`. Numbers that timm's code keeps in attributes (heads, sizes of a split) are
    set where the traced code uses them.
    """
    model = without_weights(analysis.trace.skeleton)
    for path in analysis.trace.made:
        model._modules.pop(path, None)
    for node in analysis.nodes:
        if node.op == "call_module":
            _replace_layer(model, node, analysis)
        elif node.op == "get_attr":
            _replace_tensor(model, str(node.target), analysis.values[node].cut)
        elif node.op != "placeholder":
            for dense, thin in _numbers(node, analysis):
                _set_number(attribute(model, path) if (path := _owner(node)) else model, dense, thin)
    for block in blocks:
        parent, _, name = block.path.rpartition(".")
        attribute(model, parent)._modules[name] = nn.Identity()
    features = analysis.values[analysis.output]
    size = features.meta.shape[1]
    for module in (model, *model.children()):  # heads count the features that they read, too
        for name in ("num_features", "head_hidden_size", "embed_dim", "in_features"):
            if not isinstance(module, nn.Linear) and getattr(module, name, None) == size:
                setattr(module, name, len(positions(features.cut, 0, size)))
    _set_pooled_width(model, analysis.trace.skeleton)
    return model


def _set_pooled_width(model: Any, dense: Any) -> None:
    """Set `num_features` where it counts what is pooled before a convolution of the head (MobileNetV3)."""
    head = getattr(dense, "conv_head", None)
    if isinstance(head, nn.Conv2d) and head.in_channels % dense.num_features == 0:
        model.num_features = model.conv_head.in_channels * dense.num_features // head.in_channels


def fill(model: nn.Module, tensors: dict[str, Tensor]) -> nn.Module:
    """Return a copy of a skeleton with these parameters and buffers; those that are not given are zero."""
    memo: dict[int, Any] = {}
    for name, parameter in model.named_parameters():
        value = tensors.get(name)
        value = (
            torch.zeros(parameter.shape, dtype=parameter.dtype) if value is None else value.detach().clone()
        )
        memo[id(parameter)] = nn.Parameter(value, parameter.requires_grad)
    for name, buffer in model.named_buffers():
        value = tensors.get(name)
        memo[id(buffer)] = torch.zeros(buffer.shape, dtype=buffer.dtype) if value is None else value.clone()
    return copy.deepcopy(model, memo)


def with_classifier(backbone: nn.Module, head: nn.Module, input_size: tuple[int, int, int]) -> nn.Module:
    """Return the backbone with a head (F → classes) as its classifier, if that is one linear layer, else behind it."""
    alone = nn.Sequential(backbone, copy.deepcopy(head)).train(backbone.training)
    if type(head) is not nn.Linear or not hasattr(backbone, "reset_classifier"):
        return alone
    whole: Any = copy.deepcopy(backbone)
    try:
        whole.reset_classifier(head.out_features)
    except (AssertionError, RuntimeError, TypeError, ValueError):
        return alone
    classifier = whole.get_classifier()
    if (
        not isinstance(classifier, nn.Linear)
        or classifier.weight.shape != head.weight.shape
        or classifier.bias is None
    ):
        return alone
    whole.to(head.weight)
    classifier.load_state_dict(head.state_dict())
    # `reset_classifier` may change the pooling.
    image = torch.randn(2, *input_size, generator=torch.Generator().manual_seed(0)).to(head.weight)
    with evaluating(whole), evaluating(alone), torch.no_grad():
        same = torch.allclose(whole(image), alone(image), rtol=1e-3, atol=1e-3)
    return whole.train(backbone.training) if same else alone


def _replace_layer(model: nn.Module, node: fx.Node, analysis: Analysis) -> None:
    path, found = str(node.target), analysis.flows[node]
    if found.reads == "whole":
        return
    source = node.args[0]
    assert isinstance(source, fx.Node)
    layer = analysis.trace.skeleton.get_submodule(path)
    rule = rule_for(layer)
    assert rule is not None
    sides = [analysis.values[n] for n in (source, node)]
    reads, writes = (
        range(v.meta.shape[found.axis]) if v.cut.shared else positions(v.cut, 0, v.meta.shape[found.axis])
        for v in sides
    )
    part = rule.cut(layer, reads, writes)
    if path in analysis.trace.made:
        path, _, name = analysis.trace.made[path].rpartition(".")
        owner = attribute(model, path) if path else model
        owner._parameters[name] = part.get_parameter("weight")
        if isinstance(owner, nn.Linear):
            owner.in_features, owner.out_features = len(reads), len(writes)
        return
    part.train(layer.training)
    parent, _, name = path.rpartition(".")
    (attribute(model, parent) if parent else model)._modules[name] = part


def _replace_tensor(model: nn.Module, path: str, cut: Any) -> None:
    if not isinstance(cut, Partition) or cut.axis is None:
        return
    owner, _, name = path.rpartition(".")
    module = attribute(model, owner) if owner else model
    tensor = getattr(module, name)
    smaller = tensor.detach().index_select(cut.axis, torch.from_numpy(cut.index[0]).to(tensor.device))
    if isinstance(tensor, nn.Parameter):
        module._parameters[name] = nn.Parameter(smaller, tensor.requires_grad)
    else:
        module._buffers[name] = smaller


def _owner(node: fx.Node) -> str:
    stack = node.meta.get("nn_module_stack") or {}
    return str(list(stack.values())[-1][0]) if stack else ""


def _numbers(node: fx.Node, analysis: Analysis) -> Iterator[tuple[Any, Any]]:
    """Yield the numbers of the dense code that count channels, each with its value in the thinner model."""
    name, value = function_name(node.target), analysis.values[node]
    cut = value.cut
    if name in SPLITTING and isinstance(cut, tuple):
        first = analysis.values[node.args[0]].cut  # type: ignore[index]
        sizes = node.args[1] if len(node.args) > 1 else None
        if isinstance(first, Partition) and first.axis is not None and isinstance(sizes, (list, tuple)):
            thin = [
                len(positions(c, 0, int(s))) if not c.shared else int(s)
                for c, s in zip(cut, sizes, strict=True)
            ]
            yield list(sizes), thin
            yield from zip(sizes, thin, strict=True)
    elif name in RESHAPING and isinstance(cut, Partition) and cut.axis is not None:
        count = len(cut.index[0])
        sizes = [
            size for arg in node.args[1:] for size in (arg if isinstance(arg, (tuple, list)) else (arg,))
        ]
        if (
            name != "unflatten"
            and cut.axis < len(sizes)
            and isinstance(size := sizes[cut.axis], int)
            and size > 0
        ):
            yield size, size * count // cut.size
    elif (
        name == "getitem"
        and isinstance(value.meta, Tensor)
        and isinstance(cut, Partition)
        and cut.axis is not None
    ):
        items = node.args[1] if isinstance(node.args[1], tuple) else (node.args[1],)
        for item in items:
            if isinstance(item, slice) and item.stop == cut.size and item.start in (None, 0):
                yield cut.size, len(cut.index[0])


def _set_number(module: nn.Module, dense: Any, thin: Any) -> None:
    """Set the attributes of a module that hold a number; if some are named as counts of heads or groups, only those."""
    names = [
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and (list(value) if isinstance(value, tuple) else value) == dense
        and not isinstance(value, bool)
    ]
    counting = [name for name in names if name.startswith("num_") or name.endswith(("heads", "groups"))]
    for name in counting or names:
        setattr(module, name, type(vars(module)[name])(thin))


def check_thin(model: nn.Module, expected: Tensor, image: Tensor, level: int) -> nn.Module:
    """Return the model if it gives the expected features (B, F) for an image.

    Raises:
        BackboneError: it does not, since this backbone's code keeps sizes where they can't be found.
    """
    try:
        with evaluating(model), torch.no_grad():
            found = model(image)
        if found.shape == expected.shape and torch.allclose(found, expected, rtol=1e-3, atol=1e-4):
            return model
        reason = "it answers differently"
    except (RuntimeError, TypeError, ValueError, AttributeError) as error:
        reason = str(error).strip().partition("\n")[0]
    raise BackboneError(
        f"level {level} of this backbone can't be had as a timm model of its own ({reason}); "
        "truncate() and `hierclass compress` give it as a smaller network of ours"
    )
