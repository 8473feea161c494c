"""A tiny pretrained classifier with classes of its own, photographs, and a distillation of it, for many tests."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import safetensors.torch
import timm
import torch
from torch import nn
from training_data import draw, jpeg

from taxonomy import Taxonomy
from taxonomy.terminal import PlainConsole
from training.distillation.loop import distil
from training.distillation.recipe import DistilRecipe

BACKBONE = "test_resnet"
STATE = Path("last") / "state.safetensors"


def make_classifier(num_classes: int, name: str = BACKBONE) -> nn.Module:
    """An untrained classifier of so many classes whose answers differ from image to image."""
    torch.manual_seed(0)
    model: nn.Module = timm.create_model(name, num_classes=num_classes).eval()
    nn.init.normal_(model.get_classifier().weight, std=0.3)  # type: ignore[operator,arg-type,union-attr]
    return model


def write_teacher(folder: Path, taxonomy: Taxonomy, name: str = BACKBONE) -> None:
    """weights.safetensors; classes.txt, the leaves in another order than the tree has them; tree.json."""
    state = make_classifier(len(taxonomy.leaves), name).state_dict()
    safetensors.torch.save_file(
        {key: value.contiguous() for key, value in state.items()}, folder / "weights.safetensors"
    )
    (folder / "classes.txt").write_text("\n".join(reversed(taxonomy.leaves)) + "\n")
    taxonomy.save(folder / "tree.json")


def write_photographs(folder: Path, count: int = 40, size: int = 48) -> Path:
    """A folder of so many pictures."""
    folder.mkdir()
    for number in range(count):
        (folder / f"{number:03}.jpg").write_bytes(jpeg(draw(number % 12, number, size=size)))
    return folder


def make_recipe(folder: Path, **changes: Any) -> DistilRecipe:
    """A recipe of a few updates for the teacher in a folder, and the photographs beside it."""
    options: dict[str, Any] = {
        "images": (str(folder / "photos"),),
        "timm": BACKBONE,
        "weights": str(folder / "weights.safetensors"),
        "classes": str(folder / "classes.txt"),
        "taxonomy": str(folder / "tree.json"),
        "widths": (0.5, 0.75, 1.0),
        "sizes": (16, 24, 32),
        "crops_per_photo": 2,
        "crops": 96,
        "batch_size": 16,
        "eval_every": 48,
        "warmup": 2,
    }
    return DistilRecipe(**{**options, **changes})


def run(recipe: DistilRecipe, out: Path, **options: Any) -> tuple[bool, str]:
    """Run a recipe; returns whether it came to its end, and what it printed."""
    text = io.StringIO()
    console = PlainConsole(file=text, width=200)
    ended = distil(recipe, out, **{"workers": 0, "console": console, **options})
    return ended, text.getvalue()
