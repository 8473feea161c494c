"""Make a nested network of a backbone."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hierclass.errors import BackboneError
from hierclass.nested.analysis.channel_groups import check_widths
from hierclass.nested.analysis.partition import Analysis, analyse
from hierclass.nested.analysis.residual_blocks import ResidualBlock, check_depths, delay, schedule
from hierclass.nested.backbone import check_image
from hierclass.nested.heads import ClassGroups, make_heads
from hierclass.nested.importance import importance, reorder
from hierclass.nested.lowering import lower
from hierclass.nested.masks.network import MaskedNetwork
from hierclass.nested.network import NestedNetwork, evaluating
from hierclass.nested.prefix import PrefixNetwork, SharingOptions, nest_prefix
from hierclass.nested.shared_weights import seen_by
from hierclass.nested.slices import SlicedNetwork
from hierclass.nested.verify import verify

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StructureOptions:
    """What every structure is made of; `shares` are its widths, depths or densities."""

    backbone: nn.Module
    shares: tuple[float, ...]
    depths: Sequence[float] | None
    num_classes: tuple[int, ...]
    input_size: tuple[int, int, int]
    sharing: SharingOptions
    warn: bool = True


def _make_slices(options: StructureOptions) -> NestedNetwork:
    analysis = analyse(options.backbone, check_widths(options.shares), options.input_size)
    blocks = schedule(analysis, options.depths) if options.depths is not None else []
    if blocks:
        delay(analysis, blocks, options.shares)
    return SlicedNetwork(lower(analysis, blocks), options.num_classes, options.input_size)


def _make_prefix(options: StructureOptions) -> NestedNetwork:
    analysis = analyse(options.backbone, distinct_widths(options.shares, options.sharing), options.input_size)
    blocks = schedule(analysis, options.depths) if options.depths is not None else []
    seen = {width: seen_by(analysis, step) for step, width in enumerate(sorted(set(options.shares)))}
    return _nest_dense(options, "prefix", [seen[width] for width in options.shares], blocks)


def distinct_widths(widths: Sequence[float], sharing: SharingOptions) -> tuple[float, ...]:
    """Return the different widths of levels, rising; levels that have sizes of the image may be equally wide."""
    if sharing.sizes is None or list(widths) != sorted(widths):
        return check_widths(widths)
    return check_widths(sorted(set(widths)))


def check_different(widths: Sequence[float], sizes: Sequence[int]) -> None:
    """Raise `BackboneError` if two levels have the same width and the same size of the image.

    `nest` takes such levels: they cost the same and may name different tiers, as where a model of three levels gets a
    tree of four. Whoever chooses widths and sizes hardly means them.
    """
    for (low, high), (small, large) in zip(
        itertools.pairwise(widths), itertools.pairwise(sizes), strict=False
    ):
        if low == high and small == large:
            raise BackboneError(
                f"two levels are alike: width {low:g} at {small} pixels; give one of them another width or size"
            )


def _make_depths(options: StructureOptions) -> NestedNetwork:
    analysis = analyse(options.backbone, (1.0,), options.input_size)
    depths = check_depths(options.shares)
    blocks = schedule(analysis, depths)
    if options.warn:
        _warn_of_equal_levels(depths, {block.born for block in blocks})
    return _nest_dense(options, "depths", [analysis] * len(options.shares), blocks)


def _warn_of_equal_levels(depths: Sequence[float], born: AbstractSet[int]) -> None:
    """Log which levels run the same blocks although their depths differ."""
    for level, (low, high) in enumerate(itertools.pairwise(depths)):
        if low < high and level + 1 not in born:
            _log.warning(
                "levels %d and %d run the same blocks: depths %g and %g come to the same number in every "
                "stage of this backbone; set them further apart, give fewer levels, or take "
                "a backbone with more blocks per stage",
                level,
                level + 1,
                low,
                high,
            )


def _nest_dense(
    options: StructureOptions, structure: str, analyses: Sequence[Analysis], blocks: Sequence[ResidualBlock]
) -> NestedNetwork:
    left_out = [[block for block in blocks if block.born > level] for level in range(len(analyses))]
    return nest_prefix(
        options.backbone,
        analyses,
        left_out,
        options.num_classes,
        options.input_size,
        structure,
        options.sharing,
    )


def _make_masks(options: StructureOptions) -> NestedNetwork:
    born: dict[str, int] = {}
    if options.depths is not None:
        analysis = analyse(options.backbone, (1.0,), options.input_size)
        born = {block.path: block.born for block in schedule(analysis, options.depths)}
    return MaskedNetwork(options.backbone, options.shares, options.num_classes, options.input_size, born=born)


@dataclass(frozen=True)
class Structure:
    """What all parts of hierclass know of a structure."""

    make: Callable[[StructureOptions], NestedNetwork]
    takes: tuple[str, ...]
    """Which of `widths`, `depths` and `densities` it takes, each a number per level."""
    shares_blocks: bool = False
    """Whether levels are networks inside shared weights: what takes `sizes`, `own` and `frozen`."""
    reorders: bool = False
    """Whether the order of channels matters to it: what takes `order`."""

    @property
    def shares(self) -> str:
        """Name of those numbers that make its levels, and that have a default."""
        return self.takes[0]


STRUCTURES: dict[str, Structure] = {
    "slices": Structure(_make_slices, takes=("widths", "depths"), reorders=True),
    "prefix": Structure(_make_prefix, takes=("widths", "depths"), shares_blocks=True, reorders=True),
    "depths": Structure(_make_depths, takes=("depths",), shares_blocks=True),
    "masks": Structure(_make_masks, takes=("densities", "depths")),
}
"""Name → structure: the one place that lists them."""


def find_structure(name: str) -> Structure:
    """Return the structure of a name; raise `BackboneError` if there is none."""
    if name not in STRUCTURES:
        raise BackboneError(f"structure {name!r} is not known; there are: {', '.join(STRUCTURES)}")
    return STRUCTURES[name]


NOT_CUT = "can't be cut into levels"
"""What every error says about a layer that has no rule, whatever the image."""
DEFAULT_SHARES = (0.25, 0.5, 1.0)
"""Shares of channels, blocks or weights for levels 0, 1 and 2."""


def default_shares(num_levels: int) -> tuple[float, ...]:
    """Return the shares of channels, blocks or weights for `num_levels` levels where none are given.

    Each level has half of the next one's; where that would leave level 0 less than an eighth, the levels between an
    eighth and 1 grow by equal factors: (1,), (0.5, 1), (0.25, 0.5, 1), (0.125, 0.25, 0.5, 1), (0.125, 0.21, …, 1).
    """
    if num_levels <= 4:
        return tuple(0.5**above for above in range(num_levels - 1, -1, -1))
    return tuple(round(0.125 ** (above / (num_levels - 1)), 4) for above in range(num_levels - 1, -1, -1))


@torch.inference_mode(False)  # weights made in inference mode could not be trained, nor verified
def nest(
    backbone: nn.Module,
    *,
    structure: str = "slices",
    widths: Iterable[float] | None = None,
    depths: Iterable[float] | None = None,
    densities: Iterable[float] | None = None,
    order: str = "given",
    images: Tensor | None = None,
    sizes: Iterable[int] | None = None,
    own: str | Sequence[str] = "norms",
    frozen: bool = False,
    classifier: nn.Linear | None = None,
    num_classes: Iterable[int],
    groups: Sequence[ClassGroups | None] | None = None,
    input_size: Iterable[int] = (3, 64, 64),
    warn: bool = True,
    proof: bool = True,
) -> NestedNetwork:
    """Cut a backbone into nested levels and prove that they are nested.

    `structure` says how levels are nested: "slices", "prefix", "masks" or "depths". Each of the following has one
    value per level, strictly rising (`depths` may also stay equal) in (0, 1]: `widths` the share of every layer's
    channels that a level sees (slices, prefix; the last is 1), `depths` the share of the residual blocks of every
    stage that it runs (depths; may be added to the others; the last is 1), `densities` the share of the weights
    that it uses (masks). None takes `default_shares` where the structure needs it. `order` "importance" assigns the
    channels that matter most to the lowest levels (slices, prefix; for pretrained weights): those that add most to what
    reads them over `images` (N, C, H, W), normalised photographs, or without these those with the largest weights;
    "given" keeps their order.
    Levels of prefix and depths may see the image at a size of their own, `sizes`, a side in pixels per level, never
    falling, the last that of `input_size`; their widths may then be equal. `own` is what a level below the last owns
    instead of sharing it with the level above: "norms", "norms+depthwise", either with "+rank16" (corrections of that
    rank to its blocks of the shared weights), or "everything" (such levels share a set of weights of their own); a
    list has one for each level below the last. With `frozen` all that the last level uses keeps its values: pretrained
    weights lose nothing.
    `classifier` scores the finest classes from the backbone's pooled features: the last head becomes a copy of it, and
    lower heads that score the same classes begin as its columns for the features that they read.
    `num_classes[k]` is the number of classes of level k's head. With `groups[k]` that head scores finer classes, of
    which the i-th belongs to class `groups[k][i]`, and sums them up; None: it scores its own.
    `input_size` (C, H, W) is the image that costs and the proof refer to. `warn` logs which levels run the same blocks
    though their depths differ (depths, in stages of few blocks). Without `proof` the network is not verified, as for an
    architecture that these versions of all packages have proven before. The weights of `backbone` are copied;
    `backbone` stays as it is.

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
    sharing = SharingOptions(
        own if isinstance(own, str) else tuple(own),
        frozen,
        None if sizes is None else _counts("sizes", sizes, "80,128,224"),
    )
    _check_arguments(structure, given, order, shares, classes)
    _check_sharing(structure, sharing, len(classes), size)
    options = StructureOptions(
        backbone, shares, given["depths"], classes, (size[0], size[1], size[2]), sharing, warn
    )
    with evaluating(backbone):
        backbone.train().eval()  # drops what models cache of their weights
        try:
            features = None
            if order == "importance":
                options, features = _reordered(options, images)
            network = kind.make(options)
        except Exception as error:
            if NOT_CUT not in str(error):
                check_image(backbone, options.input_size)
            raise
    if groups is not None:
        network.heads = make_heads(network.num_features, classes, groups)
    if classifier is not None:
        _start_heads(network, classifier, features)
    network.heads.to(next(backbone.parameters()))
    if isinstance(network, PrefixNetwork) and frozen:
        network.freeze()
    if proof:
        verify(network)
    return network.train(backbone.training)


def _reordered(
    options: StructureOptions, images: Tensor | None
) -> tuple[StructureOptions, NDArray[np.int64]]:
    """Return options with a backbone whose most important channels come first, and the old position of each feature."""
    widths = distinct_widths(options.shares, options.sharing)
    analysis = analyse(options.backbone, widths, options.input_size)
    backbone, features = reorder(analysis, importance(analysis, images))
    return dataclasses.replace(options, backbone=backbone), features


def _start_heads(network: NestedNetwork, classifier: nn.Linear, features: NDArray[np.int64] | None) -> None:
    """Copy a classifier into the heads that score its classes; `features` is the new order of its columns."""
    weight = classifier.weight.detach()
    if features is not None:
        weight = weight[:, torch.from_numpy(features).to(weight.device)]
    bias = weight.new_zeros(len(weight)) if classifier.bias is None else classifier.bias.detach()
    if weight.shape != (network.num_classes[-1], network.num_features[-1]):
        raise BackboneError(
            f"a classifier of {weight.shape[1]} features and {len(weight)} classes does not fit a network of "
            f"{network.num_features[-1]} features and {network.num_classes[-1]} classes"
        )
    plans = network.plans if isinstance(network, PrefixNetwork) else [None] * network.num_levels
    with torch.no_grad():
        for head, plan, count in zip(network.heads, plans, network.num_features, strict=True):
            if isinstance(head, nn.Linear) and head.out_features == len(weight):
                columns = list(range(count)) if plan is None else list(plan.features)
                head.weight.copy_(weight[:, columns])
                head.bias.copy_(bias)


def _check_sharing(
    structure: str, sharing: SharingOptions, num_levels: int, input_size: Sequence[int]
) -> None:
    if sharing != SharingOptions() and not find_structure(structure).shares_blocks:
        raise BackboneError(f"structure {structure!r} takes no sizes, own or frozen; prefix and depths do")
    sharing.owned(num_levels)
    sizes = sharing.sizes
    if sizes is not None and (
        len(sizes) != num_levels
        or list(sizes) != sorted(sizes)
        or not sizes[-1] == input_size[1] == input_size[2]
    ):
        raise BackboneError(
            f"sizes {list(sizes)} do not fit; give a side per level ({num_levels}), never falling, the last that of "
            f"the image, {input_size[1]}"
        )


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
    if order not in ("given", "importance") or (order != "given" and not find_structure(structure).reorders):
        raise BackboneError(
            f"order {order!r} does not fit; it is 'given' or, for slices and prefix, 'importance'"
        )
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
