"""Which channels belong to one level: literal cases first, then what holds for all ties."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from toy_backbones import SIZE, THIRDS, Toy

from hierclass.errors import BackboneError
from hierclass.nested.analysis.channel_groups import (
    OWN,
    OWN_ID,
    SHARED,
    SHARED_ID,
    ChannelGroups,
    compact,
    share_out,
    spread,
    varies,
)
from hierclass.nested.analysis.partition import analyse

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


def test_ties_reach_through_a_chain_of_additions() -> None:
    channels = ChannelGroups()
    rows = [row(channels, 4) for _ in range(5)]
    for left, right in itertools.pairwise(rows):
        channels.unite(left, right)
    label = channels.classes()
    assert all(label[ids].tolist() == [1, 2, 3, 4] for ids in rows)


def test_ties_may_come_after_classes_were_asked_for() -> None:
    channels = ChannelGroups()
    first, second = row(channels, 2), row(channels, 2)
    assert channels.classes().tolist() == [0, 1, 2, 3, 4]
    channels.unite(first, second)
    third = row(channels, 1)
    channels.unite(third, first[1:])
    assert channels.classes().tolist() == [0, 1, 2, 1, 2, 2]


def test_broadcast_ids_tie_all_that_they_meet() -> None:
    channels = ChannelGroups()
    ids = row(channels, 6)
    heads = row(channels, 2)
    channels.unite(ids.reshape(2, 3), heads.reshape(2, 1))
    assert channels.classes()[ids].tolist() == [1, 1, 1, 4, 4, 4]


def test_tying_along_an_axis_makes_one_class_of_each_group() -> None:
    channels = ChannelGroups()
    ids = row(channels, 6)
    assert channels.unite_along(ids.reshape(2, 3), 1).shape == (2, 1)
    assert channels.classes()[ids].tolist() == [1, 1, 1, 4, 4, 4]


def test_groups_are_dealt_as_wholes_by_the_number_of_their_channels() -> None:
    channels = ChannelGroups()
    ids = row(channels, 48)
    channels.unite_along(ids.reshape(12, 4), 1)
    dealt = levels_of(channels, ids)
    assert [dealt.count(level) for level in range(3)] == [16, 8, 24]  # in steps of 8, that is of 2 groups
    assert all(len(set(dealt[i : i + 4])) == 1 for i in range(0, 48, 4))


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


def test_what_is_tied_to_the_ground_is_seen_by_every_level() -> None:
    channels = ChannelGroups()
    ids = row(channels, 4)
    channels.share(ids[:2])
    assert levels_of(channels, ids, HALVES) == [SHARED, SHARED, 0, 1]


def test_the_ground_and_what_levels_own_tie_nothing() -> None:
    channels = ChannelGroups()
    ids = row(channels, 4)
    for other in (SHARED_ID, OWN_ID):
        channels.unite(ids, torch.tensor([other]))
    dealt = channels.levels(HALVES)
    assert dealt[ids].tolist() == [0, 0, 1, 1]
    assert (dealt[SHARED_ID], dealt[OWN_ID]) == (SHARED, OWN)


def test_each_level_owns_what_it_mixes_from_a_plain_row() -> None:
    channels = ChannelGroups()
    ids = spread(row(channels, 4), (1, 4, 2), 1)
    mixed = channels.mix(ids, 1)
    assert (mixed.shape, mixed.unique().tolist()) == ((1, 1, 2), [OWN_ID])
    assert levels_of(channels, ids[..., 0], HALVES) == [0, 0, 1, 1]


def test_what_is_mixed_inside_groups_is_tied() -> None:
    channels = ChannelGroups()
    ids = row(channels, 4)
    mixed = channels.mix(ids.reshape(2, 2), 1)
    assert channels.classes()[ids].tolist() == [1, 1, 3, 3]
    assert channels.classes()[mixed.flatten()].tolist() == [1, 3]


def test_channels_that_are_all_tied_are_refused_with_the_place_where_they_were() -> None:
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
def tied(draw: st.DrawFn) -> tuple[ChannelGroups, list[torch.Tensor], list[tuple[int, int]]]:
    """Rows of channels, and pairs of them that are tied."""
    channels = ChannelGroups()
    rows = [row(channels, draw(st.integers(1, 12))) for _ in range(draw(st.integers(1, 4)))]
    ids = st.integers(1, channels.count - 1)
    pairs = draw(st.lists(st.tuples(ids, ids), max_size=20))
    for left, right in pairs:
        channels.unite(torch.tensor([left]), torch.tensor([right]))
    return channels, rows, pairs


SHARES = st.sets(st.floats(0.01, 0.99), max_size=4).map(lambda lower: (*sorted(lower), 1.0))


def connected(count: int, pairs: list[tuple[int, int]]) -> list[int]:
    """The lowest id that each id is tied to, found the slow way."""
    label = list(range(count))
    for left, right in pairs:
        low, high = sorted((label[left], label[right]))
        label = [low if value == high else value for value in label]
    return label


@given(tied())
def test_tied_means_connected(case: tuple[ChannelGroups, list[torch.Tensor], list[tuple[int, int]]]) -> None:
    channels, _, pairs = case
    assert channels.classes().tolist() == connected(channels.count, pairs)


@given(tied(), st.randoms())
def test_the_order_of_ties_does_not_matter(
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
    """Classes that occur in the same rows, each orbit in order, found the slow way."""
    label = channels.classes()
    found: dict[tuple[int, ...], list[int]] = {}
    for root in sorted({int(label[i]) for ids in rows for i in ids.tolist()}):
        key = tuple(n for n, ids in enumerate(rows) if root in label[ids.numpy()])
        found.setdefault(key, []).append(root)
    return list(found.values())


def cuttable(channels: ChannelGroups, rows: list[torch.Tensor], widths: tuple[float, ...]) -> bool:
    label = channels.classes()
    sizes = {root: max(int((label[ids.numpy()] == root).sum()) for ids in rows) for root in np.unique(label)}
    return len(widths) == 1 or all(len(orbit) > 1 or sizes[orbit[0]] == 1 for orbit in groups(channels, rows))


@given(tied(), SHARES)
def test_every_channel_has_one_level_and_what_is_tied_has_the_same(
    case: tuple[ChannelGroups, list[torch.Tensor], list[tuple[int, int]]], widths: tuple[float, ...]
) -> None:
    channels, rows, _ = case
    if not cuttable(channels, rows, widths):
        with pytest.raises(BackboneError, match="can't be cut into levels"):
            channels.levels(widths)
        return
    dealt, label = channels.levels(widths), channels.classes()
    assert len(dealt) == channels.count + 1
    assert dealt[0] == SHARED
    assert ((dealt[1:-1] >= 0) & (dealt[1:-1] < len(widths))).all()
    assert np.array_equal(dealt[label], dealt[:-1])


@given(tied(), SHARES)
def test_each_orbit_is_cut_at_its_boundaries_and_level_0_has_some_of_it(
    case: tuple[ChannelGroups, list[torch.Tensor], list[tuple[int, int]]], widths: tuple[float, ...]
) -> None:
    channels, rows, _ = case
    if not cuttable(channels, rows, widths):
        return
    dealt, label = channels.levels(widths), channels.classes()
    for orbit in groups(channels, rows):
        size = max(int((label[ids.numpy()] == root).sum()) for ids in rows for root in orbit)
        ends = np.searchsorted(dealt[orbit], range(len(widths)), side="right")
        assert tuple(ends) == share_out(len(orbit), widths, size)
        assert ends[0] >= 1


class Branches(torch.nn.Module):
    """Layers, and code that runs them: `run(self, x)`."""

    def __init__(self, run: Callable[[Any, torch.Tensor], torch.Tensor], **layers: torch.nn.Module):
        super().__init__()
        self.run = run
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.run(self, x)


def dealt(middle: torch.nn.Module, name: str, channels: int = 16, inside: int = 16) -> list[list[int]]:
    """For each level, the channels of the value that the call `name` of a traced toy gives."""
    analysis = analyse(Toy(middle, channels, inside).eval(), THIRDS, SIZE)
    node = next(node for node in analysis.nodes if node.name == name)
    cut = analysis.values[node].cut
    assert cut.axis == 1
    return [index.tolist() for index in cut.index]


def test_a_residual_stream_is_cut_alike_wherever_it_is_read() -> None:
    residual = Branches(lambda self, x: x + self.conv(x), conv=torch.nn.Conv2d(16, 16, 1))
    expected = [list(range(0, 4)), list(range(4, 8)), list(range(8, 16))]
    assert dealt(residual, "conv1") == expected
    assert dealt(residual, "middle_conv") == expected
    assert dealt(residual, "add") == expected


def test_groups_of_a_grouped_convolution_are_dealt_whole() -> None:
    assert dealt(torch.nn.Conv2d(24, 24, 1, groups=6), "conv1", 24, 24) == [
        list(range(0, 8)),
        list(range(8, 16)),
        list(range(16, 24)),
    ]


def test_both_halves_of_a_split_are_cut() -> None:
    halves = Branches(
        lambda self, x: torch.cat((x.chunk(2, 1)[0], self.conv(x.chunk(2, 1)[1])), 1),
        conv=torch.nn.Conv2d(8, 8, 1),
    )
    assert dealt(halves, "conv1") == [[0, 1, 8, 9], [2, 3, 10, 11], [4, 5, 6, 7, 12, 13, 14, 15]]


def test_the_parts_of_a_concatenation_are_cut_by_themselves() -> None:
    grown = Branches(lambda self, x: torch.cat((x, self.conv(x)), 1), conv=torch.nn.Conv2d(16, 8, 1))
    assert dealt(grown, "cat", 24) == [
        [0, 1, 2, 3, 16, 17],
        [4, 5, 6, 7, 18, 19],
        [8, 9, 10, 11, 12, 13, 14, 15, 20, 21, 22, 23],
    ]


def test_whole_heads_belong_to_levels_and_queries_keys_and_values_to_the_same() -> None:
    def attend(self: Branches, x: torch.Tensor) -> torch.Tensor:
        query, key, value = self.qkv(x).reshape(-1, 3, 4, 4, 64).transpose(3, 4).unbind(1)
        weights = (query @ key.transpose(-2, -1)).softmax(-1)
        return (weights @ value).transpose(2, 3).reshape(-1, 16, 8, 8)

    heads = Branches(attend, qkv=torch.nn.Conv2d(16, 48, 1))
    first, second, rest = range(0, 4), range(4, 8), range(8, 16)
    assert dealt(heads, "middle_qkv") == [
        [start + i for start in (0, 16, 32) for i in part] for part in (first, second, rest)
    ]
