"""Layer types are added by registering a rule, and wrong rules are caught when a network is built."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn
from toy_backbones import SIZE, THIRDS, Toy, close, cut, part

from hierclass.errors import BackboneError
from hierclass.nested.channels import Channels
from hierclass.nested.rules import RULES, ChannelRule, Flow, Rule


class GlobalFilter(nn.Module):
    """Weighs frequencies, channel by channel (GFNet, Rao et al. 2021): an example of docs/nested.md."""

    def __init__(self, channels: int, height: int, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.rand(channels, height, width // 2 + 1, 2) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        spectrum = torch.fft.rfft2(x) * torch.view_as_complex(self.weight)
        return torch.fft.irfft2(spectrum, s=x.shape[-2:])


def test_a_layer_with_weights_per_channel_is_added_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    dense = Toy(GlobalFilter(16, 8, 8)).eval()
    with pytest.raises(
        BackboneError, match=r"middle \(GlobalFilter\): \w+\(\) can't be cut into levels: no rul"
    ):
        cut(dense)
    monkeypatch.setitem(RULES, GlobalFilter, ChannelRule())
    image = torch.randn(2, *SIZE)
    assert close(cut(dense, (1.0,)).features_all(image)[0], dense(image))
    kept = torch.cat([part(cut(dense, THIRDS), "middle", level).weight for level in range(3)])
    assert torch.equal(kept, dense.middle.weight)


class GroupMedian(nn.Module):
    """The median of neighbouring channels, times a weight: (B, n·C, H, W) → (B, C, H, W); from docs/nested.md."""

    def __init__(self, channels: int):
        super().__init__()
        self.channels = channels
        self.weight = nn.Parameter(torch.rand(channels) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        groups = x.unflatten(1, (self.channels, -1))
        return groups.median(2).values * self.weight[:, None, None]


class GroupMedianRule(Rule):
    """Channels of a group belong to one level, and so does the median of them."""

    def flow(self, layer: nn.Module, ids: Tensor, shape: Sequence[int], channels: Channels) -> Flow:
        assert isinstance(layer, GroupMedian)
        groups = ids.unflatten(1, (layer.channels, -1))
        return Flow(channels.tie_along(groups, 2).squeeze(2), "slice")

    def resize(self, part: nn.Module, layer: nn.Module, reads: Sequence[int], writes: Sequence[int]) -> None:
        assert isinstance(part, GroupMedian)
        part.channels = len(writes)


def test_a_layer_that_ties_channels_is_added_by_registering_a_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    dense = Toy(GroupMedian(12), channels=12, inside=36).eval()
    with pytest.raises(BackboneError, match=r"middle \(GroupMedian\): median\(\) can't be cut into levels"):
        cut(dense)
    monkeypatch.setitem(RULES, GroupMedian, GroupMedianRule())
    image = torch.randn(2, *SIZE)
    assert close(cut(dense, (1.0,)).features_all(image)[0], dense(image))
    network = cut(dense, THIRDS)
    counts = [part(network, "middle", level).channels for level in range(3)]
    assert sum(counts) == 12
    assert all(counts)
    assert [part(network, "conv1", level).out_channels for level in range(3)] == [
        3 * count for count in counts
    ]


class Scale(nn.Module):
    """One weight per channel."""

    def __init__(self, channels: int):
        super().__init__()
        self.weight = nn.Parameter(torch.rand(channels) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight[:, None, None]


class ScaleRule(ChannelRule):
    """What wrong rules are made of: `change` says what is done to the layer of each level."""

    def cut(self, layer: nn.Module, reads: Sequence[int], writes: Sequence[int]) -> nn.Module:
        part = super().cut(layer, reads, writes)
        return self.change(part, layer)

    def change(self, part: nn.Module, layer: nn.Module) -> nn.Module:
        return part


class _Leaking(Scale):
    """Divides by the sum of the weights of all levels: a level sees weights above it."""

    def __init__(self, weight: nn.Parameter, family: list[Scale]):
        super().__init__(len(weight))
        self.weight = weight
        self.family = [family]  # in a list, so that it is no submodule

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) / torch.stack([scale.weight.sum() for scale in self.family[0]]).sum()


class LeakyRule(ScaleRule):
    def __init__(self) -> None:
        super().__init__()
        self.family: list[Scale] = []

    def change(self, part: nn.Module, layer: nn.Module) -> nn.Module:
        self.family.append(_Leaking(part.weight, self.family))
        return self.family[-1]


class SharingRule(ScaleRule):
    """Forgets to copy: all levels hold one parameter."""

    def change(self, part: nn.Module, layer: nn.Module) -> nn.Module:
        if not hasattr(layer, "shared"):
            layer.shared = [nn.Parameter(torch.ones(1))]
        part.weight = layer.shared[0]
        return part


class _Counting(nn.Module):
    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x * self.calls


class CountingRule(ScaleRule):
    def change(self, part: nn.Module, layer: nn.Module) -> nn.Module:
        return _Counting()


class _Overwriting(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mul_(2)


class OverwritingRule(ScaleRule):
    def change(self, part: nn.Module, layer: nn.Module) -> nn.Module:
        return _Overwriting()


class _Doubling(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((x, x), 1)


class DoublingRule(ScaleRule):
    def change(self, part: nn.Module, layer: nn.Module) -> nn.Module:
        return _Doubling()


class PrefixRule(ScaleRule):
    """Says that the layer reads the prefix; it can't, its weights are one for each channel that it writes."""

    def flow(self, layer: nn.Module, ids: Tensor, shape: Sequence[int], channels: Channels) -> Flow:
        return Flow(ids, "prefix")


class UncutRule(ScaleRule):
    """Forgets that the weights belong to channels."""

    def flow(self, layer: nn.Module, ids: Tensor, shape: Sequence[int], channels: Channels) -> Flow:
        return Flow(ids, "whole")


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (LeakyRule(), "level 0 reads weights of a level above it"),
        (SharingRule(), "level 0 reads weights of a level above it"),
        (CountingRule(), "refining to level 0 differs from running it directly"),
        (DoublingRule(), "the cut network does not run, so a rule is wrong"),
        (PrefixRule(), "the cut network does not run, so a rule is wrong"),
        (UncutRule(), "the cut network does not run, so a rule is wrong"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Rule) else "",
)
def test_a_wrong_rule_is_caught_when_the_network_is_built(
    rule: Rule, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(RULES, Scale, rule)
    with pytest.raises(BackboneError, match=message):
        cut(Toy(Scale(16)))


def test_a_rule_that_overwrites_what_another_layer_reads_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(16, 16, 1)
            self.scale = Scale(16)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x) + self.scale(x)

    monkeypatch.setitem(RULES, Scale, OverwritingRule())
    with pytest.raises(BackboneError, match="refining to level 1 differs from running it directly"):
        cut(Toy(Residual()))
