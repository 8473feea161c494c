"""The table of structures: how each is made, and which numbers it takes. A new structure is added here."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from torch import nn

from hierclass.errors import BackboneError
from hierclass.nested.blocks import Block, check_depths, delay, schedule
from hierclass.nested.boundaries import check_widths
from hierclass.nested.graph import Analysis, analyse
from hierclass.nested.level_plans import seen_by
from hierclass.nested.lowering import lower
from hierclass.nested.masks import MaskedNetwork
from hierclass.nested.network import NestedNetwork
from hierclass.nested.prefix import Sharing, nest_prefix
from hierclass.nested.slices import SlicedNetwork

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Wanted:
    """What every structure is made of; `shares` are its widths, depths or densities."""

    backbone: nn.Module
    shares: tuple[float, ...]
    depths: Sequence[float] | None
    num_classes: tuple[int, ...]
    input_size: tuple[int, int, int]
    sharing: Sharing
    warn: bool = True


def _make_slices(wanted: Wanted) -> NestedNetwork:
    analysis = analyse(wanted.backbone, check_widths(wanted.shares), wanted.input_size)
    blocks = schedule(analysis, wanted.depths) if wanted.depths is not None else []
    if blocks:
        delay(analysis, blocks, wanted.shares)
    return SlicedNetwork(lower(analysis, blocks), wanted.num_classes, wanted.input_size)


def _make_prefix(wanted: Wanted) -> NestedNetwork:
    analysis = analyse(wanted.backbone, distinct_widths(wanted.shares, wanted.sharing), wanted.input_size)
    blocks = schedule(analysis, wanted.depths) if wanted.depths is not None else []
    seen = {width: seen_by(analysis, step) for step, width in enumerate(sorted(set(wanted.shares)))}
    return _nest_dense(wanted, "prefix", [seen[width] for width in wanted.shares], blocks)


def distinct_widths(widths: Sequence[float], sharing: Sharing) -> tuple[float, ...]:
    """Return the different widths of levels, rising; levels that see images of different sizes may be equally wide."""
    if sharing.sizes is None or list(widths) != sorted(widths):
        return check_widths(widths)
    for (low, high), (small, large) in zip(
        itertools.pairwise(widths), itertools.pairwise(sharing.sizes), strict=True
    ):
        if low == high and small == large:
            raise BackboneError(
                f"two levels are alike: width {low:g} at {small} pixels; give one of them another width or size"
            )
    return check_widths(sorted(set(widths)))


def _make_depths(wanted: Wanted) -> NestedNetwork:
    analysis = analyse(wanted.backbone, (1.0,), wanted.input_size)
    depths = check_depths(wanted.shares)
    blocks = schedule(analysis, depths)
    if wanted.warn:
        _warn_of_equal_levels(depths, {block.born for block in blocks})
    return _nest_dense(wanted, "depths", [analysis] * len(wanted.shares), blocks)


def _warn_of_equal_levels(depths: Sequence[float], born: AbstractSet[int]) -> None:
    """Say which levels run the same blocks although their depths differ; equal depths are meant."""
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
    wanted: Wanted, structure: str, analyses: Sequence[Analysis], blocks: Sequence[Block]
) -> NestedNetwork:
    left_out = [[block for block in blocks if block.born > level] for level in range(len(analyses))]
    return nest_prefix(
        wanted.backbone, analyses, left_out, wanted.num_classes, wanted.input_size, structure, wanted.sharing
    )


def _make_masks(wanted: Wanted) -> NestedNetwork:
    born: dict[str, int] = {}
    if wanted.depths is not None:
        analysis = analyse(wanted.backbone, (1.0,), wanted.input_size)
        born = {block.path: block.born for block in schedule(analysis, wanted.depths)}
    return MaskedNetwork(wanted.backbone, wanted.shares, wanted.num_classes, wanted.input_size, born=born)


@dataclass(frozen=True)
class Structure:
    """What all parts of hierclass know of a structure."""

    make: Callable[[Wanted], NestedNetwork]
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
