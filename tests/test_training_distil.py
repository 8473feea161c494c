"""Levels that teach each other while training, and levels that answer together afterwards."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from training_data import read_fit_options

from hierclass.checkpoints.checkpoint import load_checkpoint
from hierclass.errors import InputError
from taxonomy import Taxonomy
from taxonomy.terminal import PlainConsole
from training.data.batches import TrainingBatch
from training.data.sampler import BatchShare
from training.evaluation.console import consensus_table
from training.evaluation.evaluate import measures, run_checkpoint
from training.evaluation.predictions import weights_to_try
from training.recipe.recipe import Recipe
from training.trainer import loop
from training.trainer.losses import NestedLoss
from training.trainer.processes import make_accelerator
from training.trainer.supervised import SupervisedTrainer

HALVES = torch.tensor([[0.0, 0.0]])


@pytest.fixture
def recipe(shapes_recipe: Recipe) -> Recipe:
    """One epoch in which levels teach each other."""
    return dataclasses.replace(shapes_recipe, epochs=1, lr=0.1, distil=1.0)


def fit(recipe: Recipe, out: Path) -> tuple[dict[str, Any], str]:
    text = io.StringIO()
    results = loop.fit(recipe, out, workers=0, console=PlainConsole(file=text, width=100))
    return results, text.getvalue()


def loss_of(out: Path) -> float:
    loss: float = json.loads((out / "history.jsonl").read_text().splitlines()[-1])["loss"]
    return loss


def distilling(taxonomy: Taxonomy, distil_from: str) -> NestedLoss:
    return NestedLoss(taxonomy, level_weights=(0, 0, 0), finest_weight=0, distil=1, distil_from=distil_from)


def levels(values: dict[int, list[float]]) -> list[torch.Tensor]:
    """Logits of one image per level: those given, zeros elsewhere."""
    return [
        torch.tensor([values.get(level, [0.0] * count)], requires_grad=True)
        for level, count in enumerate((2, 5, 12))
    ]


def test_the_next_level_teaches_its_answer_summed_up_one_tier(tiny_taxonomy: Taxonomy) -> None:
    # level 1 says dog, cat, bird, car, boat; level 2 would teach other shares
    logits = levels({1: np.log([0.5, 0.1, 0.1, 0.2, 0.1]).tolist(), 2: [9.0] + [0.0] * 11})
    distilling(tiny_taxonomy, "next")(logits, [], torch.tensor([0])).backward()
    torch.testing.assert_close(logits[0].grad, torch.tensor([[0.5 - 0.7, 0.5 - 0.3]]))
    assert logits[1].grad is not None  # from its own teacher
    assert logits[2].grad is None


def test_the_last_level_teaches_all_below_it(tiny_taxonomy: Taxonomy) -> None:
    logits = levels({1: [9.0, 0.0, 0.0, 0.0, 0.0], 2: np.log([0.2] * 3 + [0.05] * 4 + [0.04] * 5).tolist()})
    distilling(tiny_taxonomy, "last")(logits, [], torch.tensor([0])).backward()
    torch.testing.assert_close(logits[0].grad, torch.tensor([[0.5 - 0.8, 0.5 - 0.2]]))


@pytest.mark.parametrize("distil_from", ["last", "next"])
def test_another_network_may_teach(distil_from: str, tiny_taxonomy: Taxonomy) -> None:
    logits = levels({})
    teachers = [HALVES, torch.tensor([[9.0, 9.0, 9.0, -9.0, -9.0]]), torch.tensor([[9.0] * 7 + [-9.0] * 5])]
    loss = distilling(tiny_taxonomy, distil_from)
    loss(logits, [], torch.tensor([0]), teachers).backward()
    assert logits[0].grad is not None
    torch.testing.assert_close(logits[0].grad, torch.tensor([[-0.5, 0.5]]), atol=1e-4, rtol=0)


def test_a_level_that_agrees_with_its_teacher_costs_nothing(tiny_taxonomy: Taxonomy) -> None:
    logits = levels({0: np.log([7, 5]).tolist(), 1: np.log([3, 2, 2, 3, 2]).tolist()})
    for distil_from in ("last", "next"):
        cost = distilling(tiny_taxonomy, distil_from)(logits, [], torch.tensor([0]))
        assert cost.item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(("distil_from", "classes"), [("last", [12]), ("next", [2, 5, 12])])
def test_the_moving_average_teaches_what_it_answers(
    distil_from: str, classes: list[int], recipe: Recipe, tiny_taxonomy: Taxonomy
) -> None:
    changed = dataclasses.replace(recipe, distil_from=distil_from, distil_teacher="ema")
    trainer = SupervisedTrainer(changed, tiny_taxonomy, steps_per_epoch=1, accelerator=make_accelerator("no"))
    seen: list[list[torch.Tensor]] = []
    trainer.loss.register_forward_pre_hook(lambda _, given: seen.append(list(given[3])))
    images = torch.zeros(24, 3, 32, 32, dtype=torch.uint8)
    places = torch.arange(24)
    share = BatchShare(places.tolist(), places.tolist(), 24, 0, 32)
    expected = trainer.smoothed(trainer.mixing.normalise(images))
    trainer.step(TrainingBatch(images, places % 12, places, share, []), epoch=0, step=0)
    (logits,) = seen
    assert [level.shape for level in logits] == [(24, count) for count in classes]
    assert not any(level.requires_grad for level in logits)
    torch.testing.assert_close(logits[-1], expected)


@pytest.mark.full
def test_who_teaches_changes_what_is_learnt(recipe: Recipe, tmp_path: Path) -> None:
    losses = set()
    for distil_from in ("last", "next"):
        for teacher in ("live", "ema"):
            out = tmp_path / distil_from / teacher
            fit(dataclasses.replace(recipe, distil_from=distil_from, distil_teacher=teacher), out)
            losses.add(loss_of(out))
    assert len(losses) == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"distil": -1.0}, "`distil` -1.0: give 0 or more"),
        ({"distil_from": "first"}, "`distil_from` first: give last or next"),
        ({"distil_teacher": "dead"}, "`distil_teacher` dead: give live or ema"),
        ({"consensus": "much"}, "`consensus` much: give auto, or a number from 0"),
        ({"consensus": -0.5}, "`consensus` -0.5: give auto, or a number from 0"),
        ({"consensus": float("nan")}, "`consensus` nan: give auto, or a number from 0"),
    ],
)
def test_an_option_that_cannot_work_is_named(change: dict[str, Any], message: str, recipe: Recipe) -> None:
    with pytest.raises(InputError) as caught:
        dataclasses.replace(recipe, **change).check()
    assert str(caught.value) == message


def test_the_command_line_takes_auto_or_a_number(tmp_path: Path) -> None:
    given = [
        "--out",
        tmp_path,
        "--data",
        "x",
        "--distil",
        1,
        "--distil-from",
        "next",
        "--distil-teacher",
        "ema",
    ]
    texts = ("auto", "0", "0.25", "much")
    recipes = [read_fit_options(*given, "--consensus", text) for text in texts]
    assert [recipe.consensus for recipe in recipes] == ["auto", 0, 0.25, "much"]
    assert (recipes[0].distil_from, recipes[0].distil_teacher) == ("next", "ema")


def test_the_chosen_weight_is_measured_beside_those_that_are_always_tried() -> None:
    assert weights_to_try("auto") == (0.0, 0.25, 0.5, 1.0)
    assert weights_to_try(0.25) == (0.0, 0.25, 0.5, 1.0)
    assert weights_to_try(0.3) == (0.0, 0.25, 0.3, 0.5, 1.0)


def test_a_chosen_consensus_is_stored_and_its_effect_is_reported(recipe: Recipe, tmp_path: Path) -> None:
    results, text = fit(dataclasses.replace(recipe, consensus=0.3), tmp_path)
    checkpoint = load_checkpoint(tmp_path / "model")
    assert checkpoint.decision["lower_weight"] == 0.3
    assert checkpoint.results["dev"] == results
    effect = {row["lower_weight"]: row["top1"] for row in results["consensus"]}
    assert list(effect) == [0.0, 0.25, 0.3, 0.5, 1.0]
    assert effect[0.3] == [row["top1"] for row in results["levels"]]
    assert {top1[0] for top1 in effect.values()} == {results["levels"][0]["top1"]}  # nothing is below level 0
    assert effect[0.0][2] == results["alone"]["top1"][2]  # the last level's own head
    assert "0.3 (used)" in text
    card = (tmp_path / "model" / "MODEL_CARD.md").read_text()
    assert "| 0.3 | " + " | ".join(f"{top1:.1%}" for top1 in effect[0.3]) + " |" in card
    assert "The model uses 0.3." in card
    assert "The dev split chose the epoch, so" in card


def test_auto_keeps_the_best_weight_and_says_that_the_dev_split_chose_it(
    recipe: Recipe, tmp_path: Path
) -> None:
    results, _ = fit(recipe, tmp_path)
    sums = {row["lower_weight"]: sum(row["top1"]) for row in results["consensus"]}
    assert sums[results["lower_weight"]] == pytest.approx(max(sums.values()))
    card = (tmp_path / "model" / "MODEL_CARD.md").read_text()
    assert "chose the epoch and the weight of the lower levels" in card


def test_evaluating_a_model_shows_its_consensus_beside_others(
    recipe: Recipe, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    from hierclass.checkpoints.checkpoint import save_checkpoint

    checkpoint = load_checkpoint(tiny_checkpoint)
    checkpoint.decision = {"lower_weight": 0.3}
    save_checkpoint(tmp_path, checkpoint)
    results = measures(run_checkpoint(tmp_path, recipe.data, dev_from=10, workers=0))
    assert [row["lower_weight"] for row in results["consensus"]] == [0.0, 0.25, 0.3, 0.5, 1.0]
    assert results["consensus"][2]["top1"] == [row["top1"] for row in results["levels"]]
    text = io.StringIO()
    PlainConsole(file=text, width=100).print(consensus_table(results))
    assert "0.3 (used)" in text.getvalue()
    assert "not at all" in text.getvalue()


def row(top1: float, parameters: int = 10, coarse: float = 0.5) -> dict[str, Any]:
    return {"levels": [{"top1": coarse, "parameters": 5}, {"top1": top1, "parameters": parameters}]}


def test_the_best_epoch_is_that_with_the_best_last_level() -> None:
    assert loop._is_better(row(0.3), None)
    assert loop._is_better(row(0.4), {"results": row(0.3)})
    assert not loop._is_better(row(0.2, coarse=0.9), {"results": row(0.3)})


def test_of_equally_good_epochs_the_better_coarser_tiers_win_and_then_the_later_one() -> None:
    assert loop._is_better(row(0.3, coarse=0.6), {"results": row(0.3)})
    assert not loop._is_better(row(0.3, coarse=0.4), {"results": row(0.3)})
    assert loop._is_better(row(0.3), {"results": row(0.3)})


def test_an_epoch_before_pruning_ended_is_not_kept_for_its_extra_weights() -> None:
    assert loop._is_better(row(0.3, parameters=8), {"results": row(0.9, parameters=9)})
    assert not loop._is_better(row(0.3, parameters=8), {"results": row(0.9, parameters=8)})


def test_the_last_level_teaches_leaves_where_it_is_asked_to(tiny_taxonomy: Taxonomy) -> None:
    logits = levels({2: np.log([0.45] + [0.05] * 11).tolist()})
    lower = [torch.zeros(1, 12, requires_grad=True) for _ in range(2)]
    loss = NestedLoss(tiny_taxonomy, level_weights=(0, 0, 0), finest_weight=0, distil=1, distil_to="leaves")
    loss(logits, lower, torch.tensor([0])).backward()
    for student in lower:  # they say 1/12 for each
        torch.testing.assert_close(student.grad, torch.tensor([[1 / 12 - 0.45] + [1 / 12 - 0.05] * 11]))
    assert [each.grad for each in logits] == [None, None, None]


@pytest.mark.parametrize("changes", [{"distil_from": "next"}, {"finest_weight": 0.0}, {"distil_to": "roots"}])
def test_what_can_not_teach_leaves_is_refused(changes: dict[str, Any], recipe: Recipe) -> None:
    with pytest.raises(InputError, match="`distil_to`"):
        dataclasses.replace(recipe, **{"distil_to": "leaves", **changes}).check()


def test_smoothing_along_the_tree_stays_with_the_relatives(tiny_taxonomy: Taxonomy) -> None:
    loss = NestedLoss(
        tiny_taxonomy, level_weights=(1, 1, 1), finest_weight=0, smoothing=0.3, smoothing_along="tree"
    )
    target = loss.smooth(torch.tensor([0]))
    projections = [torch.tensor(tiny_taxonomy.projection(tier)) for tier in (0, 1)]
    expected = torch.full((12,), 0.1 / 12)
    expected[0] += 0.7
    for projection in projections:
        relatives = projection == projection[0]
        expected += 0.1 * relatives / relatives.sum()
    torch.testing.assert_close(target, expected[None])
    torch.testing.assert_close(target.sum(), torch.tensor(1.0))
    mixed = torch.zeros(1, 12)
    mixed[0, [0, 7]] = 0.5
    both = loss.smooth(torch.tensor([0, 7])).mean(0, keepdim=True)
    torch.testing.assert_close(loss.smooth(mixed), both)
