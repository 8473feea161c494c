"""Image classification from coarse to fine with one nested network.

import hierclass

classifier = hierclass.load()
print(classifier.predict("photo.jpg").label)            # the finest answer
print(classifier.predict("photo.jpg", level=0).label)   # the cheapest answer
for prediction in classifier.refine("photo.jpg"):       # coarse first, each step costs its difference
    print(prediction.level, prediction.label, prediction.score)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from hierclass.errors import (
    BackboneError,
    CheckpointError,
    HierclassError,
    ImageError,
    InputError,
    LevelError,
    MissingExtraError,
    TaxonomyError,
)

if TYPE_CHECKING:
    from hierclass.classifier import Classifier, load
    from hierclass.costs import Level
    from hierclass.decisions.calibration import Threshold
    from hierclass.decisions.prediction import Prediction, Step
    from hierclass.labelling import label
    from hierclass.labelling.read_input import ReadOptions
    from hierclass.labelling.rows import Row
    from hierclass.timm_models.from_timm import from_timm

__version__ = "0.1.0"

__all__ = [
    "BackboneError",
    "CheckpointError",
    "Classifier",
    "HierclassError",
    "ImageError",
    "InputError",
    "Level",
    "LevelError",
    "MissingExtraError",
    "Prediction",
    "ReadOptions",
    "Row",
    "Step",
    "TaxonomyError",
    "Threshold",
    "__version__",
    "from_timm",
    "label",
    "load",
]

_LAZY = {
    "Classifier": "hierclass.classifier",
    "Level": "hierclass.costs",
    "Prediction": "hierclass.decisions.prediction",
    "ReadOptions": "hierclass.labelling.read_input",
    "Row": "hierclass.labelling.rows",
    "Step": "hierclass.decisions.prediction",
    "Threshold": "hierclass.decisions.calibration",
    "from_timm": "hierclass.timm_models.from_timm",
    "label": "hierclass.labelling",
    "load": "hierclass.classifier",
}


def __getattr__(name: str) -> Any:
    """Import what needs torch on first use: torch takes seconds, which an error message should not."""
    if name not in _LAZY:
        raise AttributeError(f"module 'hierclass' has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(_LAZY[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
