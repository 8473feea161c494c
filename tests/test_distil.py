"""A pretrained classifier becomes nested: its last level stays as it was, and the lower ones learn from its answers."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from distil_data import BACKBONE, make_classifier, make_recipe, run, write_photographs, write_teacher
from PIL import Image
from safetensors.torch import load_file, save_file

import hierclass
from hierclass.checkpoints.checkpoint import load_checkpoint
from hierclass.images.preprocessing import preprocess
from hierclass.nested.prefix import PrefixNetwork
from taxonomy import Taxonomy, load_taxonomy
from training.distillation.crops import shrink_pixels
from training.distillation.recipe import DistilRecipe

Made = tuple[Path, str]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_taxonomy: Taxonomy) -> Path:
    """A teacher and photographs."""
    folder = tmp_path_factory.mktemp("distil")
    write_teacher(folder, tiny_taxonomy)
    write_photographs(folder / "photos")
    (folder / "photos" / "broken.jpg").write_bytes(b"no picture")
    return folder


@pytest.fixture(scope="module")
def made(folder: Path) -> Made:
    """The folder of a run of both lower levels, and what it printed."""
    out = folder / "out"
    _, text = run(make_recipe(folder), out)
    return out, text


def history(out: Path, level: int) -> list[dict[str, Any]]:
    lines = (out / f"level-{level}" / "history.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def config(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "model" / "config.json").read_text())
    return found


def test_the_last_level_is_the_classifier_number_for_number(folder: Path, made: Made) -> None:
    taxonomy = load_taxonomy(folder / "tree.json")
    teacher = make_classifier(len(taxonomy.leaves))
    network = load_checkpoint(made[0] / "start").network
    images = torch.randn(8, 3, 32, 32)
    with torch.no_grad():
        theirs = teacher(images).flip(1)  # its classes are in the opposite order
        assert torch.allclose(network(images), theirs, atol=1e-4)
        trained = load_checkpoint(made[0] / "model").network
        assert torch.allclose(trained(images), theirs, atol=0.05)  # stored as float16
        assert (trained(images).argmax(1) == theirs.argmax(1)).all()


def test_training_leaves_all_that_the_last_level_uses_as_it_was_bit_for_bit(made: Made) -> None:
    start = load_checkpoint(made[0] / "start").network
    state = load_file(made[0] / "level-1" / "last" / "state.safetensors")
    assert isinstance(start, PrefixNetwork)
    own = {name for level in (0, 1) for name, _ in start.own_parameters(level)}
    buffers = {id(value) for level in (0, 1) for _, value, weight in start.level_tensors(level) if not weight}
    own |= {name for name, value in start.named_buffers() if id(value) in buffers}
    for kind in ("model/network.", "ema/"):
        frozen = {name: value for name, value in start.state_dict().items() if name not in own}
        assert len(frozen) > 20
        assert [
            name for name, value in frozen.items() if not torch.equal(state[f"{kind}{name}"], value)
        ] == []


def test_lower_levels_come_nearer_to_the_teacher(made: Made) -> None:
    for level in (0, 1):
        rows = history(made[0], level)
        assert [row["crops"] for row in rows] == [48, 96]
        first, last = (row["levels"][0] for row in rows)
        assert last["kl_leaf"] < first["kl_leaf"]
        assert last["kl_tier"] < first["kl_tier"]
        assert 0 <= last["agree_tier"] <= 1


def test_the_model_labels_and_says_what_is_known_of_it(folder: Path, made: Made) -> None:
    classifier = hierclass.load(made[0] / "model", device="cpu")
    photo = folder / "photos" / "000.jpg"
    assert len(classifier.predict(photo, level=0).path) == 1
    assert len(classifier.predict(photo).path) == 3
    found = config(made[0])["results"]["distillation"]
    assert (found["photographs"], found["unreadable"], found["crops"]) == (40, 1, 80)
    assert [row["level"] for row in found["levels"]] == [0, 1]
    assert found["levels"][0]["crops_trained"] == 96
    assert found["teacher"]["name"] == BACKBONE
    files = {file.name for file in (made[0] / "model").iterdir()}
    assert files == {"config.json", "model.safetensors", "recipe.json", "training.json", "MODEL_CARD.md"}
    assert str(folder) not in (made[0] / "model" / "recipe.json").read_text()
    assert "same class of the tier" in (made[0] / "model" / "MODEL_CARD.md").read_text()


def test_broken_photographs_are_counted_and_named_and_small_crops_told(made: Made) -> None:
    assert "1 of 41 photographs cannot be read and are left out" in made[1]
    assert "broken.jpg" in made[1]
    assert "broken.jpg" in (made[0] / "unreadable.csv").read_text()
    assert "show fewer than 32 pixels across, the teacher's side" in made[1]


def test_a_level_is_trained_alone_and_changes_that_level_alone(
    folder: Path, made: Made, tmp_path: Path
) -> None:
    before = load_file(made[0] / "model" / "model.safetensors")
    other = tmp_path / "copy"
    shutil.copytree(made[0], other)
    ended, text = run(make_recipe(folder, crops=144), other, level=0, resume=True)
    assert ended
    assert "level 0: resumed after 6 of 9 updates" in text
    assert "level 1" not in text.replace("level 1 of", "")
    after = load_file(other / "model" / "model.safetensors")
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    start = load_checkpoint(other / "start").network
    assert isinstance(start, PrefixNetwork)
    assert {name for name, _ in start.own_parameters(0)} >= {
        name for name in changed if not name.endswith(("running_mean", "running_var"))
    }
    assert any(name.startswith("heads.0.") for name in changed)
    assert [row["level"] for row in config(other)["results"]["distillation"]["levels"]] == [0, 1]
    assert [row["crops"] for row in history(other, 0)] == [48, 96, 144]


def test_lower_heads_begin_as_the_classifier(made: Made) -> None:
    network = load_checkpoint(made[0] / "start").network
    last: Any = network.heads[-1]
    for level in (0, 1):
        head: Any = network.heads[level]
        assert torch.equal(head.weight, last.weight[:, : network.num_features[level]])
        assert torch.equal(head.bias, last.bias)


def test_crops_are_kept_at_a_levels_own_side_as_its_graph_shrinks_them(folder: Path, made: Made) -> None:
    stored = np.memmap(made[0] / "crops" / "pixels-16.u8", dtype=np.uint8, mode="r").reshape(-1, 16, 16, 3)
    assert len(stored) == 82
    assert stored[0].max() > 0
    network = load_checkpoint(made[0] / "start").network
    image = np.array(Image.open(folder / "photos" / "000.jpg").resize((32, 32)))
    small = shrink_pixels(image[None], 16)[0]
    preprocessing = dataclasses.replace(load_checkpoint(made[0] / "start").preprocessing, crop=1.0)
    with torch.no_grad():
        whole = torch.from_numpy(preprocess(Image.fromarray(image), preprocessing))[None]
        own = torch.from_numpy(
            preprocess(Image.fromarray(small), dataclasses.replace(preprocessing, size=16))
        )[None]
        assert torch.allclose(network(whole, 0), network(own, 0), atol=0.02)


@pytest.mark.full
def test_levels_that_share_what_is_trained_are_trained_together(folder: Path, tmp_path: Path) -> None:
    cache = str(folder / "out" / "crops")
    recipe = make_recipe(folder, own=("everything",), crops=32, mixup=0.4, eval_every=32, cache=cache)
    ended, _ = run(recipe, tmp_path)
    assert ended
    rows = [json.loads(line) for line in (tmp_path / "level-0-1" / "history.jsonl").read_text().splitlines()]
    assert [row["level"] for row in rows[0]["levels"]] == [0, 1]
    with pytest.raises(hierclass.InputError, match="`level` 0: these levels share weights that are trained"):
        run(recipe, tmp_path, level=0, resume=True)


@pytest.mark.full
def test_a_model_is_nested_again_and_goes_on_from_what_was_reached(
    folder: Path, made: Made, tmp_path: Path
) -> None:
    teacher = {"timm": None, "weights": None, "classes": None, "taxonomy": None}
    recipe = make_recipe(
        folder, **teacher, teacher=str(made[0] / "model"), crops=16, start=str(made[0] / "model")
    )
    run(recipe, tmp_path, level=1)
    first, second = (load_file(out / "model" / "model.safetensors") for out in (made[0], tmp_path))
    images = torch.randn(4, 3, 32, 32)
    networks = [load_checkpoint(out / "model").network for out in (made[0], tmp_path)]
    with torch.no_grad():
        assert torch.equal(networks[0](images), networks[1](images))
        assert torch.equal(networks[0](images, 0), networks[1](images, 0))
        assert not torch.equal(networks[0](images, 1), networks[1](images, 1))
    assert first.keys() == second.keys()


@pytest.mark.full
def test_a_last_level_that_is_not_frozen_learns_too(folder: Path, tmp_path: Path) -> None:
    recipe = make_recipe(folder, frozen=False, crops=32, eval_every=32)
    ended, text = run(recipe, tmp_path)
    assert ended
    assert "level 0 and 1 and 2" in text


@pytest.mark.full
def test_the_clock_ends_a_run_that_goes_on_later(folder: Path, made: Made, tmp_path: Path) -> None:
    recipe = make_recipe(folder, crops=160, cache=str(made[0] / "crops"))
    ended, text = run(recipe, tmp_path, level=0, minutes=0.0)
    assert not ended
    assert "time is up after 16 of 160 crops; `resume` continues" in text
    assert hierclass.load(tmp_path / "model", device="cpu").levels
    ended, text = run(recipe, tmp_path, level=0, resume=True)
    assert ended
    assert "resumed after 1 of 10 updates" in text


def test_the_rate_rises_stays_and_falls_and_a_longer_run_goes_on_at_the_top() -> None:
    recipe = DistilRecipe(images=(), crops=6400, warmup=10, lr=1.0)
    assert [round(recipe.rate(update), 3) for update in (0, 9, 49, 75, 99)] == [0.1, 1.0, 1.0, 0.5, 0.02]
    assert dataclasses.replace(recipe, crops=12800).rate(99) == 1.0


@pytest.mark.full
def test_weights_of_imagenet_are_nested_in_the_bundled_tree(folder: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    state = timm.create_model(BACKBONE).state_dict()
    torch.save(
        {f"other.{number}.{key.split('.')[-1]}": state[key] for number, key in enumerate(state)},
        tmp_path / "w.pth",
    )
    recipe = make_recipe(
        folder, weights=str(tmp_path / "w.pth"), classes=None, taxonomy=None, crops=16, eval_every=16
    )
    run(recipe, tmp_path / "out", level=0)
    checkpoint = load_checkpoint(tmp_path / "out" / "model")
    assert checkpoint.taxonomy.num_classes == (16, 112, 1000)


def test_a_start_of_another_classifier_is_refused(folder: Path, made: Made, tmp_path: Path) -> None:
    state = load_file(folder / "weights.safetensors")
    state["fc.weight"] = state["fc.weight"].flip(0).contiguous()
    save_file(state, tmp_path / "other.safetensors")
    recipe = make_recipe(folder, weights=str(tmp_path / "other.safetensors"), start=str(made[0] / "model"))
    with pytest.raises(hierclass.InputError, match="its last level is another classifier than the teacher"):
        run(recipe, tmp_path / "out")
    recipe = make_recipe(folder, start=str(made[0] / "model"), own=("norms",))
    with pytest.raises(
        hierclass.InputError, match="is of another teacher, tree, structure, widths, sizes or own"
    ):
        run(recipe, tmp_path / "out")


@pytest.mark.full
def test_a_teacher_that_has_changed_since_is_refused(folder: Path, made: Made, tmp_path: Path) -> None:
    for name in ("weights.safetensors", "classes.txt", "tree.json"):
        shutil.copy(folder / name, tmp_path)
    shutil.copytree(folder / "photos", tmp_path / "photos")
    recipe = make_recipe(tmp_path, crops=16)
    run(recipe, tmp_path / "out", level=0)
    classes = (tmp_path / "classes.txt").read_text().split()
    (tmp_path / "classes.txt").write_text("\n".join(sorted(classes)))
    with pytest.raises(
        hierclass.InputError, match="the teacher, its preprocessing or its tree has changed since"
    ):
        run(recipe, tmp_path / "out", level=1)


@pytest.mark.parametrize("statistics", [pytest.param("batch", marks=pytest.mark.full), "pretrained"])
def test_norms_normalise_by_batches_or_by_the_statistics_that_they_had(
    statistics: str, folder: Path, made: Made, tmp_path: Path
) -> None:
    recipe = make_recipe(folder, crops=32, statistics=statistics, cache=str(made[0] / "crops"))
    run(recipe, tmp_path, level=1)
    start, trained = (load_checkpoint(tmp_path / name).network for name in ("start", "model"))
    same, own = list[bool](), {f".1.{name}" for name in ("running_mean", "running_var")}
    for (name, before), (_, after) in zip(start.named_buffers(), trained.named_buffers(), strict=True):
        if any(name.endswith(end) for end in own):
            same.append(torch.allclose(before, after, rtol=1e-2, atol=1e-3))
    assert len(same) > 5
    assert all(same) if statistics == "pretrained" else not any(same)
    rows = config(tmp_path)["results"]["distillation"]["levels"]
    assert rows[0]["statistics"] == statistics
    start_again = make_recipe(folder, crops=16, start=str(tmp_path / "model"), cache=str(made[0] / "crops"))
    run(start_again, tmp_path / "again", level=1)
    assert config(tmp_path / "again")["results"]["distillation"]["levels"][0]["statistics"] == statistics


def test_what_is_nearer_to_the_teacher_before_training_decides_on_the_statistics(made: Made) -> None:
    stored = json.loads((made[0] / "level-0" / "recipe.json").read_text())["statistics"]
    assert stored in ("batch", "pretrained")
    found = re.findall(r"(pretrained statistics|statistics of crops): level 0: .* tier ([\d.]+)%", made[1])
    agreed = {how: float(share) for how, share in found}
    better = agreed["pretrained statistics"] > agreed["statistics of crops"]
    assert stored == ("pretrained" if better else "batch")


@pytest.mark.full
def test_heads_may_stay_as_they_begin(folder: Path, made: Made, tmp_path: Path) -> None:
    recipe = make_recipe(folder, crops=32, train_heads=False, cache=str(made[0] / "crops"))
    run(recipe, tmp_path, level=1)
    start, trained = (
        dict(load_checkpoint(tmp_path / name).network.named_parameters()) for name in ("start", "model")
    )
    changed = {
        name
        for name, value in trained.items()
        if not torch.allclose(value, start[name], rtol=2e-3, atol=1e-4)
    }
    assert changed
    assert not any(name.startswith("heads.") for name in changed)


@pytest.mark.full
def test_a_level_is_kept_between_its_beginning_and_what_training_made_of_it(
    folder: Path, made: Made, tmp_path: Path
) -> None:
    recipe = make_recipe(folder, crops=32, lr=0.02, statistics="pretrained", cache=str(made[0] / "crops"))
    run(recipe, tmp_path / "whole", level=1)
    run(dataclasses.replace(recipe, interpolate=0.25), tmp_path / "between", level=1)
    start, whole, between = (
        dict(load_checkpoint(tmp_path / name).network.named_parameters())
        for name in ("whole/start", "whole/model", "between/model")
    )
    moved = [name for name in start if not torch.allclose(start[name], whole[name], rtol=1e-2, atol=1e-3)]
    assert moved
    for name in moved:
        expected = start[name].lerp(whole[name], 0.25)
        assert torch.allclose(between[name], expected, rtol=2e-3, atol=2e-4), name


@pytest.mark.full
def test_a_finished_level_is_kept_anew_where_it_is_to_be_drawn_back_otherwise(
    folder: Path, made: Made, tmp_path: Path
) -> None:
    recipe = make_recipe(folder, crops=32, statistics="pretrained", cache=str(made[0] / "crops"))
    run(recipe, tmp_path, level=1)
    whole = load_checkpoint(tmp_path / "model").network.state_dict()
    run(dataclasses.replace(recipe, interpolate=0.5), tmp_path, level=1, resume=True)
    drawn_back = load_checkpoint(tmp_path / "model").network.state_dict()
    assert any(not torch.equal(whole[name], drawn_back[name]) for name in whole)
    assert config(tmp_path)["results"]["distillation"]["levels"][0]["interpolate"] == 0.5


@pytest.mark.full
def test_what_norms_normalise_by_stays_when_a_run_goes_on(folder: Path, made: Made, tmp_path: Path) -> None:
    recipe = make_recipe(folder, crops=16, statistics="batch", cache=str(made[0] / "crops"))
    run(recipe, tmp_path, level=1)
    stored = tmp_path / "level-1" / "recipe.json"
    stored.write_text(stored.read_text().replace('"batch"', '"auto"'))  # as before there was a choice
    run(dataclasses.replace(recipe, crops=32, statistics="auto"), tmp_path, level=1, resume=True)
    assert json.loads(stored.read_text())["statistics"] == "batch"
    with pytest.raises(hierclass.InputError, match="`statistics` differs from that of the run"):
        run(dataclasses.replace(recipe, crops=48, statistics="pretrained"), tmp_path, level=1, resume=True)


@pytest.mark.full
def test_a_run_goes_on_without_the_model_that_it_began_with(folder: Path, made: Made, tmp_path: Path) -> None:
    shutil.copytree(made[0] / "model", tmp_path / "first")
    recipe = make_recipe(folder, crops=16, start=str(tmp_path / "first"), cache=str(made[0] / "crops"))
    run(recipe, tmp_path / "out", level=1)
    shutil.rmtree(tmp_path / "first")
    ended, _ = run(dataclasses.replace(recipe, crops=32), tmp_path / "out", level=1, resume=True)
    assert ended
