"""Graphs in 8 bits: what they answer, what a folder holds, what is said where they are missing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import hierclass
from hierclass.checkpoints.checkpoint import load_checkpoint
from hierclass.checkpoints.description import read_int8
from hierclass.cli import main
from hierclass.cli.shared import SOME_INPUTS_FAILED
from hierclass.errors import CheckpointError, ExportError, InputError
from hierclass.export.graphs import write_graphs
from hierclass.export.int8 import best_range, quantise
from hierclass.export.int8_files import make_int8, read_some
from hierclass.files import BUNDLED
from hierclass.images.preprocessing import Preprocessing
from hierclass.runtime.int8_probe import clips_sums
from hierclass.runtime.onnx_runtime import import_onnxruntime


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 20 images of noise, and a file that is none."""
    folder = tmp_path_factory.mktemp("photographs")
    chance = np.random.default_rng(0)
    for number in range(20):
        pixels = chance.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((40, 32)).save(folder / f"{number:02}.png")
    (folder / "broken.jpg").write_bytes(b"no image")
    return folder


@pytest.fixture(scope="module")
def quantised(tiny_graphs: Path, photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with graphs in 8 bits, too, written by the command."""
    folder = tmp_path_factory.mktemp("int8") / "tiny"
    shutil.copytree(tiny_graphs, folder)
    command = ["export", "--in-place", "--int8", "--images", str(photographs), "--model", str(folder)]
    assert main(command) == 0
    return folder


def test_8_bits_answer_nearly_as_float32_does(quantised: Path, photographs: Path) -> None:
    files = sorted(photographs.glob("*.png"))
    exact, rounded = hierclass.load(quantised), hierclass.load(quantised, int8=True)
    for level in range(3):
        pairs = zip(exact.predict_batch(files, level), rounded.predict_batch(files, level), strict=True)
        off = [abs(a.scores() - b.scores()).max() for a, b in pairs]
        assert 0 < max(off) < 0.05


def test_refining_in_8_bits_equals_answering_at_once(quantised: Path, photographs: Path) -> None:
    classifier, file = hierclass.load(quantised, int8=True), photographs / "00.png"
    assert list(classifier.refine(file)) == [classifier.predict(file, level) for level in range(3)]


def test_the_folder_says_whose_graphs_they_are(tiny_graphs: Path, quantised: Path) -> None:
    before, after = (json.loads((folder / "config.json").read_text()) for folder in (tiny_graphs, quantised))
    entry = after.pop("int8")
    assert after == before
    assert entry["digest"] == before["digest"]
    assert entry["files"] == ["level0.int8.onnx", "level1.int8.onnx", "level2.int8.onnx"]
    assert entry["decision"] == before["decision"]
    assert entry["results"]["images"] == 20
    assert len(entry["results"]["same"]) == 3


def test_graphs_in_8_bits_hold_their_weights_and_name_no_file(quantised: Path) -> None:
    for file in quantised.glob("*.int8.onnx"):
        content = file.read_bytes()
        assert len(content) < (quantised / "model.safetensors").stat().st_size / 2
        assert not any(text in content for text in (b"safetensors", b".py", b"/tmp", b"pytest"))


def test_a_run_tells_8_bits_from_float32(
    quantised: Path, photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert hierclass.load(quantised, int8=True).digest != hierclass.load(quantised).digest
    command = [
        "label",
        str(photographs),
        "--model",
        str(quantised),
        "-o",
        f"{tmp_path}/run/",
        "--workers",
        "1",
    ]
    assert main([*command, "--int8"]) == SOME_INPUTS_FAILED
    assert main(command) == 2
    assert "give --int8 to both or to none" in capsys.readouterr().err


def test_what_is_measured_in_float32_is_not_said_of_8_bits(quantised: Path) -> None:
    assert hierclass.load(quantised).levels[0].accuracy == 0.5
    assert hierclass.load(quantised, int8=True).levels[0].accuracy is None


def test_a_broken_file_is_left_out_and_counted(photographs: Path) -> None:
    pixels, unreadable = read_some([photographs], Preprocessing(32), 128, lambda *_: None)
    assert (len(pixels), unreadable) == (20, 1)
    same, _ = read_some([photographs], Preprocessing(32), 16, lambda *_: None)
    assert len(same) in (15, 16)


def test_too_few_images_are_refused(photographs: Path, tmp_path: Path) -> None:
    shutil.copy(photographs / "00.png", tmp_path)
    with pytest.raises(InputError, match=r"^1 readable images are too few"):
        read_some([tmp_path], Preprocessing(32), 128, lambda *_: None)


def test_the_range_with_the_least_error_leaves_outliers_out() -> None:
    counts = np.zeros(2048)
    counts[1024:1200] = 1e6  # 0 … 1.7
    counts[-1] = 1  # and one 10
    low, high = best_range(counts, -10.0, 10.0)
    assert -10 < low <= 0
    assert high < 5
    assert best_range(np.ones(2048), 0.0, 6.0) == (0.0, 6.0)


def test_a_graph_without_products_is_refused(tmp_path: Path) -> None:
    import onnx

    kinds = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, 3]) for name in "xy"]
    nodes = [onnx.helper.make_node("Relu", ["x"], ["y"], name="relu")]
    graph = onnx.helper.make_graph(nodes, "graph", [kinds[0]], [kinds[1]])
    onnx.save(onnx.helper.make_model(graph, ir_version=8), tmp_path / "level0.onnx")
    with pytest.raises(ExportError, match=r"^level0\.onnx has no convolution or matrix product"):
        quantise(tmp_path / "level0.onnx", list)


def test_graphs_of_other_weights_are_not_used(quantised: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(quantised, folder)
    config = json.loads((folder / "config.json").read_text())
    config["int8"]["digest"] = "older"
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        CheckpointError, match="add them: hierclass export --in-place --int8 --images DIR --model"
    ):
        read_int8(folder)


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (
            ["predict", "x.jpg", "--int8"],
            "has no graphs in 8 bits; add them: hierclass export --in-place --int8",
        ),
        (["label", "x.jpg", "--int8", "--device", "cuda"], "graphs in 8 bits run on the processor"),
        (["levels", "--int8", "--runtime", "torch"], "graphs in 8 bits run on the processor"),
        (["export", "--in-place", "--int8"], "name some hundred with --images DIR"),
    ],
)
def test_one_line_says_what_to_do(
    tiny_graphs: Path, command: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if command[0] == "levels":
        command = ["predict", "x.jpg", *command[1:]]
    assert main([*command, "--model", str(tiny_graphs)]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_a_processor_with_vnni_multiplies_8_bits_exactly() -> None:
    file = Path("/proc/cpuinfo")
    if not file.exists() or not {"avx512_vnni", "avx_vnni"} & set(file.read_text().split()):
        pytest.skip("this processor has no VNNI, or does not say so")
    assert not clips_sums(import_onnxruntime())


def test_the_bundled_model_has_graphs_in_8_bits_with_a_decision_of_their_own() -> None:
    exact, rounded = hierclass.load(), hierclass.load(int8=True)
    assert rounded.decision != exact.decision
    assert len(rounded.decision.thresholds) == len(exact.decision.thresholds)
    for level in range(3):
        accuracies = rounded.levels[level].accuracy, exact.levels[level].accuracy
        assert None not in accuracies
        assert abs(accuracies[0] - accuracies[1]) < 0.0075  # type: ignore[operator]
    cat = BUNDLED.parents[2] / "examples" / "cat.jpg"
    assert rounded.predict(cat).synset == exact.predict(cat).synset


@pytest.mark.full
def test_calibrating_8_bits_stores_their_decision(quantised: Path, shapes: Path, tmp_path: Path) -> None:
    from training.cli import main as train

    folder = tmp_path / "model"
    shutil.copytree(quantised, folder)
    before = json.loads((folder / "config.json").read_text())
    assert train(["calibrate", str(folder), "--int8", "--data", str(shapes / "shapes.parquet")]) == 0
    after = json.loads((folder / "config.json").read_text())
    entry = after.pop("int8")
    assert after == {key: value for key, value in before.items() if key != "int8"}
    assert len(entry["decision"]["temperatures"]) == 3
    assert (
        hierclass.load(folder, int8=True).levels[0].accuracy == entry["results"]["dev"]["levels"][0]["top1"]
    )


@pytest.mark.full
@pytest.mark.parametrize("backbone", ["test_vit", "test_convnext"])
def test_other_families_in_8_bits(backbone: str, photographs: Path, tmp_path: Path) -> None:
    from conftest import make_tiny_taxonomy

    from hierclass.checkpoints.checkpoint import Checkpoint, build, save_checkpoint
    from hierclass.checkpoints.description import Architecture

    architecture = Architecture(backbone=backbone, widths=(0.25, 0.5, 1.0), structure="prefix")
    network = build(architecture, make_tiny_taxonomy(), 32)
    checkpoint = Checkpoint(make_tiny_taxonomy(), architecture, Preprocessing(32), network=network)
    save_checkpoint(tmp_path / "model", checkpoint)
    write_graphs(tmp_path / "model", load_checkpoint(tmp_path / "model"))
    made = make_int8(tmp_path / "model", [photographs], 32, lambda *_: None)
    assert min(made.same) >= 0.7
