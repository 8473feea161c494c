"""One level as a graph, (image, kept) → (features, kept): bound to layers and weights, chained, and fused.

`kept` is a tuple of tensors with a row per image, which the next level reads again. It is empty for structures whose
levels share weights alone. `hierclass.nested.lowering` writes the graphs.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import timm.layers as timm_layers
import torch
import torch.nn.functional as F
from timm.layers import Conv2dSame
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from hierclass.nested.analysis.op_rules import function_name

Kept: TypeAlias = tuple[Tensor, ...]
Level: TypeAlias = Callable[[Tensor, Kept], tuple[Tensor, Kept]]
"""Computes one level: images (B, C, H, W) and what the level below kept → pooled features (B, F), kept."""

NO_OPS = (nn.Identity, nn.Dropout, nn.Dropout2d, timm_layers.DropPath)
"""Layers that change nothing in evaluation mode."""
FOLDABLE = (nn.Conv2d, Conv2dSame)
"""Convolutions that use their weights as they are; subclasses may standardise them first."""


class Weight(nn.Module):
    """A parameter or buffer that traced code uses by itself: a position embedding, the scale of a branch."""

    value: Tensor

    def __init__(self, value: Tensor):
        """Hold a parameter, or another tensor as a buffer."""
        super().__init__()
        if isinstance(value, nn.Parameter):
            self.value = value
        else:
            self.register_buffer("value", value)

    def forward(self) -> Tensor:
        """Return the tensor."""
        return self.value


def bind(graph: fx.Graph, parts: Mapping[str, nn.Module]) -> fx.GraphModule:
    """Return a module that runs a graph on the modules and weights that its targets name, without copying them.

    If a submodule of one of `parts` is replaced later, the graph runs the new one.
    """
    module = fx.GraphModule(nn.Module(), fx.Graph(), "Level")
    for name, part in parts.items():
        module.add_module(name, part)
    module.graph = graph
    return module


def chain(graphs: Sequence[fx.Graph]) -> list[fx.Graph]:
    """Return copies of the graphs of levels 0 … n in which a level keeps only what a higher one reads."""
    copies = [copy.deepcopy(graph) for graph in graphs]
    wanted: list[int] = []
    for graph in reversed(copies):
        output = graph.output_node()
        result: Any = output.args[0]
        output.args = ((result[0], tuple(result[1][index] for index in wanted)),)
        drop_dead_code(graph)
        reads = kept_reads(graph)
        wanted = sorted(set(reads.values()))
        for node, index in reads.items():
            node.args = (node.args[0], wanted.index(index))
    return copies


def graph_to_rows(graph: fx.Graph) -> list[tuple[Any, ...]]:
    """Return a graph in a form that can be pickled; `graph_from_rows` reads it."""
    number = {node: index for index, node in enumerate(graph.nodes)}

    def reference(node: fx.Node) -> Any:
        return _Reference(number[node])

    def plain(argument: Any) -> Any:
        return fx.map_arg(argument, reference)

    return [(node.op, node.name, node.target, plain(node.args), plain(node.kwargs)) for node in graph.nodes]


def graph_from_rows(rows: Sequence[tuple[Any, ...]]) -> fx.Graph:
    """Return the graph of which `graph_to_rows` gave the rows."""
    graph, nodes = fx.Graph(), list[fx.Node]()
    for op, name, target, args, kwargs in rows:
        args, kwargs = (
            fx.node.map_aggregate(
                each, lambda item: nodes[item.number] if isinstance(item, _Reference) else item
            )
            for each in (args, kwargs)
        )
        nodes.append(graph.create_node(op, target, args, kwargs, name))
    return graph


@dataclass(frozen=True)
class _Reference:
    """In place of a node: its number."""

    number: int


def drop_dead_code(graph: fx.Graph) -> None:
    """Drop nodes whose result no other node reads, random and in-place ones too."""
    graph.eliminate_dead_code(is_impure_node=lambda node: node.op in ("placeholder", "output"))


def kept_reads(graph: fx.Graph) -> dict[fx.Node, int]:
    """Return the nodes that read what the level below kept, each with the index that it reads."""
    kept = list(graph.find_nodes(op="placeholder"))[1]
    return {node: node.args[1] for node in kept.users}


def fuse_level(level: fx.GraphModule) -> fx.GraphModule:
    """Make a level that owns its weights ready for inference, in place; features stay the same up to rounding.

    Batch norms that alone read a convolution are folded into it, layers that do nothing are left out, and activations
    overwrite what no other node reads.
    """
    fold(level, foldable(level.graph, level))
    for node in list(level.graph.nodes):
        source = node.args[0] if node.args else None
        if node.op != "call_module" or not isinstance(source, fx.Node):
            continue
        layer, alone = level.get_submodule(str(node.target)), len(source.users) == 1
        if isinstance(layer, NO_OPS):
            node.replace_all_uses_with(source)
            level.graph.erase_node(node)
        elif alone and _is_new(source) and hasattr(layer, "inplace"):
            layer.inplace = True  # type: ignore[assignment]
    level.delete_all_unused_submodules()
    level.recompile()
    return level


def foldable(graph: fx.Graph, module: nn.Module) -> list[tuple[str, str]]:
    """Return the paths of every convolution of a traced module and of the batch norm that alone reads it.

    Modules that are called twice, and those with hooks, are left out.
    """
    calls = Counter(str(node.target) for node in graph.nodes if node.op == "call_module")
    reads = {str(node.target).rpartition(".")[0] for node in graph.nodes if node.op == "get_attr"}
    pairs: list[tuple[str, str]] = []
    for node in graph.nodes:
        source = node.args[0] if node.op == "call_module" and node.args else None
        if not isinstance(source, fx.Node) or source.op != "call_module" or len(source.users) > 1:
            continue
        pair = str(source.target), str(node.target)
        if calls[pair[0]] == calls[pair[1]] == 1 and reads.isdisjoint(pair):
            conv, norm = (_unwatched(module, path) for path in pair)
            if type(conv) in FOLDABLE and isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None:
                pairs.append(pair)
    return pairs


def fold(module: nn.Module, pairs: Iterable[tuple[str, str]]) -> nn.Module:
    """Fold batch norms into convolutions, in place, and return `module` in evaluation mode, without gradients.

    A norm is replaced by its activation, or by nothing. Pairs of which `module` lacks one are skipped.
    """
    module.eval().requires_grad_(False)
    for before, path in pairs:
        conv, norm = _unwatched(module, before), _unwatched(module, path)
        if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
            module.set_submodule(before, fuse_conv_bn_eval(conv, norm).requires_grad_(False))
            module.set_submodule(path, getattr(norm, "act", nn.Identity()))
    return module


def _unwatched(module: nn.Module, path: str) -> nn.Module | None:
    """Return the submodule at a path; None if it has hooks or is only in the traced graph."""
    try:
        part = module.get_submodule(path)
    except AttributeError:
        return None
    return None if part._forward_hooks or part._forward_pre_hooks else part


def _is_new(node: fx.Node) -> bool:
    """Return whether a value has memory of its own, and is no view of another."""
    return node.op == "call_module" or function_name(node.target) in ("add", "mul")


def resize(image: Tensor, side: int) -> Tensor:
    """Shrink square images (B, C, H, W) to `side` x `side` pixels: bicubic and antialiased, as Pillow does.

    Images of that size are returned as they are.
    """
    if image.shape[-2] == image.shape[-1] == side:
        return image
    return F.interpolate(image, size=(side, side), mode="bicubic", align_corners=False, antialias=True)


def resize_by_products(image: Tensor, side: int) -> Tensor:
    """Return what `resize` returns, up to rounding, of images (B, H, W, C) of any size: (B, C, side, side).

    Two matrix products without a branch on the size, for graphs that are to take several; PyTorch's own is faster.
    """
    height, width = image.shape[1], image.shape[2]
    rows: Tensor = _resize_weights(height, side, image) @ image.flatten(2)
    rows = rows.reshape(-1, side, width, image.shape[3]).permute(0, 3, 1, 2)
    return rows @ _resize_weights(width, side, image).T


def _resize_weights(size: int, side: int, like: Tensor) -> Tensor:
    """Return the weights (side, size) of every pixel along one axis: Keys' bicubic kernel, a = -0.5, widened."""
    scale = size / side
    pixels = torch.arange(size, device=like.device, dtype=like.dtype) + 0.5
    centres = (torch.arange(side, device=like.device, dtype=like.dtype) + 0.5) * scale
    wider: float = torch.sym_max(scale, 1.0)  # type: ignore[assignment]
    x = (pixels - centres[:, None]).abs() / wider
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    weights: Tensor = torch.where(x < 1, near, torch.where(x < 2, far, torch.zeros_like(x)))
    return weights / weights.sum(1, keepdim=True)


def resize_macs(input_size: tuple[int, int, int], side: int) -> int:
    """Return the multiply-accumulates of `resize` for one image (C, H, W): filter taps along rows, then columns."""
    channels, height, width = input_size
    return channels * side * (height * _taps(width, side) + side * _taps(height, side))


def _taps(size: int, side: int) -> int:
    """Return how many pixels along one axis make one output pixel; 0 where nothing is resized."""
    return 0 if size == side else 4 * -(-max(size, side) // side)


def scaled_size(size: int, count: int, total: int) -> int:
    """Return a size of the dense network times `count` / `total`; -1 stays -1."""
    return size if size == -1 else size * count // total


def scaled_shape(value: Any, axis: int, count: int, total: int) -> torch.Size:
    """Return a shape, or that of a tensor, with the size along `axis` times `count` / `total`."""
    sizes = list(value.shape if isinstance(value, Tensor) else value)
    sizes[axis] = scaled_size(sizes[axis], count, total)
    return torch.Size(sizes)


def pick(tensor: Tensor, axis: int, index: tuple[int, ...]) -> Tensor:
    """Return the positions `index` along an axis."""
    if tensor.is_meta and max(index) >= tensor.shape[axis]:
        raise RuntimeError("index out of bounds")  # device meta does not check
    return tensor.index_select(axis, torch.tensor(index, device=tensor.device))


def unfold_rows(value: Tensor, image: Tensor) -> Tensor:
    """Give a value with several rows per image, image after image, an axis of images: (B, rows, …)."""
    batch = image.shape[0]  # not len, which fixes the number of images where a level is exported
    return value.reshape(batch, value.shape[0] // torch.sym_max(1, batch), *value.shape[1:])


def fold_rows(value: Tensor) -> Tensor:
    """Undo `unfold_rows`."""
    return value.flatten(0, 1)


def call_with_weights(layer: nn.Module, weights: Mapping[str, Tensor], *values: Any) -> Any:
    """Call a layer with other values in place of some of its weights.

    The layer itself stays as it is, so threads may run different levels at the same time.
    """
    made = copy.copy(layer)
    made.__dict__["_parameters"] = {**layer._parameters, **weights}
    return made(*values)


def low_rank_sum(block: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Add a low-rank correction, rows (R, rank) times columns (rank, C), to a block (R, …) of C numbers a row."""
    return block + (rows @ columns).view_as(block)
