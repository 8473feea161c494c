"""Models that earlier versions wrote load, and answer as they did.

`former_checkpoints.json` was made by the version whose bundled model was that of Tiny ImageNet: the architecture as it
stood in config.json, the names and shapes of the stored weights, and the logits of every level for `IMAGES` with the
weights that `make_weights` gives. Never make it anew: a change that needs that breaks models that people have.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from conftest import make_tiny_taxonomy

import hierclass
from hierclass.checkpoints.checkpoint import load_checkpoint, save_checkpoint
from hierclass.checkpoints.description import stored_fields

FORMER: dict[str, Any] = json.loads(
    Path(__file__).with_name("former_checkpoints.json").read_text(encoding="utf-8")
)
LATER = {"sizes", "own", "frozen"}
"""Fields of an architecture that the version did not have."""
IMAGES = torch.sin(torch.arange(2 * 3 * 32 * 32, dtype=torch.float64) * 0.37).reshape(2, 3, 32, 32).float()


def make_weights(tensors: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Weights that a formula gives, of about the size that keeps activations in range; whole numbers as they are."""
    made = {}
    for number, (name, form) in enumerate(sorted(tensors.items())):
        if isinstance(form, dict):
            made[name] = torch.tensor(form["values"]).reshape(form["shape"])
            continue
        count = torch.Size(form).numel()
        waves = torch.sin(torch.arange(count, dtype=torch.float64) * 0.7 + number).reshape(form)
        if len(form) > 1:
            waves = waves * (2 / max(1, waves[0].numel())) ** 0.5
        elif name.endswith(("weight", "running_var")):
            waves = 1 + waves / 2
        else:
            waves = waves / 10
        made[name] = waves.float()
    return made


@pytest.fixture(params=FORMER)
def former(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, list[list[list[float]]]]:
    """A model's folder as the earlier version wrote it, and what every level said of `IMAGES`."""
    found = FORMER[request.param]
    config = {
        "format": "hierclass-checkpoint",
        "version": 1,
        "architecture": found["architecture"],
        "preprocessing": {
            "size": 32,
            "crop": 0.9,
            "interpolation": "bilinear",
            "mean": [0.485, 0.456, 0.406],
            "std": [0.229, 0.224, 0.225],
        },
        "decision": {"lower_weight": 0.4, "temperatures": [1.1, 1.2, 1.3]},
        "results": {"dev": {"levels": [{"top1": 0.642}, {"top1": 0.56}, {"top1": 0.476}]}},
        "taxonomy": make_tiny_taxonomy().to_dict(),
    }
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    weights = make_weights(found["tensors"])
    (tmp_path / "model.safetensors").write_bytes(safetensors.torch.save(weights))
    return tmp_path, found["logits"]


def test_a_former_model_answers_as_it_did(former: tuple[Path, list[list[list[float]]]]) -> None:
    folder, expected = former
    assert not set(LATER) & json.loads((folder / "config.json").read_text())["architecture"].keys()
    network = load_checkpoint(folder).network
    with torch.inference_mode():
        for level, logits in enumerate(expected):
            wanted = torch.tensor(logits)
            tolerance = 1e-3 * float(wanted.abs().max())
            assert torch.allclose(network(IMAGES, level), wanted, atol=tolerance, rtol=0), level


def test_a_former_model_predicts_and_is_written_anew_with_the_same_answers(
    former: tuple[Path, list[list[list[float]]]], tmp_path: Path
) -> None:
    folder, _ = former
    classifier, image = hierclass.load(folder, device="cpu"), (IMAGES[0].numpy() * 127 + 128).astype("uint8")
    pixels = image.transpose(1, 2, 0)
    assert [level.accuracy for level in classifier.levels] == [0.642, 0.56, 0.476]
    predictions = list(classifier.refine(pixels))
    save_checkpoint(tmp_path / "new", load_checkpoint(folder), dtype="float32")
    again = hierclass.load(tmp_path / "new", device="cpu")
    assert list(again.refine(pixels)) == predictions


def test_a_run_of_a_former_version_knows_its_model_again(
    former: tuple[Path, list[list[list[float]]]],
) -> None:
    stored = json.loads((former[0] / "config.json").read_text())
    classifier = hierclass.load(former[0], device="cpu")
    told = [stored_fields(each) for each in (classifier.checkpoint.architecture, classifier.preprocessing)]
    assert json.loads(json.dumps(told)) == [stored["architecture"], stored["preprocessing"]]
