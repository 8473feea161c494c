"""Where channels are cut: literal answers, and what must hold for every number of channels."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hierclass.errors import BackboneError
from hierclass.nested.analysis.channel_groups import boundaries, check_widths, share_out

QUARTERS = (0.25, 0.5, 1.0)


@st.composite
def cuttable(draw: st.DrawFn) -> tuple[int, tuple[float, ...], int]:
    """Channels, widths and group width that can be cut: at least one group per level."""
    lower = draw(st.sets(st.floats(0.01, 0.99), max_size=5))
    widths = (*sorted(lower), 1.0)
    group = draw(st.sampled_from((1, 2, 3, 4, 8, 12, 16, 32)))
    groups = draw(st.integers(len(widths), 300))
    return group * groups, widths, group


@pytest.mark.parametrize(
    ("channels", "widths", "group", "expected"),
    [
        (64, QUARTERS, 1, (16, 32, 64)),
        (256, QUARTERS, 1, (64, 128, 256)),
        (24, QUARTERS, 1, (8, 16, 24)),
        (12, QUARTERS, 1, (4, 8, 12)),
        (4, QUARTERS, 1, (1, 2, 4)),
        (36, QUARTERS, 1, (8, 16, 36)),
        (40, (0.1, 0.2, 0.4, 0.7, 1.0), 1, (8, 16, 24, 32, 40)),
        (64, (1.0,), 1, (64,)),
        (48, QUARTERS, 16, (16, 32, 48)),
        (48, QUARTERS, 12, (12, 24, 48)),
        (128, QUARTERS, 4, (32, 64, 128)),
    ],
)
def test_channels_are_cut_at_shares_rounded_to_steps_of_eight_and_whole_groups(
    channels: int, widths: tuple[float, ...], group: int, expected: tuple[int, ...]
) -> None:
    assert boundaries(channels, widths, group) == expected


@given(cuttable())
def test_boundaries_rise_to_the_number_of_channels(case: tuple[int, tuple[float, ...], int]) -> None:
    channels, widths, group = case
    cuts = boundaries(channels, widths, group)
    assert len(cuts) == len(widths)
    assert cuts[-1] == channels
    assert all(low < high for low, high in zip((0, *cuts), cuts, strict=False))


@given(cuttable())
def test_no_group_of_channels_is_torn_apart(case: tuple[int, tuple[float, ...], int]) -> None:
    channels, widths, group = case
    assert all(cut % group == 0 for cut in boundaries(channels, widths, group))


@given(cuttable())
def test_where_channels_suffice_every_slice_is_at_least_a_step_of_eight(
    case: tuple[int, tuple[float, ...], int],
) -> None:
    channels, widths, group = case
    step = math.lcm(8, group)
    if channels >= step * len(widths):
        cuts = boundaries(channels, widths, group)
        assert all(cut % step == 0 for cut in cuts[:-1])
        assert all(high - low >= step for low, high in zip((0, *cuts), cuts, strict=False))


@given(cuttable())
def test_a_boundary_is_within_half_a_step_of_its_share_unless_a_neighbour_needs_the_room(
    case: tuple[int, tuple[float, ...], int],
) -> None:
    channels, widths, group = case
    cuts = boundaries(channels, widths, group)
    step = math.lcm(8, group) if channels >= math.lcm(8, group) * len(widths) else 0
    for level, (cut, width) in enumerate(zip(cuts[:-1], widths, strict=False)):
        below = cuts[level - 1] if level else 0
        room_above = (len(widths) - 1 - level) * step
        pushed = cut == below + step or cut + room_above + step > channels
        assert not step or pushed or abs(cut - width * channels) <= step / 2 + 1e-6


def test_fewer_groups_than_levels_are_refused_with_what_to_do() -> None:
    with pytest.raises(
        BackboneError, match="2 channels in groups of 1 can't be shared by 3 levels; use fewer"
    ):
        boundaries(2, QUARTERS)
    with pytest.raises(BackboneError, match="groups of 32"):
        boundaries(64, QUARTERS, 32)


@pytest.mark.parametrize(
    "widths", [(), (0.5,), (0.5, 0.5, 1.0), (1.0, 0.5), (0.0, 1.0), (-0.5, 1.0), (0.5, 1.2), (math.nan, 1.0)]
)
def test_widths_that_do_not_rise_to_one_are_refused(widths: tuple[float, ...]) -> None:
    with pytest.raises(BackboneError, match="give one share per level, rising to 1"):
        check_widths(widths)


def test_widths_may_be_any_numbers_in_any_sequence() -> None:
    assert check_widths([0.5, 1]) == (0.5, 1.0)


@pytest.mark.parametrize(
    ("count", "size", "expected"),
    [
        (12, 64, (3, 6, 12)),  # heads of an attention
        (32, 4, (8, 16, 32)),  # branches of a ResNeXt
        (3, 32, (1, 2, 3)),
        (2, 32, (1, 1, 2)),
        (1, 8, (1, 1, 1)),
        (64, 1, (16, 32, 64)),
    ],
)
def test_units_of_channels_are_shared_out_and_some_levels_may_add_none(
    count: int, size: int, expected: tuple[int, ...]
) -> None:
    assert share_out(count, QUARTERS, size) == expected


@given(st.integers(1, 200), st.sets(st.floats(0.01, 0.99), max_size=5), st.sampled_from((1, 3, 4, 8, 64)))
def test_units_are_never_lost_and_level_0_has_one(count: int, lower: set[float], size: int) -> None:
    cuts = share_out(count, (*sorted(lower), 1.0), size)
    assert cuts[0] >= 1
    assert cuts[-1] == count
    assert all(low <= high for low, high in itertools.pairwise(cuts))
