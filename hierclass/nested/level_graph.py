"""One level as an ordinary graph module, (image, kept) → (features, kept), over layers and weights that stay in place.

`kept` is what the next level reads again: nothing for levels that share weights alone.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import timm.layers as timm_layers
import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from hierclass.nested.calls import Call, Slot
from hierclass.nested.functions import function_name
from hierclass.nested.program import Step
from hierclass.nested.sharing import Part

IMAGE = 0
"""Number of the value that is the image."""
NOTHING = (nn.Identity, nn.Dropout, nn.Dropout2d, timm_layers.DropPath)
"""Layers that change nothing in evaluation mode."""


class WithWeights(nn.Module):
    """A layer that is given some of its weights when it is called: those that levels share.

    The layer itself stays as it is, so that threads may run different levels at the same time.
    """

    def __init__(self, layer: nn.Module, names: Sequence[str]):
        """`names` are those of the weights, in the order in which they are given."""
        super().__init__()
        self.layer, self.names = layer, tuple(names)

    def forward(self, *values: Any) -> Any:
        """Call the layer on all values but the last, which are its weights."""
        inputs, weights = values[: -len(self.names)], values[-len(self.names) :]
        made = copy.copy(self.layer)
        made.__dict__["_parameters"] = {
            **self.layer._parameters,
            **dict(zip(self.names, weights, strict=True)),
        }
        return made(*inputs)

    def extra_repr(self) -> str:
        """Name the weights."""
        return ", ".join(self.names)


class Select(nn.Module):
    """Picks the scattered positions of a level along one axis of a shared weight."""

    index: Tensor

    def __init__(self, axis: int, index: Tensor):
        """`index` (N,) are positions along `axis`."""
        super().__init__()
        self.axis = axis
        self.register_buffer("index", index, persistent=False)

    def forward(self, weight: Tensor) -> Tensor:
        """Return the part of the weight."""
        return weight.index_select(self.axis, self.index)


def corrected(block: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Add a low-rank correction, rows (R, rank) times columns (rank, C), to a block (R, …) of C numbers a row."""
    return block + (rows @ columns).view_as(block)


class LevelBuilder:
    """Writes the graph of one level from its steps; `modules` and `weights` are what its nodes name."""

    def __init__(self) -> None:
        """Begin an empty graph that takes an image and what lower levels kept."""
        self.graph = fx.Graph()
        self.values: dict[int, fx.Node] = {IMAGE: self.graph.placeholder("image")}
        self.kept = self.graph.placeholder("kept")
        self.root: dict[str, Any] = {}

    def resize(self, layer: nn.Module) -> None:
        """Let the level see the image through a layer."""
        self.values[IMAGE] = self._call("resize", layer, (self.values[IMAGE],))

    def block(self, part: Part, weight: nn.Parameter, correction: Sequence[nn.Parameter]) -> fx.Node:
        """Add the node that takes a part of a shared weight, with the level's own correction of it."""
        node = self._get(f"weights.{part.weight}", weight)
        for axis, (index, size) in enumerate(zip(part.index, weight.shape, strict=True)):
            if len(index) == size and bool((index == np.arange(size)).all()):
                continue
            if len(index) and index[-1] - index[0] + 1 == len(index) and bool((np.diff(index) == 1).all()):
                node = self.graph.call_function(torch.narrow, (node, axis, int(index[0]), len(index)))
            else:
                name = f"select.{part.weight}_{part.step}_{part.name}_{axis}"
                node = self._call(name, Select(axis, torch.from_numpy(index).to(weight.device)), (node,))
        if correction:
            names = [f"corrections.{part.step}_{part.name}_{i}" for i in range(2)]
            both = [self._get(name, value) for name, value in zip(names, correction, strict=True)]
            node = self.graph.call_function(corrected, (node, *both))
        return node

    def step(self, step: Step, layer: nn.Module, blocks: Mapping[str, fx.Node]) -> None:
        """Add an operation; `blocks` are the weights of its layer that it does not hold itself."""
        inputs = [self.values[number] for number in step.inputs]
        name = f"layers.{step.name}"
        if isinstance(layer, Call) and _is_plain(layer):
            node = self.graph.call_function(
                layer.function, _filled(layer.args, inputs), _filled(layer.kwargs, inputs)
            )
        elif blocks:
            node = self._call(name, WithWeights(layer, list(blocks)), (*inputs, *blocks.values()))
        else:
            node = self._call(name, layer, tuple(inputs))
        self.values[step.output] = node

    def build(self, output: int) -> fx.GraphModule:
        """Return the module of the graph whose features are the value `output`."""
        self.graph.output((self.values[output], self.kept))
        self.graph.eliminate_dead_code(is_impure_node=lambda node: node.op in ("placeholder", "output"))
        self.graph.lint()
        return fx.GraphModule(self.root, self.graph, "Level")

    def _call(self, name: str, layer: nn.Module, inputs: tuple[fx.Node, ...]) -> fx.Node:
        self.root[name] = layer
        return self.graph.create_node("call_module", name, inputs)

    def _get(self, name: str, value: nn.Parameter) -> fx.Node:
        self.root[name] = value
        return self.graph.create_node("get_attr", name)


def _is_plain(call: Call) -> bool:
    """Whether a call is of a function by name, with inputs as they are: one that can stand in a graph itself."""
    function, slots = call.function, list(_slots((call.args, call.kwargs)))
    named = getattr(function, "__name__", "<lambda>").isidentifier() and "<" not in getattr(
        function, "__qualname__", "<"
    )
    return named and all(type(slot) is Slot and slot.scale == slot.total for slot in slots)


def _slots(argument: Any) -> list[Any]:
    if isinstance(argument, (tuple, list)):
        return [slot for item in argument for slot in _slots(item)]
    if isinstance(argument, dict):
        return _slots(list(argument.values()))
    if isinstance(argument, slice):
        return _slots([argument.start, argument.stop, argument.step])
    return [argument] if isinstance(argument, Slot) or hasattr(argument, "slot") else []


def _filled(argument: Any, inputs: Sequence[fx.Node]) -> Any:
    if isinstance(argument, Slot):
        return inputs[argument.index]
    if isinstance(argument, (tuple, list)):
        return tuple(_filled(item, inputs) for item in argument)
    if isinstance(argument, dict):
        return {key: _filled(item, inputs) for key, item in argument.items()}
    if isinstance(argument, slice):
        return slice(*(_filled(item, inputs) for item in (argument.start, argument.stop, argument.step)))
    return argument


def _makes_new(node: fx.Node) -> bool:
    """Whether a value is memory of its own, and not a view of another."""
    return node.op == "call_module" or function_name(node.target) in ("add", "mul")


def fuse_level(level: fx.GraphModule) -> fx.GraphModule:
    """Make a level with weights of its own ready for inference, in place; it gives the same features up to rounding.

    Batch norms that alone read a convolution are folded into it, layers that do nothing are left out, and activations
    overwrite what nothing else reads.
    """
    level.eval()
    for node in list(level.graph.nodes):
        source = node.args[0] if node.args else None  # a weight that stands alone reads nothing
        if node.op != "call_module" or not isinstance(source, fx.Node):
            continue
        layer, alone = level.get_submodule(str(node.target)), len(source.users) == 1
        before = level.get_submodule(str(source.target)) if source.op == "call_module" else None
        if isinstance(layer, nn.BatchNorm2d) and isinstance(before, nn.Conv2d) and alone:
            level.set_submodule(str(source.target), fuse_conv_bn_eval(before, layer))
            layer = getattr(layer, "act", nn.Identity())
            level.set_submodule(str(node.target), layer)
        if isinstance(layer, NOTHING):
            node.replace_all_uses_with(source)
            level.graph.erase_node(node)
        elif alone and _makes_new(source) and hasattr(layer, "inplace"):
            layer.inplace = True  # type: ignore[assignment]
    level.delete_all_unused_submodules()
    level.recompile()
    return level
