"""Structures in training: their options, how far training is, and recipes written before there were any."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from training_data import Killed, kill, read_fit_options, watched_accelerator

from hierclass.checkpoints.checkpoint import load_checkpoint, num_levels_before
from hierclass.classifier import Classifier
from hierclass.errors import InputError
from hierclass.nested import STRUCTURES, Structure
from taxonomy import Taxonomy, load_taxonomy
from taxonomy.terminal import PlainConsole
from training.data.batches import TrainingBatch
from training.data.sampler import BatchShare
from training.evaluation.evaluate import measures, run_checkpoint
from training.evaluation.model_card import model_card
from training.recipe.presets import read_recipe_file
from training.recipe.recipe import Recipe
from training.trainer import loop
from training.trainer.network import make_architecture, make_network
from training.trainer.processes import make_accelerator
from training.trainer.supervised import SupervisedTrainer


@pytest.fixture
def recipe(shapes_recipe: Recipe) -> Recipe:
    return shapes_recipe


def fit(recipe: Recipe, out: Path, **options: Any) -> dict[str, Any]:
    console = PlainConsole(file=io.StringIO(), width=100)
    return loop.fit(recipe, out, workers=0, console=console, **options)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"structure": "rings"}, "`structure` rings: give slices, prefix, depths or masks"),
        ({"order": "size"}, "`order` size: give given or importance"),
        ({"densities": (0.1, 0.5, 1.0)}, "`densities` does not fit `structure` slices; give `widths`"),
        (
            {"structure": "masks", "widths": (0.1, 0.5, 1.0)},
            "`widths` does not fit `structure` masks; give `densities`",
        ),
        (
            {"structure": "depths", "widths": (0.1, 0.5, 1.0)},
            "`widths` does not fit `structure` depths; give `depths`",
        ),
        (
            {"structure": "depths", "order": "importance"},
            "`order` importance does not fit `structure` depths; leave it out",
        ),
        ({"sizes": (16, 32, 32)}, "`sizes` does not fit `structure` slices; prefix and depths take it"),
        ({"own": ("everything",)}, "`own` does not fit `structure` slices; prefix and depths take it"),
        (
            {"structure": "prefix", "own": ("nothing",)},
            "`own` nothing: give norms, norms+depthwise, one of these with +rank16 (or another rank), or everything",
        ),
        (
            {"structure": "prefix", "sizes": (16, 24, 64)},
            "`sizes` 16,24,64: give a side per level from 8 pixels, never falling, the last that of `size`, 32",
        ),
        ({"structure": "prefix", "sizes": (16, 32)}, "`sizes`: give one per level, 3 for 3 tiers, not 2"),
        ({"widths": (0.5, 1.0)}, "`widths`: give one per level, 3 for 3 tiers, not 2"),
        ({"depths": (0.5, 1.0)}, "`depths`: give one per level, 3 for 3 tiers, not 2"),
        (
            {"structure": "masks", "densities": (0.5,)},
            "`densities`: give one per level, 3 for 3 tiers, not 1",
        ),
        ({"level_weights": (1.0, 2.0)}, "`level_weights`: give one per level, 3 for 3 tiers, not 2"),
    ],
)
def test_numbers_that_do_not_fit_the_structure_are_refused_before_images_are_read(
    change: dict[str, Any], message: str, recipe: Recipe, tmp_path: Path
) -> None:
    with pytest.raises(InputError) as caught:
        fit(dataclasses.replace(recipe, data=("nowhere",), **change), tmp_path)
    assert str(caught.value) == message


def test_a_structure_that_is_added_to_the_table_can_be_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    added = Structure(STRUCTURES["masks"].make, takes=("densities",))
    monkeypatch.setitem(STRUCTURES, "rings", added)
    recipe = Recipe(data=(), taxonomy="x", structure="rings", densities=(0.5, 1.0))
    recipe.check()
    recipe.check_levels(2)
    assert num_levels_before(make_architecture(recipe)) == 2
    with pytest.raises(InputError, match="`widths` does not fit `structure` rings; give `densities`"):
        dataclasses.replace(recipe, widths=(0.5, 1.0)).check()


@pytest.mark.parametrize(
    ("tiers", "shares"),
    [(1, (1.0,)), (2, (0.5, 1.0)), (3, (0.25, 0.5, 1.0)), (5, (0.125, 0.2102, 0.3536, 0.5946, 1.0))],
)
@pytest.mark.parametrize("structure", sorted(STRUCTURES))
def test_without_numbers_each_level_has_half_of_the_next_for_any_number_of_tiers(
    structure: str, tiers: int, shares: tuple[float, ...]
) -> None:
    recipe = Recipe(data=(), taxonomy="x", structure=structure)
    recipe.check_levels(tiers)
    assert getattr(make_architecture(recipe, tiers), STRUCTURES[structure].shares) == shares


def test_numbers_that_are_given_are_one_per_tier() -> None:
    Recipe(data=(), taxonomy="x", widths=(0.5, 1.0)).check_levels(2)
    with pytest.raises(InputError, match="`widths`: give one per level, 3 for 3 tiers, not 2"):
        Recipe(data=(), taxonomy="x", widths=(0.5, 1.0)).check_levels(3)


@pytest.mark.parametrize(
    ("structure", "shares"),
    [("slices", "widths"), ("prefix", "widths"), ("masks", "densities"), ("depths", "depths")],
)
def test_the_architecture_says_what_the_recipe_left_to_the_structure(structure: str, shares: str) -> None:
    architecture = make_architecture(Recipe(data=(), taxonomy="x", structure=structure))
    given = {name: getattr(architecture, name) for name in ("widths", "depths", "densities")}
    assert given == {**dict.fromkeys(given), shares: (0.25, 0.5, 1.0)}
    assert (architecture.structure, num_levels_before(architecture)) == (structure, 3)


LATER = (
    "structure",
    "order",
    "depths",
    "densities",
    "heads",
    "balance",
    "smoothing_along",
    "consensus",
    "accumulate",
)
"""Options that recipes of the first versions lack."""


def as_first_written(recipe: dict[str, Any]) -> dict[str, Any]:
    """The options of a recipe as a first version would have written them."""
    return {name: value for name, value in recipe.items() if name not in LATER}


def test_a_recipe_written_before_there_were_structures_is_read(tmp_path: Path) -> None:
    preset = {"data": ["x"], "taxonomy": "tiny-imagenet", **read_recipe_file("small-images")}
    stored = {**as_first_written(preset), "widths": [0.25, 0.5, 1.0]}
    (tmp_path / "recipe.json").write_text(json.dumps(stored))
    recipe = Recipe.load(tmp_path / "recipe.json")
    recipe.check()
    assert (recipe.structure, recipe.order, recipe.widths) == ("slices", "given", (0.25, 0.5, 1.0))


def test_the_model_card_of_a_run_before_structures_is_written(
    recipe: Recipe, tiny_taxonomy: Taxonomy, tmp_path: Path
) -> None:
    fit(dataclasses.replace(recipe, epochs=1), tmp_path)
    facts = json.loads((tmp_path / "model" / "training.json").read_text())
    card = model_card({**facts, "recipe": as_first_written(facts["recipe"])}, tiny_taxonomy)
    assert "timm's `test_resnet` cut by structure `slices` at widths 0.25, 0.5, 1.0, input 32 x 32" in card


def test_a_network_of_masks_is_pruned_from_update_to_update(recipe: Recipe, tiny_taxonomy: Taxonomy) -> None:
    changed = dataclasses.replace(recipe, structure="masks", densities=(0.1, 0.3, 0.6))
    accelerator = make_accelerator("no")
    trainer = SupervisedTrainer(changed, tiny_taxonomy, steps_per_epoch=2, accelerator=accelerator)
    images, places = torch.randint(0, 256, (24, 3, 32, 32), dtype=torch.uint8), torch.arange(24)
    kept = []
    for step in range(4):
        share = BatchShare(places.tolist(), places.tolist(), 24, step // 2, 32)
        trainer.step(TrainingBatch(images, places % 12, places, share, []), epoch=step // 2, step=step % 2)
        kept.append(trainer.network.cost(0).parameters)
    assert kept == sorted(kept, reverse=True)
    assert kept[0] > 2 * kept[-1]


DEEP = {"layers": (2, 2, 2, 2)}
CHANGES: dict[str, dict[str, Any]] = {
    "prefix": {},
    "masks": {"densities": (0.1, 0.3, 0.6), "depths": (0.5, 0.5, 1.0), "backbone_args": DEEP},
    "depths": {"depths": (0.5, 0.5, 1.0), "backbone_args": DEEP},
    "slices": {"depths": (0.5, 0.5, 1.0), "backbone_args": DEEP},
}


@pytest.mark.parametrize(
    "structure",
    ["prefix", *(pytest.param(each, marks=pytest.mark.full) for each in ("depths", "masks", "slices"))],
)
def test_every_structure_is_trained_resumed_and_kept(structure: str, recipe: Recipe, tmp_path: Path) -> None:
    taught = {"distil": 0.5, "distil_from": "next", "distil_teacher": "ema", "consensus": 0.5}
    changed = dataclasses.replace(recipe, structure=structure, **CHANGES[structure], **taught)
    results = fit(changed, tmp_path / "whole")
    with pytest.raises(Killed):  # in the second epoch; the state is saved after every update
        fit(changed, tmp_path / "broken", save_every=1e-9, accelerator=watched_accelerator([], 7, kill))
    fit(changed, tmp_path / "broken", resume=True)
    state = Path("last") / "state.safetensors"
    ours, theirs = (load_file(tmp_path / name / state) for name in ("broken", "whole"))
    assert [key for key in theirs if not torch.equal(ours[key], theirs[key])] == []
    checkpoint = load_checkpoint(tmp_path / "whole" / "model")
    assert checkpoint.architecture == make_architecture(changed)
    levels = Classifier(checkpoint, device="cpu").levels
    assert [row["macs"] for row in results["levels"]] == [level.macs for level in levels]
    assert [row["share"] for row in results["levels"]] == [level.share for level in levels]
    assert [checkpoint.network.cost(level).parameters for level in range(3)] == [
        row["parameters"] for row in results["levels"]
    ]
    again = measures(run_checkpoint(tmp_path / "whole" / "model", recipe.data, dev_from=10, workers=0))
    for ours_row, theirs_row in zip(again["levels"], results["levels"], strict=True):
        assert abs(ours_row["top1"] - theirs_row["top1"]) <= 1 / 60  # stored as half precision


def test_a_network_of_masks_is_kept_at_the_densities_asked_for(recipe: Recipe, tmp_path: Path) -> None:
    changed = dataclasses.replace(recipe, structure="masks", densities=(0.1, 0.3, 0.6), epochs=4)
    results = fit(changed, tmp_path)
    weights = [weight for name, weight in load_file(tmp_path / "model" / "model.safetensors").items()]
    dense = sum(p.numel() for p in make_network(changed, load_taxonomy(recipe.taxonomy)).parameters())
    shares = [row["parameters"] / dense for row in results["levels"]]
    assert shares == pytest.approx([0.1, 0.3, 0.6], abs=0.05)  # norms and heads are dense
    assert sum(weight.numel() for weight in weights if weight.is_floating_point()) < 0.7 * dense


def test_a_network_of_masks_is_not_compiled(recipe: Recipe) -> None:
    with pytest.raises(InputError) as caught:
        dataclasses.replace(recipe, structure="masks", compile=True).check()
    assert str(caught.value) == "`compile` does not speed up `structure` masks; leave it out"


def test_options_of_the_command_line_become_the_recipe(tmp_path: Path) -> None:
    given = ["--out", tmp_path, "--data", "x"]
    plain = read_fit_options(*given)
    masks = read_fit_options(*given, "--structure", "masks", "--densities", "0.1,0.3,1")
    slices = read_fit_options(*given, "--widths", "0.5,1", "--depths", "0.5,1", "--order", "importance")
    prefix = read_fit_options(*given, "--structure", "prefix", "--sizes", "32,48,64", "--own", "norms+rank2")
    assert (prefix.sizes, prefix.own) == ((32, 48, 64), ("norms+rank2",))
    assert (plain.sizes, plain.own) == (None, ("norms",))
    assert (plain.structure, plain.widths, plain.depths, plain.densities) == ("slices", None, None, None)
    assert (masks.structure, masks.densities) == ("masks", (0.1, 0.3, 1.0))
    assert (slices.widths, slices.depths, slices.order) == ((0.5, 1.0), (0.5, 1.0), "importance")


def test_levels_of_prefix_train_at_sizes_of_their_own_with_weights_of_their_own(
    recipe: Recipe, tmp_path: Path
) -> None:
    own = ("everything", "norms+depthwise+rank2")
    wanted = dataclasses.replace(
        recipe,
        structure="prefix",
        backbone="test_efficientnet",
        widths=(0.5, 1.0, 1.0),
        sizes=(16, 24, 32),
        own=own,
        order="importance",
        epochs=1,
    )
    fit(wanted, tmp_path / "run")
    found = load_checkpoint(tmp_path / "run" / "model")
    assert (found.architecture.sizes, found.architecture.own) == ((16, 24, 32), own)
    assert found.network.sizes == (16, 24, 32)
    assert Recipe.load(tmp_path / "run" / "recipe.json") == wanted
    assert [row["level"] for row in found.results["dev"]["levels"]] == [0, 1, 2]
