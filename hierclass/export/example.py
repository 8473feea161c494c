"""Say what photographs show, from coarse to fine, without hierclass: python example.py photo.jpg …

Needs numpy, pillow and onnxruntime (or openvino). A program would stop at the first level that is sure enough for it.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

PRECISION = 0.9  # an answer is sure if answers of its score are right at this rate; labels.json has others


def open_graph(file: Path) -> Callable[[dict[str, Any]], list[Any]]:
    """Return a function from inputs by name to logits, features, kept0, kept1 …."""
    if file.suffix == ".xml":
        import openvino

        exact = {
            "INFERENCE_PRECISION_HINT": "f32"
        }  # bfloat16, where the processor has it, moves scores by 0.1
        compiled = openvino.Core().compile_model(file, "CPU", exact)
        return lambda inputs: list(compiled(inputs).values())
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return lambda inputs: list(session.run(None, inputs))


def read(file: str, size: int, shorter_side: int, interpolation: str) -> Any:
    """Return the centre square of a picture as the graphs take it: uint8 (1, size, size, 3), RGB."""
    picture = Image.open(file)
    scale = 2 * shorter_side / min(picture.size)
    if scale < 1:  # a JPEG is decoded at a smaller scale, much faster
        picture.draft(None, (math.ceil(picture.width * scale), math.ceil(picture.height * scale)))
    image = ImageOps.exif_transpose(picture)
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    side = min(image.size) * size / shorter_side
    left, top = (image.width - side) / 2, (image.height - side) / 2
    how, box = Image.Resampling[interpolation.upper()], (left, top, left + side, top + side)
    return np.asarray(image.convert("RGB").resize((size, size), how, box))[None]


def ancestors(model: dict[str, Any], level: int, tier: int) -> list[int]:
    """Return the index in a tier of what each class of a level belongs to."""
    indices, found = {synset: index for index, synset in enumerate(model["tiers"][tier])}, []
    for synset in model["tiers"][level]:
        while synset not in indices:
            synset = model["tree"][synset]["parent"]
        found.append(indices[synset])
    return found


def log_softmax(values: Any) -> Any:
    """Return the logarithms of the probabilities that logits (C,) stand for."""
    return values - values.max() - np.log(np.exp(values - values.max()).sum())


def main(files: list[str]) -> None:
    """Print every level's answer to each photograph."""
    folder = Path(__file__).parent
    model = json.loads((folder / "labels.json").read_text(encoding="utf-8"))
    graphs = [open_graph(folder / level["graph"]) for level in model["levels"]]
    for file in files:
        print(file)
        image, kept, said = read(file, **model["preprocessing"]), list[Any](), list[Any]()
        for level, fitted in enumerate(model["levels"]):
            given = {f"given{index}": value for index, value in enumerate(kept)} if model["reuses"] else {}
            logits, _, *kept = graphs[level]({"images": image, **given})
            said.append(log_softmax(logits[0].astype(np.float64)))
            lower = sum(said[tier][ancestors(model, level, tier)] for tier in range(level))
            joint = said[level] + model["lower_weight"] * lower
            scores, steps = np.exp(log_softmax(joint / fitted["temperature"])), []
            for tier in range(level + 1):
                belongs = ancestors(model, level, tier)
                answer = belongs[scores.argmax()]
                score = np.bincount(belongs, scores)[answer]
                limits = {
                    row["tier"]: row["score"] for row in fitted["thresholds"] if row["precision"] == PRECISION
                }
                sure = " (sure)" if limits.get(tier) is not None and score >= limits[tier] else ""
                steps.append(f"{model['tree'][model['tiers'][tier][answer]]['name']} {score:.3f}{sure}")
            print(f"  level {level}: {' > '.join(steps)}")


if __name__ == "__main__":
    main(sys.argv[1:])
