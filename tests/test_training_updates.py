"""One update: computed in parts, in less precision, with parts of the network dropped; and what is saved of it."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from timm.layers import BatchNormAct2d, convert_sync_batchnorm
from torch import nn

from hierclass.checkpoints.checkpoint import load_checkpoint
from hierclass.errors import InputError
from taxonomy import Taxonomy
from taxonomy.terminal import PlainConsole
from training.data.batches import TrainingBatch
from training.data.mixup import BatchAugmentation, partner_positions
from training.data.sampler import BatchShare
from training.recipe.recipe import Recipe
from training.trainer import loop
from training.trainer.batch_dropout import share_dropout
from training.trainer.network import make_network, make_preprocessing
from training.trainer.processes import make_accelerator
from training.trainer.resume_state import save_state
from training.trainer.supervised import SupervisedTrainer, untrained_weights
from training.trainer.sync_batchnorm import _SyncedNormFunction, synchronise_batch_norms
from training.trainer.throughput import automatic_workers, waiting_hint


@pytest.fixture(scope="module")
def recipe(shapes_recipe: Recipe) -> Recipe:
    """Two epochs of 5 updates on 120 images, without batch norm, with stochastic depth."""
    return dataclasses.replace(
        shapes_recipe,
        backbone="test_convnext",
        backbone_args={"drop_path_rate": 0.3},
        lr=0.01,
        mixup=0.2,
        cutmix=1.0,
        erase=0.5,
        distil=0.5,
        clip_grad=1.0,
    )


def fit(recipe: Recipe, out: Path, **options: Any) -> list[dict[str, Any]]:
    """Train; the history."""
    loop.fit(recipe, out, workers=0, console=PlainConsole(file=io.StringIO(), width=100), **options)
    return [json.loads(line) for line in (out / "history.jsonl").read_text().splitlines()]


def curve(recipe: Recipe, out: Path) -> list[float]:
    return [row["loss"] for row in fit(recipe, out)]


@pytest.fixture(scope="module")
def whole(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """The losses of a run whose updates are computed at once, in float32."""
    return curve(recipe, tmp_path_factory.mktemp("runs") / "whole")


def test_updates_in_parts_learn_what_whole_ones_do(
    recipe: Recipe, whole: list[float], tmp_path: Path
) -> None:
    assert curve(dataclasses.replace(recipe, accumulate=5), tmp_path) == pytest.approx(whole, rel=1e-5)


@pytest.mark.full
def test_an_update_in_parts_counts_once_in_the_schedule(recipe: Recipe, tmp_path: Path) -> None:
    rows = fit(dataclasses.replace(recipe, accumulate=2, epochs=1), tmp_path / "parts")
    assert rows[0]["lr"] == fit(dataclasses.replace(recipe, epochs=1), tmp_path / "whole")[0]["lr"]


def test_no_part_is_smaller_than_two_images(recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="`accumulate` 13: give 1 to half of `batch_size`"):
        fit(dataclasses.replace(recipe, accumulate=13), tmp_path)
    with pytest.raises(InputError, match="`accumulate` 12: 20 images for 1 processes make no more than 10"):
        fit(dataclasses.replace(recipe, accumulate=12, limit=20), tmp_path)


@pytest.mark.full
def test_bfloat16_learns_nearly_what_float32_does_and_keeps_its_weights_in_float32(
    recipe: Recipe, whole: list[float], tmp_path: Path
) -> None:
    losses = curve(dataclasses.replace(recipe, mixed_precision="bf16"), tmp_path)
    assert losses != whole
    assert losses == pytest.approx(whole, rel=0.02)
    state = load_file(tmp_path / "last" / "state.safetensors")
    assert {value.dtype for value in state.values()} <= {torch.float32, torch.int64}


def test_half_precision_needs_a_gpu(recipe: Recipe, tmp_path: Path) -> None:
    if torch.cuda.is_available() or torch.backends.mps.is_available():
        pytest.skip("there is one")
    with pytest.raises(InputError, match="`mixed_precision` fp16 needs a GPU; give bf16 or no"):
        fit(dataclasses.replace(recipe, mixed_precision="fp16"), tmp_path)


@pytest.fixture
def run(recipe: Recipe, tiny_taxonomy: Taxonomy) -> SupervisedTrainer:
    return SupervisedTrainer(
        recipe, tiny_taxonomy, steps_per_epoch=5, accelerator=make_accelerator(recipe.mixed_precision)
    )


def batch(count: int, places: list[int] | None = None, size: int = 32) -> TrainingBatch:
    """Those at some places of a batch of random images."""
    places = list(range(count)) if places is None else places
    images = torch.from_numpy(
        np.random.default_rng(0).integers(0, 256, (count, 3, size, size), dtype=np.uint8)
    )
    leaves = torch.arange(count) % 12
    positions = torch.tensor(places)
    return TrainingBatch(
        images[positions], leaves[positions], positions, BatchShare([], [], count, 0, size), []
    )


def test_the_loss_and_the_teacher_are_float32_where_the_network_is_not(
    recipe: Recipe, tiny_taxonomy: Taxonomy
) -> None:
    changed = dataclasses.replace(recipe, distil_teacher="ema", mixed_precision="bf16")
    run = SupervisedTrainer(
        changed, tiny_taxonomy, steps_per_epoch=5, accelerator=make_accelerator(changed.mixed_precision)
    )
    inside: set[torch.dtype] = set()
    seen: set[torch.dtype] = set()
    layer = next(part for part in run.trainee.modules() if isinstance(part, nn.Conv2d))
    layer.register_forward_hook(lambda _, __, output: inside.add(output.dtype))

    def watch(_: nn.Module, given: tuple[Any, ...]) -> None:
        levels, finest, _, teachers = given
        seen.update(value.dtype for value in (*levels, *finest, *teachers))

    run.loss.register_forward_pre_hook(watch)
    run.step(batch(8), epoch=0, step=0)
    assert (inside, seen) == ({torch.bfloat16}, {torch.float32})


def test_the_scale_of_half_precision_gradients_is_saved_and_resumed(
    run: SupervisedTrainer, recipe: Recipe, tiny_taxonomy: Taxonomy, tmp_path: Path
) -> None:
    run.step(batch(8), epoch=0, step=0)
    run.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=128.0)
    run.save(tmp_path / "state.safetensors", {"epoch": 0})
    other = SupervisedTrainer(
        recipe, tiny_taxonomy, steps_per_epoch=5, accelerator=make_accelerator(recipe.mixed_precision)
    )
    other.accelerator.scaler = torch.amp.GradScaler("cpu")
    other.load(tmp_path / "state.safetensors")
    assert other.accelerator.scaler.state_dict() == run.accelerator.scaler.state_dict()
    assert other.accelerator.scaler.state_dict()["scale"] == 128.0


@pytest.mark.parametrize("backbone", ["test_resnet", pytest.param("test_convnext", marks=pytest.mark.full)])
def test_channels_come_last_in_every_convolution_of_every_level_after_resuming_too(
    backbone: str, recipe: Recipe, tiny_taxonomy: Taxonomy, tmp_path: Path
) -> None:
    changed = dataclasses.replace(recipe, backbone=backbone)
    accelerator = make_accelerator(changed.mixed_precision)
    first = SupervisedTrainer(changed, tiny_taxonomy, steps_per_epoch=5, accelerator=accelerator)
    first.step(batch(8), epoch=0, step=0)
    first.save(tmp_path / "state.safetensors", {"epoch": 0})
    resumed = SupervisedTrainer(changed, tiny_taxonomy, steps_per_epoch=5, accelerator=accelerator)
    resumed.load(tmp_path / "state.safetensors")
    last = {"memory_format": torch.channels_last}
    for run in (first, resumed):
        layouts: list[bool] = []

        def watch(_: nn.Module, __: Any, output: torch.Tensor, layouts: list[bool] = layouts) -> None:
            layouts.append(output.is_contiguous(**last))

        for part in run.trainee.modules():
            if isinstance(part, nn.Conv2d):
                part.register_forward_hook(watch)
        run.step(batch(8), epoch=0, step=1)
        assert len(layouts) > 6
        assert all(layouts)
        for value in (*run.trainee.parameters(), *run.smoothed.parameters()):
            assert value.ndim != 4 or value.is_contiguous(**last)


def test_images_are_mixed_with_the_same_others_however_the_batch_is_dealt_out(
    recipe: Recipe, tiny_taxonomy: Taxonomy
) -> None:
    mixed_by_parts = dataclasses.replace(recipe, mixup=0.0)
    mixing = BatchAugmentation(mixed_by_parts, make_preprocessing(recipe), 12, torch.device("cpu"))

    def mixed(places: list[int], seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        np.random.seed(seed)
        return mixing(batch(7, places), step=0)

    changed = []
    for seed in range(5):
        images, targets = mixed(list(range(7)), seed)
        for places in ([0, 2, 4, 6], [1, 3, 5]):
            part, part_targets = mixed(places, seed)
            torch.testing.assert_close(part, images[places], rtol=0, atol=0)
            torch.testing.assert_close(part_targets, targets[places], rtol=0, atol=0)
        changed.append(int((targets.max(dim=1).values < 1).sum()))
    assert max(changed) == 6  # all but the one in the middle


def test_an_image_whose_partner_is_missing_is_mixed_with_itself() -> None:
    assert partner_positions(torch.tensor([0, 1, 2, 4, 5]), 6).tolist() == [4, 3, 2, 1, 0]


def test_an_image_that_could_not_be_read_counts_with_loss_zero(run: SupervisedTrainer) -> None:
    total = run.step(batch(8, [0, 1, 2, 3, 4, 5, 7]), epoch=0, step=0)
    assert total.shape == ()
    assert torch.isfinite(total)


@pytest.mark.parametrize(
    "layer", [nn.Dropout(0.5), nn.Dropout2d(0.5), pytest.importorskip("timm.layers").DropPath(0.5)]
)
def test_what_is_dropped_of_an_image_does_not_depend_on_who_computes_it(layer: nn.Module) -> None:
    network = nn.Sequential(layer).train()
    dealt = share_dropout(network, torch.device("cpu"))
    images = torch.ones(8, 4, 3, 3)

    def dropped(places: list[int]) -> torch.Tensor:
        torch.manual_seed(0)
        dealt.positions, dealt.size = torch.tensor(places), 8
        result: torch.Tensor = network(images[places])
        return result

    whole = dropped(list(range(8)))
    assert whole.unique().tolist() == [0, 2]
    assert torch.equal(dropped([0, 7]), whole[[0, 7]])
    assert torch.equal(dropped([1, 2, 5, 6]), whole[[1, 2, 5, 6]])
    assert torch.equal(network.eval()(images), images)


@pytest.fixture
def group(tmp_path: Path) -> Any:
    """A group of one process, so that sums over all processes can be taken."""
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("group")
def test_batch_norm_summed_over_processes_is_batch_norm() -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 3, 5, 5, dtype=torch.float64) * 3 + 2
    x.requires_grad_()
    weight, bias = (torch.randn(3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    got, mean, variance, count = _SyncedNormFunction.apply(x.float(), weight.float(), bias.float(), 1e-5)
    wanted = nn.functional.batch_norm(x, None, None, weight, bias, True, 0.0, 1e-5)
    torch.testing.assert_close(got.double(), wanted, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(mean.double(), x.mean((0, 2, 3)), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(variance.double(), x.var((0, 2, 3), correction=0), atol=1e-4, rtol=1e-5)
    assert count == 100
    direction = torch.randn_like(got)
    values = [x, weight, bias]
    ours = torch.autograd.grad(got, values, direction)
    theirs = torch.autograd.grad(wanted, values, direction.double())
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one.double(), other.double(), atol=1e-4, rtol=1e-4)


def trained(
    recipe: Recipe, taxonomy: Taxonomy, change: Callable[[nn.Module], object]
) -> tuple[list[str], torch.Tensor, torch.Tensor]:
    """What a changed network calls its tensors, its gradients after one pass, and its answers afterwards."""
    network = make_network(recipe, taxonomy).train()
    change(network)
    images = torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    sum(logits.square().mean() for logits in network.forward_all(images)).backward()
    gradients = [value.grad.flatten() for value in network.parameters() if value.grad is not None]
    answers = torch.cat(network.eval().forward_all(images), dim=1)
    return list(network.state_dict()), torch.cat(gradients), answers


@pytest.mark.parametrize(
    "structure",
    ["slices", *(pytest.param(each, marks=pytest.mark.full) for each in ("prefix", "masks", "depths"))],
)
def test_networks_keep_names_answers_and_gradients_when_their_norms_look_at_all_processes(
    structure: str, recipe: Recipe, tiny_taxonomy: Taxonomy, request: pytest.FixtureRequest
) -> None:
    shares = {"masks": {"densities": (0.1, 0.3, 0.6)}, "depths": {"depths": (0.5, 0.5, 1.0)}}
    arguments = {"layers": (2, 2, 2, 2)} if structure == "depths" else {}
    changed = dataclasses.replace(recipe, backbone="test_resnet", backbone_args=arguments)
    changed = dataclasses.replace(changed, structure=structure, **shares.get(structure, {}))
    names, gradients, answers = trained(changed, tiny_taxonomy, lambda _: None)
    others = [
        trained(changed, tiny_taxonomy, convert_sync_batchnorm)
    ]  # what a GPU takes: alone, it runs here
    request.getfixturevalue("group")
    others.append(
        trained(changed, tiny_taxonomy, lambda net: synchronise_batch_norms(net, torch.device("cpu")))
    )
    for other in others:
        assert other[0] == names
        torch.testing.assert_close(other[1], gradients, atol=1e-4, rtol=1e-3)
        torch.testing.assert_close(other[2], answers, atol=1e-4, rtol=1e-3)


@pytest.mark.usefixtures("group")
def test_a_norm_with_an_activation_keeps_it() -> None:
    torch.manual_seed(0)
    x = torch.randn(8, 3, 4, 4)
    norm, other = BatchNormAct2d(3).train(), BatchNormAct2d(3).train()
    network = nn.Sequential(other)
    synchronise_batch_norms(network, torch.device("cpu"))
    torch.testing.assert_close(network(x), norm(x))
    torch.testing.assert_close(other.running_var, norm.running_var)
    assert isinstance(other, BatchNormAct2d)


def test_the_moving_average_that_is_kept_holds_plain_layers(run: SupervisedTrainer, tmp_path: Path) -> None:
    assert not [part for part in run.smoothed.modules() if type(part).__module__.startswith("training")]
    assert [
        part
        for part in run.trainee.modules()
        if type(part).__module__.startswith("training.trainer.batch_dropout")
    ]


def test_weights_that_the_loss_does_not_reach_are_found(
    run: SupervisedTrainer, tiny_taxonomy: Taxonomy
) -> None:
    assert untrained_weights(run.trainee, run.loss, 32) == []
    run.loss.level_weights, run.loss.distil, run.loss.finest_weight = (1.0, 0.0, 1.0), 0.0, 0.0
    assert untrained_weights(run.trainee, run.loss, 32) == ["network.heads.1.weight", "network.heads.1.bias"]
    assert all(value.grad is None for value in run.trainee.parameters())


def test_a_full_disk_leaves_the_former_state(tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    module = nn.Linear(200, 200)
    save_state(path, modules={"model": module}, optimizer={}, progress={"epoch": 1})
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        with pytest.raises(OSError):  # noqa: PT011  # its words are the system's
            save_state(path, modules={"model": module}, optimizer={}, progress={"epoch": 2})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_the_history_says_how_long_images_were_waited_for(recipe: Recipe, tmp_path: Path) -> None:
    (row,) = fit(dataclasses.replace(recipe, epochs=1), tmp_path)
    assert 0 < row["data_wait"] < 1
    assert row["images_per_second"] > 0
    assert load_checkpoint(tmp_path / "model").results["dev"]["images"] == 60


def test_who_waits_for_images_is_told_what_may_help(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    assert waiting_hint(0.1, 1, 1) is None
    assert waiting_hint(0.5, 1, 2) == "50% of the time went into waiting for images; raise `workers` (now 1)"
    assert waiting_hint(0.5, 3, 2) == (
        "50% of the time went into waiting for images; all 8 cores are in use: store smaller images, or augment less"
    )


def test_without_a_number_a_gpu_gets_workers_on_all_cores_but_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)))
    assert automatic_workers(torch.device("cpu"), 1) == 1
    assert automatic_workers(torch.device("cuda"), 1) == 15
    assert automatic_workers(torch.device("cuda"), 8) == 1
