"""Runs that train all of a model's network (``--tune all``): they begin with fitted heads, and are no worse for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from heads_data import save_tree, write_base, write_photos
from training_data import make_once

import hierclass
from hierclass.checkpoints.checkpoint import load_checkpoint, save_checkpoint
from hierclass.checkpoints.compress import compress
from hierclass.errors import InputError
from taxonomy import load_taxonomy
from training.cli import main
from training.recipe.defaults import choose_tuning
from training.recipe.recipe import Recipe
from training.trainer.network import fields_of_base, make_network

TREE = {"pet": ["tabby cat", "chihuahua"], "car": ["taxi", "school bus"]}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder, to be read only: base, a model; photos, 64 of 4 classes; tree.csv; run, trained for 2 epochs."""

    def make(folder: Path) -> None:
        base, photos = write_base(folder / "base"), write_photos(folder / "photos")
        tree = save_tree(folder / "tree.csv", TREE)
        assert fit("--data", photos, "--taxonomy", tree, "--from", base, "--out", folder / "run") == 0

    return make_once(tmp_path_factory, "tune_all", make)


def fit(*arguments: object) -> Any:
    """The exit code of a command; 2 epochs, without graphs."""
    try:
        more = ("--tune", "all", "--epochs", 2, "--workers", 0, "--threads", 1, "--no-graphs", "--yes")
        return main(["fit", *map(str, (*more, *arguments))])
    except SystemExit as stop:
        return stop.code


def test_the_model_that_is_kept_is_no_worse_on_the_held_out_images_than_its_heads_were(shared: Path) -> None:
    kept = json.loads((shared / "run" / "model" / "config.json").read_text())["results"]["dev"]
    heads = json.loads((shared / "run" / "heads" / "model" / "config.json").read_text())["results"]["dev"]
    assert kept["images"] == heads["images"] == 7
    assert kept["levels"][-1]["top1"] >= heads["levels"][-1]["top1"]
    classifier = hierclass.load(shared / "run" / "model", runtime="torch")
    assert classifier.predict(shared / "photos" / "taxi" / "0.jpg").label in {*TREE["pet"], *TREE["car"]}


def test_the_run_says_what_it_began_with_without_a_path(shared: Path) -> None:
    recipe = Recipe.load(shared / "run" / "model" / "recipe.json")
    assert (recipe.base, recipe.tune, recipe.structure, recipe.size) == ("heads", "all", "prefix", 32)
    assert recipe.sizes is not None
    assert recipe.sizes[-1] == 32
    assert str(shared) not in (shared / "run" / "model" / "recipe.json").read_text()


def test_norms_keep_the_pretrained_statistics_and_all_weights_are_trained(shared: Path) -> None:
    before = load_checkpoint(shared / "run" / "heads" / "model").network
    last = Recipe.load(shared / "run" / "recipe.json")
    assert last.statistics == "pretrained"
    trained = make_network(last, load_taxonomy(shared / "tree.csv")).train()
    assert all(value.requires_grad for value in trained.parameters())
    with torch.no_grad():
        images = torch.randn(2, 3, 32, 32)
        assert torch.equal(trained.eval()(images), before(images))  # heads of the same tree are taken over


def test_it_is_resumed_without_fitting_heads_again(shared: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "--out", str(shared / "run"), "--resume", "--no-graphs"]) == 0
    text = capfd.readouterr().out
    assert "resumed after epoch 2 of 2" in text
    assert "heads on its features" not in text


def test_a_base_that_is_gone_is_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    photos = write_photos(tmp_path / "photos", per_class=3)
    code = fit("--data", photos, "--from", tmp_path / "gone", "--out", tmp_path / "run")
    error = capfd.readouterr().err
    assert code == 2
    assert "gone" in error
    assert error.count("\n") == 1


def test_a_compressed_model_cannot_be_trained_as_a_whole(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base")
    small = compress(load_checkpoint(base), 1)
    save_checkpoint(tmp_path / "small", small)
    with pytest.raises(
        InputError, match="the levels that were compressed away are needed to train all of it"
    ):
        fields_of_base(tmp_path / "small", small.taxonomy)


@pytest.mark.parametrize(("images", "epochs"), [(50, 13), (2000, 13), (8000, 6), (10**6, 5)])
def test_many_images_are_seen_for_fewer_epochs(images: int, epochs: int) -> None:
    values = choose_tuning(images).values
    assert (values["epochs"], values["opt"], values["statistics"]) == (epochs, "adamw", "pretrained")
