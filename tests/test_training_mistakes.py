"""What goes wrong around a run, by damage or by mistake, is one line that says what really helps."""

from __future__ import annotations

import dataclasses
import io
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from training_data import write_parquet

from hierclass.errors import CheckpointError, HierclassError, InputError
from taxonomy import Taxonomy
from taxonomy.terminal import PlainConsole
from training.cli import main
from training.cli.exits import one_line_errors, resume_command
from training.recipe.recipe import Recipe
from training.trainer import loop

STATE = Path("last") / "state.safetensors"


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, tiny_taxonomy: Taxonomy) -> Recipe:
    """One epoch of 3 steps on 72 images, 36 held out."""
    folder = tmp_path_factory.mktemp("data")
    tiny_taxonomy.save(folder / "tiny.json")
    write_parquet(folder / "shapes.parquet", tiny_taxonomy, 9)
    return Recipe(
        data=(str(folder / "shapes.parquet"),),
        taxonomy=str(folder / "tiny.json"),
        backbone="test_resnet",
        size=32,
        dev_from=6,
        epochs=1,
        batch_size=24,
        warmup_epochs=0,
        lr=0.05,
    )


def fit(recipe: Recipe, out: Path, *, resume: bool = False) -> dict[str, Any]:
    return loop.fit(
        recipe, out, resume=resume, workers=0, console=PlainConsole(file=io.StringIO(), width=100)
    )


@pytest.fixture(scope="module")
def finished(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "finished"
    fit(recipe, out)
    return out


@pytest.fixture
def out(finished: Path, tmp_path: Path) -> Path:
    """A copy of a finished run that a test may damage."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def truncate(state: Path) -> None:
    state.write_bytes(state.read_bytes()[:-100])


def empty(state: Path) -> None:
    state.write_bytes(b"")


def with_header(text: str) -> Callable[[Path], None]:
    return lambda state: save_file(load_file(state), state, metadata={"header": text})


def without_momentum(state: Path) -> None:
    with safe_open(state, framework="pt") as file:
        metadata = file.metadata()
    tensors = load_file(state)
    del tensors[next(name for name in tensors if name.startswith("optimizer/"))]
    save_file(tensors, state, metadata=metadata)


@pytest.mark.parametrize(
    ("damage", "message", "resume"),
    [
        (truncate, "cannot be read", False),
        (truncate, "cannot be read", True),
        (empty, "cannot be read", True),
        (with_header("{"), "cannot be read", True),
        (with_header("[]"), "is no training state of version 1", True),
        (with_header("{}"), "is no training state of version 1", True),
        (without_momentum, "is damaged", True),
    ],
)
def test_a_damaged_state_is_refused_with_advice_that_helps(
    damage: Callable[[Path], None], message: str, resume: bool, recipe: Recipe, out: Path
) -> None:
    damage(out / STATE)
    with pytest.raises(CheckpointError) as caught:
        fit(recipe, out, resume=True)
    line = str(caught.value)
    assert "\n" not in line
    assert line.startswith(f"{out / STATE} {message}")
    assert line.endswith("; delete it to begin anew, or choose another `out`")
    (out / STATE).unlink()
    assert fit(recipe, out, resume=resume)["images"] == 36


def test_the_state_of_another_network_names_what_differs(recipe: Recipe, out: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        fit(dataclasses.replace(recipe, widths=(0.5, 0.75, 1.0)), out, resume=True)
    line = str(caught.value)
    assert "\n" not in line
    assert line.startswith(f"{out / STATE} belongs to another network: ")
    assert "tensors differ, the first is network.heads.0.weight;" in line
    assert line.endswith("the recipe and the taxonomy that the run began with, or choose another `out`")


def test_the_state_of_another_optimiser_is_refused(recipe: Recipe, out: Path) -> None:
    with pytest.raises(CheckpointError, match="does not fit the optimiser of these options; give those"):
        fit(dataclasses.replace(recipe, weight_decay=0.0), out, resume=True)


def test_a_state_is_loaded_whole(recipe: Recipe, out: Path) -> None:
    before = load_file(out / STATE)
    fit(recipe, out, resume=True)
    assert all(torch.equal(value, before[name]) for name, value in load_file(out / STATE).items())


@pytest.mark.parametrize("structure", ["slices", "prefix", "masks"])
def test_a_size_that_the_backbone_refuses_is_named_before_images_are_read(
    structure: str, recipe: Recipe, tmp_path: Path
) -> None:
    arguments = {"backbone": "test_vit", "backbone_args": {"img_size": 32}, "start_size": 16, "epochs": 4}
    changed = dataclasses.replace(recipe, data=("nowhere",), structure=structure, **arguments)
    with pytest.raises(InputError) as caught:
        fit(changed, tmp_path / "run")
    line = str(caught.value)
    assert "\n" not in line
    assert line.startswith("`start_size` 16 does not fit test_vit: images of ")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"widths": (0.5, 0.25, 1.0)}, "`widths` 0.5,0.25,1: give one share per level, rising to 1"),
        ({"widths": (0.25, 0.5, 0.9)}, "`widths` 0.25,0.5,0.9: give one share per level"),
        ({"widths": (math.nan, 0.5, 1.0)}, "`widths` nan,0.5,1: give shares up to 1"),
        ({"depths": (0.5, 0.2, 1.0)}, "`depths` 0.5,0.2,1: give one share of the blocks per level"),
        ({"depths": (math.nan, 0.2, 1.0)}, "`depths` nan,0.2,1: give shares up to 1"),
        (
            {"structure": "masks", "densities": (0.5, 0.2, 1.0)},
            "`densities` 0.5,0.2,1: give one share per level, rising",
        ),
        ({"level_weights": (-1.0, 1.0, 1.0)}, "`level_weights` -1,1,1: give 0 or more per level"),
        ({"level_weights": (0.0, 0.0, 0.0)}, "`level_weights` 0,0,0: give 0 or more per level, and not 0"),
        ({"level_weights": (math.nan, 1.0, 1.0)}, "`level_weights` nan,1,1: give 0 or more"),
        ({"level_weights": (math.inf, 1.0, 1.0)}, "`level_weights` inf,1,1: give 0 or more"),
        ({"finest_weight": -1.0}, "`finest_weight` -1.0: give 0 or more"),
        ({"finest_weight": math.nan}, "`finest_weight` nan: give 0 or more"),
        ({"momentum": 5.0}, "`momentum` 5.0: give 0 or more, less than 1"),
        ({"weight_decay": -1.0}, "`weight_decay` -1.0: give 0 or more"),
        ({"warmup_epochs": -3}, "`warmup_epochs` -3: give 0 or more"),
        ({"color_jitter": math.inf}, "`color_jitter` inf: give 0 or more"),
        ({"mixup": math.inf}, "`mixup` inf: give 0 or more"),
        ({"opt": "adamv"}, "`opt` adamv is no optimiser of timm; give adam"),
        ({"schedule": "plateaux"}, "`schedule` plateaux: timm has no such schedule by updates; give"),
        ({"schedule": "plateau"}, "`schedule` plateau: timm has no such schedule by updates; give"),
        ({"auto_augment": "nothing"}, "`auto_augment` nothing is no policy of timm; try rand-m7"),
        ({"backbone_args": {"wings": 2}}, "timm can't make test_resnet: TypeError: ResNet"),
        ({"epochs": 0}, "`epochs` 0: give at least 1"),
        ({"batch_size": 0}, "`batch_size` 0: give at least 1"),
    ],
)
def test_values_are_refused_before_anything_is_read_or_made(
    change: dict[str, Any], message: str, recipe: Recipe, tmp_path: Path
) -> None:
    with pytest.raises(HierclassError) as caught:
        fit(dataclasses.replace(recipe, data=("nowhere",), **change), tmp_path / "run")
    assert str(caught.value).startswith(message)
    assert not (tmp_path / "run").exists()


def test_a_level_may_have_no_loss_of_its_own(recipe: Recipe) -> None:
    dataclasses.replace(recipe, level_weights=(0.0, 0.0, 1.0)).check()


def command(*arguments: object) -> int | str | None:
    """The exit code of ``hierclass-train``."""
    try:
        return main([str(argument) for argument in arguments])
    except SystemExit as stop:
        return stop.code


def one_error(capfd: pytest.CaptureFixture[str]) -> str:
    line = capfd.readouterr().err
    assert line.startswith("hierclass-train: ")
    assert line.count("\n") == 1
    return line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--batch-size", "0"], "Invalid value for '--batch-size'"),
        (["--epochs", "0"], "Invalid value for '--epochs'"),
        (["--epoch", "3"], "No such option: --epoch"),
        (["--widths", ","], "--widths ,: give numbers separated by commas"),
        (["--level-weights", "1,,1"], "--level-weights 1,,1: give numbers separated by commas"),
        (["--level-weights=-1,1,1"], "--level-weights -1,1,1: give 0 or more"),
        (["--distil-teacher", "ema"], "--distil-teacher ema has no effect without --distil; give that"),
        (["--distil-from", "next"], "--distil-from next has no effect without --distil; give that"),
        (["--smoothing-along", "tree"], "--smoothing-along tree has no effect without --smoothing; give"),
        (["--mix-prob", "0.5"], "--mix-prob 0.5 has no effect without --mixup or --cutmix; give that"),
        (["--grow", "0.5"], "--grow 0.5 has no effect without --start-size; give that, such as 48"),
        (["--dev-from", "3", "--dev-share", "0.2"], "--dev-share has no effect beside --dev-from; leave"),
        (["--recipe", ""], "--recipe cannot be read"),
    ],
)
def test_wrong_options_are_one_line(
    arguments: list[str], message: str, recipe: Recipe, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    given = ["fit", "--out", tmp_path / "run", "--data", recipe.data[0], "--taxonomy", recipe.taxonomy]
    assert command(*given, *arguments) == 2
    assert message in one_error(capfd)
    assert not (tmp_path / "run").exists()


def test_without_a_command_the_help_is_shown(capfd: pytest.CaptureFixture[str]) -> None:
    assert command() == 2
    out, error = capfd.readouterr()
    assert "Usage: hierclass-train" in out + error
    assert "hierclass-train: " not in out + error
    assert command("fit", "--help") == 0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "it is no object of options"),
        ("{", "Expecting property name"),
        ("{}", "it has no data"),
        ('{"wings": 2}', "unknown option wings; was it written by another version?"),
        ('{"epoch": 2}', "unknown option epoch; did you mean epochs?"),
        ('{"data": ["x"], "taxonomy": "x", "epochs": "3"}', 'epochs can not be "3"; give a whole number'),
        ('{"data": ["x"], "taxonomy": "x", "epochs": true}', "epochs can not be true"),
        ('{"data": "x", "taxonomy": "x"}', 'data can not be "x"'),
        ('{"data": ["x"], "taxonomy": "x", "widths": [0.5, null]}', "widths can not be [0.5, null]"),
    ],
)
def test_a_damaged_recipe_is_one_line(
    content: str, message: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "recipe.json").write_text(content)
    assert command("fit", "--out", tmp_path, "--resume") == 2
    line = one_error(capfd)
    assert f"{tmp_path / 'recipe.json'} is no recipe: {message}" in line
    assert line.endswith("; mend it, or delete it and give the options of the run again\n")


def test_a_recipe_that_was_deleted_is_given_again(recipe: Recipe, out: Path) -> None:
    before = (out / STATE).read_bytes()
    (out / "recipe.json").unlink()
    options = ["--no-graphs", "--dev-from", 6, "--backbone", "test_resnet", "--size", 32, "--batch-size", 24]
    where = ["--out", out, "--data", recipe.data[0], "--taxonomy", recipe.taxonomy, "--resume"]
    assert command("fit", *where, *options, "--epochs", 1, "--warmup-epochs", 0, "--lr", 0.05) == 0
    assert Recipe.load(out / "recipe.json") == dataclasses.replace(recipe, widths=(0.25, 0.5, 1.0))
    assert (out / STATE).read_bytes() == before


@pytest.mark.parametrize("error", [AssertionError("two\nlines"), RuntimeError("two\nlines")])
def test_a_mistake_of_ours_is_one_line_that_asks_to_report_it(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended, one_line_errors():
        raise error
    assert ended.value.code == 1
    assert f"{type(error).__name__}: two lines (unexpected; " in one_error(capfd)
    monkeypatch.setenv("HIERCLASS_DEBUG", "1")
    with pytest.raises(SystemExit), one_line_errors():
        raise error
    assert "Traceback" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("threads", "expected"), [(None, "'{out}' --resume\n"), (2, "'{out}' --resume --threads 2\n")]
)
def test_who_interrupts_hears_what_ends_with_the_same_weights(
    threads: int | None, expected: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "a run"

    def interrupted() -> str:
        with pytest.raises(SystemExit) as ended, one_line_errors(lambda: resume_command("fit", out, threads)):
            raise KeyboardInterrupt
        assert ended.value.code == 130
        return one_error(capfd)

    assert interrupted() == "hierclass-train: interrupted\n"  # there is nothing to continue
    out.mkdir()
    Recipe(data=("x",), taxonomy="tiny-imagenet").save(out / "recipe.json")
    line = "hierclass-train: interrupted; continue with: hierclass-train fit --out "
    assert interrupted() == line + expected.format(out=out)
