"""The command `hierclass export`: graphs of a model for ONNX Runtime, in its folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hierclass.cli.shared import ModelOption, Stopped, say
from hierclass.errors import InputError, require


def export(
    in_place: Annotated[
        bool,
        typer.Option(
            "--in-place", help="Add graphs to the folder of MODEL, which then runs without PyTorch."
        ),
    ] = False,
    model: ModelOption = None,
) -> None:
    """Write the levels of a model as graphs that ONNX Runtime runs."""
    if not in_place:
        raise InputError("say where the graphs go: --in-place adds them to the model's folder")
    if model is None:
        raise InputError("--in-place changes a model; name it with --model")
    _add_graphs(model)


def _add_graphs(model: Path) -> None:
    require("torch", "torch", "timm", "onnx", "onnxscript", what="hierclass export")
    from hierclass.checkpoints.checkpoint import load_checkpoint
    from hierclass.export.graphs import write_graphs

    try:
        write_graphs(model, load_checkpoint(model), show_level)
    except OSError as error:
        raise Stopped(1, f"writing the graphs failed: {error.strerror or error}") from error
    say(f"graphs -> {model}")


def show_level(level: int) -> None:
    """Say that the graph of a level is being made, which takes seconds."""
    say(f"level {level}: writing its graph")
