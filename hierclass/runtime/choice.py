"""Which runtime runs a model folder: ONNX Runtime on a processor, torch on accelerators and without graphs."""

from __future__ import annotations

import importlib.util
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from hierclass.checkpoints.description import ModelDescription, read_description, read_int8
from hierclass.errors import CheckpointError, InputError, require
from hierclass.processors import MOST_THREADS

if TYPE_CHECKING:
    from hierclass.runtime.interface import Runtime

RUNTIMES = ("auto", "onnx", "torch")


def open_model(
    folder: Path,
    device: str = "auto",
    runtime: str = "auto",
    threads: int | None = None,
    int8: bool = False,
) -> tuple[ModelDescription, Runtime]:
    """Read a model folder and choose what runs it.

    "auto" takes torch where `device` names an accelerator or, as "auto", one is there; else ONNX Runtime if the folder
    holds graphs. `int8`: run its graphs in 8 bits, on the processor, with the decision that is theirs.

    Raises:
        CheckpointError: there is no model, this version can't read it, it has no graphs and torch is not installed, or
            it has no graphs in 8 bits.
        InputError: this machine has no such device, or there is no such runtime.
    """
    check_options(device, runtime, threads, int8)
    if int8:
        from hierclass.runtime.onnx_runtime import OnnxRuntime

        described, int8_graphs = read_int8(folder)
        return described, OnnxRuntime(folder, described, int8_graphs, threads)
    if runtime == "onnx" or (runtime == "auto" and not on_accelerator(device)):
        from hierclass.runtime.onnx_runtime import OnnxRuntime

        description, graphs = read_description(folder)
        if graphs is not None:
            return description, OnnxRuntime(folder, description, graphs, threads)
        if runtime == "onnx" or not has_torch():
            raise CheckpointError(
                f"{folder} has no graphs for ONNX Runtime; with PyTorch (pip install 'hierclass[torch]') it runs, and "
                f"`hierclass export --in-place --model {folder}` adds them"
            )
    require("torch", "torch", "timm", what=f"runtime torch on device {device}")
    from hierclass.checkpoints.checkpoint import load_checkpoint
    from hierclass.runtime.torch_runtime import TorchRuntime

    checkpoint = load_checkpoint(folder)
    return checkpoint, TorchRuntime(checkpoint, device, threads)


def check_options(device: str, runtime: str, threads: int | None, int8: bool = False) -> None:
    """Raise InputError for options that no machine has, before anything is read."""
    if runtime not in RUNTIMES:
        raise InputError(f"runtime {runtime!r} is not known; there are {', '.join(RUNTIMES)}")
    if runtime == "onnx" and device not in ("auto", "cpu"):
        raise InputError(f"ONNX Runtime runs on the processor; for device {device!r} use runtime torch")
    if int8 and (runtime == "torch" or device not in ("auto", "cpu")):
        raise InputError(
            "graphs in 8 bits run on the processor, by ONNX Runtime; leave out other runtimes and devices"
        )
    if threads is not None and not 1 <= threads <= MOST_THREADS:
        raise InputError(f"threads must be 1 to {MOST_THREADS}, not {threads}")


def on_accelerator(device: str) -> bool:
    """Return whether `device` names an accelerator or, if it is "auto", whether there is a GPU that torch can use."""
    if device != "auto":
        return device != "cpu"
    if not has_torch() or not _shows_gpu():
        return False
    import torch

    return torch.cuda.is_available()


def has_torch() -> bool:
    """Return whether torch is installed; it is not imported."""
    return importlib.util.find_spec("torch") is not None


def _shows_gpu() -> bool:
    """Whether the system shows a GPU of NVIDIA or AMD; asking torch takes seconds."""
    if os.environ.get("CUDA_VISIBLE_DEVICES", "0") in ("", "-1"):
        return False
    return any(map(os.path.exists, ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg"))) or bool(
        shutil.which("nvidia-smi")
    )
