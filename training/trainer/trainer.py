"""Base of trainers: a module, its optimiser and its moving average, saved and loaded as one state."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from hierclass.errors import CheckpointError
from hierclass.nested import NestedNetwork
from training.trainer.resume_state import load_state, save_state
from training.trainer.sync_batchnorm import average_statistics, synchronise_batch_norms


class Trainer:
    """Base class: everything that changes while a network is trained.

    A subclass makes model and optimiser, calls `prepare`, and makes an update in `step`.
    """

    model: nn.Module
    """The trained module as the accelerator wraps it."""
    optimizer: Any

    def __init__(
        self,
        trainee: nn.Module,
        network: NestedNetwork,
        accelerator: Accelerator,
        *,
        ema_decay: float,
        channels_last: bool,
    ) -> None:
        """Train the module ``trainee``; its part ``network`` is averaged and shipped."""
        self.trainee, self.network, self.accelerator = trainee, network, accelerator
        trainee.to(accelerator.device)
        if channels_last:
            trainee.to(memory_format=torch.channels_last)
        self.ema = ModelEmaV3(network, decay=ema_decay, use_warmup=True)  # a copy as it is so far
        self.updates = 0
        self._averages_statistics = False

    def join_processes(self, *, find_unused: bool, sync_batch_norm: bool) -> None:
        """Synchronise gradients and batch norms of several processes; does nothing for one."""
        if self.accelerator.num_processes == 1:
            return
        self.accelerator.ddp_handler = DistributedDataParallelKwargs(
            broadcast_buffers=False,  # statistics are the same everywhere, or are averaged
            find_unused_parameters=find_unused,
            gradient_as_bucket_view=True,
        )
        self._averages_statistics = not sync_batch_norm
        if sync_batch_norm:
            synchronise_batch_norms(self.network, self.accelerator.device)

    def prepare(self, optimizer: torch.optim.Optimizer) -> None:
        """Hand the module and its optimiser to the accelerator."""
        with warnings.catch_warnings():  # torch renames broadcast_buffers, accelerate does not yet
            warnings.simplefilter("ignore", FutureWarning)
            self.model, self.optimizer = self.accelerator.prepare(self.trainee, optimizer)

    def step(self, batch: Any, *, epoch: int, step: int) -> Tensor:
        """Make one update on this process's share of a batch; return the detached sum of the losses of its images."""
        raise NotImplementedError

    def apply_gradients(self, clip_grad: float | None = None) -> None:
        """Apply the gradients, clipped to the norm ``clip_grad``, and count the update."""
        if clip_grad:
            self.accelerator.clip_grad_norm_(self.trainee.parameters(), clip_grad)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.updates += 1

    def average(self) -> None:
        """Update the moving average, after averaging statistics over processes where needed."""
        if self._averages_statistics:
            average_statistics(self.network)
        self.ema.update(self.network, step=self.updates)

    @property
    def smoothed(self) -> NestedNetwork:
        """The moving average of the network, which is evaluated and shipped."""
        network = self.ema.module
        assert isinstance(network, NestedNetwork)
        return network

    def save(self, path: Path, progress: dict[str, Any]) -> None:
        """Write what a resumed run needs; random generators are reseeded every step and not stored."""
        scaler = self.accelerator.scaler.state_dict() if self.accelerator.scaler is not None else None
        save_state(
            path,
            modules=self._modules(),
            optimizer=self.optimizer.state_dict(),
            progress={**progress, "updates": self.updates, "scaler": scaler},
        )

    def load(self, path: Path) -> dict[str, Any]:
        """Load what `save` wrote; return its progress."""
        optimizer, progress = load_state(path, modules=self._modules())
        try:
            self.optimizer.load_state_dict(optimizer)
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{path} does not fit the optimiser of these options; give those that the run began with, or "
                "choose another `out`"
            ) from error
        for parameter, state in self.optimizer.optimizer.state.items():
            for key, value in state.items():  # same memory format as in an unbroken run: same rounding
                if isinstance(value, Tensor) and value.shape == parameter.shape:
                    state[key] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
        if self.accelerator.scaler is not None and progress["scaler"]:
            self.accelerator.scaler.load_state_dict(progress["scaler"])
        self.updates = int(progress["updates"])
        return progress

    def _modules(self) -> dict[str, nn.Module]:
        return {"model": self.trainee, "ema": self.ema.module}
