"""From a backbone to a nested network."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from hierclass.errors import BackboneError
from hierclass.nested.blocks import check_depths
from hierclass.nested.network import NestedNetwork, evaluating
from hierclass.nested.proof import prove
from hierclass.nested.structures import Wanted, find_structure

DEFAULT_SHARES = (0.25, 0.5, 1.0)
"""Of channels, blocks or weights, for the levels 0, 1, 2."""


def nest(
    backbone: nn.Module,
    *,
    structure: str = "slices",
    widths: Sequence[float] | None = None,
    depths: Sequence[float] | None = None,
    densities: Sequence[float] | None = None,
    order: str = "given",
    num_classes: Sequence[int],
    input_size: tuple[int, int, int] = (3, 64, 64),
) -> NestedNetwork:
    """Cut a backbone into nested levels and prove that they are nested.

    `structure` says how levels are nested: "slices", "prefix", "masks" or "depths". Each of the following has one
    value per level, strictly rising (`depths` may also stay equal) in (0, 1]: `widths` the share of every layer's
    channels that a level sees (slices, prefix; the last is 1), `depths` the share of the residual blocks of every
    stage that it runs (depths; may be added to the others; the last is 1), `densities` the share of the weights
    that it uses (masks). None takes 0.25, 0.5, 1 where the structure needs it. `order` "importance" deals the
    channels with the largest weights to the lowest levels (slices; for pretrained weights), "given" keeps their
    order.
    `num_classes[k]` is the number of classes of level k's head; `input_size` (C, H, W) the image that costs and
    the proof refer to. The weights of `backbone` are copied; `backbone` stays as it is.

    Raises:
        BackboneError: the shares do not fit, or a layer can't be cut (the message names its path and type).
    """
    kind = find_structure(structure)
    shares = {"widths": widths, "depths": depths, "densities": densities}[kind.shares] or DEFAULT_SHARES
    _check_arguments(structure, widths, depths, densities, order, shares, num_classes)
    wanted = Wanted(backbone, tuple(shares), depths, order, tuple(num_classes), input_size)
    with evaluating(backbone):
        network = kind.make(wanted)
    network.heads.to(next(backbone.parameters()))
    prove(network)
    return network.train(backbone.training)


def _check_arguments(
    structure: str,
    widths: Sequence[float] | None,
    depths: Sequence[float] | None,
    densities: Sequence[float] | None,
    order: str,
    shares: Sequence[float],
    num_classes: Sequence[int],
) -> None:
    takes = find_structure(structure).takes
    given = {"widths": widths, "depths": depths, "densities": densities}
    for name, value in given.items():
        if value is not None and name not in takes:
            raise BackboneError(f"structure {structure!r} takes {' and '.join(takes)}, not {name}")
    if order not in ("given", "importance") or (order != "given" and structure != "slices"):
        raise BackboneError(f"order {order!r} does not fit; it is 'given' or, for slices, 'importance'")
    if len(num_classes) != len(shares) or min(num_classes, default=0) < 1:
        raise BackboneError(
            f"{len(shares)} {takes[0]} need {len(shares)} class counts of at least 1, not {list(num_classes)}"
        )
    if depths is not None and len(check_depths(depths)) != len(shares):
        raise BackboneError(f"{len(shares)} {takes[0]} need {len(shares)} depths, not {list(depths)}")
