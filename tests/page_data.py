"""What tests of the page share: a small model with thresholds, and a folder of uploads with a photograph in it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from hierclass.checkpoints.checkpoint import load_checkpoint
from hierclass.classifier import Classifier

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
CAT = EXAMPLES / "cat.jpg"


def calibrated(folder: Path, thresholds: dict[float, float | None]) -> Classifier:
    """The model of a folder with the same threshold on every level and tier, for each precision."""
    checkpoint = load_checkpoint(folder)
    levels = range(checkpoint.taxonomy.num_tiers)
    rows = [
        {"level": level, "tier": tier, "precision": precision, "score": score, "coverage": 0.5}
        for precision, score in thresholds.items()
        for level in levels
        for tier in range(level + 1)
    ]
    return Classifier(dataclasses.replace(checkpoint, decision={"thresholds": rows}), device="cpu")


def sent(path: Path, **more: Any) -> dict[str, Any]:
    """What a browser says of a file that it uploaded."""
    return {"path": str(path), "orig_name": path.name, "meta": {"_type": "gradio.FileData"}, **more}
