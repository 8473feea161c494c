"""The state of an unfinished run: one safetensors file (no pickle), replaced atomically."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from hierclass.checkpoints.weights_header import open_weights
from hierclass.errors import CheckpointError
from hierclass.files import make_folder, replacing

FORMAT = "hierclass-training-state"
VERSION = 1
BEGIN_ANEW = "delete it to begin anew, or choose another `out`"
"""Advice for a useless state."""


def save_state(
    path: Path, *, modules: dict[str, nn.Module], optimizer: dict[str, Any], progress: dict[str, Any]
) -> None:
    """Write modules, an optimiser's state dict and progress (JSON values) atomically."""
    tensors: dict[str, Tensor] = {}
    for name, module in modules.items():
        for key, value in module.state_dict().items():
            tensors[f"{name}/{key}"] = value.detach().cpu().contiguous().clone()
    skeleton = _take_tensors(optimizer, "optimizer", tensors)
    header = {"format": FORMAT, "version": VERSION, "optimizer": skeleton, "progress": progress}
    make_folder(path.parent)
    with replacing(path) as file:
        try:
            save_file(tensors, file, metadata={"header": json.dumps(header)})
        except SafetensorError as error:  # how safetensors reports a full disk
            raise OSError(errno.EIO, str(error), str(path)) from error


def load_state(path: Path, *, modules: dict[str, nn.Module]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Load the modules from ``path``; return the optimiser's state dict and the progress.

    Raises `CheckpointError` for a broken file, another version or another network.
    """
    try:
        with open_weights(path, "pt") as file:
            header = json.loads((file.metadata() or {}).get("header", "{}"))
            tensors: dict[str, Tensor] = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}; {BEGIN_ANEW}") from error
    if not isinstance(header, dict) or (header.get("format"), header.get("version")) != (FORMAT, VERSION):
        raise CheckpointError(f"{path} is no training state of version {VERSION}; {BEGIN_ANEW}")
    for name, module in modules.items():
        prefix = f"{name}/"
        stored = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
        try:
            module.load_state_dict(stored)
        except RuntimeError as error:
            reason = _first_difference(module, stored) or " ".join(str(error).split())
            raise CheckpointError(
                f"{path} belongs to another network: {reason}; give the recipe and the taxonomy that the run "
                "began with, or choose another `out`"
            ) from error
    try:
        return _give_tensors(header["optimizer"], tensors), dict(header["progress"])
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged; {BEGIN_ANEW}") from error


def _first_difference(module: nn.Module, stored: dict[str, Tensor]) -> str:
    """How many tensors of a module have no stored one of their name and shape, and the first; empty if none."""
    own = {key: value.shape for key, value in module.state_dict().items()}
    given = {key: value.shape for key, value in stored.items()}
    wrong = sorted(key for key in own.keys() | given.keys() if own.get(key) != given.get(key))
    return f"{len(wrong)} tensors differ, the first is {wrong[0]}" if wrong else ""


def _take_tensors(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """Convert a nested value to JSON; tensors move to ``tensors``, and dictionaries keep the type of their keys."""
    if isinstance(value, Tensor):
        tensors[name] = value.detach().cpu().contiguous().clone()
        return {"tensor": name}
    if isinstance(value, dict):
        pairs = [[key, _take_tensors(item, f"{name}/{key}", tensors)] for key, item in value.items()]
        return {"dict": pairs}
    if isinstance(value, (list, tuple)):
        return {
            type(value).__name__: [
                _take_tensors(item, f"{name}/{i}", tensors) for i, item in enumerate(value)
            ]
        }
    return value


def _give_tensors(value: Any, tensors: dict[str, Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        return tensors[value["tensor"]]
    if "dict" in value:
        return {key: _give_tensors(item, tensors) for key, item in value["dict"]}
    if "tuple" in value:
        return tuple(_give_tensors(item, tensors) for item in value["tuple"])
    return [_give_tensors(item, tensors) for item in value["list"]]
