"""From a backbone to a nested network."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence

from torch import nn

from hierclass.errors import BackboneError
from hierclass.nested.backbone import check_image
from hierclass.nested.blocks import check_depths
from hierclass.nested.heads import Groups, make_heads
from hierclass.nested.network import NestedNetwork, evaluating
from hierclass.nested.proof import prove
from hierclass.nested.structures import Wanted, find_structure

NOT_CUT = "can't be cut into levels"
"""In what a layer is refused with that has no rule, whatever the image."""
DEFAULT_SHARES = (0.25, 0.5, 1.0)
"""Of channels, blocks or weights, for the levels 0, 1, 2."""


def default_shares(num_levels: int) -> tuple[float, ...]:
    """The shares of channels, blocks or weights for a number of levels where none are given.

    Each level has half of the next one's; where that would leave level 0 less than an eighth, the levels between an
    eighth and 1 grow by equal factors: (1,), (0.5, 1), (0.25, 0.5, 1), (0.125, 0.25, 0.5, 1), (0.125, 0.21, …, 1).
    """
    if num_levels <= 4:
        return tuple(0.5**above for above in range(num_levels - 1, -1, -1))
    return tuple(round(0.125 ** (above / (num_levels - 1)), 4) for above in range(num_levels - 1, -1, -1))


def nest(
    backbone: nn.Module,
    *,
    structure: str = "slices",
    widths: Iterable[float] | None = None,
    depths: Iterable[float] | None = None,
    densities: Iterable[float] | None = None,
    order: str = "given",
    num_classes: Iterable[int],
    groups: Sequence[Groups | None] | None = None,
    input_size: Iterable[int] = (3, 64, 64),
    warn: bool = True,
) -> NestedNetwork:
    """Cut a backbone into nested levels and prove that they are nested.

    `structure` says how levels are nested: "slices", "prefix", "masks" or "depths". Each of the following has one
    value per level, strictly rising (`depths` may also stay equal) in (0, 1]: `widths` the share of every layer's
    channels that a level sees (slices, prefix; the last is 1), `depths` the share of the residual blocks of every
    stage that it runs (depths; may be added to the others; the last is 1), `densities` the share of the weights
    that it uses (masks). None takes `default_shares` where the structure needs it. `order` "importance" deals the
    channels with the largest weights to the lowest levels (slices; for pretrained weights), "given" keeps their
    order.
    `num_classes[k]` is the number of classes of level k's head. With `groups[k]` that head scores finer classes, of
    which the i-th belongs to class `groups[k][i]`, and sums them up; None: it scores its own.
    `input_size` (C, H, W) is the image that costs and the proof refer to. `warn` logs which levels run the same blocks
    though their depths differ (depths, in stages of few blocks). The weights of `backbone` are copied; `backbone`
    stays as it is.

    Raises:
        BackboneError: the numbers do not fit, the backbone does not take such images, or a layer can't be cut (the
            message names its path and type).
    """
    kind = find_structure(structure)
    given = {"widths": _shares("widths", widths), "depths": _shares("depths", depths)}
    given["densities"] = _shares("densities", densities)
    classes, size = (
        _counts("num_classes", num_classes, "2,5,12"),
        _counts("input_size", input_size, "3,64,64"),
    )
    if len(size) != 3:
        raise BackboneError(f"input_size {size} is no (channels, height, width); give one like (3, 64, 64)")
    shares = given[kind.shares]
    shares = default_shares(len(classes)) if shares is None else shares
    _check_arguments(structure, given, order, shares, classes)
    wanted = Wanted(backbone, shares, given["depths"], order, classes, (size[0], size[1], size[2]), warn)
    with evaluating(backbone):
        backbone.train().eval()  # models that keep what they computed from their weights let go of it
        try:
            network = kind.make(wanted)
        except Exception as error:
            if NOT_CUT not in str(error):
                check_image(backbone, wanted.input_size)
            raise
    if groups is not None:
        network.heads = make_heads(network.num_features, classes, groups)
    network.heads.to(next(backbone.parameters()))
    prove(network)
    return network.train(backbone.training)


def _check_arguments(
    structure: str,
    given: Mapping[str, Sequence[float] | None],
    order: str,
    shares: Sequence[float],
    num_classes: Sequence[int],
) -> None:
    takes = find_structure(structure).takes
    for name, value in given.items():
        if value is not None and name not in takes:
            raise BackboneError(f"structure {structure!r} takes {' and '.join(takes)}, not {name}")
    if order not in ("given", "importance") or (order != "given" and structure != "slices"):
        raise BackboneError(f"order {order!r} does not fit; it is 'given' or, for slices, 'importance'")
    if len(num_classes) != len(shares):
        raise BackboneError(
            f"{len(shares)} {takes[0]} need {len(shares)} class counts of at least 1, not {list(num_classes)}"
        )
    depths = given["depths"]
    if depths is not None and len(check_depths(depths)) != len(shares):
        raise BackboneError(f"{len(shares)} {takes[0]} need {len(shares)} depths, not {list(depths)}")


def _shares(name: str, values: Iterable[float] | None) -> tuple[float, ...] | None:
    """Return what was given as plain numbers; lists, tuples and arrays are taken."""
    try:
        shares = None if values is None else tuple(float(value) for value in values)
    except (TypeError, ValueError):
        shares = ()
    if shares == ():
        raise BackboneError(f"{name} {values!r} do not fit; give one number per level, like 0.25,0.5,1")
    return shares


def _counts(name: str, values: Iterable[int], example: str) -> tuple[int, ...]:
    """Return what was given as plain whole numbers of at least 1; lists, tuples and arrays are taken."""
    try:
        counts = tuple(operator.index(value) for value in values)
    except TypeError:
        counts = ()
    if min(counts, default=0) < 1:
        raise BackboneError(f"{name} {values!r} does not fit; give numbers of at least 1, like {example}")
    return counts
