"""Which channels belong to one level: literal cases first, then what holds for all unions and numbers."""

from __future__ import annotations

import itertools
import math
from random import Random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from toy_backbones import THIRDS

from hierclass.errors import BackboneError
from hierclass.nested.analysis.channel_groups import (
    OWN,
    OWN_ID,
    SHARED,
    SHARED_ID,
    ChannelGroups,
    boundaries,
    check_widths,
    compact,
    share_out,
    spread,
    varies,
)

HALVES = (0.5, 1.0)


def row(channels: ChannelGroups, count: int) -> torch.Tensor:
    """Ids of `count` new channels, as a row."""
    return channels.new((count,), 0)


def levels_of(channels: ChannelGroups, ids: torch.Tensor, widths: tuple[float, ...] = THIRDS) -> list[int]:
    found: list[int] = channels.levels(widths)[ids.flatten().numpy()].tolist()
    return found


def test_a_row_of_channels_is_cut_at_its_boundaries() -> None:
    channels = ChannelGroups()
    assert levels_of(channels, row(channels, 8)) == [0, 0, 1, 1, 2, 2, 2, 2]


def test_ids_lie_along_the_axis_of_the_channels_and_repeat_everywhere_else() -> None:
    ids = ChannelGroups().new((1, 4, 2, 2), 1)
    assert ids.shape == (1, 4, 2, 2)
    assert ids[0, :, 1, 1].tolist() == [1, 2, 3, 4]
    assert compact(ids).shape == (1, 4, 1, 1)
    assert [varies(ids, axis) for axis in range(4)] == [False, True, False, False]


def test_what_is_added_belongs_to_one_level_channel_by_channel() -> None:
    channels = ChannelGroups()
    stream, branch = row(channels, 8), row(channels, 8)
    channels.unite(stream, branch.flip(0))
    assert levels_of(channels, stream) == [0, 0, 1, 1, 2, 2, 2, 2]
    assert levels_of(channels, branch) == [2, 2, 2, 2, 1, 1, 0, 0]


def test_unions_reach_through_a_chain_of_additions() -> None:
    channels = ChannelGroups()
    rows = [row(channels, 4) for _ in range(5)]
    for left, right in itertools.pairwise(rows):
        channels.unite(left, right)
    label = channels.classes()
    assert all(label[ids].tolist() == [1, 2, 3, 4] for ids in rows)


def test_unions_may_come_after_classes_were_asked_for() -> None:
    channels = ChannelGroups()
    first, second = row(channels, 2), row(channels, 2)
    assert channels.classes().tolist() == [0, 1, 2, 3, 4]
    channels.unite(first, second)
    third = row(channels, 1)
    channels.unite(third, first[1:])
    assert channels.classes().tolist() == [0, 1, 2, 1, 2, 2]


def test_broadcast_ids_unite_all_that_they_meet() -> None:
    channels = ChannelGroups()
    ids = row(channels, 6)
    heads = row(channels, 2)
    channels.unite(ids.reshape(2, 3), heads.reshape(2, 1))
    assert channels.classes()[ids].tolist() == [1, 1, 1, 4, 4, 4]


def test_uniting_along_an_axis_makes_one_class_of_each_group() -> None:
    channels = ChannelGroups()
    ids = row(channels, 6)
    assert channels.unite_along(ids.reshape(2, 3), 1).shape == (2, 1)
    assert channels.classes()[ids].tolist() == [1, 1, 1, 4, 4, 4]


def test_united_channels_are_assigned_as_wholes_by_the_number_of_their_channels() -> None:
    channels = ChannelGroups()
    ids = row(channels, 48)
    channels.unite_along(ids.reshape(12, 4), 1)
    levels = levels_of(channels, ids)
    assert [levels.count(level) for level in range(3)] == [16, 8, 24]  # in steps of 8, that is of 2 groups
    assert all(len(set(levels[i : i + 4])) == 1 for i in range(0, 48, 4))


def test_channels_that_are_also_used_by_themselves_are_cut_by_themselves() -> None:
    channels = ChannelGroups()
    ids = row(channels, 8)
    for half in ids.chunk(2):
        channels.mark(half)
    assert levels_of(channels, ids, HALVES) == [0, 0, 1, 1, 0, 0, 1, 1]


def test_rows_that_lie_side_by_side_keep_the_cuts_that_they_have() -> None:
    channels = ChannelGroups()
    both = torch.cat((row(channels, 4), row(channels, 8)))
    assert levels_of(channels, both, HALVES) == [0, 0, 1, 1, 0, 0, 0, 0, 1, 1, 1, 1]


def test_with_fewer_channels_than_levels_level_0_has_one_and_others_may_have_none() -> None:
    channels = ChannelGroups()
    assert levels_of(channels, row(channels, 2)) == [0, 2]
    assert levels_of(channels, row(channels, 1)) == [0]


def test_ids_of_a_parameter_follow_what_they_meet_and_are_seen_by_all_levels_if_they_meet_nothing() -> None:
    channels = ChannelGroups()
    ids, scale, table = row(channels, 4), channels.loose((4,)), channels.loose((2, 4))
    channels.unite(ids, scale)
    assert levels_of(channels, scale, HALVES) == [0, 0, 1, 1]
    assert levels_of(channels, table, HALVES) == [SHARED] * 8
    assert [channels.is_loose(value) for value in (ids, scale, table)] == [False, True, True]


def test_parameters_do_not_change_where_others_are_cut() -> None:
    channels = ChannelGroups()
    ids, table = row(channels, 4), channels.loose((100, 4))
    channels.unite(ids, table)
    assert levels_of(channels, ids, HALVES) == [0, 0, 1, 1]


def test_shared_channels_are_seen_by_every_level() -> None:
    channels = ChannelGroups()
    ids = row(channels, 4)
    channels.share(ids[:2])
    assert levels_of(channels, ids, HALVES) == [SHARED, SHARED, 0, 1]


def test_shared_and_own_ids_unite_nothing() -> None:
    channels = ChannelGroups()
    ids = row(channels, 4)
    for other in (SHARED_ID, OWN_ID):
        channels.unite(ids, torch.tensor([other]))
    levels = channels.levels(HALVES)
    assert levels[ids].tolist() == [0, 0, 1, 1]
    assert (levels[SHARED_ID], levels[OWN_ID]) == (SHARED, OWN)


def test_each_level_owns_what_it_mixes_from_a_plain_row() -> None:
    channels = ChannelGroups()
    ids = spread(row(channels, 4), (1, 4, 2), 1)
    mixed = channels.mix(ids, 1)
    assert (mixed.shape, mixed.unique().tolist()) == ((1, 1, 2), [OWN_ID])
    assert levels_of(channels, ids[..., 0], HALVES) == [0, 0, 1, 1]


def test_what_is_mixed_inside_groups_is_united() -> None:
    channels = ChannelGroups()
    ids = row(channels, 4)
    mixed = channels.mix(ids.reshape(2, 2), 1)
    assert channels.classes()[ids].tolist() == [1, 1, 3, 3]
    assert channels.classes()[mixed.flatten()].tolist() == [1, 3]


def test_channels_that_are_all_united_are_refused_with_the_place_where_they_were() -> None:
    channels = ChannelGroups()
    ids = row(channels, 6)
    channels.where = "blocks.3.attn (Attention): softmax()"
    channels.unite_along(ids, 0)
    channels.where = "blocks.4 (Block): add()"
    message = r"blocks\.3\.attn \(Attention\): softmax\(\) can't be cut into levels: it mixes all 6 channels"
    with pytest.raises(BackboneError, match=message):
        channels.levels(HALVES)
    assert channels.levels((1.0,))[ids].tolist() == [0] * 6


@st.composite
def united(draw: st.DrawFn) -> tuple[ChannelGroups, list[torch.Tensor], list[tuple[int, int]]]:
    """Rows of channels, and pairs of them that are united."""
    channels = ChannelGroups()
    rows = [row(channels, draw(st.integers(1, 12))) for _ in range(draw(st.integers(1, 4)))]
    ids = st.integers(1, channels.count - 1)
    pairs = draw(st.lists(st.tuples(ids, ids), max_size=20))
    for left, right in pairs:
        channels.unite(torch.tensor([left]), torch.tensor([right]))
    return channels, rows, pairs


SHARES = st.sets(st.floats(0.01, 0.99), max_size=4).map(lambda lower: (*sorted(lower), 1.0))


def connected(count: int, pairs: list[tuple[int, int]]) -> list[int]:
    """The lowest id that each id is united with, found the slow way."""
    label = list(range(count))
    for left, right in pairs:
        low, high = sorted((label[left], label[right]))
        label = [low if value == high else value for value in label]
    return label


@given(united())
def test_united_means_connected(
    case: tuple[ChannelGroups, list[torch.Tensor], list[tuple[int, int]]],
) -> None:
    channels, _, pairs = case
    assert channels.classes().tolist() == connected(channels.count, pairs)


@given(united(), st.randoms())
def test_the_order_of_unions_does_not_matter(
    case: tuple[ChannelGroups, list[torch.Tensor], list[tuple[int, int]]], random: Random
) -> None:
    channels, _, pairs = case
    other = ChannelGroups()
    other.new((channels.count - 1,), 0)
    shuffled = [pair[::-1] for pair in pairs]
    random.shuffle(shuffled)
    for left, right in shuffled:
        other.unite(torch.tensor([left]), torch.tensor([right]))
        other.classes()  # also one by one
    assert np.array_equal(other.classes(), channels.classes())


def groups(channels: ChannelGroups, rows: list[torch.Tensor]) -> list[list[int]]:
    """Classes that occur in the same rows, each group in order, found the slow way."""
    label = channels.classes()
    found: dict[tuple[int, ...], list[int]] = {}
    for root in sorted({int(label[i]) for ids in rows for i in ids.tolist()}):
        key = tuple(n for n, ids in enumerate(rows) if root in label[ids.numpy()])
        found.setdefault(key, []).append(root)
    return list(found.values())


def cuttable(channels: ChannelGroups, rows: list[torch.Tensor], widths: tuple[float, ...]) -> bool:
    label = channels.classes()
    sizes = {root: max(int((label[ids.numpy()] == root).sum()) for ids in rows) for root in np.unique(label)}
    return len(widths) == 1 or all(len(group) > 1 or sizes[group[0]] == 1 for group in groups(channels, rows))


@given(united(), SHARES)
def test_every_channel_has_one_level_and_what_is_united_has_the_same(
    case: tuple[ChannelGroups, list[torch.Tensor], list[tuple[int, int]]], widths: tuple[float, ...]
) -> None:
    channels, rows, _ = case
    if not cuttable(channels, rows, widths):
        with pytest.raises(BackboneError, match="can't be cut into levels"):
            channels.levels(widths)
        return
    levels, label = channels.levels(widths), channels.classes()
    assert len(levels) == channels.count + 1
    assert levels[0] == SHARED
    assert ((levels[1:-1] >= 0) & (levels[1:-1] < len(widths))).all()
    assert np.array_equal(levels[label], levels[:-1])


@given(united(), SHARES)
def test_each_group_is_cut_at_its_boundaries_and_level_0_has_some_of_it(
    case: tuple[ChannelGroups, list[torch.Tensor], list[tuple[int, int]]], widths: tuple[float, ...]
) -> None:
    channels, rows, _ = case
    if not cuttable(channels, rows, widths):
        return
    levels, label = channels.levels(widths), channels.classes()
    for group in groups(channels, rows):
        size = max(int((label[ids.numpy()] == root).sum()) for ids in rows for root in group)
        ends = np.searchsorted(levels[group], range(len(widths)), side="right")
        assert tuple(ends) == share_out(len(group), widths, size)
        assert ends[0] >= 1


@st.composite
def numbers_to_cut(draw: st.DrawFn) -> tuple[int, tuple[float, ...], int]:
    """Channels, widths and group width that can be cut: at least one group per level."""
    lower = draw(st.sets(st.floats(0.01, 0.99), max_size=5))
    widths = (*sorted(lower), 1.0)
    group = draw(st.sampled_from((1, 2, 3, 4, 8, 12, 16, 32)))
    groups = draw(st.integers(len(widths), 300))
    return group * groups, widths, group


@pytest.mark.parametrize(
    ("channels", "widths", "group", "expected"),
    [
        (64, THIRDS, 1, (16, 32, 64)),
        (256, THIRDS, 1, (64, 128, 256)),
        (24, THIRDS, 1, (8, 16, 24)),
        (12, THIRDS, 1, (4, 8, 12)),
        (4, THIRDS, 1, (1, 2, 4)),
        (36, THIRDS, 1, (8, 16, 36)),
        (40, (0.1, 0.2, 0.4, 0.7, 1.0), 1, (8, 16, 24, 32, 40)),
        (64, (1.0,), 1, (64,)),
        (48, THIRDS, 16, (16, 32, 48)),
        (48, THIRDS, 12, (12, 24, 48)),
        (128, THIRDS, 4, (32, 64, 128)),
    ],
)
def test_channels_are_cut_at_shares_rounded_to_steps_of_eight_and_whole_groups(
    channels: int, widths: tuple[float, ...], group: int, expected: tuple[int, ...]
) -> None:
    assert boundaries(channels, widths, group) == expected


@given(numbers_to_cut())
def test_boundaries_rise_to_the_number_of_channels(case: tuple[int, tuple[float, ...], int]) -> None:
    channels, widths, group = case
    cuts = boundaries(channels, widths, group)
    assert len(cuts) == len(widths)
    assert cuts[-1] == channels
    assert all(low < high for low, high in zip((0, *cuts), cuts, strict=False))


@given(numbers_to_cut())
def test_no_group_of_channels_is_torn_apart(case: tuple[int, tuple[float, ...], int]) -> None:
    channels, widths, group = case
    assert all(cut % group == 0 for cut in boundaries(channels, widths, group))


@given(numbers_to_cut())
def test_where_channels_suffice_every_slice_is_at_least_a_step_of_eight(
    case: tuple[int, tuple[float, ...], int],
) -> None:
    channels, widths, group = case
    step = math.lcm(8, group)
    if channels >= step * len(widths):
        cuts = boundaries(channels, widths, group)
        assert all(cut % step == 0 for cut in cuts[:-1])
        assert all(high - low >= step for low, high in zip((0, *cuts), cuts, strict=False))


@given(numbers_to_cut())
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
        boundaries(2, THIRDS)
    with pytest.raises(BackboneError, match="groups of 32"):
        boundaries(64, THIRDS, 32)


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
    assert share_out(count, THIRDS, size) == expected


@given(st.integers(1, 200), st.sets(st.floats(0.01, 0.99), max_size=5), st.sampled_from((1, 3, 4, 8, 64)))
def test_units_are_never_lost_and_level_0_has_one(count: int, lower: set[float], size: int) -> None:
    cuts = share_out(count, (*sorted(lower), 1.0), size)
    assert cuts[0] >= 1
    assert cuts[-1] == count
    assert all(low <= high for low, high in itertools.pairwise(cuts))
