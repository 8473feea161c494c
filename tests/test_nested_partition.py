"""Where the values of traced networks are cut: literal answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from toy_backbones import SIZE, THIRDS, Toy

from hierclass.nested.analysis.partition import analyse


class Branches(torch.nn.Module):
    """Layers, and code that runs them: `run(self, x)`."""

    def __init__(self, run: Callable[[Any, torch.Tensor], torch.Tensor], **layers: torch.nn.Module):
        super().__init__()
        self.run = run
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.run(self, x)


def channels_per_level(
    middle: torch.nn.Module, name: str, channels: int = 16, inside: int = 16
) -> list[list[int]]:
    """For each level, the channels of the value that the call `name` of a traced toy gives."""
    analysis = analyse(Toy(middle, channels, inside).eval(), THIRDS, SIZE)
    node = next(node for node in analysis.nodes if node.name == name)
    cut = analysis.values[node].cut
    assert cut.axis == 1
    return [index.tolist() for index in cut.index]


def test_a_residual_stream_is_cut_alike_wherever_it_is_read() -> None:
    residual = Branches(lambda self, x: x + self.conv(x), conv=torch.nn.Conv2d(16, 16, 1))
    expected = [list(range(0, 4)), list(range(4, 8)), list(range(8, 16))]
    assert channels_per_level(residual, "conv1") == expected
    assert channels_per_level(residual, "middle_conv") == expected
    assert channels_per_level(residual, "add") == expected


def test_groups_of_a_grouped_convolution_are_assigned_whole() -> None:
    assert channels_per_level(torch.nn.Conv2d(24, 24, 1, groups=6), "conv1", 24, 24) == [
        list(range(0, 8)),
        list(range(8, 16)),
        list(range(16, 24)),
    ]


def test_both_halves_of_a_split_are_cut() -> None:
    halves = Branches(
        lambda self, x: torch.cat((x.chunk(2, 1)[0], self.conv(x.chunk(2, 1)[1])), 1),
        conv=torch.nn.Conv2d(8, 8, 1),
    )
    assert channels_per_level(halves, "conv1") == [[0, 1, 8, 9], [2, 3, 10, 11], [4, 5, 6, 7, 12, 13, 14, 15]]


def test_the_parts_of_a_concatenation_are_cut_by_themselves() -> None:
    grown = Branches(lambda self, x: torch.cat((x, self.conv(x)), 1), conv=torch.nn.Conv2d(16, 8, 1))
    assert channels_per_level(grown, "cat", 24) == [
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
    assert channels_per_level(heads, "middle_qkv") == [
        [start + i for start in (0, 16, 32) for i in part] for part in (first, second, rest)
    ]
