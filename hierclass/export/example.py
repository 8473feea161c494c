"""Say what photographs show, from coarse to fine: python example.py photo.jpg …; needs numpy, pillow, onnxruntime."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
import onnxruntime

HERE = Path(__file__).parent
MODEL = json.loads((HERE / "labels.json").read_text(encoding="utf-8"))
GRAPHS = [onnxruntime.InferenceSession(HERE / level["graph"]) for level in MODEL["levels"]]


def read(file: str, size: int, shorter_side: int, interpolation: str) -> Any:
    """Return the centre square of a picture as the graphs take it: uint8 (1, size, size, 3), RGB."""
    picture = Image.open(file)
    picture.draft(None, (2 * shorter_side, 2 * shorter_side))  # a large JPEG is decoded smaller, much faster
    image = ImageOps.exif_transpose(picture)
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    side = min(image.size) * size / shorter_side
    left, top = (image.width - side) / 2, (image.height - side) / 2
    how, box = Image.Resampling[interpolation.upper()], (left, top, left + side, top + side)
    return np.asarray(image.convert("RGB").resize((size, size), how, box))[None]


for name in sys.argv[1:]:
    print(name)
    images = read(name, **MODEL["preprocessing"])
    kept: list[Any] = []
    said: list[Any] = []
    for graph, level in zip(GRAPHS, MODEL["levels"], strict=True):
        given = {f"given{index}": value for index, value in enumerate(kept)} if MODEL["reuses"] else {}
        logits, _, *kept = graph.run(None, {"images": images, **given})
        said.append(logits[0] - np.logaddexp.reduce(logits[0]))
        lower = (said[tier][belongs] for tier, belongs in enumerate(level["ancestors"][:-1]))
        scores = np.exp((said[-1] + MODEL["lower_weight"] * sum(lower)) / level["temperature"])
        limits, path = level["thresholds"].get("0.9"), []  # right at a rate of 90%
        for tier, belongs in enumerate(level["ancestors"]):  # a class scores what its finer classes add up to
            best = belongs[scores.argmax()]
            score = np.bincount(belongs, scores)[best] / scores.sum()
            sure = " (sure)" if limits and limits[tier] is not None and score >= limits[tier] else ""
            path.append(f"{MODEL['tree'][MODEL['tiers'][tier][best]]['name']} {score:.3f}{sure}")
        print(f"  level {len(said) - 1}: {' > '.join(path)}")
