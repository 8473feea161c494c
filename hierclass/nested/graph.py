"""Read a timm backbone as a list of steps: which operation reads which values, and where each value is cut.

The backbone's own `forward` is traced once (torch.fx), so residual additions, gates and pooling come from
timm's code and no family needs code of ours. What can't be cut is refused here, by module path and type.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from timm.models import _features_fx
from torch import fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from hierclass.errors import BackboneError
from hierclass.nested.boundaries import Boundaries, Chart, slice_range
from hierclass.nested.rules import Reads, rule_for

CHANNEL_AXIS = 1


@dataclass(frozen=True)
class Step:
    """One operation: it reads the values `inputs` and writes value `output` (value 0 is the image).

    `name` is also the key of its layers, one per level. `reads` says whether the layer of level k is given
    its slice of the inputs or the prefix of slices 0 … k.
    """

    name: str
    inputs: tuple[int, ...]
    output: int
    reads: Reads


@dataclass(frozen=True)
class Graph:
    """The steps in order, the boundaries of every value, and per step the layers of all levels."""

    steps: tuple[Step, ...]
    boundaries: tuple[Boundaries, ...]
    layers: dict[str, list[nn.Module]]


class Call(nn.Module):
    """A function of the traced code (an addition, a gate, a mean over space), applied to one slice."""

    def __init__(
        self, function: Callable[..., torch.Tensor], arguments: tuple[Any, ...], options: dict[str, Any]
    ):
        """`arguments` and `options` are those of the traced call, without its leading tensors."""
        super().__init__()
        self.function, self.arguments, self.options = function, arguments, options

    def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
        """Apply the function to slices of its inputs."""
        return self.function(*tensors, *self.arguments, **self.options)

    def extra_repr(self) -> str:
        """Name the function."""
        return getattr(self.function, "__name__", str(self.function))


FUNCTIONS: dict[Any, Callable[..., torch.Tensor]] = {
    **dict.fromkeys((operator.add, operator.iadd, torch.add, "add", "add_"), torch.add),
    **dict.fromkeys((operator.mul, operator.imul, torch.mul, "mul", "mul_"), torch.mul),
    **dict.fromkeys((torch.sigmoid, F.sigmoid, "sigmoid", "sigmoid_"), torch.sigmoid),
    **dict.fromkeys((torch.relu, F.relu, "relu", "relu_"), torch.relu),
    F.silu: F.silu,
    F.gelu: F.gelu,
    F.hardswish: F.hardswish,
    F.hardsigmoid: F.hardsigmoid,
    **dict.fromkeys((torch.mean, "mean"), torch.mean),
    **dict.fromkeys((F.adaptive_avg_pool2d,), F.adaptive_avg_pool2d),
    **dict.fromkeys((F.max_pool2d, torch.max_pool2d), F.max_pool2d),
    F.avg_pool2d: F.avg_pool2d,
    F.dropout: F.dropout,
    **dict.fromkeys((torch.flatten, "flatten"), torch.flatten),
}
"""Function or tensor method of traced code → its out-of-place form. All of them treat every channel alike."""


class _Tracer(fx.Tracer):
    """Stops at layers that have a rule, and where timm says that tracing must stop."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        timms_own = tuple(_features_fx.get_notrace_modules())
        return (
            rule_for(m) is not None
            or isinstance(m, timms_own)
            or super().is_leaf_module(m, module_qualified_name)
        )


def trace(backbone: nn.Module, input_size: tuple[int, int, int]) -> fx.GraphModule:
    """Trace the backbone and note the shape of every value for an image of `input_size` (C, H, W).

    Raises:
        BackboneError: its forward has control flow that depends on values, or does not take such an image.
    """
    name = type(backbone).__name__
    try:
        graph = _Tracer(autowrap_functions=tuple(_features_fx.get_notrace_functions())).trace(backbone)
        traced = fx.GraphModule(backbone, graph)
        with torch.no_grad():
            weight = next(backbone.parameters(), torch.empty(0))
            ShapeProp(traced).propagate(torch.zeros(1, *input_size).to(weight))
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise BackboneError(f"{name} can't be traced with an image of {input_size}: {reason}") from error
    return traced


def read_graph(backbone: nn.Module, widths: tuple[float, ...], input_size: tuple[int, int, int]) -> Graph:
    """Cut every layer of the backbone; `backbone` maps (B, C, H, W) to pooled features (B, F).

    Raises:
        BackboneError: a layer or function can't be cut; the message names its module path and type.
    """
    traced = trace(backbone, input_size)
    reader = _Reader(traced, Chart(widths, _group_widths(traced)), input_size[0])
    for node in traced.graph.nodes:
        if node.op == "output":
            return reader.finish(node.args[0])
        reader.read(node)
    raise AssertionError("a traced graph ends with its output")


def _group_widths(traced: fx.GraphModule) -> dict[int, int]:
    """Channel count → least common multiple of the group widths of all layers that see that many channels."""
    widths: dict[int, int] = {}
    for node in traced.graph.nodes:
        layer = traced.get_submodule(str(node.target)) if node.op == "call_module" else None
        rule = rule_for(layer) if layer is not None else None
        for channels, width in rule.groups(layer).items() if rule and layer is not None else ():
            widths[channels] = math.lcm(widths.get(channels, 1), width)
    return widths


class _Reader:
    """Turns the nodes of a traced graph into steps, one after the other."""

    def __init__(self, traced: fx.GraphModule, chart: Chart, image_channels: int) -> None:
        self.traced, self.chart, self.levels = traced, chart, len(chart.widths)
        self.values: dict[fx.Node, int] = {}
        # Every level sees the whole image: its slices above level 0 are empty.
        self.image: Boundaries = (image_channels,) * self.levels
        self.boundaries: list[Boundaries] = []
        self.steps: list[Step] = []
        self.layers: dict[str, list[nn.Module]] = {}

    def read(self, node: fx.Node) -> None:
        if node.op == "placeholder":
            self._add_value(node, self.image)
        elif node.op == "call_module":
            self._read_layer(node)
        elif node.op in ("call_function", "call_method"):
            self._read_function(node)
        else:
            name = str(node.target).rpartition(".")[2]
            raise BackboneError(
                f"{_owner(node)} can't be cut into levels: its tensor {name!r} is used outside a layer with a rule"
            )

    def finish(self, node: Any) -> Graph:
        if not isinstance(node, fx.Node) or len(_shape(node)) != 2:
            raise BackboneError(
                "the backbone must end in pooled features (B, F); make it with create_backbone"
            )
        # The features are the last value, even where timm's forward returns an earlier one.
        last = self.values[node]
        return Graph(
            tuple(step for step in self.steps if step.output <= last), tuple(self.boundaries), self.layers
        )

    def _add_value(self, node: fx.Node, cuts: Boundaries) -> int:
        self.values[node] = len(self.boundaries)
        self.boundaries.append(cuts)
        return self.values[node]

    def _read_layer(self, node: fx.Node) -> None:
        path = str(node.target)
        layer = self.traced.get_submodule(path)
        where = f"{path} ({type(layer).__name__})"
        rule = rule_for(layer)
        if rule is None:
            raise BackboneError(f"{where} can't be cut into levels: no rule for this layer type")
        if len(node.args) != 1 or node.kwargs or not isinstance(node.args[0], fx.Node):
            raise BackboneError(f"{where} can't be cut into levels: it takes more than one tensor")
        source = self.values[node.args[0]]
        try:
            inputs = self.boundaries[source]
            outputs = rule.boundaries(layer, inputs, _shape(node)[CHANNEL_AXIS], self.chart)
            reads = rule.reads(layer)
            layers = [
                rule.cut(
                    layer,
                    range(inputs[level]) if reads == "prefix" else slice_range(inputs, level),
                    slice_range(outputs, level),
                )
                for level in range(self.levels)
            ]
        except BackboneError as error:
            raise BackboneError(f"{where} can't be cut into levels: {error}") from None
        self._add_step(node, (source,), reads, layers, outputs)

    def _read_function(self, node: fx.Node) -> None:
        name = getattr(node.target, "__name__", str(node.target))
        where = f"{_owner(node)}: {name}()"
        function = FUNCTIONS.get(node.target)
        tensors = [argument for argument in node.args if isinstance(argument, fx.Node)]
        constants = node.args[len(tensors) :]
        nested = [argument for argument in (*constants, *node.kwargs.values()) if _holds_node(argument)]
        if function is None or not tensors or nested:
            raise BackboneError(f"{where} can't be cut into levels: no rule for this operation")
        options = {key: value for key, value in node.kwargs.items() if key != "inplace"}
        self._check_axes(where, function, constants, options)
        sources = tuple(self.values[tensor] for tensor in tensors)
        inputs = {self.boundaries[source] for source in sources}
        if len(inputs) != 1:
            raise BackboneError(f"{where} can't be cut into levels: its inputs are cut at {sorted(inputs)}")
        (outputs,) = inputs
        growth = _shape(node)[CHANNEL_AXIS] // outputs[-1]
        outputs = tuple(end * growth for end in outputs)
        layer = _layer_for(function, tuple(constants), options)
        self._add_step(node, sources, "slice", [layer] * self.levels, outputs)

    @staticmethod
    def _check_axes(where: str, function: Any, constants: Sequence[Any], options: dict[str, Any]) -> None:
        """Means must leave the channels alone; flattening must start at them."""
        if function is torch.mean:
            axes = constants[0] if constants else options.get("dim")
            spatial = {2, 3, -1, -2}
            if axes is None or not set(axes if isinstance(axes, (tuple, list)) else (axes,)) <= spatial:
                raise BackboneError(f"{where} can't be cut into levels: a mean over channels")
        if function is torch.flatten:
            start = constants[0] if constants else options.get("start_dim", 0)
            if start != CHANNEL_AXIS:
                raise BackboneError(f"{where} can't be cut into levels: it flattens from axis {start}")

    def _add_step(
        self, node: fx.Node, inputs: tuple[int, ...], reads: Reads, layers: list[nn.Module], cuts: Boundaries
    ) -> None:
        if cuts[-1] != _shape(node)[CHANNEL_AXIS]:
            raise BackboneError(
                f"{_owner(node)}: {node.target} changes its channels in a way that has no rule"
            )
        self.steps.append(Step(node.name, inputs, self._add_value(node, cuts), reads))
        self.layers[node.name] = layers


def _layer_for(
    function: Callable[..., torch.Tensor], constants: tuple[Any, ...], options: dict[str, Any]
) -> nn.Module:
    if function is F.dropout:
        # The traced call holds the mode of the moment it was traced in; a layer follows the network's mode.
        return nn.Dropout(constants[0] if constants else options.get("p", 0.5))
    return Call(function, constants, options)


def _shape(node: fx.Node) -> tuple[int, ...]:
    meta = node.meta.get("tensor_meta")
    if meta is None or not hasattr(meta, "shape") or len(meta.shape) < 2:
        raise BackboneError(
            f"{_owner(node)}: {node.target} can't be cut into levels: its result is no feature map"
        )
    return tuple(meta.shape)


def _holds_node(argument: Any) -> bool:
    if isinstance(argument, (tuple, list)):
        return any(_holds_node(item) for item in argument)
    return isinstance(argument, fx.Node)


def _owner(node: fx.Node) -> str:
    """Module path and type in whose forward the node was traced."""
    stack = node.meta.get("nn_module_stack") or {}
    if not stack:
        return "backbone"
    path, kind = list(stack.values())[-1]
    return f"{path or 'backbone'} ({getattr(kind, '__name__', kind)})"
