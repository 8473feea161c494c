"""How single layers are cut, and which are refused: on backbones of a few layers."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import pytest
import timm.layers as timm_layers
import torch
import torch.nn.functional as F
from timm.layers.grn import GlobalResponseNorm
from torch import Tensor, nn
from toy_backbones import SIZE, THIRDS, Tokens, Toy, close, cut, part

from hierclass.errors import BackboneError
from hierclass.nested import create_backbone
from hierclass.nested.analysis.layer_rules import RULES, rule_for


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


@pytest.mark.parametrize(
    ("norm", "names"),
    [
        (nn.BatchNorm2d(16), ("weight", "bias", "running_mean", "running_var")),
        (nn.GroupNorm(4, 16), ("weight", "bias")),
        (nn.GroupNorm(1, 16), ("weight", "bias")),
        (timm_layers.LayerNorm2d(16), ("weight", "bias")),
        (GlobalResponseNorm(16, channels_last=False), ("weight", "bias")),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_a_norm_keeps_weights_and_statistics_of_its_slice(norm: nn.Module, names: Sequence[str]) -> None:
    for name in names:
        nn.init.uniform_(getattr(norm, name), 0.5, 2)
    network = cut(Toy(norm))
    for level, kept in enumerate((slice(0, 8), slice(8, 16))):
        layer = part(network, "middle", level)
        for name in names:
            assert torch.equal(getattr(layer, name), getattr(norm, name)[kept])


def test_a_layer_norm_takes_mean_and_variance_over_the_slice_alone() -> None:
    network = cut(Tokens(nn.LayerNorm(24)), THIRDS)
    layers = [part(network, "middle", level) for level in range(3)]
    assert [layer.normalized_shape for layer in layers] == [(8,), (8,), (8,)]
    assert [len(layer.weight) for layer in layers] == [8, 8, 8]


def test_a_group_norm_assigns_whole_groups_and_a_single_group_becomes_one_per_slice() -> None:
    many = cut(Toy(nn.GroupNorm(4, 16)), THIRDS)
    assert [part(many, "middle", level).num_groups for level in range(3)] == [1, 1, 2]
    single = cut(Toy(nn.GroupNorm(1, 16)), THIRDS)
    assert [part(single, "middle", level).num_groups for level in range(3)] == [1, 1, 1]


@pytest.mark.parametrize(
    ("groups", "outputs", "widths", "expected"),
    [
        (16, 16, (0.5, 1.0), [8, 8]),  # depth-wise
        (4, 16, (0.5, 1.0), [2, 2]),
        (4, 64, (0.25, 1.0), [1, 3]),
        (16, 32, (0.5, 1.0), [8, 8]),
    ],
)
def test_whole_groups_of_a_convolution_are_assigned_to_the_slices(
    groups: int, outputs: int, widths: tuple[float, ...], expected: list[int]
) -> None:
    inside = 32 if outputs == 64 else 16
    dense = Toy(nn.Conv2d(inside, outputs, 3, padding=1, groups=groups), channels=outputs, inside=inside)
    network = cut(dense, widths)
    assert [part(network, "middle", level).groups for level in range(2)] == expected
    kept = torch.cat([part(network, "middle", level).weight for level in range(2)])
    assert torch.equal(kept, dense.middle.weight)


def test_with_fewer_groups_than_levels_some_levels_add_none() -> None:
    network = cut(Toy(nn.Conv2d(16, 16, 1, groups=2)), THIRDS)
    assert [getattr(part(network, "middle", level), "groups", 0) for level in range(3)] == [1, 0, 1]


@pytest.mark.parametrize("groups", [1, 16])
def test_a_transposed_convolution_has_input_channels_first(groups: int) -> None:
    dense = Toy(nn.ConvTranspose2d(16, 16, 4, stride=2, padding=1, groups=groups)).eval()
    network = cut(dense, THIRDS)
    shapes = [tuple(part(network, "middle", level).weight.shape) for level in range(3)]
    assert shapes == (
        [(4, 4, 4, 4), (8, 4, 4, 4), (16, 8, 4, 4)] if groups == 1 else [(4, 1, 4, 4)] * 2 + [(8, 1, 4, 4)]
    )
    image = torch.randn(2, *SIZE)
    assert close(cut(dense, (1.0,)).features_all(image)[0], dense(image))


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


def test_a_linear_layer_over_tokens_is_copied_for_every_level() -> None:
    class Mixer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.over_tokens = nn.Linear(16, 16)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.over_tokens(x.transpose(1, 2)).transpose(1, 2)

    dense = Tokens(Mixer())
    network = cut(dense, THIRDS)
    for level in range(3):
        layer = part(network, "middle_over_tokens", level)
        assert torch.equal(layer.weight, dense.middle.over_tokens.weight)
        assert layer.weight is not dense.middle.over_tokens.weight


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


@pytest.mark.parametrize(
    "layer",
    [
        nn.GroupNorm(4, 16),
        nn.GroupNorm(1, 16),
        timm_layers.LayerNorm2d(16),
        timm_layers.EcaModule(16),
        timm_layers.CecaModule(16),
        timm_layers.SEModule(16, rd_ratio=0.5),
        timm_layers.BlurPool2d(16),
        GlobalResponseNorm(16, channels_last=False),
        nn.Conv2d(16, 16, 1, groups=4),
        nn.AvgPool2d(2),
        nn.Upsample(scale_factor=2),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_one_level_of_a_layer_is_the_dense_layer(layer: nn.Module) -> None:
    dense = Toy(layer).eval()
    image = torch.randn(2, *SIZE)
    assert close(cut(dense, (1.0,)).features_all(image)[0], dense(image))
    cut(dense, THIRDS)


class Fourier(nn.Module):
    """No function of it has a rule."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.fft.fft2(x).real


class EverySecond(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[:, ::2].repeat(1, 2, 1, 1)


class Largest(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * x.argmax(1, keepdim=True)


class Shuffled(nn.Module):
    """Two grouped convolutions with a shuffle between them (ShuffleNet): each group meets every other."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(16, 16, 1, groups=4), nn.Conv2d(16, 16, 1, groups=4)

    def forward(self, x: Tensor) -> Tensor:
        shuffled = self.first(x).unflatten(1, (4, 4)).transpose(1, 2).flatten(1, 2)
        return self.second(shuffled)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (
            nn.ConvTranspose2d(16, 16, 1, groups=2),
            r"middle \(ConvTranspose2d\) can't be cut into levels: it has groups of several channels",
        ),
        (nn.LSTM(8, 8), r"middle \(LSTM\) can't be cut into levels: no rule for this layer type"),
        (nn.ChannelShuffle(2), r"middle \(ChannelShuffle\) can't be cut into levels: no rule for this layer"),
        (nn.Sequential(nn.ReLU(), nn.Bilinear(16, 16, 16)), r"middle\.1 \(Bilinear\) "),
        (nn.MultiheadAttention(16, 2), r"middle \(MultiheadAttention\) can't be cut"),
        (Fourier(), r"middle \(Fourier\): fft_fft2\(\) can't be cut into levels: no rule for this operation"),
        (
            EverySecond(),
            r"middle \(EverySecond\): getitem\(\) can't be cut into levels: .*scattered channels",
        ),
        (Largest(), r"middle \(Largest\): argmax\(\) can't be cut into levels: no rule for this operation"),
        (
            Shuffled(),
            r"middle\.first \(Conv2d\) can't be cut into levels: it mixes all 16 channels with each",
        ),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_a_layer_that_cannot_be_cut_is_refused_with_its_path_and_type(layer: nn.Module, message: str) -> None:
    with pytest.raises(BackboneError, match=message) as caught:
        cut(Toy(layer))
    assert "\n" not in str(caught.value)


def test_what_cannot_be_cut_may_still_be_one_level() -> None:
    dense = Toy(Shuffled()).eval()
    image = torch.randn(2, *SIZE)
    assert close(cut(dense, (1.0,)).features_all(image)[0], dense(image))


def test_a_rule_counts_for_subclasses_unless_they_have_their_own() -> None:
    class Special(nn.Conv2d):
        pass

    assert rule_for(Special(3, 8, 1)) is RULES[nn.Conv2d]
    assert rule_for(nn.LSTM(8, 8)) is None


@pytest.mark.parametrize("name", ["ecaresnet26t", "densenet121", "test_efficientnet_gn", "test_vit"])
def test_families_that_older_versions_refused_are_cut(name: str) -> None:
    arguments = {"img_size": 32} if "vit" in name else {}
    if "dense" in name:
        arguments = {"growth_rate": 8, "block_config": (2, 2)}
    if "eca" in name:
        arguments = {"layers": (1, 1, 1, 1)}
    network = cut(create_backbone(name, **arguments), THIRDS, (3, 32, 32))
    assert copy.deepcopy(network).num_features == network.num_features
