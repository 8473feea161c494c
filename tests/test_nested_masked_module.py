"""Nested masks over any module: an LSTM that translates words, graph attention."""

from __future__ import annotations

import copy
import functools
import itertools
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from masked_modules import (
    CLASSES,
    DENSITIES,
    SIZE,
    Call,
    GraphAttention,
    Small,
    any_module,
    graph,
    translator,
    used,
)
from torch import Tensor, nn

from hierclass.errors import BackboneError
from hierclass.nested.masks.module import MaskedModule
from hierclass.nested.masks.network import MaskedNetwork
from hierclass.nested.masks.selection import SCHEDULE, UPDATES


@pytest.fixture(autouse=True)
def no_gradients(request: pytest.FixtureRequest) -> Iterator[None]:
    """Only tests that train need gradients."""
    with torch.set_grad_enabled("train" in request.node.name):
        yield


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.floats(0.001, 1), min_size=1, max_size=6, unique=True).map(sorted),
    st.floats(0, 1),
    st.integers(0, 99),
)
def test_masks_are_nested_and_share_their_values_at_any_densities(
    densities: list[float], progress: float, seed: int
) -> None:
    torch.manual_seed(seed)
    masked = MaskedModule(nn.Sequential(nn.Linear(9, 7), nn.Linear(7, 11)), densities)
    masked.prune(progress)
    for low, high in itertools.pairwise(range(len(densities))):
        assert all(not (a & ~b).any() for a, b in zip(used(masked, low), used(masked, high), strict=True))
    for level in range(len(densities)):
        weights = dict(masked.extract(level).named_parameters())
        for name, weight, levels in masked.weights():
            assert torch.equal(weights[name], weight * (levels <= level))


@any_module
def test_each_level_uses_the_share_of_every_weight_that_its_density_says(
    make: Callable[[], tuple[MaskedModule, Call]],
) -> None:
    masked = make()[0]
    for level, density in enumerate(DENSITIES):
        for mask in used(masked, level):
            assert mask.sum() == max(1, int(density * mask.numel() + 0.5))


def test_the_largest_magnitudes_are_used_first_and_of_equal_ones_the_first() -> None:
    layer = nn.Linear(4, 4, bias=False)
    layer.weight.copy_(torch.tensor([[1.0, -9, 1, 1], [1, 1, 1, 1], [0, 0, 0, 0], [0, 0, 8, 0]]))
    masked = MaskedModule(layer, (1 / 16, 2 / 16, 4 / 16, 11 / 16))
    (levels,) = [levels for _, _, levels in masked.weights()]
    assert levels.tolist() == [[2, 0, 2, 3], [3, 3, 3, 3], [3, 3, 4, 4], [4, 4, 1, 4]]
    assert levels.dtype == torch.uint8


def test_recurrent_attention_and_tied_weights_are_masked_and_vectors_are_not() -> None:
    names = [name for name, _, _ in translator()[0].weights()]
    lstm = [
        f"lstm.weight_{kind}_l{layer}{way}"
        for layer in (0, 1)
        for way in ("", "_reverse")
        for kind in ("ih", "hh")
    ]
    assert names == ["embed.weight", *lstm, "back.weight"]
    assert [name for name, _, _ in graph()[0].weights()] == ["attention", "project.weight", "out.weight"]
    layers = nn.Sequential(
        nn.Conv2d(16, 16, 3, groups=16), nn.Conv2d(16, 32, 3, groups=4), nn.Linear(3, 5), nn.LayerNorm(64)
    )
    layers.register_parameter("gain", nn.Parameter(torch.ones(64, 1, 1, 1)))
    assert [name for name, _, _ in MaskedModule(layers, DENSITIES).weights()] == ["1.weight"]


def test_masking_copies_the_module() -> None:
    module = GraphAttention()
    before = copy.deepcopy(module.state_dict())
    masked = MaskedModule(module, DENSITIES)
    masked.spoil_above(0)
    assert module.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


@pytest.mark.parametrize("densities", [(), (0.5, 0.5), (0.5, 0.2), (0, 0.5), (0.5, 1.1), (float("nan"),)])
def test_densities_that_do_not_fit_are_refused(densities: tuple[float, ...]) -> None:
    with pytest.raises(BackboneError, match="give one share per level, rising in"):
        MaskedModule(nn.Linear(8, 8), densities)


def test_other_arguments_that_do_not_fit_are_refused() -> None:
    with pytest.raises(BackboneError, match="LayerNorm has no weights that can be masked"):
        MaskedModule(nn.LayerNorm(64), DENSITIES)
    with pytest.raises(BackboneError, match="3 densities need 3 class counts of at least 1"):
        MaskedNetwork(Small(), DENSITIES, (2, 5), SIZE)
    with pytest.raises(BackboneError, match="Conv2d gives no pooled features"):
        MaskedNetwork(nn.Conv2d(3, 8, 3), DENSITIES, CLASSES, SIZE)


@any_module
@pytest.mark.parametrize("level", [0, 1])
def test_a_level_of_any_module_ignores_every_weight_above_it(
    make: Callable[[], tuple[MaskedModule, Call]], level: int
) -> None:
    masked, call = make()
    masked.eval()
    before = call(masked, level=level)
    assert not torch.equal(before, call(masked))
    masked.spoil_above(level)
    assert torch.equal(call(masked, level=level), before)
    assert call(masked).isnan().any()


@any_module
def test_modules_have_a_stage_per_child_with_weights(
    make: Callable[[], tuple[MaskedModule, Call]],
) -> None:
    masked, call = make()
    masked.eval()
    assert masked.stages == (("embed", "lstm", "back") if make is translator else ("project", "out"))
    mixed = call(masked, level=[0, *[2] * (len(masked.stages) - 1)])
    assert not torch.allclose(mixed, call(masked, level=2))
    assert not torch.allclose(mixed, call(masked, level=0))


def test_threads_may_run_levels_of_an_lstm_at_once() -> None:
    masked, call = translator()
    alone = [call(masked, level=level) for level in range(3)]
    with ThreadPoolExecutor(3) as pool:
        for level, result in enumerate(
            pool.map(lambda k: [call(masked, level=k) for _ in range(20)], range(3))
        ):
            assert all(torch.allclose(value, alone[level], atol=1e-6) for value in result)


def test_a_module_may_change_its_buffers_in_a_call() -> None:
    class Counting(nn.Linear):
        def __init__(self) -> None:
            super().__init__(8, 8)
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.calls = self.calls + 1
            return super().forward(x)

    masked = MaskedModule(nn.Sequential(Counting(), nn.ReLU()), DENSITIES)
    for level in range(3):
        masked(torch.randn(2, 8), level=level)
    assert masked.module.get_buffer("0.calls") == 3


class Pair(NamedTuple):
    first: nn.Module
    second: nn.Module


HOLDERS: dict[str, Callable[[nn.Module, nn.Module], Any]] = {
    "list": lambda a, b: [a, b],
    "list of lists": lambda a, b: [[a], [b]],
    "tuple": lambda a, b: (a, b),
    "named tuple": Pair,
    "dictionary": lambda a, b: {"a": a, "b": b},
    "ordered dictionary": lambda a, b: OrderedDict(a=a, b=b),
    "dictionary with a default": lambda a, b: defaultdict(list, a=[a], b=[b]),
    "keys": lambda a, b: {a: 1, b: 2},
    "set": lambda a, b: {a, b},
    "frozen set": lambda a, b: frozenset({a, b}),
    "deque": lambda a, b: deque([a, b], maxlen=2),
    "bound methods": lambda a, b: [a.forward, b.forward],
}


class Holding(nn.Module):
    """The sum of two layers, which it finds in a container."""

    def __init__(self, hold: Callable[[nn.Module, nn.Module], Any]) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(8, 8), nn.Linear(8, 8)
        self.held = hold(self.left, self.right)

    def forward(self, x: Tensor) -> Tensor:
        layers = self.held
        if isinstance(layers, dict):
            layers = list(layers) if isinstance(next(iter(layers)), nn.Module) else list(layers.values())
        layers = [layer for one in layers for layer in (one if isinstance(one, list) else [one])]
        return torch.stack([layer(x) for layer in layers]).sort(0).values.sum(0)


@pytest.mark.parametrize("hold", HOLDERS.values(), ids=list(HOLDERS))
def test_modules_in_containers_run_at_the_level_of_the_call(
    hold: Callable[[nn.Module, nn.Module], Any],
) -> None:
    masked, x = MaskedModule(Holding(hold), DENSITIES), torch.randn(2, 8)
    before = copy.copy(masked.module.held)
    for level in range(3):
        alone = masked.extract(level)
        assert torch.equal(masked(x, level=level), alone.left(x) + alone.right(x))
    assert masked.module.held == before
    masked.verify(x)


@pytest.mark.parametrize(
    "hold",
    [lambda a, b: [functools.partial(a), b], lambda a, b: [a, Wrapped(b)]],
    ids=["partial", "object"],
)
def test_verifying_finds_modules_that_masks_do_not_reach(hold: Callable[[nn.Module, nn.Module], Any]) -> None:
    masked = MaskedModule(Holding(hold), DENSITIES)
    with pytest.raises(BackboneError, match="level 2 of Holding uses weights above it"):
        masked.verify(torch.randn(2, 8))


class Wrapped:
    def __init__(self, layer: nn.Module) -> None:
        self.layer = layer

    def __call__(self, x: Tensor) -> Tensor:
        return self.layer(x)


@any_module
def test_any_module_proves_its_levels(make: Callable[[], tuple[MaskedModule, Call]]) -> None:
    masked, call = make()
    before = copy.deepcopy(masked.state_dict())
    call(masked.verify)
    assert all(torch.equal(value, before[name]) for name, value in masked.state_dict().items())


def test_what_weights_are_computed_from_stays_dense() -> None:
    layers = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(8, 16)), nn.Linear(16, 8))
    masked, x = MaskedModule(layers, DENSITIES), torch.randn(2, 8)
    assert [name for name, _, _ in masked.weights()] == ["1.weight"]
    assert torch.equal(masked(x, level=0), masked.extract(0)(x))
    assert masked(x, level=0).isfinite().all()


def test_weights_kept_as_computed_are_refused_in_one_line() -> None:
    layers = nn.Sequential(nn.Linear(16, 8), nn.utils.weight_norm(nn.Linear(8, 16)))
    with pytest.raises(BackboneError, match=r"1 \(Linear\) keeps a weight that is computed") as caught:
        MaskedModule(layers, DENSITIES)
    assert "\n" not in str(caught.value)


def test_a_module_that_occurs_twice_is_one_at_every_level() -> None:
    layer = nn.Linear(8, 8)
    masked = MaskedModule(nn.Sequential(layer, nn.Sequential(nn.ReLU(), layer)), DENSITIES)
    assert [name for name, _, _ in masked.weights()] == ["0.weight"]
    alone = masked.extract(0)
    assert alone[0] is alone[1][1]
    x = torch.randn(2, 8)
    assert torch.equal(masked(x, level=0), alone(x))


@any_module
def test_any_module_trains_at_every_level(make: Callable[[], tuple[MaskedModule, Call]]) -> None:
    masked, call = make()
    optimiser = torch.optim.Adam(masked.parameters(), lr=0.003)
    history = []
    for _ in range(3):
        losses = [call(masked, level=level).square().mean() for level in range(3)]
        optimiser.zero_grad()
        torch.stack(losses).sum().backward()
        optimiser.step()
        history.append([loss.item() for loss in losses])
    assert all(new < old for new, old in zip(history[-1], history[0], strict=True))


def test_densities_fall_along_the_cubic_schedule_and_end_exactly() -> None:
    start, end = SCHEDULE
    masked = MaskedModule(nn.Linear(50, 40), DENSITIES)
    former = [2000] * 3
    for progress in (0.0, 0.1, 0.203, 0.352, 0.503, 0.59, 0.6, 0.9, 1.0):
        masked.prune(progress)
        share = (progress - start) / (end - start) if start < progress < end else float(progress >= end)
        share = int(share * UPDATES + 1e-9) / UPDATES
        counts = [int(used(masked, level)[0].sum()) for level in range(3)]
        for density, count, before in zip(DENSITIES, counts, former, strict=True):
            assert abs(count - 2000 * (density + (1 - density) * (1 - share) ** 3)) <= 0.51
            assert count <= before
        former = counts
    assert former == [200, 600, 1400]


def test_a_weight_that_grew_comes_back() -> None:
    masked = MaskedModule(nn.Linear(10, 10, bias=False), (0.1, 0.5))
    masked.prune(0.352)
    ((_, weight, levels),) = masked.weights()
    place = (levels == 2).nonzero()[0]
    weight[tuple(place)] = 100
    masked.prune(0.354)
    assert levels[tuple(place)] == 2  # not within one step of the schedule
    masked.prune(0.37)
    assert levels[tuple(place)] == 0


@any_module
def test_modules_hold_in_other_precisions(make: Callable[[], tuple[MaskedModule, Call]]) -> None:
    masked, _ = make()
    for dtype in (torch.float64, torch.float16, torch.bfloat16):
        other = copy.deepcopy(masked).to(dtype)
        for (_, weight, levels), (_, _, wanted) in zip(other.weights(), masked.weights(), strict=True):
            assert weight.dtype == dtype
            assert torch.equal(levels, wanted)
        other.prune(0.4)
        other.prune(1.0)
        assert abs(used(other, 1)[0].float().mean() - 0.3) < 0.05


@any_module
def test_an_extracted_module_runs_without_masks(make: Callable[[], tuple[MaskedModule, Call]]) -> None:
    masked, call = make()
    masked.eval()
    for level in range(3):
        alone = masked.extract(level)
        assert torch.allclose(
            call(lambda *a, level, m=alone, **k: m(*a, **k), level=level), call(masked, level=level)
        )
        assert type(alone) is type(masked.module)


class Keeping(nn.Module):
    """Keeps what it computed from its weights while it does not train, as LeViT its attention biases."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.kept: dict[str, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        if "rows" not in self.kept:
            self.kept["rows"] = self.linear.weight.sum(0)
        return self.linear(x) + x @ self.kept["rows"][:, None]


def test_what_a_forward_keeps_is_not_seen_by_other_levels() -> None:
    torch.manual_seed(0)
    module, x = Keeping(), torch.randn(2, 8)
    fresh = MaskedModule(copy.deepcopy(module), (0.2, 1.0)).eval()(x, level=0)
    masked = MaskedModule(module, (0.2, 1.0)).eval()
    masked(x, level=1)
    assert torch.equal(masked(x, level=0), fresh)
    assert not module.kept
