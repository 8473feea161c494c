"""A distillation that is stopped and continued ends as one that nobody stopped; crops are made once."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from distil_data import STATE, make_recipe, run, write_photographs, write_teacher
from safetensors.torch import load_file
from training_data import Killed, kill, watched_accelerator

from hierclass.errors import InputError
from taxonomy import Taxonomy
from taxonomy.terminal import PlainConsole
from training.distillation.crop_store import CropStore
from training.distillation.crops import make_crops, missing_blocks
from training.distillation.dataset import DistilData, PhotographSplit
from training.distillation.loop import load_teacher
from training.distillation.recipe import DistilRecipe
from training.distillation.teacher_runtime import make_teacher_function
from training.evaluation.console import Reporter
from training.trainer.processes import make_accelerator

TIMES = ("seconds", "images_per_second", "data_wait")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_taxonomy: Taxonomy) -> Path:
    folder = tmp_path_factory.mktemp("distil")
    write_teacher(folder, tiny_taxonomy)
    write_photographs(folder / "photos", 70)  # two blocks of crops a pass
    return folder


@pytest.fixture(scope="module")
def recipe(folder: Path) -> DistilRecipe:
    return make_recipe(folder, mixup=0.4, mix_prob=0.5)


@pytest.fixture(scope="module")
def unbroken(folder: Path, recipe: DistilRecipe) -> Path:
    """The folder of a run of level 0 that nobody stopped."""
    run(recipe, folder / "unbroken", level=0)
    return folder / "unbroken"


def assert_equal(out: Path, unbroken: Path) -> None:
    ours, theirs = (load_file(each / "level-0" / STATE) for each in (out, unbroken))
    assert ours.keys() == theirs.keys()
    assert [key for key in ours if not torch.equal(ours[key], theirs[key])] == []
    rows = [
        [
            {key: value for key, value in json.loads(line).items() if key not in TIMES}
            for line in (each / "level-0" / "history.jsonl").read_text().splitlines()
        ]
        for each in (out, unbroken)
    ]
    assert rows[0] == rows[1]
    weights = [load_file(each / "model" / "model.safetensors") for each in (out, unbroken)]
    assert [key for key in weights[0] if not torch.equal(weights[0][key], weights[1][key])] == []


@pytest.mark.full
def test_a_run_that_is_killed_in_the_middle_equals_an_unbroken_one_bit_for_bit(
    recipe: DistilRecipe, unbroken: Path, tmp_path: Path
) -> None:
    with pytest.raises(Killed):
        run(recipe, tmp_path / "out", level=0, save_every=1e-9, accelerator=watched_accelerator([], 5, kill))
    _, text = run(recipe, tmp_path / "out", level=0, resume=True)
    assert "resumed after 5 of 6 updates" in text
    assert_equal(tmp_path / "out", unbroken)


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.full)])
def test_a_run_that_is_told_to_stop_keeps_every_update(
    number: signal.Signals, recipe: DistilRecipe, unbroken: Path, tmp_path: Path
) -> None:
    updates: list[int] = []
    stop = watched_accelerator(updates, 1, lambda: os.kill(os.getpid(), number))
    recipe = dataclasses.replace(recipe, cache=str(unbroken / "crops"))
    with pytest.raises(KeyboardInterrupt):
        run(recipe, tmp_path / "out", level=0, save_every=0, accelerator=stop)
    run(recipe, tmp_path / "out", level=0, resume=True, accelerator=watched_accelerator(updates))
    assert len(updates) == 6
    assert_equal(tmp_path / "out", unbroken)


def test_crops_that_a_stop_left_half_made_are_made_to_the_end_and_no_others(
    recipe: DistilRecipe, unbroken: Path, tmp_path: Path
) -> None:
    assert recipe.sizes is not None
    teacher = load_teacher(recipe).at_side(recipe.sizes[-1])
    photographs = PhotographSplit.find(recipe, teacher)
    data = DistilData.of(photographs, recipe, teacher, tmp_path, (16,))
    answer, _ = make_teacher_function(teacher, torch.device("cpu"), 0)
    answered: list[int] = []

    def stopping(images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        if len(answered) == 2:
            raise Killed
        answered.append(len(images))
        return answer(images)

    data.store.open()
    reporter = Reporter(PlainConsole(file=io.StringIO()))
    crops = (data.store, photographs.photographs, photographs.cutter, missing_blocks(data.store))
    with pytest.raises(Killed):
        make_crops(*crops, stopping, reporter, workers=0)
    assert sum(data.store.done("answers.f16")) == 2
    answered.clear()
    data.make(teacher, make_accelerator("no"), reporter, workers=0, threads=None)
    assert not missing_blocks(data.store)
    for name in ("answers.f16", "pixels-16.u8", "sides.u16"):
        assert (tmp_path / name).read_bytes() == (unbroken / "crops" / name).read_bytes(), name


def store(folder: Path, recipe: DistilRecipe) -> CropStore:
    return CropStore(folder, {}, {}, num_photographs=70, passes=recipe.crops_per_photo)


@pytest.mark.full
def test_more_crops_of_each_photograph_are_added_to_those_there(
    recipe: DistilRecipe, unbroken: Path, tmp_path: Path
) -> None:
    shutil.copytree(unbroken, tmp_path / "out")
    before = (unbroken / "crops" / "answers.f16").read_bytes()
    more = dataclasses.replace(recipe, crops_per_photo=3, crops=112)
    _, text = run(more, tmp_path / "out", level=0, resume=True)
    assert "70 of 210 crops are to be made" in text
    after = (tmp_path / "out" / "crops" / "answers.f16").read_bytes()
    assert len(after) == len(before) // 2 * 3
    assert after.startswith(before)


def test_another_level_takes_the_answers_that_are_there(
    recipe: DistilRecipe, unbroken: Path, tmp_path: Path
) -> None:
    shutil.copytree(unbroken, tmp_path / "out")
    _, text = run(dataclasses.replace(recipe, crops=16), tmp_path / "out", level=1)
    assert "all are answered" in text
    assert (tmp_path / "out" / "crops" / "pixels-24.u8").exists()
    assert {file.name for file in (tmp_path / "out").glob("level-*")} == {"level-0", "level-1"}


def test_crops_of_something_else_are_refused(
    recipe: DistilRecipe, unbroken: Path, folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(folder / "photos", tmp_path / "photos")
    (tmp_path / "photos" / "000.jpg").write_bytes((tmp_path / "photos" / "001.jpg").read_bytes())
    other = dataclasses.replace(
        recipe, images=(str(tmp_path / "photos"),), seed=1, cache=str(unbroken / "crops")
    )
    with pytest.raises(
        InputError, match=r"crops of another run \(differing: photographs, seed\); delete it to"
    ):
        run(other, tmp_path / "out", level=0)


@pytest.mark.full
def test_a_run_is_begun_anew_when_told_to(recipe: DistilRecipe, unbroken: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(unbroken, out)
    run(dataclasses.replace(recipe, own=("norms",), seed=1), out, level=0, overwrite=True)
    whole = tmp_path / "whole"
    run(dataclasses.replace(recipe, own=("norms",), seed=1), whole, level=0)
    assert_equal(out, whole)


def test_a_run_is_not_replaced_in_silence(recipe: DistilRecipe, unbroken: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="level-0 holds a run; add `resume` to continue it"):
        run(recipe, unbroken, level=0)
    with pytest.raises(InputError, match=r"`own` norms differs from the run in .* \(norms\+depthwise\)"):
        run(dataclasses.replace(recipe, own=("norms",)), unbroken, level=1)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    with pytest.raises(InputError, match="holds a model that is not of this run; choose another `out`"):
        run(recipe, tmp_path, level=0)


def test_a_refused_call_and_one_level_s_leave_the_common_recipe_as_it_is(
    recipe: DistilRecipe, unbroken: Path, tmp_path: Path
) -> None:
    before = (unbroken / "recipe.json").read_bytes()
    other = dataclasses.replace(recipe, crops=16, lr=0.5)
    for level in (None, 0, 2):
        with pytest.raises(InputError):
            run(other, unbroken, level=level)
        assert (unbroken / "recipe.json").read_bytes() == before
    with pytest.raises(InputError, match="`level` 2"):
        run(other, tmp_path / "new", level=2)
    assert not (tmp_path / "new" / "recipe.json").exists()


def test_crops_per_photo_do_not_change_which_photographs_are_held_out(
    recipe: DistilRecipe, tmp_path: Path
) -> None:
    write_photographs(tmp_path / "photos", 700, size=8)
    recipe = dataclasses.replace(recipe, images=(str(tmp_path / "photos"),))
    teacher = load_teacher(recipe)
    held_out = [
        PhotographSplit.find(dataclasses.replace(recipe, crops_per_photo=count), teacher).held_out.tolist()
        for count in (1, 4, 16)
    ]
    assert held_out[0] == held_out[1] == held_out[2]
    assert len(held_out[0]) == 64


@pytest.mark.full
def test_a_model_that_was_deleted_is_put_back_and_levels_not_trained_are_named(
    recipe: DistilRecipe, unbroken: Path, tmp_path: Path
) -> None:
    shutil.copytree(unbroken, tmp_path / "out")
    shutil.rmtree(tmp_path / "out" / "model")
    with pytest.raises(InputError, match="lacks level-0, which was trained; continue with `resume`"):
        run(recipe, tmp_path / "out", level=1)
    _, text = run(recipe, tmp_path / "out", level=0, resume=True)
    assert "level 1 has not been trained" in text
    assert "level 1 has not been trained" in (tmp_path / "out" / "model" / "MODEL_CARD.md").read_text()
    assert_equal(tmp_path / "out", unbroken)


@pytest.mark.full
def test_resuming_a_finished_run_changes_nothing(recipe: DistilRecipe, unbroken: Path) -> None:
    before = (unbroken / "level-0" / STATE).read_bytes()
    ended, text = run(recipe, unbroken, level=0, resume=True)
    assert ended
    assert "level 0: all 96 crops are done" in text
    assert (unbroken / "level-0" / STATE).read_bytes() == before
