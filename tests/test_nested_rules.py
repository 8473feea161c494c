"""How single layers are cut, and which are refused: on backbones of a few layers."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hierclass.errors import BackboneError
from hierclass.nested import NestedNetwork, create_backbone, nest
from hierclass.nested.boundaries import Boundaries, Chart
from hierclass.nested.rules import RULES, Rule, rule_for

SIZE = (3, 8, 8)


class Toy(nn.Module):
    """Two convolutions with a layer between them: (B, 3, H, W) → (B, 32)."""

    def __init__(self, middle: nn.Module | None = None, channels: int = 16):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1)
        self.middle = middle if middle is not None else nn.Identity()
        self.conv2 = nn.Conv2d(channels, 32, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.conv2(self.middle(self.conv1(x)))).mean((2, 3))


def cut(backbone: nn.Module, widths: tuple[float, ...] = (0.5, 1.0)) -> NestedNetwork:
    return nest(backbone, widths=widths, num_classes=[5] * len(widths), input_size=SIZE).eval()


def part(network: NestedNetwork, name: str, level: int) -> nn.Module:
    parts = network.layers[name]
    assert isinstance(parts, nn.ModuleList)
    return parts[level]


def test_a_convolution_reads_the_prefix_and_writes_its_slice() -> None:
    dense = Toy()
    network = cut(dense)
    rows = (slice(0, 16), slice(16, 32))
    for level, columns in enumerate((8, 16)):
        layer = part(network, "conv2", level)
        assert torch.equal(layer.weight, dense.conv2.weight[rows[level], :columns])
        assert torch.equal(layer.bias, dense.conv2.bias[rows[level]])


def test_the_first_convolution_reads_the_whole_image_at_every_level() -> None:
    network = cut(Toy())
    shapes = [tuple(part(network, "conv1", level).weight.shape) for level in range(2)]
    assert shapes == [(8, 3, 3, 3), (8, 3, 3, 3)]


def test_weights_are_copies_so_that_the_backbone_stays_as_it_is() -> None:
    dense = Toy()
    before = {name: value.clone() for name, value in dense.state_dict().items()}
    network = cut(dense)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(1)
    assert all(torch.equal(value, before[name]) for name, value in dense.state_dict().items())


def test_batch_norm_keeps_weights_and_statistics_of_its_slice() -> None:
    norm = nn.BatchNorm2d(16)
    for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
        assert tensor is not None
        nn.init.uniform_(tensor, 0.5, 2)
    network = cut(Toy(norm))
    for level, kept in enumerate((slice(0, 8), slice(8, 16))):
        layer = part(network, "middle", level)
        for name in ("weight", "bias", "running_mean", "running_var"):
            assert torch.equal(getattr(layer, name), getattr(norm, name)[kept])


@pytest.mark.parametrize(
    ("groups", "outputs", "widths", "expected"),
    [
        (16, 16, (0.5, 1.0), [8, 8]),  # depth-wise
        (4, 16, (0.5, 1.0), [2, 2]),
        (4, 32, (0.25, 1.0), [1, 3]),  # a group of 4 grows to 8
        (16, 32, (0.5, 1.0), [8, 8]),
    ],
)
def test_whole_groups_of_a_convolution_are_dealt_to_the_slices(
    groups: int, outputs: int, widths: tuple[float, ...], expected: list[int]
) -> None:
    dense = Toy(nn.Conv2d(16, outputs, 3, padding=1, groups=groups), channels=outputs)
    if widths[0] == 0.25:
        dense.conv1 = nn.Conv2d(3, 32, 3, padding=1)
        dense.middle = nn.Conv2d(32, 64, 3, padding=1, groups=groups)
        dense.conv2 = nn.Conv2d(64, 32, 3, padding=1)
    network = cut(dense, widths)
    assert [part(network, "middle", level).groups for level in range(2)] == expected
    kept = torch.cat([part(network, "middle", level).weight for level in range(2)])
    assert torch.equal(kept, dense.middle.weight)


def test_flattened_channels_keep_their_slices() -> None:
    class Flat(Toy):
        def forward(self, x: Tensor) -> Tensor:
            features: Tensor = self.head(self.flatten(self.conv1(x)))
            return features

    dense = Flat()
    dense.flatten, dense.head = nn.Flatten(), nn.Linear(16 * 64, 32)
    network = cut(dense)
    assert tuple(part(network, "head", 0).weight.shape) == (16, 8 * 64)
    assert torch.equal(part(network, "head", 1).weight, dense.head.weight[16:])


def test_layers_are_made_out_of_place_because_refining_reads_activations_again() -> None:
    network = cut(Toy(nn.ReLU(inplace=True)))
    assert not any(getattr(module, "inplace", False) for module in network.modules())


def test_dropout_written_as_a_function_follows_the_mode_of_the_network() -> None:
    class Dropping(Toy):
        def forward(self, x: Tensor) -> Tensor:
            return F.dropout(super().forward(x), p=0.5, training=self.training)

    network = cut(Dropping())
    image = torch.randn(4, *SIZE)
    assert torch.equal(network(image), network(image))
    network.train()
    assert not torch.equal(network(image), network(image))


class Shuffle(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2)


class Concat(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((x[:, 8:], x[:, :8]), 1)


class ChannelMean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * x.mean(1, keepdim=True)


class Scalar(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(16, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (nn.GroupNorm(2, 16), r"middle \(GroupNorm\) can't be cut into levels: no rule for this layer type"),
        (nn.ChannelShuffle(2), r"middle \(ChannelShuffle\) can't be cut"),
        (nn.Sequential(nn.ReLU(), nn.PReLU(16)), r"middle\.1 \(PReLU\) can't be cut"),
        (Shuffle(), r"middle \(Shuffle\): unflatten\(\) can't be cut"),
        (Concat(), r"middle \(Concat\): getitem\(\) can't be cut"),
        (ChannelMean(), r"middle \(ChannelMean\): mean\(\) can't be cut into levels: a mean over channels"),
        (Scalar(), r"middle \(Scalar\) can't be cut into levels: its tensor 'scale' is used outside a layer"),
    ],
)
def test_a_layer_that_cannot_be_cut_is_refused_with_its_path_and_type(layer: nn.Module, message: str) -> None:
    with pytest.raises(BackboneError, match=message) as caught:
        cut(Toy(layer))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ecaresnet26t", r"layer1\.0\.se \(EcaModule\)"),  # mixes neighbouring channels
        ("densenet121", r"features\.denseblock1\.denselayer1 \(DenseLayer\): cat\(\) can't be cut"),
        ("test_efficientnet_gn", r"bn1 \(GroupNormAct\) can't be cut"),
        ("test_vit", r"patch_embed \(PatchEmbed\)"),
    ],
)
def test_families_that_cannot_be_cut_are_refused_when_the_network_is_built(name: str, message: str) -> None:
    with pytest.raises(BackboneError, match=message) as caught:
        nest(create_backbone(name), widths=(0.5, 1.0), num_classes=(2, 3), input_size=(3, 32, 32))
    assert "\n" not in str(caught.value)


def test_with_fewer_groups_than_levels_the_layer_is_named() -> None:
    with pytest.raises(BackboneError, match=r"conv1 \(Conv2d\) .* groups of 8 can't be shared by 3 levels"):
        cut(Toy(nn.Conv2d(16, 16, 1, groups=2)), (0.25, 0.5, 1.0))


def test_a_rule_counts_for_subclasses_unless_they_have_their_own() -> None:
    class Special(nn.Conv2d):
        pass

    assert rule_for(Special(3, 8, 1)) is RULES[nn.Conv2d]
    assert rule_for(nn.GroupNorm(2, 16)) is None


class Scale(nn.Module):
    """One weight per channel: the worked example of docs/nested.md."""

    def __init__(self, channels: int):
        super().__init__()
        self.weight = nn.Parameter(torch.rand(channels) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight[:, None, None]


class ScaleRule(Rule):
    """Each level keeps the weights of its own channels."""

    def cut(self, layer: nn.Module, reads: range, writes: range) -> nn.Module:
        assert isinstance(layer, Scale)
        part = Scale(len(writes))
        part.weight = nn.Parameter(layer.weight.detach()[writes.start : writes.stop].clone())
        return part


def test_a_layer_type_is_added_by_registering_a_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        BackboneError, match=r"middle \(Scale\) can't be cut into levels: its tensor 'weight'"
    ):
        cut(Toy(Scale(16)))
    monkeypatch.setitem(RULES, Scale, ScaleRule())
    dense = Toy(Scale(16)).eval()
    network = cut(dense, (1.0,))
    image = torch.randn(2, *SIZE)
    assert torch.allclose(network.features_all(image)[0], dense(image), atol=1e-6)
    assert part(cut(dense), "middle", 1).weight.shape == (8,)


class _Leaking(Scale):
    """Divides by the sum of the weights of all levels: a level sees weights above it."""

    def __init__(self, weight: Tensor, family: list[Scale]):
        super().__init__(len(weight))
        self.weight = nn.Parameter(weight)
        self.family = [family]  # in a list, so that it is no submodule

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) / torch.stack([scale.weight.sum() for scale in self.family[0]]).sum()


class LeakyRule(Rule):
    def __init__(self) -> None:
        self.family: list[Scale] = []

    def cut(self, layer: nn.Module, reads: range, writes: range) -> nn.Module:
        assert isinstance(layer, Scale)
        self.family.append(_Leaking(layer.weight.detach()[writes.start : writes.stop].clone(), self.family))
        return self.family[-1]


class _Counting(nn.Module):
    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x * self.calls


class CountingRule(Rule):
    def cut(self, layer: nn.Module, reads: range, writes: range) -> nn.Module:
        return _Counting()


class _Doubling(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((x, x), 1)


class DoublingRule(Rule):
    def cut(self, layer: nn.Module, reads: range, writes: range) -> nn.Module:
        return _Doubling()


class ShortRule(ScaleRule):
    def boundaries(self, layer: nn.Module, inputs: Boundaries, channels: int, chart: Chart) -> Boundaries:
        return tuple(end // 2 for end in inputs)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (LeakyRule(), "level 0 reads weights of a level above it"),
        (CountingRule(), "refining to level 0 differs from running it directly"),
        (DoublingRule(), "the cut network does not run, so a rule is wrong"),
        (ShortRule(), "middle changes its channels in a way that has no rule"),
    ],
)
def test_a_wrong_rule_is_caught_when_the_network_is_built(
    rule: Rule, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(RULES, Scale, rule)
    with pytest.raises(BackboneError, match=message):
        cut(Toy(Scale(16)))
