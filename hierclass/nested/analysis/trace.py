"""A timm backbone as a graph of calls (torch.fx), with weights left where they are."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from timm.models import _features_fx
from torch import fx, nn

from hierclass.errors import BackboneError
from hierclass.nested.analysis.layer_rules import rule_for
from hierclass.nested.analysis.op_rules import IN_PLACE, MOVING, function_name

STOPS = ("Conv2dSame", "MaxPool2dSame", "AvgPool2dSame")
"""Layers of timm whose code looks at sizes while it runs; a trace keeps them whole."""


TRACED = ("global_pool_naflex", "reshape_pre_pool", "reshape_post_pool")
"""Functions that timm keeps whole when it traces, and that can be read call by call."""


class _Tracer(fx.Tracer):
    """Stops at layers that have a rule, and else only in torch's own.

    A branch that depends on sizes is taken as an image of `input_size` takes it.
    """

    proxy_buffer_attributes = True

    def __init__(self, input_size: tuple[int, int, int], functions: tuple[Any, ...]) -> None:
        super().__init__(autowrap_functions=functions)
        self._input_size = input_size
        self._known: dict[fx.Node, Any] = {}
        self._evaluating = False

    def to_bool(self, obj: fx.Proxy) -> bool:
        self._evaluating = True
        try:
            return bool(self._value(obj.node))
        finally:
            self._evaluating = False

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        return forward(*args, **kwargs) if self._evaluating else super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        return attr_val if self._evaluating else super().getattr(attr, attr_val, parameter_proxy_cache)

    def _value(self, node: fx.Node) -> Any:
        """Return what a node gives for one image, computed without memory (device meta)."""
        if node in self._known:
            return self._known[node]
        for source in node.all_input_nodes:
            self._value(source)
        args = fx.map_arg(node.args, lambda n: self._known[n])
        kwargs = fx.map_arg(node.kwargs, lambda n: self._known[n])
        with torch.no_grad():
            if node.op == "placeholder":
                value: Any = torch.zeros((1, *self._input_size), device="meta")
            elif node.op == "get_attr":
                value = attribute(self.root, str(node.target))
            elif node.op == "call_module":
                value = self.root.get_submodule(str(node.target))(*args, **kwargs)
            elif node.op == "call_method":
                value = getattr(torch.Tensor, str(node.target))(*args, **kwargs)
            else:
                assert callable(node.target)
                value = node.target(*args, **kwargs)
        self._known[node] = value
        return value

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return (
            rule_for(m) is not None
            or type(m).__name__ in STOPS
            or (super().is_leaf_module(m, module_qualified_name) and not isinstance(m, nn.Sequential))
        )


@dataclass(frozen=True)
class Trace:
    """The graph of a backbone: `skeleton` has its modules without memory for weights (device meta).

    `backbone` holds the weights. A matrix that the code multiplies by itself (`F.linear` with a parameter) becomes
    a layer of its own: `made` maps the path of such a layer to the path of its weight.
    """

    backbone: nn.Module
    skeleton: nn.Module
    graph: fx.Graph
    made: dict[str, str] = field(default_factory=dict)

    def layer(self, path: str) -> nn.Module:
        """Return a layer with its weights."""
        if path not in self.made:
            return self.backbone.get_submodule(path)
        weight = self.backbone.get_parameter(self.made[path])
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
        layer.weight = nn.Parameter(weight.detach(), weight.requires_grad)
        return layer

    def tensor(self, path: str) -> Any:
        """Return a parameter or buffer of the backbone."""
        return attribute(self.backbone, path)


def attribute(module: nn.Module, path: str) -> Any:
    """Return the attribute at a dotted path."""
    value: Any = module
    for name in path.split("."):
        value = getattr(value, name)
    return value


def without_weights(module: nn.Module) -> nn.Module:
    """Copy a module, with weights that take no memory (device meta)."""
    memo: dict[int, Any] = {}
    for parameter in module.parameters():
        memo[id(parameter)] = nn.Parameter(
            torch.empty_like(parameter, device="meta"), parameter.requires_grad
        )
    for buffer in module.buffers():
        memo[id(buffer)] = torch.empty_like(buffer, device="meta")
    return copy.deepcopy(module, memo).to("meta")


def trace(backbone: nn.Module, input_size: tuple[int, int, int]) -> Trace:
    """Trace the forward of a backbone for images of about `input_size` (C, H, W).

    Raises:
        BackboneError: its control flow depends on values of the image, or it overwrites a part of a value.
    """
    skeleton = without_weights(backbone)
    try:
        graph = _graph(skeleton, input_size)
    except Exception as error:
        try:  # once more: a first run fills what the backbone caches
            weight = next(backbone.parameters())
            with torch.no_grad():
                backbone(torch.zeros((1, *input_size)).to(weight))
            skeleton = without_weights(backbone)
            graph = _graph(skeleton, input_size)
        except Exception:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise BackboneError(f"{type(backbone).__name__} can't be traced: {reason}") from error
    made: dict[str, str] = {}
    _follow_in_place(graph)
    for node in list(graph.nodes):
        if getattr(node.target, "__name__", "") == "_assert":
            graph.erase_node(node)
        elif node.op == "call_function" and node.target in (F.linear, torch._C._nn.linear):
            _make_layer(node, graph, skeleton, made)
        elif node.target is getattr and node.args[1] in ("device", "dtype"):
            _ask_image(node, graph)
    graph.eliminate_dead_code(is_impure_node=lambda node: node.op in ("placeholder", "output"))
    return Trace(backbone, skeleton, graph, made)


def _follow_in_place(graph: fx.Graph) -> None:
    """Let later readers of an overwritten value (`x.add_(y)`, `x += y`) read the result of the overwriting call.

    Raises:
        BackboneError: a part of a value is overwritten, and the whole is read afterwards.
    """
    order = {node: index for index, node in enumerate(graph.nodes)}
    for node in order:
        name = str(node.target if node.op == "call_method" else getattr(node.target, "__name__", ""))
        in_place = node.op == "call_method" and name.endswith("_") and not name.endswith("__")
        if not (in_place or (node.op == "call_function" and name in IN_PLACE)):
            continue
        before = node.args[0]
        if not isinstance(before, fx.Node):
            continue
        for user in list(before.users):
            if order[user] > order[node]:
                user.replace_input_with(before, node)
        if not node.users and function_name(before.target) in MOVING:
            raise BackboneError("it overwrites a part of a value in place")


def _ask_image(node: fx.Node, graph: fx.Graph) -> None:
    """Read the device or type of a weight from the image, so that the weight need not be in the graph."""
    image = next(iter(graph.nodes))
    if isinstance(node.args[0], fx.Node) and node.args[0].op == "get_attr":
        node.args = (image, node.args[1])


def _graph(skeleton: nn.Module, input_size: tuple[int, int, int]) -> fx.Graph:
    functions = tuple(f for f in _features_fx.get_notrace_functions() if f.__name__ not in TRACED)
    passing = without_weights(skeleton)  # some models cache what they compute, here proxies
    return _Tracer(input_size, functions).trace(passing, _defaults(skeleton))


def _defaults(module: nn.Module) -> dict[str, Any]:
    """Return the arguments of a forward that have defaults: masks, flags."""
    parameters = inspect.signature(module.forward).parameters
    return {name: p.default for name, p in parameters.items() if p.default is not p.empty}


def _make_layer(node: fx.Node, graph: fx.Graph, skeleton: nn.Module, made: dict[str, str]) -> None:
    """Turn `F.linear(x, self.weight, bias)` into a layer without bias and an addition."""
    arguments: Mapping[str, Any] = (
        dict(zip(("input", "weight", "bias"), node.args, strict=False)) | node.kwargs
    )
    weight, bias = arguments["weight"], arguments.get("bias")
    if not isinstance(weight, fx.Node) or weight.op != "get_attr":
        return
    path = str(weight.target)
    parameter = attribute(skeleton, path)
    if not isinstance(parameter, nn.Parameter):
        return
    name = path.replace(".", "_") + "_matrix"
    layer = nn.Linear(parameter.shape[1], parameter.shape[0], bias=False, device="meta")
    skeleton.add_module(name, layer)
    made[name] = path
    with graph.inserting_before(node):
        result = graph.call_module(name, (arguments["input"],))
        if bias is not None:
            result = graph.call_function(torch.add, (result, bias))
    for new in (result, *result.all_input_nodes):
        new.meta.setdefault("nn_module_stack", node.meta.get("nn_module_stack"))
    node.replace_all_uses_with(result)
    graph.erase_node(node)
