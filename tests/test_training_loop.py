"""A whole run on coloured shapes: it learns, it resumes exactly, it never looks at what is held out."""

from __future__ import annotations

import dataclasses
import functools
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hierclass.checkpoints.checkpoint import load_checkpoint
from hierclass.errors import CheckpointError, InputError
from taxonomy import Taxonomy
from taxonomy.terminal import PlainConsole
from training.data.batches import INTERPOLATION
from training.data.load import load_data
from training.data.sampler import BatchSampler
from training.evaluation.console import Reporter
from training.evaluation.evaluate import measures, run_checkpoint
from training.recipe.recipe import Recipe
from training.trainer import loop
from training.trainer.losses import NestedLoss, TrainingModel
from training.trainer.network import make_network
from training.trainer.run_dir import RunDir

STATE = Path("last") / "state.safetensors"
TIMES = ("seconds", "images_per_second", "data_wait")


@pytest.fixture
def recipe(growing_recipe: Recipe) -> Recipe:
    return growing_recipe


def fit(recipe: Recipe, out: Path, *, resume: bool = False) -> tuple[dict[str, Any], str]:
    text = io.StringIO()
    results = loop.fit(recipe, out, resume=resume, workers=0, console=PlainConsole(file=text, width=100))
    return results, text.getvalue()


def without_seconds(out: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (out / "history.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in TIMES} for row in rows]


def test_a_run_leaves_a_model_its_recipe_and_a_table(unbroken: tuple[Path, str], recipe: Recipe) -> None:
    out, text = unbroken
    checkpoint = load_checkpoint(out / "model")
    rows = checkpoint.results["dev"]["levels"]
    assert [row["classes"] for row in rows] == [2, 5, 12]
    assert all(row["interval"][0] <= row["top1"] <= row["interval"][1] for row in rows)
    assert Recipe.load(out / "recipe.json") == recipe
    assert Recipe.load(out / "model" / "recipe.json") == recipe.without_paths()
    card = (out / "model" / "MODEL_CARD.md").read_text()
    assert f"| 2 | 12 | {rows[2]['top1']:.1%} |" in card
    assert str(Path(recipe.data[0]).parent) not in card
    facts = json.loads((out / "model" / "training.json").read_text())
    assert facts["epochs_done"] == 2
    assert facts["seconds"] > 0
    assert facts["hardware"]["device"] == "cpu"
    assert [word for word in ("epoch 2/2", "accuracy", "MACs", "parameters") if word not in text] == []


def test_the_size_of_the_images_grows(recipe: Recipe) -> None:
    assert [recipe.image_size(epoch) for epoch in range(2)] == [24, 32]
    long = dataclasses.replace(recipe, size=64, start_size=48, epochs=10, grow=0.6)
    assert [long.image_size(epoch) for epoch in range(10)] == [48, 48, 56, 56, 64, 64, 64, 64, 64, 64]


def test_a_run_is_not_overwritten_by_accident(recipe: Recipe, unbroken: tuple[Path, str]) -> None:
    with pytest.raises(InputError, match="add `resume`"):
        fit(recipe, unbroken[0])


def test_two_runs_do_not_write_to_one_folder(recipe: Recipe, tmp_path: Path) -> None:
    program = (
        "import sys, pathlib; from training.trainer.run_dir import RunDir\n"
        "with RunDir(pathlib.Path(sys.argv[1])).claim(resume=False): print('in', flush=True); input()"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    root = Path(__file__).resolve().parents[1]
    with subprocess.Popen(command, cwd=root, stdin=-1, stdout=-1, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "in\n"
        with pytest.raises(InputError, match="another run writes to"):
            fit(recipe, tmp_path)
        other.kill()
    with RunDir(tmp_path).claim(resume=False):
        pass


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"start_size": 65, "size": 64}, "`start_size` 65"),
        ({"mixed_precision": "int8"}, "`mixed_precision` int8"),
        ({"crop_scale": (0.5,)}, "`crop_scale`"),
        ({"grow": 1.5}, "`grow` 1.5"),
        ({"crop": 0.01}, "`crop` 0.01"),
        ({"start_size": 0}, "`start_size` 0"),
        ({"clip_grad": -1.0}, "`clip_grad` -1.0"),
        ({"seed": -1}, "`seed` -1"),
        ({"eval_every": 0}, "`eval_every` 0"),
        ({"limit": 1}, "1 images are too few to train on; give at least 2"),
        ({"smoothing": 1.0}, "`smoothing` 1.0"),
        ({"erase": -0.1}, "`erase` -0.1"),
        ({"mix_prob": 2.0}, "`mix_prob` 2.0"),
        ({"color_jitter": -1.0}, "`color_jitter` -1.0"),
        ({"cutmix": -1.0}, "`cutmix` -1.0: give 0 or more"),
        ({"opt": "nosuch"}, "`opt` nosuch"),
        ({"schedule": "nosuch"}, "`schedule` nosuch"),
        ({"auto_augment": "nosuch"}, "`auto_augment` nosuch"),
        ({"warmup_epochs": 2}, "`warmup_epochs` 2 leaves no epoch"),
    ],
)
def test_an_option_that_cannot_work_is_named(
    change: dict[str, Any], message: str, recipe: Recipe, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        fit(dataclasses.replace(recipe, **change), tmp_path)


@pytest.mark.full
def test_a_compiled_run_learns_what_an_uncompiled_one_learns(
    recipe: Recipe, unbroken: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Any:  # needs no C++ compiler
        sizes.extend(
            value.shape[-1] for value in inputs if isinstance(value, torch.Tensor) and value.ndim == 4
        )
        return graph.forward

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    fit(dataclasses.replace(recipe, compile=True), tmp_path)
    assert {24, 32} <= set(sizes)
    plain, compiled = (
        [json.loads(line)["loss"] for line in (out / "history.jsonl").read_text().splitlines()]
        for out in (unbroken[0], tmp_path)
    )
    assert compiled == pytest.approx(plain, rel=1e-3)


@pytest.mark.full
def test_a_network_that_cannot_be_compiled_is_one_clear_error(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_compiler(*_: Any) -> None:
        raise RuntimeError("no working compiler")

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=no_compiler))
    with pytest.raises(InputError, match=r"`compile`: .*no working compiler.*leave it out"):
        fit(dataclasses.replace(recipe, compile=True), tmp_path)


def test_fewer_images_than_a_batch_are_one_batch(recipe: Recipe, tmp_path: Path) -> None:
    _, text = fit(dataclasses.replace(recipe, batch_size=1000, epochs=1, crop=0.9), tmp_path)
    assert "`batch_size` 1000 is more than there are images: one batch an epoch" in text
    checkpoint = load_checkpoint(tmp_path / "model")
    assert checkpoint.results["dev"]["images"] == 60
    assert checkpoint.preprocessing.crop == 0.9
    assert checkpoint.preprocessing.interpolation == INTERPOLATION


@pytest.mark.parametrize(
    ("images", "processes", "sizes"), [(7, 1, [7]), (9, 2, [5, 4]), (6, 2, [4, 2]), (128, 2, [64, 64])]
)
def test_few_images_are_one_batch_and_every_process_takes_whole_pairs(
    images: int, processes: int, sizes: list[int]
) -> None:
    parts = [
        list(BatchSampler(images, 128, seed=0, process=process, num_processes=processes).shares(0))
        for process in range(processes)
    ]
    assert [[len(share.indices) for share in part] for part in parts] == [[size] for size in sizes]


def test_the_dev_split_is_looked_at_every_so_many_epochs(recipe: Recipe, tmp_path: Path) -> None:
    fit(dataclasses.replace(recipe, epochs=3, eval_every=2), tmp_path)
    lines = (tmp_path / "history.jsonl").read_text().splitlines()
    assert ["dev" in json.loads(line) for line in lines] == [False, True, True]


def test_the_slow_first_step_counts_neither_for_the_rate_nor_for_the_time_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [0.0]
    monkeypatch.setattr("training.evaluation.console.time.monotonic", lambda: now[0])
    text = io.StringIO()
    reporter = Reporter(PlainConsole(file=text, width=100))
    reporter.start(10)
    for step, (seconds, rate) in enumerate([(200.0, 0.0), (231.0, 4.0)]):
        now[0] = seconds
        reporter.step(f"epoch 1/1 step {step + 1}/10", loss=1.0, rate=rate, work=1)
    first, second = text.getvalue().splitlines()
    assert first == "epoch 1/1 step 1/10 loss 1.000"
    assert second == "epoch 1/1 step 2/10 loss 1.000 4 img/s left 4:08"


def test_a_state_of_another_network_is_refused(
    recipe: Recipe, unbroken: tuple[Path, str], tmp_path: Path
) -> None:
    other = dataclasses.replace(recipe, widths=(0.5, 0.75, 1.0))
    shutil.copytree(unbroken[0], tmp_path / "run")
    with pytest.raises(CheckpointError, match="another network"):
        fit(other, tmp_path / "run", resume=True)


def test_the_loss_falls_and_shapes_are_learnt(recipe: Recipe, tmp_path: Path) -> None:
    easy = {"epochs": 14, "cutmix": 0.0, "start_size": None, "crop_scale": (0.8, 1.0), "lr": 0.1}
    longer = dataclasses.replace(recipe, **easy)
    results, _ = fit(longer, tmp_path)
    losses = [row["loss"] for row in without_seconds(tmp_path)]
    assert losses[-1] < 0.6 * losses[0]
    assert results["levels"][2]["top1"] > 0.5  # of 12 classes


def test_held_out_images_are_never_trained_on(recipe: Recipe, tiny_taxonomy: Taxonomy) -> None:
    from training.evaluation.console import Reporter

    reporter = Reporter(PlainConsole(file=io.StringIO()))
    train, dev = load_data(recipe, tiny_taxonomy, reporter)
    assert {int(name.split("_")[1].split(".")[0]) for name in train.names} == set(range(10))
    assert {int(name.split("_")[1].split(".")[0]) for name in dev.names} == set(range(10, 15))
    limited, same = load_data(dataclasses.replace(recipe, limit=30), tiny_taxonomy, reporter)
    assert (len(limited), len(same)) == (30, 60)


def test_evaluating_the_stored_model_gives_the_results_it_carries(
    recipe: Recipe, unbroken: tuple[Path, str]
) -> None:
    stored = load_checkpoint(unbroken[0] / "model").results["dev"]
    again = measures(run_checkpoint(unbroken[0] / "model", recipe.data, dev_from=10, workers=0))
    assert again["images"] == 60
    assert again["levels"] == stored["levels"]  # measured with the weights that are stored, in half precision
    for ours, theirs in zip(again["calibration"]["levels"], stored["calibration"]["levels"], strict=True):
        assert ours["temperature"] == pytest.approx(theirs["temperature"], abs=2e-4)
        assert ours["after"]["nll"] == pytest.approx(theirs["after"]["nll"], abs=1e-4)
    thresholds = zip(again["stored"]["thresholds"], stored["calibration"]["thresholds"], strict=True)
    assert all(ours["measured"]["coverage"] == theirs["coverage"] for ours, theirs in thresholds)
    assert measures(run_checkpoint(unbroken[0] / "model", recipe.data, workers=0))["images"] == 180


def test_a_loss_that_is_no_number_ends_the_run_with_advice(recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="lower `lr`"):
        fit(dataclasses.replace(recipe, lr=1e18), tmp_path)


def test_a_soft_leaf_target_is_summed_up_the_tree(tiny_taxonomy: Taxonomy) -> None:
    loss = NestedLoss(tiny_taxonomy, level_weights=(1, 1, 1), finest_weight=0)
    target = torch.zeros(1, 12)
    target[0, 0], target[0, 2], target[0, 11] = 0.5, 0.25, 0.25
    assert loss.project(target, 0).tolist() == [[0.75, 0.25]]
    assert loss.project(target, 1).tolist() == [[0.75, 0.0, 0.0, 0.0, 0.25]]
    assert loss.project(torch.tensor([0, 11]), 1).tolist() == [0, 4]


def test_hard_and_one_hot_targets_cost_the_same(tiny_taxonomy: Taxonomy) -> None:
    torch.manual_seed(0)
    loss = NestedLoss(tiny_taxonomy, level_weights=(1, 0.5, 2), finest_weight=1, smoothing=0.1, distil=0.5)
    levels = [torch.randn(4, count) for count in (2, 5, 12)]
    finest = [torch.randn(4, 12) for _ in range(2)]
    hard = torch.tensor([0, 5, 7, 11])
    soft = torch.eye(12)[hard]
    torch.testing.assert_close(loss(levels, finest, hard), loss(levels, finest, soft))


SMOOTHINGS: list[dict[str, Any]] = [{}, {"smoothing": 0.1}, {"smoothing": 0.1, "smoothing_along": "tree"}]


@pytest.mark.parametrize("smoothing", SMOOTHINGS)
def test_a_label_of_an_inner_node_trains_the_tiers_down_to_it(
    tiny_taxonomy: Taxonomy, smoothing: dict[str, Any]
) -> None:
    torch.manual_seed(0)
    loss = NestedLoss(tiny_taxonomy, level_weights=(1, 1, 1), finest_weight=1, **smoothing)
    levels = [torch.randn(1, count, requires_grad=True) for count in (2, 5, 12)]
    finest = [torch.randn(1, 12, requires_grad=True)]
    dog, beagle = torch.tensor([13]), torch.tensor([1])
    loss(levels, finest, dog).backward()
    assert levels[0].grad is not None
    assert levels[1].grad is not None
    assert not levels[2].grad.any()  # type: ignore[union-attr]
    assert not finest[0].grad.any()  # type: ignore[union-attr]
    coarse = NestedLoss(tiny_taxonomy, level_weights=(1, 1, 0), finest_weight=0, **smoothing)
    if smoothing.get("smoothing_along") != "tree":  # along the tree it depends on the leaf
        torch.testing.assert_close(loss(levels, finest, dog), coarse(levels, [], beagle))


@pytest.mark.parametrize("smoothing", SMOOTHINGS)
def test_parts_of_a_batch_with_inner_nodes_add_up_and_mixing_is_linear(
    tiny_taxonomy: Taxonomy, smoothing: dict[str, Any]
) -> None:
    torch.manual_seed(0)
    loss = NestedLoss(tiny_taxonomy, level_weights=(1, 0.5, 2), finest_weight=1, **smoothing)
    levels, finest = [torch.randn(4, count) for count in (2, 5, 12)], [torch.randn(4, 12)]
    labels = torch.tensor([0, 12, 13, 7])
    whole = loss(levels, finest, labels)
    parts = [
        loss([each[part] for each in levels], [each[part] for each in finest], labels[part])
        for part in (slice(0, 1), slice(1, 4))
    ]
    torch.testing.assert_close(whole, (parts[0] + 3 * parts[1]) / 4)
    shares = torch.eye(19)[labels]
    torch.testing.assert_close(whole, loss(levels, finest, shares))
    mixed = loss(levels, finest, 0.3 * shares + 0.7 * shares.flip(0))
    torch.testing.assert_close(mixed, 0.3 * whole + 0.7 * loss(levels, finest, labels.flip(0)))


def test_distillation_teaches_the_summed_answer_and_leaves_the_last_level_alone(
    tiny_taxonomy: Taxonomy,
) -> None:
    loss = NestedLoss(tiny_taxonomy, level_weights=(0, 0, 0), finest_weight=0, distil=1)
    levels = [torch.zeros(1, count, requires_grad=True) for count in (2, 5, 12)]
    loss(levels, [], torch.tensor([0])).backward()
    assert levels[2].grad is None
    torch.testing.assert_close(levels[0].grad, torch.tensor([[0.5 - 7 / 12, 0.5 - 5 / 12]]))


def test_lower_levels_learn_the_leaves_and_the_helpers_are_dropped(
    recipe: Recipe, tiny_taxonomy: Taxonomy
) -> None:
    network = make_network(recipe, tiny_taxonomy)
    trainee = TrainingModel(network, 12)
    levels, finest = trainee(torch.zeros(2, 3, 32, 32))
    assert [tuple(logits.shape) for logits in levels] == [(2, 2), (2, 5), (2, 12)]
    assert [tuple(logits.shape) for logits in finest] == [(2, 12), (2, 12)]
    assert not any("finest" in name for name in network.state_dict())


def test_one_seed_makes_one_network(recipe: Recipe, tiny_taxonomy: Taxonomy) -> None:
    first, second = (make_network(recipe, tiny_taxonomy).state_dict() for _ in range(2))
    assert all(torch.equal(first[key], second[key]) for key in first)
    other = make_network(dataclasses.replace(recipe, seed=1), tiny_taxonomy).state_dict()
    assert not all(torch.equal(first[key], other[key]) for key in first)


def test_images_that_cannot_be_read_are_reported_and_left_out(
    tiny_taxonomy: Taxonomy, recipe: Recipe, tmp_path: Path
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(recipe.data[0])
    images = table.column("image").to_pylist()
    images[0] = b"broken"
    pq.write_table(table.set_column(0, "image", pa.array(images)), tmp_path / "shapes.parquet")
    broken = dataclasses.replace(recipe, data=(str(tmp_path / "shapes.parquet"),), epochs=1)
    _, text = fit(broken, tmp_path / "run")
    message = "unreadable.csv): chihuahua_0.JPEG: is no image"
    assert message in " ".join(text.split())
    assert "119 training images" in text
    assert np.isfinite(without_seconds(tmp_path / "run")[0]["loss"])
