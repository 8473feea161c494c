"""The processes of a run: how they are joined, and which one prints.

The launcher (torchrun, ``accelerate launch``) numbers them by environment variables.
"""

from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING

from hierclass.errors import InputError

if TYPE_CHECKING:
    from accelerate import Accelerator


def make_accelerator(mixed_precision: str) -> Accelerator:
    """The accelerator of the available devices and processes; raises `InputError` for an unsupported precision."""
    import torch
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState
    from accelerate.utils import GradientAccumulationPlugin

    # "cpu" also joins the processes of torchrun where there is no accelerator
    cpu = not (torch.cuda.is_available() or torch.backends.mps.is_available())
    if cpu and mixed_precision == "fp16":
        raise InputError("`mixed_precision` fp16 needs a GPU; give bf16 or no")
    AcceleratorState._reset_state()  # else the precision of the first run is that of all runs of a process
    return Accelerator(
        mixed_precision=mixed_precision,
        cpu=cpu,
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),  # the trainer weighs parts
    )


def local_processes(accelerator: Accelerator) -> int:
    """Processes of the run on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", accelerator.num_processes))


def num_processes() -> int:
    """Number of processes that the launcher started on all machines; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main() -> bool:
    """Whether this is the only or the main process (rank 0)."""
    return os.environ.get("RANK", "0") == "0"


def wait_to_be_ended(seconds: float) -> None:
    """Wait for the launcher to end this process, as it does when another one has failed.

    The other process may be slower to meet the same error.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    time.sleep(seconds)


def is_peer_failure(error: Exception) -> bool:
    """Whether an error means that another process of the run has died."""
    if num_processes() == 1:
        return False
    text = f"{type(error).__name__} {error}".lower()
    return any(
        word in text for word in ("closed by peer", "connection reset", "gloo", "nccl", "distneterror")
    )


def launch_command() -> list[str]:
    """The words that start a command of ``hierclass-train`` as this process was started: directly or by torchrun."""
    if num_processes() == 1:
        return ["hierclass-train"]
    here = os.environ.get("LOCAL_WORLD_SIZE", str(num_processes()))
    return ["torchrun", "--nproc-per-node", here, "-m", "training"]
