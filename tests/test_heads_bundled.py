"""One command on the bundled model: parts of the photographs in examples/ as classes of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import hierclass
from hierclass.files import BUNDLED
from training.cli import main
from training.heads.kept_features import read_kept_features
from training.recipe.recipe import Recipe

EXAMPLES = Path(__file__).parent.parent / "examples"
CLASSES = {
    "cat": "tabby cat",
    "coffee": "espresso",
    "flower": "daisy",
    "rocket": "rocket",
    "temple": "temple",
}
PARTS = 12


def write_parts(folder: Path, names: dict[str, str] = CLASSES) -> Path:
    """A folder of class folders with random square parts of each photograph, the last of them for later."""
    for name, label in names.items():
        random = np.random.default_rng(len(name))
        (folder / label).mkdir(parents=True)
        with Image.open(EXAMPLES / f"{name}.jpg") as photo:
            for number in range(PARTS):
                side = int(min(photo.size) * random.uniform(0.6, 0.95))
                left, top = (int(random.integers(0, length - side)) for length in photo.size)
                part = photo.crop((left, top, left + side, top + side)).resize((160, 160))
                part.save(folder / label / f"{number}.jpg")
    return folder


def fit(*arguments: object) -> Any:
    try:
        return main(["fit", *map(str, arguments), "--yes"])
    except SystemExit as stop:
        return stop.code


def test_photographs_become_a_calibrated_model_and_get_another_class_later(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names = dict(CLASSES)
    later = {"temple": names.pop("temple")}
    assert (
        fit("--data", write_parts(tmp_path / "photos", names), "--pin", "rocket=n04099429", "--seed", 1) == 0
    )
    text = capfd.readouterr().out
    assert "chosen: --from imagenet-1k --tune heads (on a processor)" in text
    assert "not calibrated" in text  # 48 are too few
    recipe = Recipe.load(tmp_path / "runs" / "photos" / "recipe.json")
    assert (recipe.base, recipe.tune, recipe.dev_share) == (str(BUNDLED), "heads", 0.0)

    model = tmp_path / "runs" / "photos" / "model"
    write_parts(tmp_path / "later", later)
    assert fit("--from", model, "--add", "later") == 0
    text = capfd.readouterr().out
    assert "cross-validated over 60 images" in " ".join(text.split())
    larger = hierclass.load(tmp_path / "runs" / "later" / "model")
    assert larger.runtime.name == "onnx"
    assert larger.temperatures is not None
    right = [
        larger.predict(file).label.lower() == label
        for folder, labels in (("photos", names), ("later", later))
        for label in labels.values()
        for file in sorted((tmp_path / folder / label).iterdir())[:4]
    ]
    assert len(right) == 20
    assert np.mean(right) > 0.9
    kept = read_kept_features(tmp_path / "runs" / "later" / "model")
    assert kept is not None
    assert len(kept.nodes) == 60
