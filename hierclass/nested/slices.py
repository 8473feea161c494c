"""Structure `slices`: each level adds a slice of channels to every layer, and reuses all that is computed below."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hierclass.nested.network import NestedNetwork, State
from hierclass.nested.program import Program, Step

IMAGE = 0
"""Index of the value that is the image itself."""


class SlicedNetwork(NestedNetwork):
    """Level k computes slices 0 … k of every layer; slices below the last are the same numbers at every level.

    Source: the block-triangular pattern of Lee & Shin 2018 (slicing networks vertically); channel scheduling
    of NestedNet (Kim et al. 2018).
    """

    structure = "slices"
    reuses = True

    def __init__(self, program: Program, num_classes: Sequence[int], input_size: tuple[int, int, int]):
        """`program` comes from `write_program`; `num_classes[k]` is the number of classes of level k."""
        super().__init__(program.num_features, num_classes, input_size)
        self.steps: tuple[Step, ...] = program.steps
        self.layers = nn.ModuleDict({name: nn.ModuleList(parts) for name, parts in program.layers.items()})
        self._shared = frozenset((IMAGE, *(step.output for step in self.steps if step.reads == "shared")))
        # Note after which step a value is read no more.
        last_reader = {i: index for index, step in enumerate(self.steps) for i in step.inputs}
        self._done_after: list[tuple[int, ...]] = [
            tuple(i for i, last in last_reader.items() if last == index) for index in range(len(self.steps))
        ]

    def features(self, image: Tensor, level: int) -> Tensor:
        """Return the pooled features (B, num_features[level]) of one level, computing nothing above it."""
        return self._run(self.start(image), level, keep=False)[-1]

    def features_all(self, image: Tensor, level: int | None = None) -> list[Tensor]:
        """Return the pooled features (B, num_features[k]) of levels k = 0 … `level` from one pass."""
        return self._run(self.start(image), self.check_level(level), keep=False)

    def refine(self, state: State, level: int | None = None) -> Tensor:
        """Compute only the slices up to the next level, or a given higher one; return its logits.

        Raises:
            LevelError: the state is at the last level already, or at the given one or above.
        """
        level = self.next_level(state, level)
        return self.classify(self._run(state, level, keep=level < self.num_levels - 1)[-1], level)

    def level_tensors(self, level: int) -> Iterator[tuple[str, Tensor, bool]]:
        """Yield name, value and whether it is trained of every weight and statistic up to `level`."""
        for name, weight in self.layers.named_parameters(prefix="layers"):
            if level_of(name) <= level:
                yield name, weight, True
        for name, value in self.layers.named_buffers(prefix="layers"):
            if level_of(name) <= level:
                yield name, value, False

    def spoil_above(self, level: int) -> None:
        """Set every weight and statistic of a higher slice to NaN."""
        for name, value in self.layers.state_dict(prefix="layers.").items():
            if level_of(name) > level and value.is_floating_point():
                value.fill_(torch.nan)

    def truncate(self, level: int) -> SlicedNetwork:
        """Return a stand-alone network of levels 0 … `level`, with copies of their weights alone."""
        keep = self.check_level(level) + 1
        layers = {
            step.name: [copy.deepcopy(part) for part in self._parts(step)[:keep]] for step in self.steps
        }
        program = Program(self.steps, layers, self.num_features[:keep])
        network = SlicedNetwork(program, self.num_classes[:keep], self.input_size)
        network.heads = copy.deepcopy(self.heads[:keep])
        return network.train(self.training).to(next(self.parameters()))

    def slice_parameters(self, level: int) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield name and value of every weight that `level` adds to the level below."""
        for name, parameter in self.named_parameters():
            if level_of(name) == level:
                yield name, parameter

    def _parts(self, step: Step) -> list[nn.Module]:
        parts = self.layers[step.name]
        assert isinstance(parts, nn.ModuleList)
        return list(parts)

    def _run(self, state: State, level: int, *, keep: bool) -> list[Tensor]:
        """Compute the slices of levels `state.level + 1` … `level`, step by step; return their features.

        With `keep`, `state` can be refined afterwards; without, values go as soon as nothing reads them.
        """
        first = state.level + 1
        levels = range(first, level + 1)
        shared = state.shared
        shared[IMAGE] = state.image
        fresh: dict[int, list[Any]] = {}
        grown: dict[int, list[Any]] = {}
        for index, step in enumerate(self.steps):
            parts = self._parts(step)
            if level < step.born and not keep and step.reads != "shared":
                fresh[step.output] = [None for _ in levels]
            elif step.reads == "shared":
                if step.output not in shared and level >= step.born:
                    at = step.born - first
                    values = [shared.get(i) if i in self._shared else fresh[i][at] for i in step.inputs]
                    if all(value is not None for value in values):  # else part of a block not run yet
                        shared[step.output] = parts[0](*values)
            elif step.reads == "prefix" and step.inputs[0] not in self._shared:
                source = step.inputs[0]
                if source not in grown:
                    grown[source] = _grow(state.prefixes.pop(source, None), fresh[source], step.axis)
                    if keep:
                        state.prefixes[source] = grown[source][-1]
                fresh[step.output] = [parts[k](grown[source][k - first]) for k in levels]
            else:
                fresh[step.output] = [
                    parts[k](
                        *(shared.get(i) if i in self._shared else fresh[i][k - first] for i in step.inputs)
                    )
                    for k in levels
                ]
            for value in self._done_after[index]:
                fresh.pop(value, None)
                grown.pop(value, None)
                if not keep and value != IMAGE:
                    shared.pop(value, None)
        features = _grow(state.features, fresh[self.steps[-1].output], 1)
        state.level, state.features = level, features[-1]
        return features


def _grow(prefix: Tensor | None, slices: Sequence[Tensor | None], axis: int) -> list[Any]:
    """Append slices to a prefix one by one along the channels; return every prefix on the way."""
    prefixes: list[Tensor | None] = []
    for new in slices:
        if prefix is None:
            prefix = new
        elif new is not None:
            prefix = torch.cat((prefix, new), axis)
        prefixes.append(prefix)
    return prefixes


def level_of(name: str) -> int:
    """Return the level that a parameter or buffer belongs to, from its name in the network."""
    parts = name.split(".")
    return int(parts[1] if parts[0] == "heads" else parts[2])
