"""The nested network: runs any level directly, all levels at once, or refines one level to the next.

Everything a level needs flows with the call, in a `State`: the network itself holds weights only, so that
threads may run different levels of one network at the same time.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from hierclass.errors import LevelError
from hierclass.nested.boundaries import Boundaries
from hierclass.nested.graph import Graph, Step

IMAGE = 0
"""Index of the value that is the image itself."""


@dataclass(frozen=True)
class Cost:
    """What one level costs for one image, everything below it included."""

    macs: int
    """Multiply-accumulates of convolutions and linear layers, counted while they run."""
    parameters: int
    """Number of weights that the level uses."""
    bytes: int
    """Memory of those weights and of the normalisation statistics, as they are held now."""


@dataclass
class State:
    """What has been computed for one batch of images (B, 3, H, W).

    `level` is -1 before the first call of `NestedNetwork.refine`; `prefixes` holds slices 0 … level of every
    value that the next level reads again.
    """

    image: Tensor
    prefixes: dict[int, Tensor] = field(default_factory=dict)
    level: int = -1
    features: Tensor | None = None
    """Pooled features (B, num_features[level]) of the last level computed."""


class NestedNetwork(nn.Module):
    """A backbone cut into nested levels, with one linear classifier (head) per level.

    Level k computes slices 0 … k of every layer; its head reads the pooled features of those slices. Make one
    with `hierclass.nested.nest`.
    """

    def __init__(self, graph: Graph, num_classes: Sequence[int], input_size: tuple[int, int, int]):
        """`graph` comes from `read_graph`; `num_classes[k]` is the number of classes of level k."""
        super().__init__()
        self.steps: tuple[Step, ...] = graph.steps
        self.boundaries: tuple[Boundaries, ...] = graph.boundaries
        self.num_classes = tuple(num_classes)
        self.input_size = input_size
        self.layers = nn.ModuleDict({name: nn.ModuleList(parts) for name, parts in graph.layers.items()})
        self.heads = nn.ModuleList(
            nn.Linear(features, classes)
            for features, classes in zip(self.num_features, self.num_classes, strict=True)
        )
        self._plan()

    def _plan(self) -> None:
        """Note after which step a value is read no more."""
        last_reader = {i: index for index, step in enumerate(self.steps) for i in step.inputs}
        self._done_after: list[tuple[int, ...]] = [
            tuple(i for i, last in last_reader.items() if last == index) for index in range(len(self.steps))
        ]

    @property
    def num_levels(self) -> int:
        """Number of levels; level numbers run from 0 to `num_levels - 1`."""
        return len(self.num_classes)

    @property
    def num_features(self) -> tuple[int, ...]:
        """Number of pooled features that the head of each level reads."""
        return self.boundaries[self.steps[-1].output]

    def check_level(self, level: int | None) -> int:
        """Return the level, the finest for None; raise `LevelError` if the network does not have it."""
        if level is None:
            return self.num_levels - 1
        if isinstance(level, bool) or not isinstance(level, int) or not 0 <= level < self.num_levels:
            raise LevelError(
                f"level {level} does not exist; this model has levels 0 to {self.num_levels - 1}"
            )
        return level

    def forward(self, image: Tensor, level: int | None = None) -> Tensor:
        """Return the logits (B, num_classes[level]) of one level for normalised images (B, 3, H, W).

        Raises:
            LevelError: the network has no such level.
        """
        level = self.check_level(level)
        return self.classify(self._run(self.start(image), level, keep=False)[-1], level)

    def forward_all(self, image: Tensor, level: int | None = None) -> list[Tensor]:
        """Return the logits of levels 0 … `level` from one pass over images (B, 3, H, W)."""
        return [self.classify(features, k) for k, features in enumerate(self.features_all(image, level))]

    def features_all(self, image: Tensor, level: int | None = None) -> list[Tensor]:
        """Return the pooled features (B, num_features[k]) of levels k = 0 … `level` from one pass."""
        return self._run(self.start(image), self.check_level(level), keep=False)

    def classify(self, features: Tensor, level: int) -> Tensor:
        """Return the logits (B, num_classes[level]) for the pooled features (B, num_features[level])."""
        logits: Tensor = self.heads[level](features)
        return logits

    def start(self, image: Tensor) -> State:
        """Return the state of a batch (B, 3, H, W) of which nothing has been computed yet."""
        return State(image)

    def refine(self, state: State) -> Tensor:
        """Compute the slices of the next level only, and return its logits (B, num_classes[state.level]).

        The state is changed: it now holds the level that was computed.

        Raises:
            LevelError: the state is at the last level already.
        """
        level = self.check_level(state.level + 1)
        return self.classify(self._run(state, level, keep=level < self.num_levels - 1)[-1], level)

    def extract(self, level: int) -> NestedNetwork:
        """Return a stand-alone network of levels 0 … `level`, with copies of their weights alone."""
        keep = self.check_level(level) + 1
        graph = Graph(
            self.steps,
            tuple(cuts[:keep] for cuts in self.boundaries),
            {step.name: [copy.deepcopy(part) for part in self._parts(step)[:keep]] for step in self.steps},
        )
        network = NestedNetwork(graph, self.num_classes[:keep], self.input_size)
        network.heads.load_state_dict(
            {key: value for key, value in self.heads.state_dict().items() if int(key.split(".")[0]) < keep}
        )
        return network.train(self.training).to(next(self.parameters()))

    def slice_parameters(self, level: int) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield name and value of every weight that `level` adds to the level below."""
        for name, parameter in self.named_parameters():
            if level_of(name) == level:
                yield name, parameter

    def cost(self, level: int) -> Cost:
        """Count what `level` costs for one image of `input_size`, by running it once."""
        level = self.check_level(level)
        image = torch.zeros(1, *self.input_size).to(next(self.parameters()))
        with evaluating(self), FlopCounterMode(display=False) as counter, torch.no_grad():
            self(image, level)
        used = [value for name, value in self.named_parameters() if level_of(name) <= level]
        held = used + [value for name, value in self.named_buffers() if level_of(name) <= level]
        return Cost(
            macs=counter.get_total_flops() // 2,
            parameters=sum(value.numel() for value in used),
            bytes=sum(value.numel() * value.element_size() for value in held),
        )

    def _parts(self, step: Step) -> list[nn.Module]:
        parts = self.layers[step.name]
        assert isinstance(parts, nn.ModuleList)
        return list(parts)

    def _run(self, state: State, level: int, *, keep: bool) -> list[Tensor]:
        """Compute the slices of levels `state.level + 1` … `level`, step by step; return their features.

        With `keep`, `state` can be refined afterwards; without, values go as soon as nothing reads them.
        """
        first = state.level + 1
        # Level 0 sees the whole image: the slices that higher levels add to it are empty.
        fresh = {IMAGE: [state.image if k == 0 else state.image[:, :0] for k in range(first, level + 1)]}
        grown: dict[int, list[Tensor]] = {}
        for index, step in enumerate(self.steps):
            source = step.inputs[0]
            if step.reads == "prefix" and source not in grown:
                grown[source] = _grow(state.prefixes.pop(source, None), fresh[source])
                if keep:
                    state.prefixes[source] = grown[source][-1]
            parts = self._parts(step)
            fresh[step.output] = [
                parts[k](grown[source][k - first])
                if step.reads == "prefix"
                else parts[k](*(fresh[i][k - first] for i in step.inputs))
                for k in range(first, level + 1)
            ]
            for value in self._done_after[index]:
                fresh.pop(value, None)
                grown.pop(value, None)
        features = _grow(state.features, fresh[self.steps[-1].output])
        state.level, state.features = level, features[-1]
        return features


def _grow(prefix: Tensor | None, slices: Sequence[Tensor]) -> list[Tensor]:
    """Append slices to a prefix one by one along the channels; return every prefix on the way."""
    prefixes: list[Tensor] = []
    for new in slices:
        if prefix is None:
            prefix = new
        elif new.shape[1]:
            prefix = torch.cat((prefix, new), 1)
        prefixes.append(prefix)
    return prefixes


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


def level_of(name: str) -> int:
    """Return the level that a parameter or buffer belongs to, from its name in the network."""
    parts = name.split(".")
    return int(parts[1] if parts[0] == "heads" else parts[2])
