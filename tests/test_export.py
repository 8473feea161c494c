"""Graphs of levels: what ONNX Runtime makes of them, where their weights lie, and what a folder holds."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray

import hierclass
from hierclass.checkpoints.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from hierclass.checkpoints.compress import compress
from hierclass.cli import main
from hierclass.cli.shared import Stopped
from hierclass.export.graphs import write_graphs
from hierclass.files import BUNDLED
from hierclass.images.preprocessing import Preprocessing, normalise
from hierclass.nested.level_graph import resize, resize_by_products
from hierclass.nested.network import GraphNetwork, NestedNetwork
from training.trainer.export import add_graphs

Outputs = list[NDArray[Any]]


def session(folder: Path, level: int) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(folder / f"level{level}.onnx", providers=["CPUExecutionProvider"])


def run(folder: Path, level: int, images: NDArray[np.uint8], given: Outputs | None = None) -> Outputs:
    inputs = {f"given{index}": value for index, value in enumerate(given or [])}
    found: Outputs = session(folder, level).run(None, {"images": images, **inputs})
    return found


def pixels(batch: int, side: int) -> NDArray[np.uint8]:
    return np.random.default_rng(batch).integers(0, 256, (batch, side, side, 3), dtype=np.uint8)


def normalised(images: NDArray[np.uint8], preprocessing: Preprocessing) -> torch.Tensor:
    mean, std = (torch.tensor(each)[:, None, None] for each in (preprocessing.mean, preprocessing.std))
    return normalise(torch.from_numpy(images).permute(0, 3, 1, 2).float(), mean, std)


@pytest.fixture(scope="module")
def plain(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of two levels of structure `slices`, without graphs; not to be changed."""
    folder = tmp_path_factory.mktemp("plain") / "tiny"
    save_checkpoint(folder, compress(load_checkpoint(tiny_checkpoint), 1), dtype="float32")
    return folder


@pytest.fixture(scope="module")
def exported(plain: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with graphs in place of older ones; not to be changed."""
    folder = tmp_path_factory.mktemp("exported") / "tiny"
    shutil.copytree(plain, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "graphs": {"digest": "older"}}))
    for name in ("level0.onnx", "graphs.safetensors"):
        (folder / name).write_bytes(b"older")
    write_graphs(folder, load_checkpoint(folder))
    return folder


@pytest.mark.parametrize("size", [96, 64, 224, 40])
def test_products_resize_as_pytorch_does(size: int) -> None:
    image = torch.rand(2, 3, size, size)
    products = resize_by_products(image.permute(0, 2, 3, 1), 64)
    assert torch.allclose(products, resize(image, 64), atol=1e-5)
    assert size != 64 or torch.equal(products, image)


def test_a_level_reads_what_the_level_below_kept(exported: Path) -> None:
    checkpoint = load_checkpoint(exported)
    images = pixels(4, 32)
    kept: Outputs = []
    with torch.no_grad():
        expected = checkpoint.network.forward_all(normalised(images, checkpoint.preprocessing))
    for level in range(2):
        logits, features, *kept = run(exported, level, images, kept)
        assert np.abs(logits - expected[level].numpy()).max() < 1e-4
        assert features.shape == (4, checkpoint.network.num_features[level])
    assert kept == []


def test_outputs_have_the_names_that_the_format_says(exported: Path) -> None:
    for level in range(2):
        names = [each.name for each in session(exported, level).get_outputs()]
        kept = [f"kept{index}" for index in range(len(names) - 2)]
        assert names == ["logits", "features", *kept]


def test_config_json_says_whose_graphs_they_are(plain: Path, exported: Path) -> None:
    before, after = (json.loads((folder / "config.json").read_text()) for folder in (plain, exported))
    graphs = after.pop("graphs")
    assert after == before
    assert {key: graphs[key] for key in ("digest", "files", "reuses", "keeps_rows", "sizes")} == {
        "digest": before["digest"],
        "files": ["level0.onnx", "level1.onnx"],
        "reuses": True,
        "keeps_rows": True,
        "sizes": None,
    }
    assert graphs["costs"] == before["proven"]["costs"]


def test_weights_stay_where_they_are_and_no_file_names_this_machine(plain: Path, exported: Path) -> None:
    weights = (plain / "model.safetensors").read_bytes()
    assert (exported / "model.safetensors").read_bytes() == weights
    for file in exported.glob("*.onnx"):
        content = file.read_bytes()
        assert b"model.safetensors" in content
        assert len(content) < 60_000
        assert b".py" not in content
        assert b"/home" not in content


def test_nothing_of_older_graphs_is_left(exported: Path) -> None:
    names = {file.name for file in exported.iterdir()}
    assert names == {"config.json", "model.safetensors", "level0.onnx", "level1.onnx"}


class Factorised(torch.nn.Module):
    """A level with an operator that no ONNX graph has."""

    def forward(self, image: torch.Tensor, kept: tuple[torch.Tensor, ...]) -> Any:
        return torch.geqrf(image[:, 0])[1], ()


@pytest.fixture
def unexportable(monkeypatch: pytest.MonkeyPatch) -> None:
    """No level has a graph."""
    monkeypatch.setattr(NestedNetwork, "level_module", lambda self, level: Factorised())
    monkeypatch.setattr(GraphNetwork, "level_module", lambda self, level: Factorised())


@pytest.mark.usefixtures("unexportable")
def test_a_trained_model_without_graphs_says_why(plain: Path, exported: Path, tmp_path: Path) -> None:
    folder, said = shutil.copytree(plain, tmp_path / "model"), list[str]()
    add_graphs(folder, said.append)
    add_graphs(exported, said.append)  # has them
    assert len(said) == 2
    assert said[1].startswith(
        f"{folder} runs by PyTorch alone: level 0 can't be exported to ONNX: operator aten.geqrf"
    )
    assert hierclass.load(folder, "cpu").runtime.name == "torch"


def test_a_stopped_command_leaves_the_model_as_it_was(exported: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(exported, tmp_path / "model")

    def stop(level: int) -> None:
        raise Stopped(130)

    with pytest.raises(Stopped):
        write_graphs(folder, load_checkpoint(folder), stop)
    assert all(file.read_bytes() == (exported / file.name).read_bytes() for file in folder.iterdir())


@pytest.mark.usefixtures("unexportable")
def test_the_command_that_adds_graphs_names_the_operator(
    plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(plain, tmp_path / "model")
    assert main(["export", "--in-place", "--model", str(folder)]) == 2
    assert "error: level 0 can't be exported to ONNX: operator aten.geqrf" in capsys.readouterr().err
    assert sorted(file.name for file in folder.iterdir()) == ["config.json", "model.safetensors"]


def test_results_are_stored_without_exporting_again_and_weights_are_not(
    exported: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(exported, tmp_path / "model")
    checkpoint = load_checkpoint(folder)
    checkpoint.results["dev"] = {}
    save_checkpoint(folder, checkpoint, dtype="float32")
    assert hierclass.load(folder, "cpu").runtime.name == "onnx"
    with torch.no_grad():
        next(checkpoint.network.parameters()).zero_()
    save_checkpoint(folder, checkpoint, dtype="float32")
    assert hierclass.load(folder, "cpu").runtime.name == "torch"
    assert sorted(file.name for file in folder.iterdir()) == ["config.json", "model.safetensors"]


@pytest.fixture(scope="module")
def bundled() -> Checkpoint:
    return load_checkpoint(BUNDLED)


@pytest.mark.parametrize(("level", "side"), [(0, 224), (0, 64), (1, 128), (2, 224)])
def test_the_bundled_graphs_answer_as_pytorch_does(bundled: Checkpoint, level: int, side: int) -> None:
    images = pixels(2, side)
    logits, features = run(BUNDLED, level, images)
    with torch.no_grad():
        expected = bundled.network.features(normalised(images, bundled.preprocessing), level)
        assert np.abs(logits - bundled.network.classify(expected, level).numpy()).max() < 1e-4
        assert np.abs(features - expected.numpy()).max() < 1e-4


def test_the_bundled_folder_stays_small() -> None:
    files = [file for file in BUNDLED.iterdir() if not file.name.endswith(".int8.onnx")]
    assert sum(file.stat().st_size for file in files) < 20e6
