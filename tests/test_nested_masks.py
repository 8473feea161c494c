"""Networks of nested masks, on timm's tiny test models."""

from __future__ import annotations

import copy
import itertools
import pickle
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import timm
import torch
from masked_modules import (
    CLASSES,
    DENSITIES,
    SIZE,
    Small,
    images,
    make_network,
    train_step,
    used,
)
from timm.utils import ModelEmaV3
from tiny_families import mark_full
from torch import Tensor, nn

from hierclass.errors import LevelError
from hierclass.nested import create_backbone
from hierclass.nested.masks.network import MaskedNetwork
from hierclass.nested.verify import verify


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


def test_a_level_of_a_network_ignores_every_weight_above_it(shared: MaskedNetwork) -> None:
    network = copy.deepcopy(shared)
    before = network.forward_all(images())
    for level in (1, 0):
        network.spoil_above(level)
        assert torch.equal(network(images(), level), before[level])


def test_gradients_ignore_every_weight_above_while_training() -> None:
    network = make_network().train()
    network.spoil_above(0)
    for value in network.heads[1:].parameters():
        value.detach().fill_(torch.nan)
    network(images(8), 0).sum().backward()
    for _, weight, levels in network.masked.weights():
        assert weight.grad is not None
        assert weight.grad.isfinite().all()
        assert not weight.grad[levels > 0].any()


def test_a_level_computes_what_a_network_with_zeros_for_its_unused_weights_computes() -> None:
    torch.manual_seed(0)
    backbone = create_backbone("test_resnet").eval()
    network = MaskedNetwork(backbone, DENSITIES, CLASSES, SIZE).eval()
    for level in range(3):
        alone = copy.deepcopy(backbone)
        for name, _, levels in network.masked.weights():
            alone.get_parameter(name)[levels > level] = 0
        assert torch.equal(alone(images()), network.features(images(), level))


def test_levels_answer_differently_and_a_lower_one_uses_fewer_weights(shared: MaskedNetwork) -> None:
    logits = shared.forward_all(images())
    features = shared.features_all(images())
    assert [tuple(value.shape) for value in logits] == [(2, 2), (2, 5), (2, 12)]
    assert len(set(shared.num_features)) == 1
    costs = [shared.cost(level) for level in range(3)]
    for low, high in itertools.pairwise(range(3)):
        assert not torch.allclose(features[low], features[high], atol=1e-4)
        assert costs[low].parameters < costs[high].parameters
        assert costs[low].bytes < costs[high].bytes


def test_costs_are_what_one_counts_by_hand() -> None:
    network = MaskedNetwork(Small(), (0.25, 0.5), (2, 3), (3, 8, 8))
    # Weights in use, biases, one norm, then the heads.
    sizes = 3 * 16 * 9, 16 * 24 * 9
    assert network.cost(0).parameters == sum(sizes) // 4 + 16 + 24 + 32 + 25 * 2
    assert network.cost(1).parameters == sum(sizes) // 2 + 16 + 24 + 32 + 25 * 2 + 25 * 3
    assert network.cost(0).bytes == 4 * (network.cost(0).parameters + 32) + 8
    assert network.cost(0).macs == 3 * 9 * 16 * 9 + 16 * 9 * 24 + 24 * 2  # masks save no operations


@pytest.mark.parametrize("level", [3, -1, True, 1.0, "auto"])
def test_a_level_that_does_not_exist_is_named_with_those_that_do(level: int, resnet: MaskedNetwork) -> None:
    with pytest.raises(LevelError, match=f"level {level!r} does not exist; this .* has levels 0 to 2"):
        resnet(images(), level)
    with pytest.raises(LevelError, match=f"level {level!r} does not exist; this .* has levels 0 to 2"):
        resnet.masked(images(), level=level)


@pytest.mark.parametrize(
    ("name", "stages"),
    [
        ("test_resnet", ["layer1", "layer2", "layer3", "layer4"]),
        ("test_efficientnet", [f"blocks.{i}" for i in range(5)]),
        ("test_vit", [f"blocks.{i}" for i in range(6)]),
        ("test_convnext", [f"stages.{i}" for i in range(4)]),
    ],
)
def test_the_stages_of_a_timm_model_are_those_that_it_names(name: str, stages: list[str]) -> None:
    assert list(make_network(name).masked.stages) == stages


def test_stages_that_are_all_at_one_level_are_that_level(shared: MaskedNetwork) -> None:
    num_stages = len(shared.masked.stages)
    for level in range(3):
        assert torch.equal(shared(images(), [level] * num_stages), shared(images(), level))


def test_stages_at_levels_of_their_own_take_weights_and_norms_from_these(resnet: MaskedNetwork) -> None:
    levels, backbone = [2, 0, 1, 0], resnet.masked.extract(2)
    for stage, level in enumerate(levels, start=1):
        setattr(backbone, f"layer{stage}", getattr(resnet.masked.extract(level), f"layer{stage}"))
    expected = backbone.eval()(images())
    assert torch.equal(resnet.masked(images(), level=levels), expected)
    assert torch.equal(resnet(images(), levels), resnet.classify(expected, 0))  # the last stage's head
    assert torch.equal(resnet.masked.extract(levels)(images()), expected)
    assert not torch.allclose(expected, resnet.features(images(), 2), atol=1e-4)


def test_what_is_in_no_stage_joins_the_stage_before_it(resnet: MaskedNetwork) -> None:
    stem = {name: stage for name, stage in resnet.masked._stage_of.items() if "layer" not in name}
    assert "conv1.0.weight" in stem
    assert set(stem.values()) == {0}


@pytest.mark.parametrize("levels", [[2, 2], [0, 0, 0, 3], [0, 0, 0, -1], [0, 0, 0, True], [1.0] * 4, []])
def test_levels_of_stages_that_do_not_fit_are_told_what_is_wanted(
    resnet: MaskedNetwork, levels: list[int]
) -> None:
    with pytest.raises(LevelError) as caught:
        resnet(images(), levels)
    wanted = "give one level (0 to 2) for each of 4 stages: layer1, layer2, layer3, layer4"
    assert wanted in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("gradients", [False, True])
def test_two_threads_may_run_two_levels_at_once(gradients: bool, resnet: MaskedNetwork) -> None:
    network = copy.deepcopy(resnet)
    calls = [
        lambda: network(images(), 0),
        lambda: network(images(), 2),
        lambda: network(images(), [2, 1, 0, 2]),
    ]
    alone = [call() for call in calls]
    network.masked._kept.clear()
    together = threading.Barrier(3)

    def run(index: int) -> list[Tensor]:
        together.wait()
        with torch.set_grad_enabled(gradients):
            return [calls[index]().detach() for _ in range(8)]

    with ThreadPoolExecutor(3) as pool:
        for expected, results in zip(alone, pool.map(run, range(3)), strict=True):
            assert all(torch.allclose(result, expected, rtol=1e-6, atol=1e-6) for result in results)


def test_answers_follow_every_change_of_the_weights(resnet: MaskedNetwork) -> None:
    network = copy.deepcopy(resnet)
    weight = next(weight for _, weight, _ in network.masked.weights())
    other = make_network()
    changes: list[Callable[[], object]] = [
        lambda: weight.mul_(1.5),
        lambda: setattr(weight, "data", weight.data * 2),
        lambda: network.masked.prune(0.3),
        lambda: network.load_state_dict(other.state_dict()),
        lambda: network.half().float(),
        lambda: network.masked.spoil_above(1),
    ]
    for change in changes:
        before = network(images())
        assert torch.equal(network(images()), before)
        with torch.inference_mode():
            change()
        after = network(images())
        assert not torch.equal(after, before)
        network.masked._kept.clear()
        assert torch.allclose(network(images()), after, rtol=0, atol=0, equal_nan=True)


def test_what_was_kept_for_inference_does_not_disturb_training() -> None:
    network = make_network()
    with torch.inference_mode():
        expected = network(images())
    image = images().requires_grad_()
    for value in network.parameters():
        value.requires_grad_(False)
    network(image).sum().backward()
    assert image.grad is not None
    assert torch.equal(network(images()), expected)


def test_norms_with_running_statistics_are_trained_per_level() -> None:
    network = make_network().train()
    norm = network.masked.module.bn1
    assert isinstance(norm, nn.ModuleList)
    before = [copy.deepcopy(copy_of_level.state_dict()) for copy_of_level in norm]
    network(images(8), 1).sum().backward()
    for level in range(3):
        moved = not torch.equal(norm[level].running_mean, before[level]["running_mean"])
        assert moved == (level == 1)
        assert (norm[level].weight.grad is not None) == (level == 1)
        assert norm[level].num_batches_tracked == before[level]["num_batches_tracked"] + (level == 1)


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_one_training_step_moves_the_loss_of_every_level(name: str) -> None:
    network = make_network(name).train()
    before = train_step(network, lr=1e-4)
    after = train_step(network)
    assert all(new < old for new, old in zip(after, before, strict=True))


def test_training_a_level_alone_moves_no_weight_above_it() -> None:
    network = make_network().train()
    before = [weight.detach().clone() for _, weight, _ in network.masked.weights()]
    network(images(8), 1).sum().backward()
    torch.optim.SGD(network.parameters(), lr=0.1).step()
    for (_, weight, levels), old in zip(network.masked.weights(), before, strict=True):
        assert torch.equal(weight[levels > 1], old[levels > 1])
        assert not torch.equal(weight[levels == 0], old[levels == 0])
        assert not torch.equal(weight[levels == 1], old[levels == 1])


def test_pruning_reopens_then_freezes_the_masks_while_training_goes_on() -> None:
    network = make_network("test_resnet").train()
    network.train_progress(0.0)
    assert all(mask.all() for mask in used(network.masked, 0))
    network.train_progress(0.59)
    train_step(network, lr=0.5)
    unused = [levels == 3 for _, _, levels in network.masked.weights()]
    moved = [weight.detach().clone() for _, weight, _ in network.masked.weights()]
    train_step(network, lr=0.5)
    for (_, weight, _), old, mask in zip(network.masked.weights(), moved, unused, strict=True):
        assert not torch.equal(weight[mask], old[mask])  # they may grow back
    network.train_progress(0.6)
    for level, density in enumerate(DENSITIES):
        for mask in used(network.masked, level):
            assert mask.sum() == int(density * mask.numel() + 0.5)
    frozen = [levels.clone() for _, _, levels in network.masked.weights()]
    values = [weight.detach().clone() for _, weight, _ in network.masked.weights()]
    for progress in (0.61, 0.8, 1.0):
        network.train_progress(progress)
        train_step(network, lr=0.5)
    for (_, weight, levels), map_, value in zip(network.masked.weights(), frozen, values, strict=True):
        assert torch.equal(levels, map_)
        assert torch.equal(weight[map_ == 3], value[map_ == 3])
        assert not torch.equal(weight[map_ < 3], value[map_ < 3])


def test_a_resumed_training_goes_on_with_the_masks_it_had() -> None:
    network, other = make_network().train(), make_network().train()
    network.train_progress(0.7)
    train_step(network, lr=0.5)
    other.load_state_dict(network.state_dict())
    other.train_progress(0.75)
    for (_, _, new), (_, _, old) in zip(other.masked.weights(), network.masked.weights(), strict=True):
        assert torch.equal(new, old)


def test_a_moving_average_follows_weights_and_masks_in_training() -> None:
    network = make_network().train()
    average = ModelEmaV3(network, decay=0.5)
    network.train_progress(0.3)
    train_step(network)
    average.update(network)
    smoothed = average.module
    assert isinstance(smoothed, MaskedNetwork)
    for (_, new, map_), (_, live, live_map) in zip(
        smoothed.masked.weights(), network.masked.weights(), strict=True
    ):
        assert torch.equal(map_, live_map)
        assert not torch.equal(new, live)
    with torch.no_grad():
        before = smoothed(images(), 1)
        average.update(network)
        assert not torch.equal(smoothed(images(), 1), before)


def test_copies_pickles_and_loaded_states_answer_alike(shared: MaskedNetwork) -> None:
    other = copy.deepcopy(shared)
    for value in other.state_dict().values():
        if value.is_floating_point():
            value.zero_()
    assert not torch.equal(other(images()), shared(images()))
    other.load_state_dict(shared.state_dict())
    for twin in (other, copy.deepcopy(shared), pickle.loads(pickle.dumps(shared))):
        assert all(map(torch.equal, twin.forward_all(images()), shared.forward_all(images())))


def test_networks_run_in_double_and_half_precision_and_channels_last(resnet: MaskedNetwork) -> None:
    expected = resnet(images(), 1)
    double = copy.deepcopy(resnet).double()
    assert double(images().double(), 1).dtype == torch.float64
    assert torch.allclose(double(images().double(), 1).float(), expected, atol=1e-4)
    half = copy.deepcopy(resnet).to(torch.bfloat16)
    assert torch.allclose(half(images().bfloat16(), 1).float(), expected, atol=0.2)
    last = copy.deepcopy(resnet).to(memory_format=torch.channels_last)
    assert torch.allclose(
        last(images().contiguous(memory_format=torch.channels_last), 1), expected, atol=1e-4
    )
    verify(last)


@pytest.mark.parametrize("level", [0, 1, 2])
def test_a_truncated_network_answers_alike_and_holds_no_weight_above(
    shared: MaskedNetwork, level: int
) -> None:
    alone = shared.truncate(level)
    assert alone.num_levels == level + 1
    assert alone.num_classes == CLASSES[: level + 1]
    for k in range(level + 1):
        assert torch.equal(alone(images(), k), shared(images(), k))
        assert alone.cost(k) == shared.cost(k)
    for (_, weight, levels), (_, _, before) in zip(
        alone.masked.weights(), shared.masked.weights(), strict=True
    ):
        assert not weight[before > level].any()
        assert ((levels == level + 1) == (before > level)).all()
    verify(alone)
    with pytest.raises(LevelError, match=f"levels 0 to {level}"):
        alone(images(), level + 1)


@pytest.mark.parametrize("level", [0, 1, 2])
def test_an_extracted_level_is_an_ordinary_model_that_answers_alike(
    shared: MaskedNetwork, level: int
) -> None:
    alone = shared.extract(level)
    assert torch.allclose(alone(images()), shared(images(), level), rtol=1e-5, atol=1e-5)
    assert type(alone) is type(shared.masked.module)
    assert not any(type(part).__module__.startswith("hierclass") for part in alone.modules())
    assert alone.get_classifier().out_features == CLASSES[level]
    for name, _, levels in shared.masked.weights():
        assert not alone.get_parameter(name)[levels > level].any()


def test_an_extracted_level_loads_into_a_model_that_timm_makes(resnet: MaskedNetwork) -> None:
    alone = timm.create_model("test_resnet", num_classes=CLASSES[1]).eval()
    alone.load_state_dict(resnet.extract(1).state_dict())
    assert torch.allclose(alone(images()), resnet(images(), 1), rtol=1e-5, atol=1e-5)


def test_a_backbone_without_a_classifier_gets_the_head_behind_it() -> None:
    network = MaskedNetwork(Small(), DENSITIES, CLASSES, SIZE).eval()
    alone = network.extract(1)
    assert isinstance(alone, nn.Sequential)
    assert torch.equal(alone(images()), network(images(), 1))


def test_a_pooling_that_resetting_the_classifier_would_change_is_kept() -> None:
    network = MaskedNetwork(
        create_backbone("test_resnet", global_pool="max"), DENSITIES, CLASSES, SIZE
    ).eval()
    assert torch.allclose(network.extract(1)(images()), network(images(), 1), rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module")
def fused(shared: MaskedNetwork) -> MaskedNetwork:
    network = shared.fused()
    assert isinstance(network, MaskedNetwork)
    return network


def close(left: Tensor, right: Tensor) -> bool:
    return torch.allclose(left, right, rtol=1e-3, atol=1e-4)


def test_a_fused_network_gives_what_it_gave(shared: MaskedNetwork, fused: MaskedNetwork) -> None:
    state = fused.start(images())
    for level, (logits, features) in enumerate(
        zip(shared.forward_all(images()), fused.features_all(images()), strict=True)
    ):
        assert close(fused.refine(state), logits)
        assert close(fused.classify(features, level), logits)
        assert close(fused(images(), level), logits)
        assert fused.cost(level) == shared.cost(level)
        for ours, theirs in zip(fused.level_tensors(level), shared.level_tensors(level), strict=True):
            assert (ours[0], ours[2]) == (theirs[0], theirs[2])
            assert torch.equal(ours[1], theirs[1])
    assert fused.state_dict().keys() == shared.state_dict().keys()
    assert fused.stored().keys() == shared.stored().keys()
    verify(fused)
    assert torch.equal(fused(images(), [1] * len(fused.masked.stages)), shared(images(), 1))
    with pytest.raises(LevelError, match="level 3 does not exist"):
        fused(images(), 3)


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "mobilenetv3_small_050"])
def test_a_fused_level_has_no_batch_norm_and_masks_nothing_in_a_call(name: str) -> None:
    fused = make_network(name).fused()
    assert isinstance(fused, MaskedNetwork)
    logits = fused(images(), 0)
    assert fused._plain is not None
    assert list(fused._plain) == [0]
    assert not any(isinstance(part, nn.BatchNorm2d) for part in fused._plain[0].modules())
    with torch.no_grad():
        for value in fused.masked.parameters():  # what masking in the call would read
            value.fill_(torch.nan)
    assert torch.equal(fused(images(), 0), logits)


def test_a_fused_network_follows_weights_that_are_moved_or_loaded(resnet: MaskedNetwork) -> None:
    fused, other = resnet.fused(), make_network(densities=DENSITIES)
    other.masked.module.get_parameter("conv1.0.weight").mul_(2)
    assert close(fused(images(), 1), resnet(images(), 1))
    assert fused.double()(images().double(), 1).dtype == torch.float64
    assert close(fused.float()(images(), 1), resnet(images(), 1))
    for load in (
        lambda: fused.load_state_dict(other.state_dict()),
        lambda: fused.load_stored(resnet.stored()),
    ):
        before = fused(images(), 1)
        load()
        assert not torch.equal(fused(images(), 1), before)
    assert close(fused(images(), 1), resnet(images(), 1))
    for twin in (copy.deepcopy(fused), pickle.loads(pickle.dumps(fused))):
        assert torch.equal(twin(images(), 1), fused(images(), 1))


def test_two_threads_may_ask_a_fused_network_for_its_first_answer(resnet: MaskedNetwork) -> None:
    fused, expected = resnet.fused(), resnet.forward_all(images())
    together = threading.Barrier(4)

    def run(index: int) -> Tensor:
        together.wait()
        with torch.inference_mode():
            return fused(images(), index // 2)

    with ThreadPoolExecutor(4) as pool:
        assert all(close(got, expected[k // 2]) for k, got in enumerate(pool.map(run, range(4))))


def test_code_that_cannot_be_traced_keeps_its_norms_when_fused() -> None:
    class Choosing(Small):
        def forward(self, image: Tensor) -> Tensor:
            return super().forward(image if image.sum() > 0 else -image)

    network = MaskedNetwork(Choosing(), DENSITIES, CLASSES, SIZE).eval()
    for image in (images(), -images()):
        assert close(network.fused()(image, 1), network(image, 1))


def test_masked_weights_lie_in_memory_as_the_weights_do(resnet: MaskedNetwork) -> None:
    last = copy.deepcopy(resnet).to(memory_format=torch.channels_last)
    weights = [value for value in last.masked.extract(0).parameters() if value.dim() == 4]
    assert all(value.is_contiguous(memory_format=torch.channels_last) for value in weights)
