"""Residual blocks of a traced backbone: what a level may leave out and still pass its values on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, fx, nn

from hierclass.errors import BackboneError
from hierclass.nested.analysis.channel_groups import SHARED, Boundaries, compact
from hierclass.nested.analysis.layer_rules import ALIKE
from hierclass.nested.analysis.op_rules import function_name
from hierclass.nested.analysis.partition import Analysis, assign_levels

PASSED_THROUGH = frozenset(
    "add relu relu6 gelu silu hardswish reshape view flatten unflatten permute transpose contiguous".split()  # noqa: SIM905
)
"""Functions through which a sum is followed back to what was added."""


@dataclass(frozen=True)
class ResidualBlock:
    """A residual block: `nodes` compute `output` from `source`, to which they add it."""

    path: str
    source: fx.Node
    output: fx.Node
    nodes: frozenset[fx.Node]
    born: int
    """The lowest level that runs it; 0 where every level does."""


def check_depths(depths: Sequence[float]) -> tuple[float, ...]:
    """Return the depths as a tuple; raise `BackboneError` unless they rise to 1 (levels may have equal ones)."""
    depths = tuple(float(depth) for depth in depths)
    if not depths or list(depths) != sorted(depths) or depths[0] <= 0 or depths[-1] != 1:
        raise BackboneError(
            f"depths {list(depths)} do not fit; give one share of the blocks per level, rising to 1, like 0.5,0.75,1"
        )
    return depths


def first_blocks(count: int, depths: Sequence[float]) -> Boundaries:
    """Return how many of a stage's `count` blocks each level runs: its share, rounded, and at least one."""
    return tuple(max(1, math.floor(depth * count + 0.5)) for depth in depths)


def schedule(analysis: Analysis, depths: Sequence[float]) -> list[ResidualBlock]:
    """Return the residual blocks that some level leaves out, each with the lowest level that runs it.

    Raises:
        BackboneError: no stage has a block that can be left out.
    """
    blocks: list[ResidualBlock] = []
    for stage in find_stages(analysis):
        ends = first_blocks(len(stage), depths)
        for number, block in enumerate(stage):
            born = next(level for level, end in enumerate(ends) if number < end)
            if block is not None and born:
                blocks.append(ResidualBlock(block.path, block.source, block.output, block.nodes, born))
    if not blocks and depths[0] < 1:
        raise BackboneError(
            "no stage has a residual block that a level could leave out; use a deeper backbone, or leave depths out"
        )
    return blocks


def delay(analysis: Analysis, blocks: Sequence[ResidualBlock], widths: Sequence[float]) -> None:
    """Assign channels inside of blocks anew: levels below the first that runs a block get none of its channels.

    Levels below run nothing of the block. What it adds to their slices is left out at every level, so that slices
    stay the same numbers.
    """
    channels = analysis.channels
    levels = channels.levels(widths)
    label = channels.classes()
    outside = np.zeros(channels.count, bool)
    members = {node: block for block in blocks for node in block.nodes}
    made = {node: _made_ids(node, analysis) for node in analysis.nodes}
    for node, ids in made.items():
        if node not in members:
            outside[label[ids]] = True
    for node, ids in made.items():
        if node in members:
            inside = ids[~outside[label[ids]]]
            levels[inside] = np.where(
                levels[inside] == SHARED, SHARED, np.maximum(levels[inside], members[node].born)
            )
    assign_levels(analysis, levels)


def _made_ids(node: fx.Node, analysis: Analysis) -> NDArray[np.int64]:
    """Return the ids that begin at a node: new channels of a layer, or those of a parameter."""
    found = analysis.flows.get(node)
    fresh = found is not None and found.reads == "prefix"
    ids = analysis.values[node].ids if fresh or node.op == "get_attr" else None
    if not isinstance(ids, Tensor):
        return np.zeros(0, np.int64)
    known: NDArray[np.int64] = np.unique(compact(ids).numpy())
    return known[known > 0]


def find_stages(analysis: Analysis) -> list[list[ResidualBlock | None]]:
    """Return the blocks of every stage in order; None for a block that changes what it adds to, which all levels run.

    A stage is a module with residual blocks one behind the other; of nested stages the innermost counts.
    """
    inside: dict[str, list[fx.Node]] = {}
    for node in analysis.nodes:
        for path in _paths(node):
            inside.setdefault(path, []).append(node)
    stages: dict[str, list[ResidualBlock | None]] = {}
    for path, module in analysis.trace.skeleton.named_modules():
        if not path:
            continue  # the parts of a backbone are its stages, not blocks of one
        children = {f"{path}.{name}": child for name, child in module.named_children()}
        blocks = {p: _residual_block(p, inside[p], analysis) for p in children if p in inside}
        kinds = {type(children[p]) for p, block in blocks.items() if block}
        if not isinstance(module, (nn.Sequential, nn.ModuleList)):
            blocks = {p: block for p, block in blocks.items() if type(children[p]) in kinds}
        if len(blocks) > 1 and any(blocks.values()):
            stages[path] = list(blocks.values())
    return [
        stage for path, stage in stages.items() if not any(other.startswith(f"{path}.") for other in stages)
    ]


def _residual_block(path: str, nodes: list[fx.Node], analysis: Analysis) -> ResidualBlock | None:
    """Return the block at a path if its one result is its input plus something, else None."""
    members = frozenset(nodes)
    results = [node for node in nodes if any(user not in members for user in node.users)]
    results = [node for node in results if isinstance(analysis.values[node].meta, Tensor)]
    if len(results) != 1 or not any(function_name(node.target) in ("add", "iadd") for node in nodes):
        return None
    source = _added_to(results[0], members)
    if source is None or analysis.values[source].meta.shape != analysis.values[results[0]].meta.shape:
        return None
    return ResidualBlock(path, source, results[0], members, 0)


def _added_to(node: fx.Node, members: frozenset[fx.Node]) -> fx.Node | None:
    """Follow sums and activations from a block's result back to the value from outside that is added."""
    if node not in members:
        return node
    name = function_name(node.target)
    if node.op == "call_module":
        layer = node.graph.owning_module.get_submodule(str(node.target)) if node.graph.owning_module else None
        if layer is not None and not isinstance(layer, ALIKE):
            return None
    elif name not in PASSED_THROUGH:
        return None
    for argument in node.args[:2]:
        if isinstance(argument, fx.Node) and (found := _added_to(argument, members)) is not None:
            return found
    return None


def _paths(node: fx.Node) -> list[str]:
    """Return the paths of the modules in whose forward a node was traced, and its own if it calls a layer."""
    paths = [str(path) for path, _ in (node.meta.get("nn_module_stack") or {}).values()]
    return [*paths, str(node.target)] if node.op == "call_module" else paths
