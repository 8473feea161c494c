"""Runs of heads from images to a model: held out or cross-validated, resumed, with classes added, calibrated anew."""

from __future__ import annotations

import csv
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from heads_data import NAMES, changed, config_of, recipe_of, run, save_tree, write_base, write_photos
from training_data import draw, jpeg, make_once

import hierclass
from hierclass.errors import InputError
from hierclass.export.graphs import write_graphs
from hierclass.export.new_heads import write_graphs_like
from hierclass.files import is_graph_file
from taxonomy import load_taxonomy
from training.cli import main
from training.heads.kept_features import FILE, read_kept_features
from training.recipe.recipe import Recipe

PETS = {"pet": ["tabby cat", "chihuahua"], "car": ["taxi", "school bus"]}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder, to be read only: base, a model; photos, 64 of 4 classes; tree.csv; run, heads fitted to them."""

    def make(folder: Path) -> None:
        base, photos = write_base(folder / "base"), write_photos(folder / "photos")
        results, text = run(recipe_of(base, photos, save_tree(folder / "tree.csv", PETS)), folder / "run")
        (folder / "printed.txt").write_text(text)
        (folder / "results.json").write_text(json.dumps(results))

    return make_once(tmp_path_factory, "heads_run", make)


def command(capfd: pytest.CaptureFixture[str], *arguments: object) -> tuple[Any, str, str]:
    try:
        code: Any = main([*map(str, arguments)])
    except SystemExit as stop:
        code = stop.code
    out, error = capfd.readouterr()
    return code, out, error


# ---------------------------------------------------------------- the model


def test_a_run_leaves_a_model_that_answers_as_it_was_measured(shared: Path) -> None:
    results = json.loads((shared / "results.json").read_text())
    assert (results["images"], results["cross_validated"]) == (64, True)
    assert results["levels"][1]["top1"] > 0.8
    classifier = hierclass.load(shared / "run" / "model")
    answers = [
        (name, classifier.predict(shared / "photos" / name / f"{number}.jpg").label)
        for name in NAMES[:4]
        for number in range(16)
    ]
    assert np.mean([name == label for name, label in answers]) >= results["levels"][1]["top1"]
    assert classifier.temperatures is not None
    assert classifier.thresholds(0.8)


def test_card_and_facts_say_what_was_fitted_and_how_long_each_step_took(shared: Path) -> None:
    model = shared / "run" / "model"
    card = (model / "MODEL_CARD.md").read_text()
    assert "Cross-validated over 64 images" in card
    assert "Its network is that of `base` (levels 0, 2), which was not trained" in card
    assert "held out" not in card.partition("## How it was made")[0].partition("## Calibration")[0]
    facts = json.loads((model / "training.json").read_text())
    assert {"features", "heads", "calibration", "model written"} <= facts["seconds"].keys()
    assert Recipe.load(model / "recipe.json").base == "base"


def test_what_is_printed_says_cross_validated_and_what_to_do_next(shared: Path) -> None:
    text = (shared / "printed.txt").read_text()
    assert "cross-validated over 64 images" in text
    assert "heads of lower levels score" in text
    assert f"next: hierclass label PHOTOS --model {shared / 'run' / 'model'} -o labels.csv" in text
    assert "coverage by the wanted rate of right answers" in text


def test_features_are_kept_with_the_model_unless_that_is_not_wanted(shared: Path, tmp_path: Path) -> None:
    kept = read_kept_features(shared / "run" / "model")
    assert kept is not None
    assert [len(each) for each in kept.levels] == [64, 64]
    assert sorted(set(kept.nodes)) == sorted(load_taxonomy(shared / "tree.csv").leaves)
    recipe = recipe_of(shared / "base", shared / "photos", shared / "tree.csv", keep_features=False)
    run(recipe, tmp_path)
    assert not (tmp_path / "model" / FILE).exists()
    assert not (tmp_path / "features").exists()


def test_a_compressed_model_has_no_features_of_images(shared: Path, tmp_path: Path) -> None:
    from hierclass.cli import main as hierclass_main

    model = shared / "run" / "model"
    assert (
        hierclass_main(
            ["compress", "--model", str(model), "--level", "0", "-o", str(tmp_path / "small"), "--no-graphs"]
        )
        == 0
    )
    assert not (tmp_path / "small" / FILE).exists()


def test_the_same_run_gives_the_same_model(shared: Path, tmp_path: Path) -> None:
    run(recipe_of(shared / "base", shared / "photos", shared / "tree.csv"), tmp_path)
    assert config_of(tmp_path / "model")["digest"] == config_of(shared / "run" / "model")["digest"]


def test_graphs_are_those_of_the_base_with_other_heads(shared: Path, tmp_path: Path) -> None:
    from hierclass.checkpoints.checkpoint import load_checkpoint

    base = shutil.copytree(shared / "base", tmp_path / "base")
    write_graphs(base, load_checkpoint(base))
    four = (
        "animal,pet,cat,tabby cat\nanimal,pet,dog,chihuahua\nthing,car,cab,taxi\nthing,car,bus,school bus\n"
    )
    (tmp_path / "four.csv").write_text("tier 0,tier 1,tier 2,class\n" + four)
    for tree, levels in (
        (shared / "tree.csv", 2),
        (tmp_path / "four.csv", 4),
    ):  # one is left out; the last is repeated
        out, image = tmp_path / f"run{levels}", shared / "photos" / "taxi" / "3.jpg"
        run(recipe_of(base, shared / "photos", tree), out, graphs=True)
        graphs = [file.name for file in (out / "model").iterdir() if is_graph_file(file.name)]
        assert sorted(graphs) == [f"level{level}.onnx" for level in range(levels)]
        by_graph, by_torch = (hierclass.load(out / "model", runtime=name) for name in ("onnx", "torch"))
        for level in range(levels):
            scores = [each.predict(image, level).scores() for each in (by_graph, by_torch)]
            assert np.allclose(*scores, atol=1e-4)
    kept = read_kept_features(tmp_path / "run4" / "model")
    assert kept is not None
    assert np.array_equal(kept.levels[2], kept.levels[3])


def test_a_base_without_graphs_has_none_to_take(shared: Path) -> None:
    from hierclass.errors import ExportError

    with pytest.raises(ExportError, match="has no graphs"):
        write_graphs_like(shared / "run" / "model", shared / "base", [0, 2])


# ---------------------------------------------------------------- images


def test_images_that_are_held_out_measure_the_model_and_are_not_fitted_to(
    shared: Path, tmp_path: Path
) -> None:
    recipe = recipe_of(shared / "base", shared / "photos", shared / "tree.csv", dev_share=0.25)
    results, text = run(recipe, tmp_path)
    assert (results["images"], results["cross_validated"]) == (16, False)
    assert results["calibration"] is None  # 48 are too few
    assert "48 images, 16 held out" in text
    assert "not calibrated: 50 images are the fewest" in text
    kept = read_kept_features(tmp_path / "model")
    assert kept is not None
    assert len(kept.nodes) == 48


def test_a_folder_val_is_held_out_without_being_asked_to(shared: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    write_photos(data / "train", per_class=14)
    write_photos(data / "val", per_class=5, first=20)
    results, _ = run(recipe_of(shared / "base", data, shared / "tree.csv"), tmp_path / "run")
    assert (results["images"], results["cross_validated"]) == (20, False)
    assert results["calibration"]["images"] == 56  # cross-validated over those that were fitted to


def test_unreadable_images_are_listed_and_left_out(shared: Path, tmp_path: Path) -> None:
    photos = shutil.copytree(shared / "photos", tmp_path / "photos")
    (photos / "taxi" / "broken.jpg").write_bytes(jpeg(draw(0, 0))[:300])
    results, text = run(recipe_of(shared / "base", photos, shared / "tree.csv"), tmp_path / "run")
    assert results["images"] == 64
    assert "1 of 65 images cannot be read and are left out" in text
    with (tmp_path / "run" / "unreadable.csv").open() as file:
        assert [row["image"] for row in csv.DictReader(file)] == ["taxi/broken.jpg"]


def test_photographs_of_an_inner_node_count_on_the_tiers_that_they_are_labelled_on(
    shared: Path, tmp_path: Path
) -> None:
    photos = shutil.copytree(shared / "photos", tmp_path / "photos")
    shutil.copytree(shared / "photos" / "taxi", photos / "car")
    for kind in ("leaves", "tiers"):
        recipe = recipe_of(shared / "base", photos, shared / "tree.csv", heads=kind)
        results, _ = run(recipe, tmp_path / kind)
        assert results["images"] == 80
        assert config_of(tmp_path / kind / "model")["architecture"]["heads"] == kind


def test_images_of_one_class_are_too_few(shared: Path, tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos", NAMES[:1], 4)
    with pytest.raises(InputError, match="fewer than two classes have images"):
        run(recipe_of(shared / "base", photos, shared / "tree.csv"), tmp_path / "run")


# ---------------------------------------------------------------- classes that are added


def test_classes_are_added_and_the_old_ones_stay_without_their_images(shared: Path, tmp_path: Path) -> None:
    new = write_photos(tmp_path / "new", NAMES[4:6])
    (tmp_path / "tree.csv").write_text(
        "tier 0,class,id\n"
        + "".join(
            f"{group},{leaf},{group}/{leaf}\n"
            for group, leaves in {**PETS, "wild": ["goldfish", "magpie"]}.items()
            for leaf in leaves
        )
    )
    model = shutil.copytree(shared / "run" / "model", tmp_path / "mine")  # the photographs are not there
    recipe = Recipe(
        data=(),
        add=(str(new),),
        taxonomy=str(tmp_path / "tree.csv"),
        base=str(model),
        tune="heads",
        dev_share=0.0,
    )
    results, text = run(recipe, tmp_path / "run")
    assert f"64 images of {model} are there as features, which it keeps" in text
    assert (results["images"], results["calibration"]["images"]) == (96, 96)
    classifier = hierclass.load(tmp_path / "run" / "model")
    images = [
        *((name, shared / "photos" / name / "3.jpg") for name in NAMES[:4]),
        *((name, new / name / "3.jpg") for name in NAMES[4:6]),
    ]
    assert sum(classifier.predict(file).label == name for name, file in images) >= 5
    kept = read_kept_features(tmp_path / "run" / "model")
    assert kept is not None
    assert len(kept.nodes) == 96


def test_a_model_that_keeps_no_features_says_what_it_needs_to_get_classes(
    shared: Path, tmp_path: Path
) -> None:
    new = write_photos(tmp_path / "new", NAMES[4:6])
    recipe = recipe_of(shared / "base", new, shared / "tree.csv")
    recipe = changed(
        recipe, data=(), add=(str(new),), taxonomy=str(write_larger_tree(tmp_path, shared / "base"))
    )
    with pytest.raises(
        InputError, match=r"keeps no features, and there are no images of 12 of its 12 classes .* `data`"
    ):
        run(recipe, tmp_path / "run")


def write_larger_tree(folder: Path, base: Path) -> Path:
    """The tree of the base with the new classes as groups of their own."""
    from training.heads.added_classes import add_classes

    tree = add_classes(hierclass.load(base).taxonomy, [(name,) for name in NAMES[4:6]]).proposal.taxonomy
    tree.save(folder / "tree.json")
    return folder / "tree.json"


def test_old_images_given_anew_stand_for_those_that_are_not_kept(shared: Path, tmp_path: Path) -> None:
    model = shutil.copytree(shared / "run" / "model", tmp_path / "mine")
    (model / FILE).unlink()
    new = write_photos(tmp_path / "new", NAMES[4:6])
    tree = save_tree(tmp_path / "tree.csv", {**PETS, "wild": ["goldfish", "magpie"]})
    recipe = changed(recipe_of(model, shared / "photos", tree), add=(str(new),))
    assert run(recipe, tmp_path / "run")[0]["images"] == 96


def test_images_that_are_given_again_count_once_as_they_are_labelled_now(
    shared: Path, tmp_path: Path
) -> None:
    again = shutil.copytree(shared / "photos", tmp_path / "again")
    moved = again / NAMES[0] / "3.jpg"
    moved.rename(again / NAMES[1] / "moved.jpg")
    model = shared / "run" / "model"
    recipe = changed(
        recipe_of(model, again, shared / "tree.csv"), data=(), add=(str(again),), base=str(model)
    )
    results, text = run(recipe, tmp_path / "run")
    assert f"0 images of {model} are there as features, which it keeps" in text
    assert "64 of its images are given again: they count once, as they are labelled now" in text
    assert results["images"] == 64
    kept = read_kept_features(tmp_path / "run" / "model")
    assert kept is not None
    assert sorted(np.unique(kept.nodes, return_counts=True)[1]) == [15, 16, 16, 17]


def test_corrections_of_a_labelled_table_are_added(
    shared: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model, photos = shared / "run" / "model", write_photos(tmp_path / "photos", first=50, per_class=3)
    files = [(name, file) for name in NAMES[:4] for file in sorted((photos / name).iterdir())]
    rows = [
        f"{file},{name},2,asked,{name if number % 2 else ''}" for number, (name, file) in enumerate(files)
    ]
    (tmp_path / "labels.csv").write_text(
        "\n".join(["path,label,chosen_level,stop_reason,corrected", *rows]) + "\n"
    )
    given = (
        "--from",
        model,
        "--add",
        tmp_path / "labels.csv",
        "--out",
        tmp_path / "run",
        "--yes",
        "--no-graphs",
    )
    code, text, error = command(capfd, "fit", *given)
    assert (code, error) == (0, "")
    assert "has 4 classes: the images are of classes that it has; its tree stays" in text
    assert "cross-validated over 70 images" in " ".join(text.split())
    assert hierclass.load(tmp_path / "run" / "model").taxonomy == hierclass.load(model).taxonomy


# ---------------------------------------------------------------- nothing is learnt


def test_tune_none_calibrates_the_model_as_it_is(shared: Path, tmp_path: Path) -> None:
    model = shared / "run" / "model"
    photos = write_photos(tmp_path / "photos", first=40)
    tree = hierclass.load(model).taxonomy
    tree.save(tmp_path / "tree.json")
    recipe = recipe_of(model, photos, tmp_path / "tree.json", tune="none", heads="leaves")
    results, _ = run(recipe, tmp_path / "run")
    assert (results["images"], results["cross_validated"]) == (64, False)
    image = photos / "taxi" / "41.jpg"
    old, new = (hierclass.load(each) for each in (model, tmp_path / "run" / "model"))
    assert old.predict(image).label == new.predict(image).label
    assert old.temperatures != new.temperatures
    assert not (tmp_path / "run" / "model" / FILE).exists()


# ---------------------------------------------------------------- as a command


def test_one_command_makes_a_model_and_the_next_one_adds_to_it(
    shared: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    given = ("--workers", 1, "--no-graphs", "--yes")
    photos = shared / "photos"
    code, text, error = command(capfd, "fit", "--data", photos, "--from", shared / "base", *given)
    assert (code, error) == (0, "")
    assert (
        f"chosen: --from {shared / 'base'} --tune heads (on a processor): its network stays as it is" in text
    )
    assert "for 64 images, then the fit" in text
    code, _, error = command(capfd, "fit", "--data", photos, "--from", shared / "base", *given)
    assert (code, error.count("\n")) == (2, 1)
    assert "runs/photos holds a run; add --resume to continue it or --overwrite to begin anew" in error
    code, text, _ = command(capfd, "fit", "--data", photos, "--from", shared / "base", "--overwrite", *given)
    assert (code, "for 64 images, then the fit" in text) == (0, True)
    inside = ("--from", "runs/photos/model", "--out", "runs/photos", "--overwrite")
    code, _, error = command(capfd, "fit", "--data", photos, *inside, *given)
    assert code == 2
    assert "lies in runs/photos, which --overwrite replaces; choose another --out" in error
    assert command(capfd, "fit", "--out", "runs/photos", "--resume", "--no-graphs")[0] == 0

    write_photos(tmp_path / "new", ("goldfish",))
    code, text, error = command(capfd, "fit", "--from", "runs/photos/model", "--add", "new", *given)
    assert (code, error) == (0, "")
    assert "runs/photos/model has 4 classes, 1 more is added ('goldfish'): a new tree" in text
    tree, old = (hierclass.load(f"runs/{name}/model").taxonomy for name in ("new", "photos"))
    assert set(tree.leaves) == {*old.leaves, "n01443537"}
    assert {tree.node(leaf).name for leaf in tree.leaves} == {"Chihuahua", *NAMES[:5]} - {"chihuahua"}


def test_evaluating_says_that_images_of_its_own_were_not_held_out(
    shared: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    given = ("--data", shared / "photos", "--workers", 0)
    run(recipe_of(shared / "base", shared / "photos", shared / "tree.csv"), tmp_path / "run")
    model = tmp_path / "run" / "model"
    told = "they were not held out: its heads were fitted to all"
    assert told in command(capfd, "evaluate", model, *given, "--dev-share", 0.1)[1]
    assert told in command(capfd, "evaluate", model, *given)[1]
    shutil.copytree(shared / "photos", tmp_path / "others")
    assert told not in command(capfd, "evaluate", model, "--data", tmp_path / "others", "--workers", 0)[1]


def test_classes_of_a_single_image_are_named(shared: Path, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    shutil.copytree(shared / "photos", photos)
    for file in sorted((photos / NAMES[0]).iterdir())[1:]:
        file.unlink()
    recipe = recipe_of(shared / "base", photos, shared / "tree.csv")
    text = run(recipe, tmp_path / "run")[1]
    assert f"a single image: 1 class ({NAMES[0]}); never right in cross-validation" in text


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            ("--tune", "heads", "--epochs", 3),
            "--epochs has no effect with --tune heads, which does not train",
        ),
        (("--tune", "none", "--heads", "tiers"), "--heads has no effect with --tune none"),
        (
            ("--tune", "heads", "--balance", "sampling"),
            "--balance sampling does not fit --tune heads; give loss",
        ),
        (
            ("--backbone", "test_resnet"),
            "--backbone has no effect with --from, whose network is taken as it is",
        ),
        (("--from", "no/model"), "there is no model at"),
        (("--tune", "some"), "--tune some: give none, heads or all"),
        (("--dev-share", 0, "--tune", "all"), "--dev-share 0 is for --tune heads and none"),
    ],
)
def test_options_that_do_not_go_together_are_one_line(
    given: tuple[object, ...], message: str, shared: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    what = ("--data", shared / "photos", "--from", shared / "base", "--taxonomy", shared / "tree.csv")
    code, _, error = command(capfd, "fit", *what, "--out", tmp_path / "run", *given)
    assert (code, error.count("\n")) == (2, 1)
    assert message in error


@pytest.mark.full
def test_a_run_killed_in_the_middle_of_features_goes_on_from_there(shared: Path, tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos", per_class=400)
    what = [
        "--data",
        photos,
        "--from",
        shared / "base",
        "--taxonomy",
        shared / "tree.csv",
        "--out",
        tmp_path / "run",
    ]
    words = [sys.executable, "-m", "training", "fit", *map(str, what), "--no-graphs"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 200
    while not list((tmp_path / "run" / "features").glob("part-*")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    parts = sorted((tmp_path / "run" / "features").iterdir())
    times = [part.stat().st_mtime_ns for part in parts]
    done = subprocess.run(
        [*words[:4], "--out", str(tmp_path / "run"), "--resume", "--no-graphs"], capture_output=True
    )
    assert done.returncode == 0, done.stderr
    assert [part.stat().st_mtime_ns for part in parts] == times
    assert b"cross-validated over 1600 images" in done.stdout.replace(b"\n", b" ")


def test_all_of_the_network_is_trained_where_options_of_training_ask_for_it(
    shared: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    what = ("--data", shared / "photos", "--from", shared / "base", "--taxonomy", shared / "tree.csv")
    code, text, error = command(
        capfd, "fit", *what, "--out", tmp_path / "run", "--epochs", 1, "--workers", 0, "--no-graphs"
    )
    assert (code, error) == (0, "")
    assert (
        "--tune all (--epochs is for training): its whole network is trained, for 1 epoch of 64 images"
        in text
    )
    recipe = Recipe.load(tmp_path / "run" / "recipe.json")
    assert (recipe.tune, recipe.backbone, recipe.structure, recipe.size) == (
        "all",
        "test_resnet",
        "prefix",
        32,
    )
    assert hierclass.load(tmp_path / "run" / "model").taxonomy.num_classes == (2, 4)
