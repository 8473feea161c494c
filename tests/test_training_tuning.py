"""Which model a run begins with, what of its network is trained, and for which reason (`training.cli.tuning`)."""

from __future__ import annotations

from pathlib import Path

import pytest
from training_data import read_fit_options

from hierclass.errors import InputError
from hierclass.files import BUNDLED
from training.cli.tuning import shown, with_tune, without_training
from training.recipe.defaults import DatasetFacts, choose_tune
from training.recipe.recipe import Recipe

PROCESSOR, ACCELERATOR = (DatasetFacts(5000, 160, accelerator) for accelerator in (False, True))
MODEL = Recipe(data=("photos",), taxonomy="tiny-imagenet", base=str(BUNDLED))


def base_of(tmp_path: Path, *options: object) -> str:
    return read_fit_options("--out", tmp_path / "run", "--data", tmp_path, *options).base


def test_a_run_begins_with_the_bundled_model(tmp_path: Path) -> None:
    assert base_of(tmp_path) == str(BUNDLED)
    assert base_of(tmp_path, "--dev-share", 0.2, "--heads", "tiers", "--epochs", 3) == str(BUNDLED)


@pytest.mark.parametrize(
    "options",
    [
        ("--from", "none"),
        ("--backbone", "resnet18"),
        ("--widths", "0.5,1"),
        ("--size", 64),
        ("--no-pretrained",),
        ("--recipe", "small-images"),
    ],
)
def test_options_of_a_network_are_for_one_of_its_own(options: tuple[object, ...], tmp_path: Path) -> None:
    assert base_of(tmp_path, *options) == ""


def test_a_model_of_ones_own_is_remembered_by_its_absolute_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert base_of(tmp_path, "--from", "mine") == str(tmp_path / "mine")
    assert (shown(tmp_path / "mine"), shown(BUNDLED), shown(Path("/x/y"))) == ("mine", "imagenet-1k", "/x/y")


def test_what_is_trained_needs_a_model_to_begin_with(tmp_path: Path) -> None:
    for given, named in ((("--tune", "heads"), "`tune` heads"), (("--add", tmp_path), f"`add` {tmp_path}")):
        with pytest.raises(
            InputError, match=f"^{named} has no effect without `base`; give that, such as runs/mine/model"
        ):
            base_of(tmp_path, "--from", "none", *given)
        with pytest.raises(InputError, match="`widths` describes a network of its own"):
            base_of(tmp_path, "--widths", "0.5,1", *given)


def test_heads_are_for_processors_and_for_few_images() -> None:
    few = DatasetFacts(300, 160, True)
    found = [choose_tune(facts) for facts in (PROCESSOR, few, ACCELERATOR)]
    assert [choice.values["tune"] for choice in found] == ["heads", "heads", "all"]
    assert found[1].why == "300 images are few"


def test_what_is_given_decides_what_is_trained() -> None:
    assert with_tune(MODEL, {"data"}, PROCESSOR)[0].tune == "heads"
    assert with_tune(MODEL, {"data", "epochs"}, PROCESSOR) == (
        Recipe(data=("photos",), taxonomy="tiny-imagenet", base=str(BUNDLED), tune="all"),
        "`epochs` is for training",
    )
    more = Recipe(data=(), add=("new",), taxonomy="tiny-imagenet", base=str(BUNDLED))
    assert with_tune(more, {"add"}, ACCELERATOR)[0].tune == "heads"


def test_several_processes_train_all_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert with_tune(MODEL, {"data"}, PROCESSOR)[0].tune == "all"
    heads = Recipe(data=("photos",), taxonomy="x", base=str(BUNDLED), tune="heads")
    with pytest.raises(InputError, match="`tune` heads runs in one process"):
        with_tune(heads, {"tune"}, PROCESSOR)


def test_nothing_is_held_out_unless_that_is_said() -> None:
    heads = with_tune(MODEL, {"data"}, PROCESSOR)[0]
    assert without_training(heads, {"data"}).dev_share == 0
    assert without_training(heads, {"data"}).heads == "auto"
    assert without_training(heads, {"data", "dev_share"}).dev_share == 0.1
