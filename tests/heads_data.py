"""A tiny model to start from, untrained, whose levels see images at sizes of their own, and runs of heads on it."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import torch
from conftest import make_tiny_taxonomy
from training_data import draw, jpeg

from hierclass.checkpoints.checkpoint import Checkpoint, build, save_checkpoint
from hierclass.checkpoints.description import Architecture
from hierclass.images.preprocessing import Preprocessing
from taxonomy import Taxonomy
from taxonomy.terminal import PlainConsole
from training.heads.fit import fit_heads
from training.recipe.recipe import Recipe

NAMES = ("tabby cat", "chihuahua", "taxi", "school bus", "goldfish", "magpie", "lemon", "banana")


def write_base(folder: Path, taxonomy: Taxonomy | None = None) -> Path:
    """The folder of a model of structure prefix with 3 levels, 2 / 5 / 12 classes, at 16, 24 and 32 pixels."""
    torch.manual_seed(0)
    taxonomy = taxonomy or make_tiny_taxonomy()
    architecture = Architecture(
        backbone="test_resnet",
        widths=(0.5, 0.75, 1.0),
        structure="prefix",
        sizes=(16, 24, 32),
        heads="leaves",
    )
    network = build(architecture, taxonomy, 32)
    save_checkpoint(folder, Checkpoint(taxonomy, architecture, Preprocessing(32), network=network))
    return folder


def write_photos(
    folder: Path, names: tuple[str, ...] = NAMES[:4], per_class: int = 16, first: int = 0
) -> Path:
    """A folder of class folders; a class looks as its place in `NAMES` says, whatever other classes there are."""
    for name in names:
        (folder / name).mkdir(parents=True)
        for number in range(first, first + per_class):
            leaf = NAMES.index(name) if name in NAMES else 7
            (folder / name / f"{number}.jpg").write_bytes(jpeg(draw(leaf, number)))
    return folder


def save_tree(path: Path, tiers: list[dict[str, list[str]]] | dict[str, list[str]]) -> Path:
    """Save a tree of two tiers, from the names of its groups to those of their leaves."""
    assert isinstance(tiers, dict)
    rows = [f"{group},{leaf}" for group, leaves in tiers.items() for leaf in leaves]
    path.write_text("\n".join(["tier 0,class", *rows]) + "\n")
    return path


def recipe_of(base: Path, data: Path, tree: Path | str, **more: Any) -> Recipe:
    """The recipe of a run of heads that nothing is held out of."""
    values: dict[str, Any] = {"tune": "heads", "heads": "auto", "dev_share": 0.0, **more}
    return Recipe(data=(str(data),), taxonomy=str(tree), base=str(base), **values)


def run(recipe: Recipe, out: Path, **how: Any) -> tuple[dict[str, Any], str]:
    """Results of a run of heads, and what it printed."""
    text = io.StringIO()
    console = PlainConsole(file=text, width=200)
    results = fit_heads(recipe, out, **{"graphs": False, "workers": 1, "console": console, **how})
    return results, text.getvalue()


def config_of(model: Path) -> dict[str, Any]:
    """The configuration of a model folder."""
    found: dict[str, Any] = json.loads((model / "config.json").read_text())
    return found


def changed(recipe: Recipe, **values: Any) -> Recipe:
    """A recipe with other values."""
    return dataclasses.replace(recipe, **values)
