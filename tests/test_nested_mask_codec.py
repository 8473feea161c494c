"""Compact storage: bytes fall with density, round trips are exact, hostile files are refused."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from masked_modules import (
    CLASSES,
    SIZE,
    Call,
    Small,
    any_module,
    images,
    make_network,
    translator,
)
from tiny_families import mark_full
from torch import Tensor, nn

from hierclass.nested import create_backbone
from hierclass.nested.masks import codec
from hierclass.nested.masks.module import MaskedModule
from hierclass.nested.masks.network import MaskedNetwork


@pytest.fixture(
    scope="module",
    params=mark_full(
        ["test_resnet", "test_efficientnet", "test_vit", "test_convnext", "test_nfnet"],
        ["test_resnet", "test_vit"],
    ),
)
def shared(request: pytest.FixtureRequest) -> MaskedNetwork:
    """A network that tests only read."""
    return make_network(request.param)


@pytest.fixture(scope="module")
def resnet() -> MaskedNetwork:
    """A network that tests only read, of one family."""
    return make_network()


@pytest.fixture(autouse=True)
def no_gradients(request: pytest.FixtureRequest) -> Iterator[None]:
    """Only tests that train need gradients."""
    with torch.set_grad_enabled("train" in request.node.name):
        yield


def round_trip(network: MaskedNetwork, other: MaskedNetwork, kind: torch.dtype) -> None:
    tensors = {
        name: value.to(kind) if value.is_floating_point() else value
        for name, value in network.stored().items()
    }
    other.load_stored(safetensors.torch.load(safetensors.torch.save(tensors)))


def test_a_stored_network_comes_back_exactly(shared: MaskedNetwork) -> None:
    other = copy.deepcopy(shared)
    for value in other.state_dict().values():
        value.zero_()
    round_trip(shared, other, torch.float32)
    assert all(map(torch.equal, other.forward_all(images()), shared.forward_all(images())))
    for (_, new, levels), (_, old, wanted) in zip(
        other.masked.weights(), shared.masked.weights(), strict=True
    ):
        assert torch.equal(levels, wanted)
        assert torch.equal(new, old * (wanted < 3))


def test_a_network_stored_in_half_precision_comes_back_rounded(resnet: MaskedNetwork) -> None:
    other = copy.deepcopy(resnet)
    round_trip(resnet, other, torch.float16)
    for (_, new, levels), (_, old, wanted) in zip(
        other.masked.weights(), resnet.masked.weights(), strict=True
    ):
        assert torch.equal(levels, wanted)
        assert torch.equal(new, (old * (wanted < 3)).half().float())


@any_module
def test_any_module_is_stored_and_comes_back(make: Callable[[], tuple[MaskedModule, Call]]) -> None:
    masked, call = make()
    masked.eval()
    other = copy.deepcopy(masked)
    for value in other.parameters():
        value.zero_()
    other.load_stored(safetensors.torch.load(safetensors.torch.save(masked.stored())))
    assert all(torch.equal(call(other, level=level), call(masked, level=level)) for level in range(3))


@pytest.mark.parametrize(
    "densities", [(1.0,), (0.5, 1.0), (0.001, 0.002), (0.2,), (0.01, 0.02, 0.03, 0.04, 0.05)]
)
def test_storage_holds_at_all_densities(densities: tuple[float, ...]) -> None:
    masked = MaskedModule(nn.Sequential(nn.Linear(70, 50), nn.Linear(50, 4)), densities)
    other = copy.deepcopy(masked)
    for value in other.state_dict().values():
        if value.dim():
            value.zero_()
    other.load_stored(masked.stored())
    for level in range(len(densities)):
        x = torch.randn(3, 70)
        assert torch.equal(other(x, level=level), masked(x, level=level))


@pytest.mark.parametrize("kind", [torch.float16, torch.float32])
def test_bytes_on_disk_fall_with_density(kind: torch.dtype) -> None:
    def written(tensors: dict[str, Tensor]) -> int:
        converted = {
            name: value.to(kind) if value.is_floating_point() else value for name, value in tensors.items()
        }
        return len(safetensors.torch.save(converted))

    backbone = create_backbone("resnet10t")
    sizes = [
        written(MaskedNetwork(backbone, densities, CLASSES, SIZE).stored())
        for densities in ((0.01, 0.02, 0.05), (0.1, 0.2, 0.5))
    ]
    backbone.reset_classifier(CLASSES[-1])
    dense = written(backbone.state_dict())
    assert sizes[0] <= dense / 8
    assert sizes[1] <= dense * 0.65


def test_shared_weights_are_stored_once() -> None:
    stored = translator()[0].stored()
    assert not any(name.startswith("out.") for name in stored)
    assert "embed.weight.values" in stored


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 700), st.integers(1, 9), st.floats(0, 1), st.integers(0, 99))
def test_packing_is_undone_by_unpacking(size: int, num_levels: int, share: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    levels = torch.randint(num_levels, (size,), generator=generator, dtype=torch.uint8)
    levels[torch.rand(size, generator=generator) < share] = num_levels
    weight = torch.randn(size, generator=generator)
    positions, values, lowest = codec.unpack(codec.pack(weight, levels, num_levels), size, num_levels)
    assert torch.equal(positions, (levels < num_levels).nonzero()[:, 0])
    assert torch.equal(values, weight[positions])
    assert torch.equal(lowest, levels[positions])


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_hostile_parts_are_refused_or_stay_within_bounds(data: st.DataObject) -> None:
    size, num_levels = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 5))
    row = st.binary(max_size=50).map(lambda content: torch.tensor(list(content), dtype=torch.uint8))
    parts = {"values": torch.randn(data.draw(st.integers(0, 45)))}
    for name in data.draw(st.sets(st.sampled_from(["gaps", "bitmap", "levels"]))):
        parts[name] = data.draw(row)
    try:
        positions, values, levels = codec.unpack(parts, size, num_levels)
    except ValueError:
        return
    assert len(positions) == len(values) == len(levels) <= size
    assert positions.unique().equal(positions)
    assert ((positions >= 0) & (positions < size)).all()
    assert (levels < num_levels).all()


def spoilt(name: str, value: Tensor | None) -> Callable[[dict[str, Tensor]], None]:
    def spoil(tensors: dict[str, Tensor]) -> None:
        if value is None:
            del tensors[name]
        else:
            tensors[name] = value

    return spoil


BYTES = torch.zeros(10, dtype=torch.uint8)


@pytest.mark.parametrize(
    "spoil",
    [
        spoilt("masked.conv.weight.values", None),
        spoilt("masked.conv.weight.values", torch.zeros(3)),
        spoilt("masked.conv.weight.values", torch.zeros(500)),
        spoilt("masked.conv.weight.values", torch.zeros(43, dtype=torch.int64)),
        spoilt("masked.conv.weight.values", torch.zeros(1, 43)),
        spoilt("masked.conv.weight.values", torch.zeros(43, dtype=torch.float8_e4m3fn)),
        spoilt("masked.conv.weight.levels", BYTES),
        spoilt("masked.conv.weight.levels", torch.full((108,), 255, dtype=torch.uint8)),
        spoilt("masked.conv.weight.gaps", None),
        spoilt("masked.conv.weight.gaps", torch.full((43,), 254, dtype=torch.uint8)),
        spoilt("masked.conv.weight.gaps", torch.full((100_000,), 255, dtype=torch.uint8)),
        spoilt("masked.conv.weight.gaps", torch.zeros(43)),
        spoilt("masked.conv.weight.bitmap", BYTES),
        spoilt("masked.mix.weight.gaps", torch.zeros((), dtype=torch.uint8)),
        spoilt("masked.norm.0.running_mean", torch.zeros(3)),
        spoilt("masked.norm.0.weight", torch.zeros(16, dtype=torch.complex64)),
        spoilt("masked.norm.0.bias", None),
        spoilt("masked.surprise", BYTES),
        spoilt("masked.conv.weight", torch.zeros(16, 3, 3, 3)),
        spoilt("heads.1.weight", torch.zeros(9, 9)),
        spoilt("heads.0.bias", None),
        spoilt("surprise", BYTES),
    ],
)
def test_what_does_not_fit_is_refused_with_one_line_and_changes_nothing(
    spoil: Callable[[dict[str, Tensor]], None],
) -> None:
    network = MaskedNetwork(Small(), (0.02, 0.05, 0.1), CLASSES, SIZE).eval()
    assert "masked.conv.weight.gaps" in network.stored()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    tensors = {
        name: value + 1 if value.is_floating_point() else value for name, value in network.stored().items()
    }
    spoil(tensors)
    with pytest.raises(ValueError, match=r"fit|differ") as caught:
        network.load_stored(tensors)
    assert "\n" not in str(caught.value)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
