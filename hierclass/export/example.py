"""Say what photographs show, from coarse to fine: python example.py photo.jpg …

Needs numpy, pillow and onnxruntime (or openvino), no hierclass; labels.json and the graphs lie beside this file.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

HERE = Path(__file__).parent
PRECISION = 0.9  # an answer is sure if answers of its score are right at this rate; "thresholds" holds others

Run = Callable[[dict[str, Any]], list[Any]]  # inputs by name → logits, features, kept0, kept1 …


def open_graph(file: Path) -> Run:
    """Open the graph of a level."""
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
    """Read the centre square of a picture as the graphs take it: uint8 (1, size, size, 3), RGB."""
    with Image.open(file) as picture:
        scale = 2 * shorter_side / min(picture.size)
        if scale < 1:  # a JPEG is decoded at a smaller scale, much faster
            picture.draft(None, (math.ceil(picture.width * scale), math.ceil(picture.height * scale)))
        image = ImageOps.exif_transpose(picture)
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    image = image.convert("RGB")
    side = min(image.size) * size / shorter_side
    left, top = (image.width - side) / 2, (image.height - side) / 2
    box = (left, top, left + side, top + side)
    return np.asarray(image.resize((size, size), Image.Resampling[interpolation.upper()], box=box))[None]


def predict(image: Any, graphs: list[Run], model: dict[str, Any]) -> Iterator[list[tuple[str, float]]]:
    """Yield the answer of level 0, 1, …: synset id and score (0 … 1) of each tier; stop where it is fine enough."""
    tree, tiers, kept, said = model["tree"], model["tiers"], list[Any](), list[Any]()

    def above(synset: str, tier: int) -> str:
        while synset not in tiers[tier]:
            synset = tree[synset]["parent"]
        return synset

    for level, run in enumerate(graphs):
        given = {f"given{number}": value for number, value in enumerate(kept)} if model["reuses"] else {}
        logits, _, *kept = run({"images": image, **given})
        said.append(log_softmax(logits[0]))
        joint = said[level]
        for tier in range(level if model["lower_weight"] else 0):
            places = [tiers[tier].index(above(synset, tier)) for synset in tiers[level]]
            joint = joint + model["lower_weight"] * said[tier][places]
        scores = np.exp(log_softmax(log_softmax(joint) / model["levels"][level]["temperature"]))
        best, path = tiers[level][int(scores.argmax())], []
        for tier in range(level + 1):
            name = above(best, tier)
            below = [above(synset, tier) == name for synset in tiers[level]]
            path.append((name, float(scores[below].sum())))
        yield path


def log_softmax(values: Any) -> Any:
    """Return the logarithms of probabilities that logits (C,) stand for."""
    shifted = values.astype(np.float64) - values.max()
    return shifted - np.log(np.exp(shifted).sum())


def is_sure(level: dict[str, Any], tier: int, score: float) -> bool:
    """Return whether a level's answer to a tier is right at the wanted rate."""
    lowest = {row["tier"]: row["score"] for row in level["thresholds"] if row["precision"] == PRECISION}
    return lowest.get(tier) is not None and score >= lowest[tier]


def main(files: list[str]) -> None:
    """Print the answers of all levels to each photograph; a program would stop where it is sure enough."""
    model = json.loads((HERE / "labels.json").read_text(encoding="utf-8"))
    graphs = [open_graph(HERE / level["graph"]) for level in model["levels"]]
    for file in files:
        print(file)
        for level, path in enumerate(predict(read(file, **model["preprocessing"]), graphs, model)):
            steps = (
                f"{model['tree'][synset]['name']} {score:.3f}"
                f"{' (sure)' if is_sure(model['levels'][level], tier, score) else ''}"
                for tier, (synset, score) in enumerate(path)
            )
            print(f"  level {level}: {' > '.join(steps)}")


if __name__ == "__main__":
    main(sys.argv[1:])
