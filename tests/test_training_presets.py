"""Recipes in files: TOML, with reasons as comments; what the command line says wins."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from training_data import write_parquet

from hierclass.errors import InputError
from taxonomy import Taxonomy
from training.cli import main
from training.recipe.presets import FOLDER, bundled_recipes, read_recipe_file
from training.recipe.recipe import Recipe


def preset(folder: Path, text: str) -> str:
    file = folder / "mine.toml"
    file.write_text(text, encoding="utf-8")
    return str(file)


@pytest.mark.parametrize("name", bundled_recipes())
def test_a_bundled_recipe_can_be_trained_and_says_why(name: str) -> None:
    Recipe(data=("x",), taxonomy="tiny-imagenet", **read_recipe_file(name)).check()
    text = (FOLDER / f"{name}.toml").read_text(encoding="utf-8")
    assert text.count("#") >= 8


def test_only_what_the_file_sets_is_set(tmp_path: Path) -> None:
    assert read_recipe_file(preset(tmp_path, "lr = 0.3\nlevel_weights = [1, 2]\n")) == {
        "lr": 0.3,
        "level_weights": (1, 2),
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("speed = 3", "unknown option speed"),
        ("lr = 'fast'", 'lr can not be "fast"; give a number'),
        ("epochs = 2.5", "epochs can not be 2.5; give a whole number"),
        ("opt = 2026-11-22", 'opt can not be "2026-11-22"; give a text'),
        ("widths = 1", "widths can not be 1; give a list of numbers"),
        ("data = ['x']", "data belongs to a run; give it with `data`"),
        ("taxonomy = 'x'", "taxonomy belongs to a run"),
        ("lr = ", "cannot be read"),
        ("\x00", "cannot be read"),
    ],
)
def test_a_file_that_is_no_recipe_is_one_line(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        read_recipe_file(preset(tmp_path, text))


def test_a_file_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    assert read_recipe_file(preset(tmp_path, "\ufefflr = 0.3\n")) == {"lr": 0.3}


@pytest.mark.parametrize("name", ["nothing", "/", "no/such.toml"])
def test_a_recipe_that_is_not_there_names_those_that_are(name: str) -> None:
    with pytest.raises(InputError, match=r"bundled recipes are small-images|cannot be read"):
        read_recipe_file(name)


OF_ONE_BACKBONE = "size = 32\nepochs = 2\nlr = 0.07\nbatch_size = 40\nstem_stride = 1\n"


def stored_recipe(
    tmp_path: Path, taxonomy: Taxonomy, text: str, *, warmup: int | None = 0, structure: str = "slices"
) -> dict[str, Any]:
    """What a run of --backbone test_resnet stores that follows the recipe of ``text``."""
    taxonomy.save(tmp_path / "tiny.json")
    write_parquet(tmp_path / "shapes.parquet", taxonomy, 10)
    options = {
        "--backbone": "test_resnet",
        "--data": tmp_path / "shapes.parquet",
        "--taxonomy": tmp_path / "tiny.json",
        "--recipe": preset(tmp_path, text),
        "--epochs": 1,
        **({} if warmup is None else {"--warmup-epochs": warmup}),
        **({} if structure == "slices" else {"--structure": structure}),
        "--workers": 0,
        "--out": tmp_path / "run",
    }
    assert main(["fit", "--no-graphs", *(str(word) for pair in options.items() for word in pair)]) == 0
    stored: dict[str, Any] = json.loads((tmp_path / "run" / "recipe.json").read_text(encoding="utf-8"))
    return stored


def test_options_beside_the_file_win(tmp_path: Path, tiny_taxonomy: Taxonomy) -> None:
    text = f"backbone = 'resnet10t'\n{OF_ONE_BACKBONE}[backbone_args]\nunknown_to_others = 1\n"
    stored = stored_recipe(tmp_path, tiny_taxonomy, text)
    names = ("backbone", "size", "epochs", "lr", "batch_size")
    assert [stored[name] for name in names] == ["test_resnet", 32, 1, 0.07, 40]
    assert (stored["backbone_args"], stored["stem_stride"]) == ({}, None)  # they were another backbone's


def test_what_the_file_says_of_other_trees_and_longer_runs_yields(
    tmp_path: Path, tiny_taxonomy: Taxonomy, capsys: pytest.CaptureFixture[str]
) -> None:
    text = f"widths = [0.5, 1]\nlevel_weights = [1, 2]\nwarmup_epochs = 3\n{OF_ONE_BACKBONE}"
    stored = stored_recipe(tmp_path, tiny_taxonomy, text, warmup=None)
    assert (stored["widths"], stored["level_weights"]) == ([0.25, 0.5, 1.0], [])
    assert stored["warmup_epochs"] == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "left out: the recipe's widths, which are for 2 levels, not 3" in out


def test_another_structure_leaves_out_the_shares_of_the_file(tmp_path: Path, tiny_taxonomy: Taxonomy) -> None:
    stored = stored_recipe(
        tmp_path, tiny_taxonomy, f"widths = [0.3, 0.5, 1]\n{OF_ONE_BACKBONE}", structure="masks"
    )
    assert (stored["widths"], stored["densities"]) == (None, [0.25, 0.5, 1.0])


@pytest.mark.parametrize("backbone", ["", "backbone = 'test_resnet'\n"])
def test_naming_the_backbone_of_the_file_again_keeps_what_it_says_of_it(
    backbone: str, tmp_path: Path, tiny_taxonomy: Taxonomy
) -> None:
    text = f"{backbone}{OF_ONE_BACKBONE}[backbone_args]\nact_layer = 'gelu'\n"
    stored = stored_recipe(tmp_path, tiny_taxonomy, text)
    assert (stored["backbone_args"], stored["stem_stride"]) == ({"act_layer": "gelu"}, 1)
