"""What every nested network has in common, whatever its structure: levels, heads, costs.

Everything a level needs flows with the call, in a `State`: the network itself holds weights only, so that
threads may run different levels of one network at the same time.
"""

from __future__ import annotations

import abc
import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, fx, nn
from torch.utils.flop_counter import FlopCounterMode

from hierclass.costs import Cost
from hierclass.errors import LevelError, check_level
from hierclass.nested.heads import make_heads
from hierclass.nested.level_graph import (
    Kept,
    Level,
    bind,
    chain,
    fuse_level,
    graph_from_rows,
    graph_to_rows,
)
from hierclass.nested.masks.module_view import TransientDict


@dataclass
class State:
    """What has been computed for one batch of images (B, 3, H, W).

    `level` is the last level computed, -1 before the first call of `NestedNetwork.refine`. `kept` are tensors with a
    row per image that the next level reads again; only structures that reuse values keep any.
    """

    image: Tensor
    kept: Kept = ()
    level: int = -1

    def take(self, rows: Sequence[int] | Sequence[bool] | Tensor) -> State:
        """Return the state of some of the images: at the indices `rows`, in their order, or where a mask is true."""
        index = torch.as_tensor(rows, device=self.image.device)
        index = index.nonzero()[:, 0] if index.dtype == torch.bool else index.long()
        return State(_rows(self.image, index), tuple(_rows(value, index) for value in self.kept), self.level)

    @staticmethod
    def join(states: Sequence[State]) -> State:
        """Return the state of the images of several states, one after the other.

        Raises:
            LevelError: the states are at different levels.
        """
        if len({state.level for state in states}) != 1:
            raise LevelError(
                f"states at levels {[state.level for state in states]} can't be joined; refine them first"
            )
        kept = tuple(torch.cat(values) for values in zip(*(state.kept for state in states), strict=True))
        return State(torch.cat([state.image for state in states]), kept, states[0].level)


def _rows(value: Tensor, index: Tensor) -> Tensor:
    rows = value[index]
    channels_last = value.ndim == 4 and value.is_contiguous(memory_format=torch.channels_last)
    return rows.contiguous(memory_format=torch.channels_last) if channels_last else rows


class NestedNetwork(nn.Module, abc.ABC):
    """A network of nested levels, with one classifier (head, see `hierclass.nested.heads`) per level.

    Level k computes pooled features (B, num_features[k]), which its head reads. A structure is a subclass: it gives
    a function (image, kept) → (features, kept) per level (`level_functions`), the weights that a level uses
    (`level_tensors`), and networks of lower levels alone (`truncate`, `extract`). Make one with
    `hierclass.nested.nest`.
    """

    structure: ClassVar[str]
    """Its name: slices, prefix, masks or depths."""
    reuses: ClassVar[bool] = False
    """Whether a level is computed from what lower levels have computed; else every level is a run of its own."""

    def __init__(
        self,
        num_features: Sequence[int],
        num_classes: Sequence[int],
        input_size: tuple[int, int, int],
        heads: Sequence[nn.Module] | None = None,
    ):
        """Level k has `num_features[k]` pooled features and `num_classes[k]` classes; `heads` are linear if None."""
        super().__init__()
        self.num_features = tuple(num_features)
        """Number of pooled features that the head of each level reads."""
        self.num_classes = tuple(num_classes)
        self.input_size = input_size
        self.heads = nn.ModuleList(heads) if heads else make_heads(self.num_features, self.num_classes)
        self.known_costs: tuple[Cost, ...] | None = None
        """What `cost` returns without counting, until the network is moved or its precision changes."""

    @property
    def sizes(self) -> tuple[int, ...] | None:
        """Side in pixels at which each level sees the image, whatever its size is; None: as it comes."""
        return None

    @property
    def num_levels(self) -> int:
        """Number of levels; level numbers run from 0 to `num_levels - 1`."""
        return len(self.num_classes)

    def check_level(self, level: int | None) -> int:
        """Return the level, the finest for None; raise `LevelError` if the network does not have it."""
        return check_level(level, self.num_levels)

    @abc.abstractmethod
    def level_functions(self, last: int) -> Sequence[Level]:
        """Return what computes each of levels 0 … `last`, (image, kept) → (features, kept).

        A level is given what the level below it kept; where nothing is reused, `kept` is empty.
        """

    def level_module(self, level: int) -> nn.Module:
        """Return a level of all as a module, (image, kept) → (features, kept), with the weights as they are stored."""
        return _LevelOf(self, level)

    @abc.abstractmethod
    def level_tensors(self, level: int) -> Iterator[tuple[str, Tensor, bool]]:
        """Yield name, value and whether it is trained of every weight and statistic that `level` uses, but heads'."""

    @abc.abstractmethod
    def spoil_above(self, level: int) -> None:
        """Set every weight and statistic that `level` does not use to NaN, in place; heads are left alone."""

    @abc.abstractmethod
    def truncate(self, level: int) -> NestedNetwork:
        """Return a stand-alone network of levels 0 … `level`, with copies of their weights alone."""

    def extract(self, level: int) -> nn.Module:
        """Return the smallest stand-alone module, (B, 3, H, W) → logits (B, num_classes[level]), of a level."""
        return self.truncate(level)

    def forward(self, image: Tensor, level: int | None = None) -> Tensor:
        """Return the logits (B, num_classes[level]) of one level for normalised images (B, 3, H, W).

        Raises:
            LevelError: the network has no such level.
        """
        level = self.check_level(level)
        return self.classify(self.features(image, level), level)

    def forward_all(self, image: Tensor, level: int | None = None) -> list[Tensor]:
        """Return the logits of levels 0 … `level` for images (B, 3, H, W)."""
        return [self.classify(features, k) for k, features in enumerate(self.features_all(image, level))]

    def features(self, image: Tensor, level: int) -> Tensor:
        """Return the pooled features (B, num_features[level]) of one level, computing nothing above it."""
        if self.reuses:
            return self.features_all(image, level)[-1]
        return self.level_functions(level)[level](image, ())[0]

    def features_all(self, image: Tensor, level: int | None = None) -> list[Tensor]:
        """Return the pooled features (B, num_features[k]) of levels k = 0 … `level`."""
        found: list[Tensor] = []
        kept: Kept = ()
        for run in self.level_functions(self.check_level(level)):
            features, kept = run(image, kept)
            found.append(features)
        return found

    def classify(self, features: Tensor, level: int) -> Tensor:
        """Return the logits (B, num_classes[level]) for the pooled features (B, num_features[level])."""
        logits: Tensor = self.heads[level](features)
        return logits

    def start(self, image: Tensor) -> State:
        """Return the state of a batch (B, 3, H, W) of which nothing has been computed yet."""
        return State(image)

    def refine(self, state: State, level: int | None = None) -> Tensor:
        """Compute the next level, or a given higher one, reusing what the structure can, and return its logits.

        The state is changed: it now holds the level that was computed.

        Raises:
            LevelError: the state is at the last level already, or at the given one or above.
        """
        level = self.next_level(state, level)
        functions = self.level_functions(self.num_levels - 1)
        for run in functions[state.level + 1 if self.reuses else level : level + 1]:
            features, state.kept = run(state.image, state.kept)
        state.level = level
        return self.classify(features, level)

    def next_level(self, state: State, level: int | None) -> int:
        """Return the level that `refine` is to compute; raise LevelError if there is none."""
        if level is not None and level <= state.level:
            raise LevelError(f"level {level} can't be computed: the state is at level {state.level} already")
        return self.check_level(state.level + 1 if level is None else level)

    def train_progress(self, progress: float) -> None:
        """Update training progress (0 to 1), before every update of training; `masks` prunes by it."""

    def for_inference(self, level: int) -> Callable[[Tensor], Tensor]:
        """Return what computes the features of a level from images where it is used, not trained."""
        return lambda image: self.features(image, level)

    def fused(self) -> NestedNetwork:
        """Return a copy for inference only, in evaluation mode, that gives the same logits up to rounding.

        Where levels are graphs, every batch norm that alone reads a convolution is folded into its weights, layers that
        do nothing in evaluation mode are left out, and activations overwrite what nothing else reads. Train and
        truncate the network that it was made of.
        """
        return copy.deepcopy(self).eval()

    def cost(self, level: int) -> Cost:
        """Return what `level` costs for one image of `input_size`: what is known, else counted by running it once."""
        level = self.check_level(level)
        return self._count_cost(level) if self.known_costs is None else self.known_costs[level]

    def _count_cost(self, level: int) -> Cost:
        image = torch.zeros(1, *self.input_size).to(next(self.parameters()))
        with evaluating(self), _frozen(self), torch.no_grad():
            level_alone = self.for_inference(level)
            with FlopCounterMode(display=False) as counter:
                self.classify(level_alone(image), level)
        held = [(value, trained) for _, value, trained in self.level_tensors(level)]
        held += [(value, True) for value in self.heads[: level + 1].parameters()]
        return Cost(
            macs=counter.get_total_flops() // 2,
            parameters=sum(value.numel() for value, trained in held if trained),
            bytes=sum(value.numel() * value.element_size() for value, _ in held),
        )

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Self:
        self.known_costs = None
        applied: Self = super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return applied

    def stored(self) -> dict[str, Tensor]:
        """Return what a checkpoint holds of the network: name → tensor; `load_stored` reads it."""
        return {
            name: value.detach()
            for name, value in self.state_dict().items()
            if not name.endswith("num_batches_tracked")
        }

    def load_stored(self, tensors: dict[str, Tensor]) -> None:
        """Take over what `stored` gave, floating-point numbers of any precision.

        Raises:
            ValueError: the tensors do not fit this network.
        """
        own = self.state_dict()
        wanted = {name for name in own if not name.endswith("num_batches_tracked")}
        wrong = sorted(wanted ^ tensors.keys()) or sorted(
            name for name in wanted if own[name].shape != tensors[name].shape
        )
        if wrong:
            raise ValueError(f"{len(wrong)} tensors differ, the first is {wrong[0]}")
        self.load_state_dict(tensors, strict=False)


class _LevelOf(nn.Module):
    """One level of a network that is no module by itself."""

    def __init__(self, network: NestedNetwork, level: int):
        super().__init__()
        self.network = network
        self._run = network.level_functions(network.num_levels - 1)[level]

    def forward(self, image: Tensor, kept: Kept) -> tuple[Tensor, Kept]:
        return self._run(image, kept)


class GraphNetwork(NestedNetwork):
    """A network whose levels are graphs over its layers and weights, which they name by their place in the network."""

    def __init__(
        self,
        graphs: Sequence[fx.Graph],
        num_features: Sequence[int],
        num_classes: Sequence[int],
        input_size: tuple[int, int, int],
    ):
        """`graphs[k]` computes level k from an image and what the graph before it kept."""
        super().__init__(num_features, num_classes, input_size)
        self.graphs = tuple(graphs)
        self._bound = TransientDict()

    def level_functions(self, last: int) -> Sequence[Level]:
        """Return what computes levels 0 … `last`; see `level_modules`."""
        return [module.forward for module in self.level_modules(last)]

    def level_modules(self, last: int) -> list[fx.GraphModule]:
        """Return the graphs of levels 0 … `last`, without what they keep for levels above `last` alone."""
        key = last if self.reuses else self.num_levels - 1
        found: list[fx.GraphModule] | None = self._bound.get(key)
        if found is None:
            graphs = chain(self.graphs[: last + 1]) if self.reuses else self.graphs
            found = [bind(graph, self._parts_of(level)) for level, graph in enumerate(graphs)]
            self._bound[key] = found
        return found[: last + 1]

    def level_module(self, level: int) -> fx.GraphModule:
        """Return the graph of a level."""
        return self.level_modules(self.num_levels - 1)[level]

    def _parts_of(self, level: int) -> dict[str, nn.Module]:
        """Return the modules, by name, that the graph of a level names."""
        return {name: part for name, part in self.named_children() if name != "heads"}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "graphs": [graph_to_rows(graph) for graph in self.graphs]}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__({**state, "graphs": tuple(map(graph_from_rows, state["graphs"]))})  # type: ignore[no-untyped-call]

    def fused(self) -> FusedNetwork:
        """Return a copy for inference only; see `NestedNetwork.fused`."""
        return FusedNetwork(self)

    def standalone(self, level: int) -> fx.GraphModule:
        """Return the module of a level's graph, with copies of the weights that it uses."""
        return copy.deepcopy(fx.GraphModule(self, self.graphs[level], "Level"))


class FusedNetwork(GraphNetwork):
    """A network for inference, whose levels are graphs with weights of their own, fused."""

    def __init__(self, network: GraphNetwork):
        """Copy and fuse every level of `network`."""
        fused = [fuse_level(network.standalone(level)) for level in range(network.num_levels)]
        super().__init__(
            [level.graph for level in fused], network.num_features, network.num_classes, network.input_size
        )
        self.structure, self.reuses = network.structure, network.reuses  # type: ignore[misc]
        self.heads = copy.deepcopy(network.heads)
        self.levels = nn.ModuleList(nn.ModuleDict(dict(level.named_children())) for level in fused)
        self.to(next(network.parameters()).device).eval()

    def _parts_of(self, level: int) -> dict[str, nn.Module]:
        return dict(self.levels[level].named_children())

    def fused(self) -> FusedNetwork:
        """Return a copy."""
        return copy.deepcopy(self)

    def level_tensors(self, level: int) -> Iterator[tuple[str, Tensor, bool]]:
        """Yield what the copies of the level hold, and those of the levels that it reuses."""
        for used in self.levels[0 if self.reuses else level : level + 1]:
            yield from ((name, value, True) for name, value in used.named_parameters())
            yield from ((name, value, False) for name, value in used.named_buffers())

    def spoil_above(self, level: int) -> None:
        """Set the copies of higher levels to NaN."""
        for value in self.levels[level + 1 :].parameters():
            value.data.fill_(torch.nan)

    def truncate(self, level: int) -> NestedNetwork:
        """Refuse: a fused network holds no levels that could be trained."""
        raise LevelError("a fused network can't be truncated; truncate the network it was made of")


@contextlib.contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Hold a module in evaluation mode, then give every part of it back the mode it had."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


@contextlib.contextmanager
def _frozen(module: nn.Module) -> Iterator[None]:
    """Hold all weights fixed: torch's counter trips over weights that code uses outside layers."""
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    try:
        for parameter in trained:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
