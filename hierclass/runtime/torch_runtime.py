"""Levels run by torch, on any of its devices, from the network of a checkpoint."""

from __future__ import annotations

import copy
import functools
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hierclass.checkpoints.checkpoint import Checkpoint
from hierclass.costs import Cost
from hierclass.errors import InputError
from hierclass.images.preprocessing import normalise
from hierclass.nested.verify import keeps_rows
from hierclass.processors import num_threads
from hierclass.runtime.interface import Logits, Runtime


class TorchRuntime(Runtime):
    """Runs a network that is fused for inference; images are normalised tensors on its device."""

    name = "torch"

    def __init__(self, checkpoint: Checkpoint, device: str = "auto", threads: int | None = None) -> None:
        """Copy the network of a checkpoint to a device and fuse its layers.

        N = `threads` threads are used per call on a processor; None: one per core.

        Raises:
            InputError: this machine has no such device.
        """
        self._stored = checkpoint.network
        self._torch_device = _find_device(device)
        self.device = str(self._torch_device)
        self.network = checkpoint.network.fused().to(self._torch_device)
        """The network, fused for inference, on the device."""
        self.network.to(memory_format=torch.channels_last)
        self.reuses, self.sizes = self.network.reuses, checkpoint.network.sizes
        self.num_classes = checkpoint.network.num_classes
        means = (checkpoint.preprocessing.mean, checkpoint.preprocessing.std)
        self._mean, self._std = (
            torch.tensor(values, device=self._torch_device)[:, None, None] for values in means
        )
        self.threads = (threads or num_threads()) if self._torch_device.type == "cpu" else 1
        if threads is not None:
            self.enter_thread()

    @functools.cached_property
    def keeps_rows(self) -> bool:
        """Whether images that change their batch keep what was computed of them, tried on random images."""
        return keeps_rows(self.network)

    def cost(self, level: int) -> Cost:
        """Return what a level costs for one image, before it was fused."""
        return self._stored.cost(level)

    def weights(self) -> Iterator[tuple[str, NDArray[Any]]]:
        """Yield name and value of the network's state, before it was fused."""
        for name, tensor in sorted(self._stored.state_dict().items()):
            yield name, tensor.detach().cpu().numpy()

    def to_batch(self, pixels: NDArray[np.uint8]) -> Tensor:
        """Return images (B, S, S, 3), 0 … 255, as a normalised tensor (B, 3, S, S) on the device."""
        images = torch.from_numpy(pixels).to(self._torch_device).permute(0, 3, 1, 2).float()
        return normalise(images, self._mean, self._std)

    @torch.inference_mode()
    def run(self, images: Tensor, level: int, output: str = "logits") -> Logits:
        """Compute a level from the images, without keeping what higher ones read; see `Runtime.run`."""
        if output == "features":
            return _numpy(self.network.features(images, level))
        return _numpy(self.network(images, level))

    @torch.inference_mode()
    def run_level(
        self, level: int, images: Tensor, kept: tuple[Tensor, ...], output: str = "logits", keep: bool = True
    ) -> tuple[Logits, tuple[Tensor, ...]]:
        """Compute one level; see `Runtime.run_level`."""
        if self.reuses:
            features, kept = self.network.level_functions(self.num_levels - 1)[level](images, kept)
        else:
            features = self.network.features(images, level)
        return _numpy(features if output == "features" else self.network.classify(features, level)), kept

    @torch.inference_mode()
    def take(self, values: Tensor, rows: Sequence[int]) -> Tensor:
        """Return the rows of some of the images, laid out as they were."""
        taken = values[torch.as_tensor(rows, device=values.device)]
        channels_last = values.ndim == 4 and values.is_contiguous(memory_format=torch.channels_last)
        return taken.contiguous(memory_format=torch.channels_last) if channels_last else taken

    @torch.inference_mode()
    def join(self, values: Sequence[Tensor]) -> Tensor:
        """Return several tensors as one."""
        return torch.cat(list(values))

    def divided(self, parts: int) -> TorchRuntime:
        """Return a runtime of the same network whose threads use a part of the cores."""
        part = copy.copy(self)
        part.threads = max(1, self.threads // parts)
        return part

    def enter_thread(self) -> None:
        """Make the current thread use `threads` cores; threads that others start then use as many."""
        if self._torch_device.type == "cpu":
            torch.set_num_threads(1 if _FORKED else self.threads)


def _numpy(values: Tensor) -> Logits:
    array: Logits = values.float().cpu().numpy()
    return array


def _find_device(name: str) -> torch.device:
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(f"device {name!r} can't be used on this machine; try auto or cpu") from error
    return device


_FORKED: list[bool] = []
"""Not empty in a forked child."""


def _compute_alone() -> None:
    """Use one thread from now on: OpenMP's do not survive a fork, and a child would wait for them for ever."""
    _FORKED.append(True)
    torch.set_num_threads(1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_compute_alone)
