"""The model folder that a run ships: weights, recipe, facts of the training and model card."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from hierclass.checkpoints.checkpoint import Checkpoint, save_checkpoint
from hierclass.checkpoints.description import read_description
from hierclass.export.graphs import try_to_write_graphs
from hierclass.files import CONFIG_FILE, replacing
from training.evaluation.calibration import decision_of
from training.evaluation.model_card import replace_calibration, replace_results
from training.recipe.stored_options import StoredOptions, write_json
from training.trainer.network import make_architecture
from training.trainer.supervised import SupervisedTrainer


def export_model(trainer: SupervisedTrainer, path: Path, results: dict[str, Any]) -> None:
    """Store the moving average as a model folder, with its results and what was fitted to them."""
    save_checkpoint(
        path,
        Checkpoint(
            network=trainer.smoothed,
            taxonomy=trainer.taxonomy,
            preprocessing=trainer.preprocessing,
            architecture=make_architecture(trainer.recipe, trainer.taxonomy.num_tiers),
            results={"dev": results},
            decision=decision_of(results),
        ),
    )


def add_graphs(model: Path, say: Callable[[str], object]) -> None:
    """Write the graphs by which a model runs without PyTorch, unless it has them; ``say`` gets lines for the user."""
    if not (model / CONFIG_FILE).exists() or read_description(model)[1] is not None:
        return
    say("writing the graphs by which the model runs without PyTorch")
    if reason := try_to_write_graphs(model):
        say(reason)


def describe_model(
    model: Path,
    recipe: StoredOptions,
    progress: dict[str, Any],
    device: torch.device,
    card: Callable[[dict[str, Any]], str],
) -> None:
    """Write recipe.json, training.json and MODEL_CARD.md into a model folder; ``card`` makes Markdown of the facts."""
    facts = {
        "recipe": recipe.to_dict(),
        **progress,
        "hardware": hardware(device),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
    }
    recipe.save(model / "recipe.json")
    write_json(model / "training.json", facts)
    with replacing(model / "MODEL_CARD.md") as file:
        file.write_text(card(facts), encoding="utf-8")


def update_card(
    model: Path, calibration: dict[str, Any] | None, results: dict[str, Any] | None = None
) -> None:
    """Update a model's card, if it has one, with a calibration (`calibration.to_results`) and results."""
    card = model / "MODEL_CARD.md"
    if not card.exists():
        return
    text = card.read_text(encoding="utf-8")
    text = replace_results(text, results) if results else text
    text = replace_calibration(text, calibration) if calibration else text
    with replacing(card) as file:
        file.write_text(text, encoding="utf-8")


def hardware(device: torch.device) -> dict[str, Any]:
    """Device, its name, processors of the machine and threads used."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    return {"device": device.type, "name": name, "cpus": os.cpu_count(), "threads": torch.get_num_threads()}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())
