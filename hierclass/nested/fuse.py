"""A network made ready for inference: fewer, equal operations."""

from __future__ import annotations

import copy

from hierclass.nested.masks import MaskedNetwork
from hierclass.nested.network import FusedNetwork, GraphNetwork, NestedNetwork


def fuse(network: NestedNetwork) -> NestedNetwork:
    """Return a copy for inference only, in evaluation mode, that gives the same logits up to rounding.

    Every batch norm that alone reads a convolution is folded into its weights, slice by slice, so that levels stay
    nested; layers that do nothing in evaluation mode are left out; activations overwrite what nothing else reads.
    """
    if isinstance(network, GraphNetwork):
        return FusedNetwork(network)
    return network.plain() if isinstance(network, MaskedNetwork) else copy.deepcopy(network).eval()
