"""Structure `slices`: each level adds a slice of channels to every layer, and reuses what lower levels computed."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from hierclass.nested.level_graph import chain
from hierclass.nested.lowering import Lowered
from hierclass.nested.network import GraphNetwork


class SlicedNetwork(GraphNetwork):
    """Level k computes slices 0 … k of every layer; slices below the last are the same numbers at every level.

    Source: the block-triangular pattern of Lee & Shin 2018 (slicing networks vertically); channel scheduling
    of NestedNet (Kim et al. 2018).
    """

    structure = "slices"
    reuses = True

    def __init__(self, lowered: Lowered, num_classes: Sequence[int], input_size: tuple[int, int, int]):
        """Hold the graphs and layers of `lower`; `num_classes[k]` is the number of classes of level k."""
        super().__init__(lowered.graphs, lowered.num_features, num_classes, input_size)
        self.layers = nn.ModuleDict({name: nn.ModuleList(parts) for name, parts in lowered.layers.items()})

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
            name: [copy.deepcopy(part) for part in list(parts)[:keep]]  # type: ignore[call-overload]
            for name, parts in self.layers.items()
        }
        lowered = Lowered(tuple(chain(self.graphs[:keep])), layers, self.num_features[:keep])
        network = SlicedNetwork(lowered, self.num_classes[:keep], self.input_size)
        network.heads = copy.deepcopy(self.heads[:keep])
        return network.train(self.training).to(next(self.parameters()))


def level_of(name: str) -> int:
    """Return the level that a parameter or buffer belongs to, from its name in the network."""
    parts = name.split(".")
    return int(parts[1] if parts[0] == "heads" else parts[2])
