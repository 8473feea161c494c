"""How levels run: directly, all in one pass, refined step by step, taken out; on timm's tiny test models."""

from __future__ import annotations

import copy
import itertools
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from tiny_families import liven_norms
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from hierclass.errors import BackboneError, LevelError
from hierclass.nested import Cost, NestedNetwork, State, create_backbone, nest
from hierclass.nested.slices import level_of

WIDTHS = (0.25, 0.5, 1.0)
CLASSES = (2, 5, 12)
SIZE = (3, 32, 32)


def make(name: str = "test_resnet", widths: tuple[float, ...] = WIDTHS, **timm_args: object) -> NestedNetwork:
    torch.manual_seed(0)
    backbone = create_backbone(name, **timm_args)
    liven_norms(backbone)
    return nest(backbone, widths=widths, num_classes=CLASSES[-len(widths) :], input_size=SIZE).eval()


@pytest.fixture(scope="module", params=["test_resnet", "test_efficientnet"])
def shared(request: pytest.FixtureRequest) -> NestedNetwork:
    """A network that tests only read."""
    return make(request.param)


@pytest.fixture
def network(shared: NestedNetwork) -> NestedNetwork:
    """A network of its own for a test that changes it."""
    return copy.deepcopy(shared)


@pytest.fixture(autouse=True)
def no_gradients(request: pytest.FixtureRequest) -> Iterator[None]:
    """Only tests that train need gradients."""
    with torch.set_grad_enabled("train" in request.node.name):
        yield


def images(batch: int = 2) -> Tensor:
    return torch.randn(batch, *SIZE, generator=torch.Generator().manual_seed(2))


def macs_of(run: object, *arguments: object) -> int:
    with FlopCounterMode(display=False) as counter:
        run(*arguments)
    return counter.get_total_flops() // 2


def test_each_level_answers_with_its_number_of_classes(shared: NestedNetwork) -> None:
    assert [tuple(shared(images(), level).shape) for level in range(3)] == [(2, 2), (2, 5), (2, 12)]
    assert torch.equal(shared(images()), shared(images(), 2))


def test_levels_answer_differently_for_different_images(shared: NestedNetwork) -> None:
    for logits in shared.forward_all(images()):
        assert not torch.allclose(logits[0], logits[1], atol=1e-4)


@pytest.mark.parametrize("level", [0, 1])
def test_a_level_ignores_every_weight_above_it(network: NestedNetwork, level: int) -> None:
    before = network(images(), level), network.forward_all(images())[: level + 1]
    for name, value in (*network.named_parameters(), *network.named_buffers()):
        if value.is_floating_point() and level_of(name) > level:
            value.copy_(torch.randn_like(value) * 100)
    assert torch.equal(network(images(), level), before[0])
    after = network.forward_all(images())[: level + 1]
    assert all(torch.equal(new, old) for new, old in zip(after, before[1], strict=True))


def test_a_level_depends_on_every_slice_up_to_it(network: NestedNetwork) -> None:
    for changed in range(3):
        before = network.forward_all(images())
        for name, value in network.named_parameters():
            if level_of(name) == changed and not name.startswith("heads"):
                value.mul_(1.1)
        after = network.forward_all(images())
        same = [torch.allclose(new, old) for new, old in zip(after, before, strict=True)]
        assert same == [level < changed for level in range(3)]


def test_all_levels_in_one_pass_are_what_each_level_gives_alone(shared: NestedNetwork) -> None:
    for level, logits in enumerate(shared.forward_all(images())):
        assert torch.equal(logits, shared(images(), level))
    assert len(shared.forward_all(images(), 1)) == 2


def test_refining_gives_what_running_the_level_directly_gives(shared: NestedNetwork) -> None:
    state = shared.start(images())
    assert state.level == -1
    for level in range(3):
        assert torch.allclose(shared.refine(state), shared(images(), level), rtol=1e-5, atol=1e-5)
        assert state.level == level


def test_a_state_holds_only_what_the_next_level_reads_again(shared: NestedNetwork) -> None:
    state = shared.start(images())
    shared.refine(state)
    shared.refine(state)
    assert len({value.shape[1] for value in state.kept}) > 2
    assert {len(value) for value in state.kept} == {2}  # a row per image
    shared.refine(state)
    assert state.kept == ()


def test_a_state_at_the_last_level_cannot_be_refined(shared: NestedNetwork) -> None:
    state = shared.start(images())
    for _ in range(3):
        shared.refine(state)
    with pytest.raises(LevelError, match="level 3 does not exist; this model has levels 0 to 2"):
        shared.refine(state)


@pytest.mark.parametrize("level", [3, -1, True, 1.0, "auto"])
def test_a_level_that_does_not_exist_is_named_with_those_that_do(shared: NestedNetwork, level: int) -> None:
    with pytest.raises(LevelError, match=f"level {level!r} does not exist; this model has levels 0 to 2"):
        shared(images(), level)


def test_pooled_features_of_a_level_begin_with_those_of_the_level_below(shared: NestedNetwork) -> None:
    features = shared.features_all(images())
    assert tuple(value.shape[1] for value in features) == shared.num_features
    assert torch.equal(features[2][:, : shared.num_features[1]], features[1])
    assert torch.equal(features[1][:, : shared.num_features[0]], features[0])
    assert torch.equal(shared.classify(features[1], 1), shared(images(), 1))


def test_refining_computes_only_the_new_slice(shared: NestedNetwork) -> None:
    image = images(1)
    heads = [features * classes for features, classes in zip(shared.num_features, CLASSES, strict=True)]
    trunk = [shared.cost(level).macs - heads[level] for level in range(3)]
    state = shared.start(image)
    steps = [macs_of(shared.refine, state) for _ in range(3)]
    assert steps == [
        trunk[0] + heads[0],
        trunk[1] - trunk[0] + heads[1],
        trunk[2] - trunk[1] + heads[2],
    ]
    assert sum(steps) == macs_of(shared.forward_all, image)
    assert sum(steps) - heads[0] - heads[1] == macs_of(shared, image)


def test_a_lower_level_costs_less_of_everything(shared: NestedNetwork) -> None:
    costs = [shared.cost(level) for level in range(3)]
    for low, high in itertools.pairwise(costs):
        assert low.macs < high.macs
        assert low.parameters < high.parameters
        assert low.bytes < high.bytes
    assert costs[0].macs < costs[2].macs / 4


def test_parameters_of_the_last_level_are_all_there_are(shared: NestedNetwork) -> None:
    assert shared.cost(2).parameters == sum(value.numel() for value in shared.parameters())
    sizes = [0, 0, 0]
    for name, value in shared.named_parameters():
        sizes[level_of(name)] += value.numel()
    assert [shared.cost(level).parameters for level in range(3)] == [sum(sizes[: k + 1]) for k in range(3)]


class Toy(nn.Module):
    """Small enough to count by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.conv2 = nn.Conv2d(16, 32, 3, stride=2, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(torch.relu(self.norm(self.conv1(x)))).mean((2, 3))


def test_costs_are_what_one_counts_by_hand() -> None:
    network = nest(Toy(), widths=(0.5, 1.0), num_classes=(2, 3), input_size=(3, 8, 8))
    # Level 0 has 8 and 16 channels: 8·3·9 weights at 64 places, 16·8·9 at 16 places, a head of 16·2.
    low = 8 * 27 * 64 + 16 * 72 * 16 + 16 * 2
    # Level 1 adds 8 channels that read the image and 16 that read all 16 channels before them.
    high = 16 * 27 * 64 + 16 * 72 * 16 + 16 * 144 * 16 + 32 * 3
    assert (low, high) == (32_288, 83_040)
    # Weights and norms (weight, bias), then heads; statistics are 2 per channel and one int64 counter per
    # layer.
    weights = 216 + 16 + 1152 + 34, 216 + 16 + 1152 + 34 + 216 + 16 + 2304 + 99
    assert weights == (1418, 4053)
    assert network.cost(0) == Cost(macs=low, parameters=1418, bytes=4 * 1418 + 4 * 16 + 8)
    assert network.cost(1) == Cost(macs=high, parameters=4053, bytes=4 * 4053 + 4 * 32 + 16)


def test_counting_leaves_every_part_in_the_mode_it_had(network: NestedNetwork) -> None:
    network.train()
    frozen = next(module for module in network.modules() if isinstance(module, nn.BatchNorm2d))
    frozen.eval()
    modes = [module.training for module in network.modules()]
    statistics = {name: value.clone() for name, value in network.named_buffers()}
    network.cost(2)
    assert [module.training for module in network.modules()] == modes
    assert all(torch.equal(value, statistics[name]) for name, value in network.named_buffers())


@pytest.mark.parametrize("level", [0, 1, 2])
def test_an_extracted_level_answers_alike_and_holds_no_other_weights(
    shared: NestedNetwork, level: int
) -> None:
    alone = shared.extract(level)
    assert torch.equal(alone(images()), shared(images(), level))
    assert alone.num_levels == level + 1
    assert alone.num_classes == CLASSES[: level + 1]
    assert sum(value.numel() for value in alone.parameters()) == shared.cost(level).parameters
    assert alone.cost(level) == shared.cost(level)
    own = {name for name in shared.state_dict() if level_of(name) <= level}
    assert alone.state_dict().keys() == own
    with pytest.raises(LevelError, match=f"levels 0 to {level}"):
        alone(images(), level + 1)


def test_an_extracted_level_shares_no_memory_with_the_network(network: NestedNetwork) -> None:
    alone = network.extract(1)
    before = alone(images())
    for value in network.parameters():
        value.zero_()
    assert torch.equal(alone(images()), before)


def test_one_training_step_changes_the_loss_of_every_level(network: NestedNetwork) -> None:
    targets = [torch.randint(classes, (16,)) for classes in CLASSES]

    def losses() -> list[Tensor]:
        logits = network.forward_all(images(16))
        return [F.cross_entropy(*pair) for pair in zip(logits, targets, strict=True)]

    network.train()
    optimiser = torch.optim.SGD(network.parameters(), lr=0.01)
    before = losses()
    torch.stack(before).sum().backward()
    assert all(value.grad is not None for value in network.parameters())
    optimiser.step()
    after = losses()
    assert all(new.item() < old.item() for new, old in zip(after, before, strict=True))


def test_training_a_level_alone_moves_no_weight_above_it(network: NestedNetwork) -> None:
    network.train()
    network(images(), 1).sum().backward()
    for name, value in network.named_parameters():
        reached = level_of(name) <= 1 and name.split(".")[:2] != ["heads", "0"]
        assert (value.grad is not None) == reached, name


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet"])
def test_dropping_paths_and_features_trains_and_stops_in_evaluation(name: str) -> None:
    network = make(name, drop_path_rate=0.5, drop_rate=0.5).train()
    logits = network.forward_all(images(4))
    torch.stack([value.square().mean() for value in logits]).sum().backward()
    assert all(value.isfinite().all() for value in logits)
    assert not torch.equal(network(images(4)), network(images(4)))
    network.eval()
    assert torch.equal(network(images(4)), network(images(4)))


@pytest.mark.parametrize("widths", [(1.0,), (0.5, 1.0), (0.15, 0.3, 0.6, 1.0), (0.1, 0.2, 0.35, 0.6, 1.0)])
def test_a_network_may_have_any_number_of_levels(widths: tuple[float, ...]) -> None:
    torch.manual_seed(0)
    backbone = create_backbone("test_resnet")
    network = nest(backbone, widths=widths, num_classes=[7] * len(widths), input_size=SIZE).eval()
    assert network.num_levels == len(widths)
    state = network.start(images())
    for level in range(len(widths)):
        assert torch.allclose(network.refine(state), network(images(), level), atol=1e-5)


def test_two_threads_may_run_two_levels_at_once(shared: NestedNetwork) -> None:
    serial = [shared(images(), level) for level in (0, 2)]
    together = threading.Barrier(2)

    def run(index: int) -> list[Tensor]:
        together.wait()
        with torch.no_grad():
            return [shared(images(), (0, 2)[index]) for _ in range(10)]

    with ThreadPoolExecutor(2) as pool:
        for expected, results in zip(serial, pool.map(run, (0, 1)), strict=True):
            assert all(torch.allclose(result, expected, rtol=1e-6, atol=1e-6) for result in results)


def test_two_states_of_one_network_do_not_meet(shared: NestedNetwork) -> None:
    first, second = images(), images().flip(0)
    states: list[State] = [shared.start(first), shared.start(second)]
    shared.refine(states[0])
    shared.refine(states[1])
    assert torch.allclose(shared.refine(states[0]), shared(first, 1), atol=1e-5)
    assert torch.allclose(shared.refine(states[1]), shared(second, 1), atol=1e-5)


def test_a_copy_and_a_loaded_state_answer_alike(shared: NestedNetwork) -> None:
    name = "test_efficientnet" if any("conv_dw" in key for key in shared.state_dict()) else "test_resnet"
    torch.manual_seed(5)
    other = nest(create_backbone(name), widths=WIDTHS, num_classes=CLASSES, input_size=SIZE).eval()
    assert not torch.equal(other(images()), shared(images()))
    other.load_state_dict(shared.state_dict())
    assert torch.equal(other(images()), shared(images()))
    assert torch.equal(copy.deepcopy(shared)(images()), shared(images()))


def test_levels_hold_in_double_precision(network: NestedNetwork) -> None:
    network.double()
    image = images().double()
    state = network.start(image)
    for level in range(3):
        logits = network.refine(state)
        assert logits.dtype == torch.float64
        assert torch.allclose(logits, network(image, level), rtol=1e-12, atol=1e-12)
    assert network.extract(0)(image).dtype == torch.float64
    assert network.cost(0).bytes > 1.9 * network.float().cost(0).bytes


def test_a_backbone_in_double_precision_gives_a_network_in_double_precision() -> None:
    network = nest(
        create_backbone("test_resnet").double(), widths=(0.5, 1.0), num_classes=(2, 3), input_size=SIZE
    )
    assert {value.dtype for value in network.parameters()} == {torch.float64}


def test_channels_last_answers_alike(shared: NestedNetwork, network: NestedNetwork) -> None:
    network.to(memory_format=torch.channels_last)
    image = images().contiguous(memory_format=torch.channels_last)
    state = network.start(image)
    for level in range(3):
        expected = shared(images(), level)
        assert torch.allclose(network(image, level), expected, rtol=1e-4, atol=1e-4)
        assert torch.allclose(network.refine(state), expected, rtol=1e-4, atol=1e-4)


def test_the_network_runs_images_of_other_sizes_and_batches(shared: NestedNetwork) -> None:
    image = torch.randn(3, 3, 48, 64)
    assert shared(image, 1).shape == (3, 5)
    assert shared(image[:0], 1).shape == (0, 5)


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ((2, 5), "3 widths need 3 class counts of at least 1"),
        ((2, 5, 12, 20), "3 widths need 3 class counts of at least 1"),
        ((2, 0, 12), r"num_classes \(2, 0, 12\) does not fit; give numbers of at least 1"),
        ((), r"num_classes \(\) does not fit; give numbers of at least 1"),
    ],
)
def test_class_counts_must_fit_the_widths(classes: tuple[int, ...], message: str) -> None:
    with pytest.raises(BackboneError, match=message):
        nest(Toy(), widths=WIDTHS, num_classes=classes, input_size=SIZE)


def test_widths_that_do_not_fit_are_refused() -> None:
    with pytest.raises(BackboneError, match="give one share per level, rising to 1"):
        nest(Toy(), widths=(0.5, 0.8), num_classes=(2, 3), input_size=SIZE)
