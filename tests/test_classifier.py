"""The classifier on a tiny, untrained model: what it answers may be nonsense, how it answers may not."""

from __future__ import annotations

import dataclasses
import io
import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

import hierclass
from hierclass.checkpoints.checkpoint import build
from hierclass.classifier import BATCH_SIZE, Classifier
from hierclass.cli.terminal import draw_path
from hierclass.decisions.prediction import Prediction
from hierclass.errors import CheckpointError, ImageError, InputError, LevelError
from hierclass.images.decoding import read_image
from hierclass.images.preprocessing import preprocess
from taxonomy.terminal import PlainConsole

Picture = NDArray[np.uint8]


@pytest.fixture(scope="module")
def classifier(tiny_checkpoint: Path) -> Classifier:
    return hierclass.load(tiny_checkpoint, device="cpu")


@pytest.fixture(scope="module")
def pictures() -> list[Picture]:
    """Five different noisy pictures of different sizes."""
    random = np.random.default_rng(0)
    sizes = [(40, 50), (32, 32), (90, 33), (64, 64), (20, 20)]
    tints = random.integers(0, 200, (5, 3))
    return [
        np.clip(tint + random.integers(0, 56, (*size, 3)), 0, 255).astype(np.uint8)
        for size, tint in zip(sizes, tints, strict=True)
    ]


def same(left: Prediction, right: Prediction, tolerance: float = 1e-5) -> bool:
    return (left.level, [step.synset for step in left.path]) == (
        right.level,
        [step.synset for step in right.path],
    ) and np.allclose([s.score for s in left.path], [s.score for s in right.path], atol=tolerance)


def test_levels_say_what_they_answer_and_cost(classifier: Classifier) -> None:
    assert [level.index for level in classifier.levels] == [0, 1, 2]
    assert [level.num_classes for level in classifier.levels] == [2, 5, 12]
    assert [level.accuracy for level in classifier.levels] == [0.5, 0.25, 0.125]
    shares = [level.share for level in classifier.levels]
    assert shares == sorted(shares)
    assert shares[0] < 0.25
    assert shares[2] == 1
    network = classifier.checkpoint.network
    assert [level.macs for level in classifier.levels] == [network.cost(k).macs for k in range(3)]
    assert [level.parameters for level in classifier.levels] == [network.cost(k).parameters for k in range(3)]


@pytest.mark.parametrize(
    "results",
    [{}, {"dev": None}, {"dev": {"levels": []}}, {"dev": {"levels": [{"top1": None}, {}]}}, {"dev": [1]}],
)
def test_a_model_that_was_not_measured_has_all_its_levels(
    classifier: Classifier, results: dict[str, object]
) -> None:
    levels = Classifier(dataclasses.replace(classifier.checkpoint, results=results), device="cpu").levels
    assert [level.accuracy for level in levels] == [None] * 3


def test_one_image_is_the_first_of_a_batch(classifier: Classifier, pictures: list[Picture]) -> None:
    for level in (0, 1, 2, None):
        assert classifier.predict(pictures[0], level) == classifier.predict_batch([pictures[0]], level)[0]


def test_a_batch_answers_in_order_whatever_its_size(classifier: Classifier, pictures: list[Picture]) -> None:
    alone = [classifier.predict(picture) for picture in pictures]
    many = classifier.predict_batch(pictures * (BATCH_SIZE // 4))
    assert len(many) == len(pictures) * (BATCH_SIZE // 4) > BATCH_SIZE
    assert all(same(answer, alone[index % 5]) for index, answer in enumerate(many))
    assert len({tuple(step.score for step in answer.path) for answer in alone}) == 5
    assert classifier.predict_batch([]) == []


def test_the_finest_level_is_the_default(classifier: Classifier, pictures: list[Picture]) -> None:
    assert classifier.predict(pictures[0]) == classifier.predict(pictures[0], level=2)


def test_an_answer_is_a_path_of_the_tree_down_to_the_level(
    classifier: Classifier, pictures: list[Picture]
) -> None:
    for level in range(3):
        answer = classifier.predict(pictures[1], level)
        assert answer.level == level
        ids = [step.synset for step in answer.path]
        leaf = next(
            leaf
            for leaf in classifier.taxonomy.leaves
            if classifier.taxonomy.project(leaf, level).id == ids[-1]
        )
        assert ids == [node.id for node in classifier.taxonomy.path(leaf, level)]
        scores = [step.score for step in answer.path]
        assert scores == sorted(scores, reverse=True)
        assert len(answer.top(100)) == classifier.levels[level].num_classes
        assert answer.top(1)[0].synset == answer.synset
        assert json.loads(json.dumps(answer.to_dict()))["level"] == level


def test_refining_gives_the_answer_of_every_level_in_turn(
    classifier: Classifier, pictures: list[Picture]
) -> None:
    answers = list(classifier.refine(pictures[2]))
    assert [answer.level for answer in answers] == [0, 1, 2]
    for answer in answers:
        assert same(answer, classifier.predict(pictures[2], answer.level), 1e-5)


def test_refining_may_be_left_early_and_runs_may_mix(classifier: Classifier, pictures: list[Picture]) -> None:
    first, second = classifier.refine(pictures[0]), classifier.refine(pictures[1])
    next(first)
    assert same(next(second), classifier.predict(pictures[1], 0))
    assert same(next(first), classifier.predict(pictures[0], 1))
    second.close()
    assert same(next(first), classifier.predict(pictures[0], 2))


def macs_of(classifier: Classifier, picture: Picture, level: int) -> int:
    with FlopCounterMode(display=False) as counter:
        classifier.predict(picture, level)
    return int(counter.get_total_flops()) // 2


def test_levels_that_share_no_computing_are_run_only_where_they_have_a_say(
    classifier: Classifier, pictures: list[Picture]
) -> None:
    architecture = dataclasses.replace(classifier.checkpoint.architecture, structure="prefix")
    network = build(architecture, classifier.taxonomy, 32).eval()
    for weight in (0.0, 0.5):
        decision = {"lower_weight": weight}
        model = dataclasses.replace(
            classifier.checkpoint, network=network, architecture=architecture, decision=decision
        )
        other = Classifier(model, device="cpu")
        alone = [network.cost(level).macs for level in range(3)]
        expected = [sum(alone[: level + 1]) if weight else alone[level] for level in range(3)]
        assert [level.macs for level in other.levels] == expected
        assert [macs_of(other, pictures[0], level) for level in range(3)] == expected
        assert [level.step_macs for level in other.levels] == alone
        assert refining_macs(other, pictures[0]) == sum(alone)
        assert not other.reuses


def refining_macs(classifier: Classifier, picture: Picture) -> int:
    with FlopCounterMode(display=False) as counter:
        list(classifier.refine(picture))
    return int(counter.get_total_flops()) // 2


@pytest.mark.parametrize(("structure", "field"), [("prefix", "widths"), ("masks", "densities")])
def test_a_drawn_path_of_levels_that_share_no_computing_adds_up_what_was_run(
    classifier: Classifier, pictures: list[Picture], structure: str, field: str
) -> None:
    given = {"widths": None, field: (0.25, 0.5, 1.0)}
    architecture = dataclasses.replace(classifier.checkpoint.architecture, structure=structure, **given)
    network = build(architecture, classifier.taxonomy, 32).eval()
    model = Classifier(
        dataclasses.replace(classifier.checkpoint, network=network, architecture=architecture), device="cpu"
    )
    *_, last = model.refine(pictures[0])
    console = PlainConsole(file=io.StringIO(), width=100)
    console.print(draw_path("cat.jpg", last, model.levels, unicode=False))
    drawn = console.file.getvalue()  # type: ignore[attr-defined]
    shares = [network.cost(level).macs / network.cost(2).macs for level in range(3)]
    assert f" {shares[0]:.0%} of the cost" in drawn
    assert f"+{shares[1]:.0%} of the cost" in drawn
    assert "+100% of the cost" in drawn
    assert f"in all {sum(shares):.0%} of the cost; level 2 alone costs 100%" in drawn


def test_a_drawn_path_of_levels_that_reuse_adds_up_to_the_cost(
    classifier: Classifier, pictures: list[Picture]
) -> None:
    assert sum(level.step_share for level in classifier.levels) == pytest.approx(1)
    console = PlainConsole(file=io.StringIO(), width=100)
    console.print(draw_path("cat.jpg", classifier.predict(pictures[0]), classifier.levels, unicode=False))
    assert "in all" not in console.file.getvalue()  # type: ignore[attr-defined]


def test_lower_levels_count_as_the_checkpoint_says(classifier: Classifier, pictures: list[Picture]) -> None:
    model = classifier.checkpoint
    weighted = Classifier(dataclasses.replace(model, decision={"lower_weight": 2.0}), device="cpu")
    assert same(weighted.predict(pictures[0], 0), classifier.predict(pictures[0], 0))
    assert not same(weighted.predict(pictures[0], 2), classifier.predict(pictures[0], 2))
    assert same(list(weighted.refine(pictures[0]))[2], weighted.predict(pictures[0], 2))


def test_a_picture_is_the_same_picture_in_every_form(
    classifier: Classifier, pictures: list[Picture], tmp_path: Path
) -> None:
    image = Image.fromarray(pictures[0])
    file, buffer = tmp_path / "picture.png", io.BytesIO()
    image.save(file)
    image.save(buffer, "PNG")
    expected = classifier.predict(pictures[0])
    for form in (image, file, str(file), buffer.getvalue()):
        assert classifier.predict(form) == expected


def test_prepared_images_answer_like_the_images(classifier: Classifier, pictures: list[Picture]) -> None:
    batch = np.stack([preprocess(read_image(picture), classifier.preprocessing) for picture in pictures])
    for prepared, direct in zip(
        classifier.predict_tensors(batch, 1), classifier.predict_batch(pictures, 1), strict=True
    ):
        assert same(prepared, direct)


@pytest.mark.parametrize("level", [3, -1, True, 1.0, "1", "Auto"])
def test_an_unknown_level_is_refused_before_an_image_is_read(classifier: Classifier, level: int) -> None:
    with pytest.raises(LevelError) as caught:
        classifier.predict("there-is-no-such-file.jpg", level)
    assert str(caught.value) == f"level {level!r} does not exist; this model has levels 0 to 2"


def test_a_level_may_be_a_whole_number_of_numpy(classifier: Classifier, pictures: list[Picture]) -> None:
    answer = classifier.predict(pictures[0], np.int64(1))
    assert answer == classifier.predict(pictures[0], 1)
    assert json.loads(json.dumps(answer.to_dict()))["level"] == 1


def test_an_unreadable_image_is_named(
    classifier: Classifier, pictures: list[Picture], tmp_path: Path
) -> None:
    file = tmp_path / "note.jpg"
    file.write_text("this is no picture")
    with pytest.raises(ImageError, match=r"note\.jpg: "):
        classifier.predict_batch([pictures[0], file])
    with pytest.raises(ImageError, match="image 2 of 2: "):
        classifier.predict_batch([pictures[0], b"no picture"])
    with pytest.raises(ImageError, match=r"note\.jpg: "):
        classifier.refine(file)


def test_a_missing_model_and_a_missing_device_are_one_line(tiny_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there is no model at"):
        hierclass.load(tmp_path / "none")
    with pytest.raises(InputError, match="device 'abacus' can't be used on this machine; try auto or cpu"):
        hierclass.load(tiny_checkpoint, device="abacus")


def test_threads_may_share_a_classifier(classifier: Classifier, pictures: list[Picture]) -> None:
    tasks = [(picture, level) for picture in pictures for level in range(3)] * 2
    serial = [classifier.predict(*task) for task in tasks]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda task: classifier.predict(*task), tasks))
        refined = list(pool.map(lambda picture: list(classifier.refine(picture))[-1], pictures))
    assert all(same(left, right) for left, right in zip(together, serial, strict=True))
    assert all(same(left, right) for left, right in zip(refined, serial[2::3], strict=False))


def test_predicting_needs_no_gradients_and_leaves_the_network_as_it_is(
    classifier: Classifier, pictures: list[Picture]
) -> None:
    network = classifier.checkpoint.network
    before = {name: value.clone() for name, value in network.state_dict().items()}
    classifier.predict_batch(pictures)
    assert torch.is_grad_enabled()
    assert not network.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_a_copied_model_folder_is_the_same_model(
    classifier: Classifier, tiny_checkpoint: Path, pictures: list[Picture], tmp_path: Path
) -> None:
    copy = shutil.copytree(tiny_checkpoint, tmp_path / "copy")
    assert hierclass.load(str(copy), device="cpu").predict(pictures[3]) == classifier.predict(pictures[3])
