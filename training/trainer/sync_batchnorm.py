"""Batch norm over the images of all processes, so that a run does not depend on their number.

On CUDA devices it is torch's own; elsewhere the statistics are summed here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from timm.layers import convert_sync_batchnorm
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def synchronise_batch_norms(network: nn.Module, device: torch.device) -> None:
    """Make every batch norm of a network take its statistics over all processes in training.

    State dict and evaluation mode are unchanged. Call it once the process group exists.
    """
    if device.type == "cuda":
        convert_sync_batchnorm(network)  # keeps the activations that timm has in its norms
        return
    for module in network.modules():
        if isinstance(module, _BatchNorm):
            kind = type(module)
            module.__class__ = type(f"Synchronised{kind.__name__}", (_SyncedBatchNorm, kind), {})


@torch.no_grad()
def average_statistics(network: nn.Module) -> None:
    """Replace running statistics by their mean over all processes, for norms that are not synchronised."""
    values = [
        value
        for module in network.modules()
        if isinstance(module, _BatchNorm)
        for value in (module.running_mean, module.running_var)
        if value is not None
    ]
    if not values:
        return
    flat = torch.cat(values)
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    means = torch.split(flat, [len(value) for value in values])
    for value, mean in zip(values, means, strict=True):
        value.copy_(mean)


def has_statistics(network: nn.Module) -> bool:
    """Whether a network has batch norms."""
    return any(isinstance(module, _BatchNorm) for module in network.modules())


def hold_statistics(network: nn.Module) -> None:
    """Make batch norms normalise by their running statistics while their weights train."""
    for module in network.modules():
        if isinstance(module, _BatchNorm):
            module.eval()


@torch.no_grad()
def measure_statistics(network: nn.Module, calls: Iterable[Callable[[], object]]) -> int:
    """Measure the running statistics of batch norms as the mean over ``calls``; return how many norms were measured.

    Norms that no call runs, and norms that stay in evaluation mode in training (frozen ones), keep theirs.
    """
    calls = iter(calls)
    network.train()
    found: dict[_BatchNorm, float | None] = {}

    def begin(norm: nn.Module, _: object) -> None:
        if isinstance(norm, _BatchNorm) and norm.training and norm not in found:
            found[norm] = norm.momentum
            norm.reset_running_stats()
            norm.momentum = None  # a plain mean

    norms = [module for module in network.modules() if isinstance(module, _BatchNorm)]
    hooks = [norm.register_forward_pre_hook(begin) for norm in norms]
    try:
        for call in calls:
            call()
    finally:
        for hook in hooks:
            hook.remove()
        for norm, momentum in found.items():
            norm.momentum = momentum
    return len(found)


class _SyncedBatchNorm(_BatchNorm):
    """A batch norm (with timm's activation) that uses the images of all processes in training.

    Added as a base of the norm's own class, so that the module keeps its identity and attributes.
    """

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, …) → the same shape, normalised per channel."""
        if not self.training:
            normed: Tensor = super().forward(input)
            return normed
        normed, mean, variance, count = _normalise(input, self.weight, self.bias, self.eps)
        self._track(mean, variance, count)
        for name in ("drop", "act"):
            normed = getattr(self, name)(normed) if hasattr(self, name) else normed
        return normed

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor, count: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        momentum = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, momentum)
        self.running_var.lerp_((variance * (count / (count - 1))).to(variance.dtype), momentum)


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _normalise(images: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Any:
    """Run `_SyncedNormFunction` outside of compiled code, which can't wait for other processes."""
    return _SyncedNormFunction.apply(images, weight, bias, eps)


class _SyncedNormFunction(torch.autograd.Function):
    """Batch norm by the statistics of all processes (Ioffe & Szegedy 2015, algorithm 1 and its gradients).

    Composed of torch's kernels for evaluation mode, several times as fast as sums and products per channel.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Any:
        """(B, C, …) → normalised values, mean (C,), biased variance (C,), number of values per channel ()."""
        local = x.numel() // x.shape[1]
        _, mean, inverse = torch.native_batch_norm(x.float(), None, None, None, None, True, 0.0, eps)
        mean64 = mean.double()
        variance64 = (inverse.double().pow(-2) - eps).clamp_(min=0)
        moments = torch.stack([mean64, variance64 + mean64.square()]) * local
        sums = torch.cat([moments.flatten(), moments.new_tensor([local])])
        dist.all_reduce(sums)
        count = sums[-1]
        mean64, square = (sums[:-1] / count).view(2, -1)
        mean, variance = mean64.float(), (square - mean64.square()).clamp_(min=0).float()
        ctx.save_for_backward(x, weight, mean, variance, count)
        ctx.eps = eps
        ctx.mark_non_differentiable(mean, variance, count)
        return F.batch_norm(x, mean, variance, weight, bias, False, 0.0, eps), mean, variance, count

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        """The gradient of the values, through the statistics of all processes; those of weight and bias are local."""
        x, weight, mean, variance, count = ctx.saved_tensors
        direct, weight_gradient, bias_gradient = torch.ops.aten.native_batch_norm_backward(
            gradients[0], x, weight, mean, variance, None, None, False, ctx.eps, [True, True, True]
        )
        sums = torch.stack([bias_gradient, weight_gradient]).double()
        dist.all_reduce(sums)
        means = (sums / count).float()
        scale = -(variance + ctx.eps).rsqrt() * (1 if weight is None else weight)
        through = F.batch_norm(x, mean, variance, scale * means[1], scale * means[0], False, 0.0, ctx.eps)
        direct += through
        if weight is None:
            return direct, None, None, None
        return direct, weight_gradient, bias_gradient, None
