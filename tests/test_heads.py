"""Parts of `training.heads`: features that are computed once, heads by logistic regression, what is chosen."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from heads_data import write_base
from training_data import draw, jpeg, make_once

from hierclass import load
from hierclass.checkpoints.checkpoint import load_checkpoint, save_checkpoint
from taxonomy import Taxonomy
from taxonomy.terminal import PlainConsole
from training.data.samples import ImageSet, truth_table
from training.evaluation.console import Reporter
from training.heads import features as computing
from training.heads.examples import Examples
from training.heads.features import FeatureCache, compute_features, image_key, network_key
from training.heads.kept_features import FILE, keep_features, read_kept_features
from training.heads.logistic import NEVER, cross_validate, fit_head, make_folds
from training.heads.selection import select_heads, summed_logits


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny model, to be read only."""
    return make_once(tmp_path_factory, "heads_base", lambda folder: write_base(folder / "base")) / "base"


def reporter() -> Reporter:
    return Reporter(PlainConsole(file=io.StringIO(), width=200))


def images_of(count: int = 6) -> ImageSet:
    sources = [jpeg(draw(number % 4, number)) for number in range(count)]
    return ImageSet(sources, [f"{n}.jpg" for n in range(count)], np.arange(count) % 4)


def keys_of(base: Path, images: ImageSet) -> list[bytes]:
    return [image_key(network_key(base), source) for source in images.sources]


# ---------------------------------------------------------------- features


def test_features_are_those_that_the_heads_of_the_model_read(base: Path, tmp_path: Path) -> None:
    images, cache = images_of(), FeatureCache(tmp_path / "features")
    keys = keys_of(base, images)
    assert compute_features(images, keys, base, cache, reporter()) == {}
    classifier = load(base, runtime="torch")
    network = load_checkpoint(base).network
    import torch

    for level in range(3):
        found = cache.level(keys, level)
        with torch.no_grad():
            logits = network.classify(torch.from_numpy(found), level).softmax(1).numpy()
        said = [each.scores() for each in classifier.predict_batch(list(images.sources), level)]
        assert np.abs(logits - np.stack(said)).max() < 2e-3


def test_what_is_in_the_cache_is_not_computed_again(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    original = computing.level_features

    def counted(runtime: computing.Runtime, pixels: computing.Pixels) -> list[computing.Values]:
        seen.append(len(pixels))
        return original(runtime, pixels)

    monkeypatch.setattr(computing, "level_features", counted)
    images = images_of(8)
    keys = keys_of(base, images)
    first = images.subset(np.arange(5))
    compute_features(first, keys[:5], base, FeatureCache(tmp_path), reporter())
    compute_features(images, keys, base, FeatureCache(tmp_path), reporter())
    assert sum(seen) == 8
    compute_features(images, keys, base, FeatureCache(tmp_path), reporter())
    assert sum(seen) == 8


def test_ctrl_c_keeps_what_was_computed(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original, calls = computing.level_features, []

    def interrupted(runtime: computing.Runtime, pixels: computing.Pixels) -> list[computing.Values]:
        calls.append(len(pixels))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(runtime, pixels)

    monkeypatch.setattr(computing, "level_features", interrupted)
    monkeypatch.setattr(computing, "BATCH", 4)
    images = images_of(8)
    keys = keys_of(base, images)
    with pytest.raises(KeyboardInterrupt):
        compute_features(images, keys, base, FeatureCache(tmp_path), reporter())
    assert [key in FeatureCache(tmp_path) for key in keys] == [True] * 4 + [False] * 4


def test_a_damaged_part_of_the_cache_is_computed_again(base: Path, tmp_path: Path) -> None:
    images = images_of()
    keys = keys_of(base, images)
    compute_features(images, keys, base, FeatureCache(tmp_path), reporter())
    (part,) = tmp_path.glob("part-*.safetensors")
    before = FeatureCache(tmp_path).level(keys, 2)
    part.write_bytes(part.read_bytes()[:100])
    compute_features(images, keys, base, FeatureCache(tmp_path), reporter())
    assert np.array_equal(FeatureCache(tmp_path).level(keys, 2), before)


def test_a_file_that_changed_is_another_image(base: Path, tmp_path: Path) -> None:
    file = tmp_path / "1.jpg"
    file.write_bytes(jpeg(draw(0, 1)))
    before = image_key("network", file)
    assert image_key("network", file) == before
    assert image_key("other network", file) != before
    file.write_bytes(jpeg(draw(1, 2)) + b" ")
    assert image_key("network", file) != before


def test_a_network_is_the_same_whatever_its_heads_and_decisions_are(base: Path, tmp_path: Path) -> None:
    checkpoint = load_checkpoint(base)
    checkpoint.decision = {"lower_weight": 0.5}
    checkpoint.network.heads[0].bias.data.fill_(1.0)
    save_checkpoint(tmp_path / "same", checkpoint)
    assert network_key(tmp_path / "same") == network_key(base)
    next(iter(checkpoint.network.weights.values())).data.mul_(2)
    save_checkpoint(tmp_path / "other", checkpoint)
    assert network_key(tmp_path / "other") != network_key(base)


def test_kept_features_belong_to_the_network_of_their_model(base: Path, tmp_path: Path) -> None:
    checkpoint = load_checkpoint(base)
    save_checkpoint(tmp_path, checkpoint)
    values = [np.ones((2, width), np.float32) * width for width in (3, 4)]
    keep_features(tmp_path, [values[0], values[1], values[1]], ["a", "b"])
    found = read_kept_features(tmp_path)
    assert found is not None
    assert list(found.nodes) == ["a", "b"]
    assert [each.shape for each in found.levels] == [(2, 3), (2, 4), (2, 4)]
    assert len((tmp_path / FILE).read_bytes()) < 700  # equal levels are stored once
    checkpoint.network.heads[1].weight.data.fill_(0.25)
    save_checkpoint(tmp_path, checkpoint)
    assert read_kept_features(tmp_path) is not None
    next(iter(checkpoint.network.weights.values())).data.mul_(2)
    save_checkpoint(tmp_path, checkpoint)
    assert read_kept_features(tmp_path) is None


# ---------------------------------------------------------------- heads


def clouds(classes: Sequence[int], width: int = 6, spread: float = 0.3) -> tuple[np.ndarray, np.ndarray]:
    """Points around a corner for each class, far from zero and of unequal scale."""
    random = np.random.default_rng(0)
    labels = np.array(classes, np.int64)
    points = np.eye(width)[labels] + random.normal(0, spread, (len(labels), width))
    return (points * np.array([1, 4, 0.25, 1, 1, 1]) + 50).astype(np.float32), labels


def test_a_head_takes_features_as_they_come() -> None:
    points, labels = clouds([0, 1, 2] * 40)
    head = fit_head(points, labels, 3, 1.0)
    assert (head.logits(points).argmax(1) == labels).mean() > 0.95


def test_two_classes_get_a_row_each() -> None:
    points, labels = clouds([0, 1] * 30)
    head = fit_head(points, labels, 2, 1.0)
    assert head.weight.shape == (2, 6)
    assert (head.logits(points).argmax(1) == labels).mean() > 0.95


def test_a_class_without_images_is_never_the_answer() -> None:
    points, labels = clouds([0, 2] * 30)
    head = fit_head(points, labels, 4, 1.0)
    assert head.bias[1] == head.bias[3] == NEVER
    assert set(head.logits(points * 3).argmax(1)) <= {0, 2}


def test_images_that_say_nothing_of_a_tier_are_left_out_of_its_head_and_scored_all_the_same() -> None:
    points, labels = clouds([0, 1, 2] * 40)
    hidden = labels.copy()
    hidden[::4] = -1
    found = cross_validate(points, hidden, 3, make_folds(labels, 0))
    assert (found.logits.argmax(1) == labels).mean() > 0.95


def test_scores_out_of_fold_do_not_know_the_label_of_their_image() -> None:
    random = np.random.default_rng(0)
    noise, labels = random.normal(size=(200, 6)).astype(np.float32), np.arange(200) % 4
    found = cross_validate(noise, labels, 4, make_folds(labels, 0))
    assert (found.logits.argmax(1) == labels).mean() < 0.4


def test_folds_hold_every_class_in_equal_parts() -> None:
    labels = np.array([0] * 50 + [1] * 10 + [2] * 3)
    folds = make_folds(labels, 7)
    assert [np.bincount(folds[labels == each], minlength=5).tolist() for each in (0, 1)] == [
        [10] * 5,
        [2] * 5,
    ]
    assert np.bincount(folds).max() - np.bincount(folds).min() <= 1


def test_balancing_makes_small_classes_count_as_much() -> None:
    points, labels = clouds([0] * 190 + [1] * 10, spread=0.9)
    plain, balanced = (fit_head(points, labels, 2, 0.01, balance=each) for each in (False, True))
    answers = [(head.logits(points).argmax(1) == 1).sum() for head in (plain, balanced)]
    assert answers[1] > answers[0]


# ---------------------------------------------------------------- what is chosen


def examples_of(taxonomy: Taxonomy, good: Sequence[float]) -> tuple[Examples, np.ndarray]:
    """Features of three levels; the spread of each decides how well it tells the leaves apart."""
    labels = np.arange(240) % len(taxonomy.leaves)
    random = np.random.default_rng(1)
    corners = np.eye(len(taxonomy.leaves), 16)[labels]
    levels = [(corners + random.normal(0, each, corners.shape)).astype(np.float32) for each in good]
    return Examples(levels, labels), truth_table(taxonomy)[labels]


def test_a_tree_of_fewer_tiers_takes_the_cheapest_level_that_is_about_as_right(
    tiny_taxonomy: Taxonomy,
) -> None:
    two = tiny_taxonomy.truncate(1)
    examples, truth = examples_of(two, (0.05, 0.05, 0.05))
    assert select_heads(examples, two, truth).levels == (0, 2)
    examples, truth = examples_of(two, (2.0, 0.05, 0.05))
    found = select_heads(examples, two, truth)
    assert found.levels == (1, 2)
    assert "tier 0 is answered by level 1 of the network" in found.why[0]


def test_a_tree_of_one_tier_takes_the_last_level_and_one_of_many_repeats_it(tiny_taxonomy: Taxonomy) -> None:
    one = tiny_taxonomy.truncate(0)
    examples, truth = examples_of(one, (0.1, 0.1, 0.1))
    assert select_heads(examples, one, truth).levels == (2,)
    examples, truth = examples_of(tiny_taxonomy, (0.1, 0.1))
    found = select_heads(examples, tiny_taxonomy, truth)
    assert found.levels == (0, 1, 1)
    assert [each.shape for each in found.logits] == [(240, 2), (240, 5), (240, 12)]


def test_leaves_win_a_tie_and_images_of_inner_nodes_speak_for_heads_of_tiers(tiny_taxonomy: Taxonomy) -> None:
    two = tiny_taxonomy.truncate(1)
    examples, truth = examples_of(two, (0.05, 0.05, 0.05))
    assert select_heads(examples, two, truth).kind == "leaves"
    examples, truth = examples_of(two, (0.6, 0.6, 0.3))
    truth[20:, -1] = -1  # hardly any image has a leaf, all have a class of tier 0
    assert select_heads(examples, two, truth).kind == "tiers"
    assert select_heads(examples, two, truth, kind="leaves").kind == "leaves"


def test_leaves_are_summed_up_as_the_network_does(tiny_taxonomy: Taxonomy) -> None:
    logits = np.random.default_rng(0).normal(size=(5, 12)).astype(np.float32)
    summed = np.exp(summed_logits(logits, tiny_taxonomy, 2, 0))
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    assert np.allclose(summed[:, 0], shares[:, tiny_taxonomy.projection(0) == 0].sum(1), atol=1e-6)
