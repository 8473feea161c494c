"""Any timm classifier without training: untrained ones, saved to files and loaded by timm's own mechanism."""

from __future__ import annotations

import csv
import functools
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from timm_models import CAT, NAME, make_model, random_inputs, sure_of
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import hierclass
from hierclass.checkpoints.checkpoint import save_checkpoint
from hierclass.classifier import Classifier
from hierclass.cli import main
from hierclass.errors import BackboneError, CheckpointError, InputError, TaxonomyError
from hierclass.page.drawing import draw_headline, draw_steps
from hierclass.page.single import AnswerOptions, classify_by_level
from hierclass.timm_models.pretrained_classifier import read_preprocessing
from taxonomy import Node, Taxonomy

from_timm = functools.partial(hierclass.from_timm, runtime="torch")
"""Nothing here is about graphs; tests/test_from_timm_graphs.py is."""

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return make_model()


@pytest.fixture(scope="module")
def weights(model: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("timm") / "weights.safetensors"
    safetensors.torch.save_file(model.state_dict(), file)
    return file


@pytest.fixture(scope="module")
def classifier(weights: Path) -> Classifier:
    return from_timm(NAME, weights=weights, device="cpu")


@pytest.fixture(scope="module")
def batch(classifier: Classifier) -> torch.Tensor:
    return random_inputs(classifier.preprocessing, 4)


def summed(probabilities: torch.Tensor, taxonomy: Taxonomy, tier: int) -> dict[str, float]:
    """Probability of every class of a tier for one image, by walking up from each of the 1,000 synsets."""
    synsets = timm.data.ImageNetInfo("imagenet-1k").label_names()
    sums: dict[str, float] = defaultdict(float)
    for synset, value in zip(synsets, probabilities.tolist(), strict=True):
        line = {synset, *(node.id for node in taxonomy.ancestors(synset))}
        (above,) = line & set(taxonomy.tiers[tier])
        sums[above] += value
    return sums


def test_a_tier_is_the_sum_of_the_probabilities_below_it(
    classifier: Classifier, model: nn.Module, batch: torch.Tensor
) -> None:
    assert classifier.taxonomy.num_classes == (16, 112, 1000)
    with torch.inference_mode():
        probabilities = model(batch).double().softmax(1)
    for tier in range(3):
        answers = classifier.predict_tensors(batch.numpy(), tier)
        for row, answer in zip(probabilities, answers, strict=True):
            expected = summed(row, classifier.taxonomy, tier)
            given = {step.synset: step.score for step in answer.top(1000)}
            assert given == pytest.approx(expected, abs=1e-6)
            assert answer.synset == max(expected, key=lambda synset: expected[synset])
            assert answer.score == pytest.approx(max(expected.values()), abs=1e-6)


@pytest.mark.parametrize("size", [1e-4, 1.0, 300.0])
def test_sums_are_exact_for_logits_of_any_size(classifier: Classifier, size: float) -> None:
    logits = torch.randn(3, 1000, generator=torch.Generator().manual_seed(2)) * size
    for level, head in enumerate(classifier.checkpoint.network.heads):
        probabilities = head(logits).softmax(1)
        for row, given in zip(logits.double().softmax(1), probabilities, strict=True):
            expected = summed(row, classifier.taxonomy, level)
            ids = classifier.taxonomy.tiers[level]
            assert given.tolist() == pytest.approx([expected[each] for each in ids], abs=1e-4)


@pytest.mark.parametrize(
    ("index", "path"),
    [
        (0, ["n01440764"]),
        (151, ["n01861778", "n02084071", "n02085620"]),  # mammal, dog, Chihuahua
        (281, ["n01861778", "n02123045"]),  # mammal, …, tabby
        (967, ["n07920052"]),  # espresso
        (999, ["n15075141"]),  # toilet tissue
    ],
)
def test_an_output_is_the_leaf_that_imagenet_has_at_its_place(
    index: int, path: list[str], tmp_path: Path
) -> None:
    answer = from_timm(NAME, weights=sure_of(index, tmp_path), device="cpu").predict(CAT)
    synsets = [step.synset for step in answer.path]
    assert synsets[-1] == path[-1]
    assert set(path) <= set(synsets)
    assert answer.score > 0.99


def pets(*leaves: str) -> Taxonomy:
    nodes = [Node("root", "thing"), Node("pet", "pet"), *(Node(leaf, leaf) for leaf in leaves)]
    return Taxonomy(
        name="pets",
        nodes=nodes,
        parents=[-1, 0, *[1] * len(leaves)],
        leaves=leaves,
        tiers=[["pet"], leaves],
    )


def test_a_tree_in_another_order_with_fewer_leaves_gets_its_own_outputs(
    tmp_path: Path, model: nn.Module, weights: Path, batch: torch.Tensor
) -> None:
    tree = pets("n02123045", "n02085620")
    answer = from_timm(NAME, weights=sure_of(151, tmp_path), taxonomy=tree, device="cpu").predict(CAT)
    assert [step.synset for step in answer.path] == ["pet", "n02085620"]
    with torch.inference_mode():
        expected = model(batch)[:, [281, 151]].softmax(1).numpy()  # the other outputs are left out
    for row, given in zip(
        expected, from_timm(NAME, weights=weights, taxonomy=tree).predict_tensors(batch.numpy()), strict=True
    ):
        assert {step.synset: step.score for step in given.top()} == pytest.approx(
            {"n02123045": row[0], "n02085620": row[1]}, abs=1e-5
        )


def test_a_taxonomy_may_be_a_bundled_name_or_a_file(weights: Path, tmp_path: Path) -> None:
    assert from_timm(NAME, weights=weights, taxonomy="tiny-imagenet").levels[2].num_classes == 200
    pets("n02123045", "n02085620").save(tmp_path / "pets.json")
    assert [
        x.num_classes for x in from_timm(NAME, weights=weights, taxonomy=tmp_path / "pets.json").levels
    ] == [
        1,
        2,
    ]


def test_a_larger_imagenet_needs_a_tree_of_its_own_classes(tmp_path: Path) -> None:
    name = "vit_tiny_patch16_224.augreg_in21k"
    index = timm.data.ImageNetInfo("imagenet-21k-goog").label_names().index("n02085620")
    assert index != 151
    file = sure_of(index, tmp_path, name)
    with pytest.raises(BackboneError, match=r"has 21,843 outputs; .* must have the 1,000 classes"):
        from_timm(name, weights=file)
    answer = from_timm(name, weights=file, taxonomy=pets("n02123045", "n02085620"), device="cpu").predict(CAT)
    assert answer.synset == "n02085620"


def test_leaves_that_the_classifier_does_not_have_are_refused(weights: Path, tiny_taxonomy: Taxonomy) -> None:
    with pytest.raises(TaxonomyError, match=r"12 leaves of taxonomy 'tiny' are no classes .* 'chihuahua'"):
        from_timm(NAME, weights=weights, taxonomy=tiny_taxonomy)
    with pytest.raises(TaxonomyError):
        from_timm(NAME, weights=weights, taxonomy="no-such-tree")


@pytest.mark.parametrize("name", ["vit_small_patch14_dinov2", "vit_base_patch16_clip_224.openai"])
def test_a_model_without_imagenet_classes_is_refused_before_weights_are_looked_for(name: str) -> None:
    with pytest.raises(BackboneError, match="must have the 1,000 classes of ImageNet-1k"):
        from_timm(name, weights="nowhere.pth")


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("tset_resnet", "test_resnet"),
        ("resnet18.nonsense", "resnet18.a1_in1k"),
        ("hf-hub:timm/x", "list_models"),
    ],
)
def test_an_unknown_name_is_refused_with_a_hint(name: str, hint: str) -> None:
    with pytest.raises(BackboneError, match="timm has no model called") as caught:
        from_timm(name)
    assert hint in str(caught.value)


def test_every_level_costs_the_whole_network(
    classifier: Classifier, model: nn.Module, batch: torch.Tensor
) -> None:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(batch[:1])
    macs = counter.get_total_flops() // 2
    assert macs > 1e6
    assert [level.macs for level in classifier.levels] == [macs] * 3
    assert [level.share for level in classifier.levels] == [1.0] * 3
    num_weights = sum(value.numel() for value in model.parameters())
    assert [level.parameters for level in classifier.levels] == [num_weights] * 3
    assert [level.accuracy for level in classifier.levels] == [None] * 3


def test_whatever_is_asked_for_the_network_runs_once(
    classifier: Classifier, model: nn.Module, batch: torch.Tensor
) -> None:
    def macs_of(run: Callable[[], object]) -> int:
        with FlopCounterMode(display=False) as counter:
            run()
        return counter.get_total_flops() // 2

    macs = classifier.levels[0].macs
    assert macs_of(lambda: list(classifier.refine(CAT))) == macs
    for level in range(3):
        assert macs_of(lambda level=level: classifier.predict(CAT, level)) == macs  # type: ignore[misc]


def test_refining_answers_what_each_level_answers(classifier: Classifier) -> None:
    answers = list(classifier.refine(CAT))
    assert [answer.level for answer in answers] == [0, 1, 2]
    for answer in answers:
        direct = classifier.predict(CAT, answer.level)
        assert [step.synset for step in answer.path] == [step.synset for step in direct.path]
        assert [step.score for step in answer.path] == pytest.approx([step.score for step in direct.path])


def test_answers_are_paths_of_the_tree_and_a_batch_answers_like_its_images(classifier: Classifier) -> None:
    random = np.random.default_rng(0)
    pictures = [random.integers(0, 255, (50, 60, 3), dtype=np.uint8) for _ in range(3)]
    for level in range(3):
        for picture, answer in zip(pictures, classifier.predict_batch(pictures, level), strict=True):
            above = {node.id for node in classifier.taxonomy.ancestors(answer.synset)}
            assert above >= {step.synset for step in answer.path[:-1]}
            scores = [step.score for step in answer.path]
            assert scores == sorted(scores, reverse=True)
            assert answer.synset == classifier.predict(picture, level).synset
    with pytest.raises(hierclass.LevelError):
        classifier.predict(CAT, 3)


def test_images_are_prepared_as_timm_says(classifier: Classifier) -> None:
    prepared = classifier.preprocessing
    assert (prepared.size, prepared.crop, prepared.interpolation) == (160, 0.95, "bilinear")
    assert (prepared.mean, prepared.std) == ((0.5,) * 3, (0.5,) * 3)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"input_size": (3, 224, 224), "test_input_size": (3, 288, 288), "test_crop_pct": 1.0}, (288, 1.0)),
        (
            {"input_size": (3, 224, 224), "test_input_size": (3, 288, 288), "fixed_input_size": True},
            (224, 0.875),
        ),
        ({"input_size": (3, 448, 448), "crop_pct": 1.15}, (448, 1.0)),
        ({"input_size": (3, 256, 256), "crop_pct": 0.9, "crop_mode": "squash"}, (256, 0.9)),
    ],
)
def test_the_size_and_the_crop_are_those_of_tests(
    config: dict[str, Any], expected: tuple[int, float]
) -> None:
    made = nn.Identity()
    made.pretrained_cfg = config
    prepared = read_preprocessing("x", made)
    assert (prepared.size, prepared.crop) == expected


def test_images_that_are_not_square_are_refused() -> None:
    made = nn.Identity()
    made.pretrained_cfg = {"input_size": (3, 256, 128)}
    with pytest.raises(BackboneError, match="reads images of 3 x 256 x 128"):
        read_preprocessing("x", made)


# ---- the network itself


def test_a_level_alone_is_the_same_answer(classifier: Classifier, batch: torch.Tensor) -> None:
    network = classifier.checkpoint.network
    with torch.inference_mode():
        for level in range(3):
            assert torch.equal(network.truncate(level)(batch), network(batch, level))
            assert torch.equal(network.extract(level)(batch), network(batch, level))
        assert network.truncate(0).num_levels == 1


def test_it_is_not_saved_as_a_model(classifier: Classifier, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="keep its file of weights and use from_timm"):
        save_checkpoint(tmp_path / "model", classifier.checkpoint)
    assert not list(tmp_path.rglob("*.*"))


def test_loading_leaves_the_random_numbers_as_they_are(weights: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    from_timm(NAME, weights=weights, device="cpu")
    assert torch.equal(torch.rand(3), expected)


def test_a_wrong_device_is_refused(weights: Path) -> None:
    with pytest.raises(InputError, match="device 'abacus'"):
        from_timm(NAME, weights=weights, device="abacus")


@pytest.mark.parametrize("name", ["test_vit", "test_maxvit", "test_nfnet", "cait_xxs24_224", "levit_128s"])
def test_transformers_and_two_headed_models_work(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = timm.create_model(name).eval()
    safetensors.torch.save_model(model, str(tmp_path / "weights.safetensors"))
    classifier = from_timm(name, weights=tmp_path / "weights.safetensors", device="cpu")
    image = random_inputs(classifier.preprocessing)
    with torch.inference_mode():
        row = model(image).softmax(1)[0]
    expected = summed(row, classifier.taxonomy, 0)
    answer = classifier.predict_tensors(image.numpy(), 0)[0]
    assert {step.synset: step.score for step in answer.top(16)} == pytest.approx(expected, abs=1e-5)


# ---- rows, the command line, the page


def test_rows_are_labelled(classifier: Classifier, tmp_path: Path) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_text("no picture")
    good, bad = hierclass.label([str(CAT), str(broken)], classifier=classifier, level=1)
    assert [step.synset for step in good.steps] == [s.synset for s in classifier.predict(CAT, 1).path]
    assert bad.error


def test_the_command_line_labels_predicts_and_lists(
    classifier: Classifier,
    weights: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))  # no graphs
    options = ["--timm", NAME, "--weights", str(weights)]
    target = tmp_path / "out.csv"
    assert main(["label", str(CAT), *options, "--runtime", "torch", "-o", str(target)]) == 0
    (row,) = csv.DictReader(target.read_text().splitlines())
    assert row["synset"] == classifier.predict(CAT).synset
    capsys.readouterr()
    assert main(["predict", str(CAT), *options, "--runtime", "torch"]) == 0
    out = capsys.readouterr().out
    assert classifier.predict(CAT).label in out
    assert "100% of the cost" in out
    assert out.count("+0% of the cost") == 2
    assert main(["levels", *options]) == 0
    out = capsys.readouterr().out
    assert out.count("100.0%") == 3
    assert "Every level runs the whole network: a coarser answer costs the same." in out


def test_nested_models_do_not_say_that_levels_cost_the_same(
    tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["levels", "--model", str(tiny_checkpoint)]) == 0
    assert "costs the same" not in capsys.readouterr().out


WRONG_USE = [
    (["--timm", NAME, "--model", "x"], "--model and --timm each name what answers; give one of them"),
    (["--weights", "x.pth"], "--weights belongs to a timm classifier; name that with --timm"),
    (["--timm", NAME, "--weights", "x.pth"], "there is no file of weights at x.pth"),
]


@pytest.mark.parametrize(("options", "message"), WRONG_USE)
@pytest.mark.parametrize("command", [["label", str(CAT)], ["predict", str(CAT)], ["levels"]])
def test_wrong_use_is_one_line(
    command: list[str], options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command, *options]) == 2
    out, err = capsys.readouterr()
    assert (out, err) == ("", f"error: {message}\n")


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )


def test_wrong_use_does_not_wait_for_torch() -> None:
    done = run_python(
        "import sys; from hierclass.cli import main\n"
        f"for options, _ in {WRONG_USE!r}: assert main(['levels', *options]) == 2\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("options", "message"), WRONG_USE)
def test_the_page_takes_the_same_options(options: list[str], message: str) -> None:
    pytest.importorskip("gradio")
    done = run_python(f"import sys; sys.argv = ['app.py', *{options!r}]; import app; app.main()")
    assert done.returncode == 2
    assert done.stderr.splitlines() == [f"app.py: {message}"]


def test_the_page_says_that_every_level_costs_the_same(classifier: Classifier) -> None:
    stages = list(classify_by_level(classifier, CAT, AnswerOptions(tier=2)))
    assert [stage.share for stage in stages] == [1.0, 0.0, 0.0]
    assert [stage.macs for stage in stages] == [classifier.levels[0].macs, 0, 0]
    options = AnswerOptions(tier=0)
    first = list(classify_by_level(classifier, CAT, options))
    drawing = draw_headline(classifier, first, options) + draw_steps(classifier, first)
    assert "100% of the full work" in drawing
    assert 'aria-hidden="true"><i style="width:100.00%"></i></div>' in draw_steps(classifier, stages)
    assert drawing.count("not shown") == 2
    assert "never done" not in drawing
    assert "not computed" not in drawing


def test_the_page_is_built_with_words_that_fit(
    classifier: Classifier, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    pytest.importorskip("gradio", reason="Gradio is not installed")
    pytest.importorskip("plotly", reason="plotly is not installed")
    from hierclass.page.layout import build_page
    from hierclass.page.service import Service
    from hierclass.page.uploads import Uploads

    uploads = Uploads(tmp_path)
    whole = str(build_page(Service(classifier, uploads)).get_config_file())
    nested = str(build_page(Service(hierclass.load(tiny_checkpoint, "cpu"), uploads)).get_config_file())
    assert "the more it costs" not in whole  # nothing was measured
    for text in ("a coarser answer costs the same", "every step runs the whole network"):
        assert text in whole
        assert text not in nested
    assert "Fewer kinds cost less" in nested
    assert "Fewer kinds cost less" not in whole
