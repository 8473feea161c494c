"""Layer types, functions and structures are added as docs/nested.md says; `verify` catches wrong rules."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from toy_backbones import SIZE, THIRDS, Toy, close, cut, part

from hierclass.errors import BackboneError
from hierclass.nested import STRUCTURES, NestedNetwork, nest
from hierclass.nested.analysis import op_rules
from hierclass.nested.analysis.channel_groups import ChannelGroups
from hierclass.nested.analysis.layer_rules import RULES, ChannelFlow, ChannelRule, LayerRule
from hierclass.nested.extend import PerChannel, register_layer

DOCS = Path(__file__).parent.parent / "docs" / "nested.md"


@pytest.fixture(scope="module")
def page() -> Iterator[dict[str, Any]]:
    """What the examples of docs/nested.md define; what they register is gone afterwards."""
    rules, structures = dict(RULES), dict(STRUCTURES)
    names: dict[str, Any] = {}
    for example in re.findall(r"```python\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL):
        exec(example, names)
    yield names
    for table, before in ((RULES, rules), (STRUCTURES, structures)):
        table.clear()
        table.update(before)


@pytest.fixture
def unregistered(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Cuts a backbone as if a layer type had not been registered."""

    def refusal(dense: nn.Module, kind: type[nn.Module]) -> str:
        with monkeypatch.context() as patch:
            patch.delitem(RULES, kind)
            with pytest.raises(BackboneError) as caught:
                cut(dense)
        return str(caught.value)

    return refusal


def test_a_layer_with_weights_per_channel_is_added_in_one_line(
    page: dict[str, Any], unregistered: Any
) -> None:
    kind = page["GlobalFilter"]
    dense = Toy(kind(16, 8, 8)).eval()
    assert re.match(r"middle \(GlobalFilter\): \w+\(\) can't be cut into levels", unregistered(dense, kind))
    image = torch.randn(2, *SIZE)
    assert close(cut(dense, (1.0,)).features_all(image)[0], dense(image))
    kept = torch.cat([part(cut(dense, THIRDS), "middle", level).weight for level in range(3)])
    assert torch.equal(kept, dense.middle.weight)


def test_a_layer_that_mixes_channels_is_added_in_one_line(page: dict[str, Any], unregistered: Any) -> None:
    kind = page["CosineLinear"]

    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.middle, self.last = nn.Conv2d(3, 16, 3), kind(16, 24), nn.Linear(24, 32)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.middle(self.conv1(x).mean((2, 3))))

    dense = Tokens().eval()
    assert "middle (CosineLinear)" in unregistered(dense, kind)
    image = torch.randn(2, *SIZE)
    assert close(cut(dense, (1.0,)).features_all(image)[0], dense(image))
    network = cut(dense, THIRDS)
    middles = [part(network, "middle", level) for level in range(3)]
    assert sum(middle.out_features for middle in middles) == 24
    assert [middle.in_features for middle in middles] == [middle.weight.shape[1] for middle in middles]
    assert middles[-1].in_features == 16


def test_a_layer_with_a_rule_of_its_own_is_added_by_decorating_the_rule(
    page: dict[str, Any], unregistered: Any
) -> None:
    kind = page["GroupMedian"]
    dense = Toy(kind(12), channels=12, inside=36).eval()
    assert unregistered(dense, kind).startswith("middle (GroupMedian): median() can't be cut into levels")
    image = torch.randn(2, *SIZE)
    assert close(cut(dense, (1.0,)).features_all(image)[0], dense(image))
    network = cut(dense, THIRDS)
    counts = [part(network, "middle", level).channels for level in range(3)]
    assert sum(counts) == 12
    assert all(counts)
    assert [part(network, "conv1", level).out_channels for level in range(3)] == [
        3 * count for count in counts
    ]


def test_what_is_no_layer_type_or_no_rule_is_one_line() -> None:
    with pytest.raises(BackboneError, match="is no layer type; give a subclass of"):
        register_layer("Linear", PerChannel())
    with pytest.raises(BackboneError, match="is no rule for Wave; give one like PerChannel"):
        register_layer(Wave, PerChannel)


class Wave(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.sinc(x) + x


def test_a_function_is_added_by_naming_its_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    dense = Toy(Wave()).eval()
    with pytest.raises(
        BackboneError, match=r"middle \(Wave\): sinc\(\) can't be cut into levels: no rule for thi"
    ):
        cut(dense)
    monkeypatch.setattr(op_rules, "ELEMENTWISE", op_rules.ELEMENTWISE | {"sinc"})
    image = torch.randn(2, *SIZE)
    assert close(cut(dense, (1.0,)).features_all(image)[0], dense(image))
    assert cut(dense, THIRDS).num_features == (8, 16, 32)


@pytest.fixture
def separate(page: dict[str, Any]) -> NestedNetwork:
    """A network of the structure on the page."""
    assert page["STRUCTURES"] is STRUCTURES
    backbone = Toy()
    backbone.num_features = 32
    torch.manual_seed(0)
    return nest(backbone, structure="separate", num_classes=(2, 3, 5), input_size=SIZE).eval()


def test_a_structure_is_added_by_a_subclass_and_a_line_in_the_table(separate: NestedNetwork) -> None:
    image = torch.randn(2, *SIZE)
    assert [tuple(logits.shape) for logits in separate.forward_all(image)] == [(2, 2), (2, 3), (2, 5)]
    assert torch.equal(separate.extract(1)(image), separate(image, 1))
    assert separate.cost(0).macs < separate.cost(2).macs


def test_a_wrong_structure_is_caught_by_the_same_proof(
    separate: NestedNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    def peeking(self: Any, last: int) -> list[Any]:
        return [lambda image, kept, k=k: (self.backbones[min(k + 1, 2)](image), ()) for k in range(last + 1)]

    monkeypatch.setattr(type(separate), "level_functions", peeking)
    backbone = Toy()
    backbone.num_features = 32
    with pytest.raises(BackboneError, match="level 1 reads weights of a level above it"):
        nest(backbone, structure="separate", num_classes=(2, 3, 5), input_size=SIZE)


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

    def propagate(
        self, layer: nn.Module, ids: Tensor, shape: Sequence[int], channels: ChannelGroups
    ) -> ChannelFlow:
        return ChannelFlow(ids, "prefix")


class UncutRule(ScaleRule):
    """Forgets that the weights belong to channels."""

    def propagate(
        self, layer: nn.Module, ids: Tensor, shape: Sequence[int], channels: ChannelGroups
    ) -> ChannelFlow:
        return ChannelFlow(ids, "whole")


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
    ids=lambda value: type(value).__name__ if isinstance(value, LayerRule) else "",
)
def test_a_wrong_rule_is_caught_when_the_network_is_built(
    rule: LayerRule, message: str, monkeypatch: pytest.MonkeyPatch
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
    with pytest.raises(BackboneError, match=r"middle_scale\.0 overwrites what it reads, so a rule is wrong"):
        cut(Toy(Residual()))
