"""A run that is stopped, wherever it is, and continued ends as one that nobody stopped."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from training_data import Killed, kill, watched_accelerator

from hierclass.errors import InputError
from taxonomy.terminal import PlainConsole
from training.recipe.recipe import Recipe
from training.trainer import loop
from training.trainer.interrupts import Interrupts

STATE = Path("last") / "state.safetensors"
TIMES = ("seconds", "images_per_second", "data_wait")


@pytest.fixture
def recipe(growing_recipe: Recipe) -> Recipe:
    return growing_recipe


def fit(recipe: Recipe, out: Path, *, save_every: float = 0.0, **options: Any) -> tuple[dict[str, Any], str]:
    text = io.StringIO()
    console = PlainConsole(file=text, width=100)
    results = loop.fit(recipe, out, workers=0, console=console, save_every=save_every, **options)
    return results, text.getvalue()


def without_seconds(out: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (out / "history.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in TIMES} for row in rows]


def test_a_resumed_run_equals_an_unbroken_one_bit_for_bit(
    recipe: Recipe, unbroken: tuple[Path, str], tmp_path: Path
) -> None:
    with pytest.raises(Killed):
        fit(recipe, tmp_path, accelerator=watched_accelerator([], 7, kill))
    _, text = fit(recipe, tmp_path, resume=True)
    assert "resumed after epoch 1 of 2" in text
    ours, theirs = load_file(tmp_path / STATE), load_file(unbroken[0] / STATE)
    assert ours.keys() == theirs.keys()
    assert [key for key in ours if not torch.equal(ours[key], theirs[key])] == []
    assert without_seconds(tmp_path) == without_seconds(unbroken[0])
    assert (tmp_path / "model" / "model.safetensors").read_bytes() == (
        unbroken[0] / "model" / "model.safetensors"
    ).read_bytes()


@pytest.mark.parametrize("save_every", [0.0, pytest.param(1e-9, marks=pytest.mark.full)])
@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.full)])
def test_a_run_that_is_told_to_stop_keeps_every_update(
    number: signal.Signals, save_every: float, recipe: Recipe, unbroken: tuple[Path, str], tmp_path: Path
) -> None:
    updates: list[int] = []
    stop = watched_accelerator(updates, 7, lambda: os.kill(os.getpid(), number))
    with pytest.raises(KeyboardInterrupt):
        fit(recipe, tmp_path, save_every=save_every, accelerator=stop)
    _, text = fit(recipe, tmp_path, resume=True, accelerator=watched_accelerator(updates))
    assert "resumed after epoch 1 of 2 and 3 of 5 updates" in text
    assert len(updates) == 10
    ours, theirs = load_file(tmp_path / STATE), load_file(unbroken[0] / STATE)
    assert [key for key in theirs if not torch.equal(ours[key], theirs[key])] == []
    assert without_seconds(tmp_path) == without_seconds(unbroken[0])


def test_a_run_that_is_stopped_while_it_is_measured_only_measures_again(
    recipe: Recipe, unbroken: tuple[Path, str], tmp_path: Path
) -> None:
    updates: list[int] = []

    def stop_once(module: torch.nn.Module, _: object) -> None:
        if len(updates) == 5 and not module.training:
            updates.append(-1)
            os.kill(os.getpid(), signal.SIGTERM)

    hook = torch.nn.modules.module.register_module_forward_pre_hook(stop_once)
    with pytest.raises(KeyboardInterrupt):
        fit(recipe, tmp_path, accelerator=watched_accelerator(updates))
    hook.remove()
    _, text = fit(recipe, tmp_path, resume=True)
    assert "resumed after epoch 0 of 2 and 5 of 5 updates" in text
    assert without_seconds(tmp_path) == without_seconds(unbroken[0])


def test_a_second_wish_to_stop_is_obeyed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with Interrupts() as interrupts:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)  # a launcher may pass on what the terminal said already
        assert interrupts.asked
        monkeypatch.setattr("training.trainer.interrupts.ONE_WISH", 0.0)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt), interrupts.abrupt():
            raise AssertionError("it was asked to stop")
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_loss_that_is_no_number_is_not_saved(recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the loss is not a number in epoch 1; lower `lr`"):
        fit(dataclasses.replace(recipe, lr=1e30, start_size=None), tmp_path, save_every=1e-9)
    assert all(torch.isfinite(value).all() for value in load_file(tmp_path / STATE).values())


def test_resuming_a_finished_run_only_shows_its_table(
    recipe: Recipe, unbroken: tuple[Path, str], tmp_path: Path
) -> None:
    before = (unbroken[0] / STATE).read_bytes()
    shutil.copytree(unbroken[0], tmp_path / "run")
    results, text = fit(recipe, tmp_path / "run", resume=True)
    assert "accuracy" in text
    assert results["images"] == 60
    assert (tmp_path / "run" / STATE).read_bytes() == before


def test_what_a_kill_left_half_written_goes_with_the_next_run(recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / ".lock").touch()
    (tmp_path / "last").mkdir()
    half = tmp_path / "last" / ".state.safetensors.123.tmp"
    half.write_bytes(b"half")
    other = tmp_path / "other" / ".state.safetensors.124.tmp"
    other.parent.mkdir()
    other.write_bytes(b"of a run that goes on")
    fit(dataclasses.replace(recipe, epochs=1), tmp_path)
    assert not half.exists()
    assert other.exists()
