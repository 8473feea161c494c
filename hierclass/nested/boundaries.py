"""Where a tensor's channels are cut: the boundaries b_0 < b_1 < … < b_L = C of its slices."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from hierclass.errors import BackboneError

Boundaries = tuple[int, ...]
"""End of each level's prefix: level k sees channels 0 … boundaries[k] - 1."""

STEPS = (8, 4, 2, 1)
"""Slice sizes are multiples of the first of these that leaves every level at least one step."""


def check_widths(widths: Sequence[float]) -> tuple[float, ...]:
    """Return the widths as a tuple; raise `BackboneError` unless they rise strictly to 1.

    `widths[k]` in (0, 1] is the share of every layer's channels that level k sees.
    """
    widths = tuple(float(width) for width in widths)
    rising = all(low < high for low, high in itertools.pairwise(widths))
    if not widths or not rising or widths[0] <= 0 or widths[-1] != 1:
        raise BackboneError(
            f"widths {list(widths)} do not fit; give one share per level, rising to 1, like 0.25,0.5,1"
        )
    return widths


def boundaries(channels: int, widths: Sequence[float], group: int = 1) -> Boundaries:
    """Cut `channels` channels into one slice per width.

    Each boundary is `width * channels` rounded to a multiple of 8 and of `group` (the width of the channel
    groups that must stay whole); every level gets at least one step. Where channels are too few for steps of
    8, steps of 4, 2 or 1 are tried. The result depends on the number of channels alone, so that tensors that
    are added agree.

    Raises:
        BackboneError: there are fewer groups than levels.
    """
    levels = len(widths)
    for step in STEPS:
        multiple = math.lcm(step, group)
        if channels >= multiple * levels:
            break
    else:
        raise BackboneError(
            f"{channels} channels in groups of {group} can't be shared by {levels} levels; "
            "use fewer levels or a wider backbone"
        )
    cuts: list[int] = []
    for level, width in enumerate(widths[:-1]):
        wanted = math.floor(width * channels / multiple + 0.5) * multiple
        lowest = (cuts[-1] if cuts else 0) + multiple
        highest = (channels // multiple - (levels - 1 - level)) * multiple
        cuts.append(min(max(wanted, lowest), highest))
    return (*cuts, channels)


def share_out(count: int, widths: Sequence[float], size: int = 1) -> Boundaries:
    """Cut `count` units of `size` channels each, as `boundaries` does; boundaries are in units.

    Where units are fewer than levels, a level may add none, but level 0 has at least one.
    """
    if count >= len(widths):
        return tuple(end // size for end in boundaries(count * size, widths, size))
    cuts = [max(1, math.floor(width * count + 0.5)) for width in widths]
    return tuple(itertools.accumulate((*cuts[:-1], count), max))
