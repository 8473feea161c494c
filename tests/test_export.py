"""Graphs of levels: what ONNX Runtime makes of them, where their weights lie, and what a folder holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray

from hierclass.checkpoints.checkpoint import Checkpoint, load_checkpoint
from hierclass.errors import ExportError
from hierclass.export.level_export import export_level
from hierclass.files import BUNDLED
from hierclass.images.preprocessing import Preprocessing, normalise
from hierclass.nested.level_graph import resize, resize_by_products

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


@pytest.fixture
def exported(tiny_graphs: Path) -> Path:
    """The tiny model of structure `slices`, with graphs in place of older ones."""
    return tiny_graphs


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
    for level in range(3):
        logits, features, *kept = run(exported, level, images, kept)
        assert np.abs(logits - expected[level].numpy()).max() < 1e-4
        assert features.shape == (4, checkpoint.network.num_features[level])
    assert kept == []


def test_outputs_have_the_names_that_the_format_says(exported: Path) -> None:
    for level in range(3):
        names = [each.name for each in session(exported, level).get_outputs()]
        kept = [f"kept{index}" for index in range(len(names) - 2)]
        assert names == ["logits", "features", *kept]


def test_config_json_says_whose_graphs_they_are(tiny_checkpoint: Path, exported: Path) -> None:
    before, after = (
        json.loads((folder / "config.json").read_text()) for folder in (tiny_checkpoint, exported)
    )
    graphs = after.pop("graphs")
    assert after == before
    assert {key: graphs[key] for key in ("digest", "files", "reuses", "keeps_rows", "sizes")} == {
        "digest": before["digest"],
        "files": ["level0.onnx", "level1.onnx", "level2.onnx"],
        "reuses": True,
        "keeps_rows": True,
        "sizes": None,
    }
    assert graphs["costs"] == before["proven"]["costs"]


def test_weights_stay_where_they_are_and_no_file_names_this_machine(
    tiny_checkpoint: Path, exported: Path
) -> None:
    weights = (tiny_checkpoint / "model.safetensors").read_bytes()
    assert (exported / "model.safetensors").read_bytes() == weights
    for file in exported.glob("*.onnx"):
        content = file.read_bytes()
        assert b"model.safetensors" in content
        assert len(content) < 60_000
        assert b".py" not in content
        assert b"/home" not in content


def test_nothing_of_older_graphs_is_left(exported: Path) -> None:
    names = {file.name for file in exported.iterdir()}
    assert names == {"config.json", "model.safetensors", *(f"level{level}.onnx" for level in range(3))}


class Factorised(torch.nn.Module):
    """A level with an operator that no ONNX graph has."""

    def forward(self, image: torch.Tensor, kept: tuple[torch.Tensor, ...]) -> Any:
        return torch.geqrf(image[:, 0])[1], ()


def test_an_operator_that_cannot_be_exported_is_named(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = load_checkpoint(tiny_checkpoint)
    monkeypatch.setattr(checkpoint.network, "level_module", lambda level: Factorised())
    checkpoint.network.heads[1] = torch.nn.Linear(32, 5)
    with pytest.raises(ExportError, match=r"^level 1 can't be exported to ONNX: operator aten.geqrf"):
        export_level(checkpoint.network, 1, checkpoint.preprocessing)


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
    assert sum(file.stat().st_size for file in BUNDLED.iterdir()) < 20e6
