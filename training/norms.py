"""Batch norm over the images of all processes, so that a run does not depend on how many there are.

On accelerators it is torch's own, which has kernels for them alone; elsewhere the statistics are summed here.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from timm.layers import convert_sync_batchnorm
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def synchronise_norms(network: nn.Module, device: torch.device) -> None:
    """Let every batch norm inside a network take its statistics over all processes while it is trained.

    Names in the state dict stay; in evaluation mode nothing changes. Call it once the process group exists.
    """
    if device.type == "cuda":
        convert_sync_batchnorm(network)  # keeps the activations that timm has in its norms
        return
    for module in network.modules():
        if isinstance(module, _BatchNorm):
            kind = type(module)
            module.__class__ = type(f"Synchronised{kind.__name__}", (_Synchronised, kind), {})


@torch.no_grad()
def average_statistics(network: nn.Module) -> None:
    """Make the running statistics of all processes their mean; for norms that each process has for itself."""
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


class _Synchronised(_BatchNorm):
    """A batch norm, with the activation that timm's have, whose training mode looks at all processes' images.

    It becomes a base of the norm's own class: a module keeps its identity, attributes and what it is an instance of.
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
    """Outside of compiled code, which can't wait for other processes."""
    return _Normalise.apply(images, weight, bias, eps)


class _Normalise(torch.autograd.Function):
    """Batch norm by the statistics of all processes (Ioffe & Szegedy 2015, algorithm 1 and its gradients)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Any:
        """(B, C, …) → normalised values, mean (C,), biased variance (C,), number of values per channel ()."""
        dims = [0, *range(2, x.ndim)]
        local = x.numel() // x.shape[1]
        variance, mean = torch.var_mean(x.float(), dims, correction=0)
        moments = torch.stack([mean, variance + mean.square()]).double() * local
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
        gradient, centred = gradients[0].float(), x.float() - _per_channel(mean, x)
        dims = [0, *range(2, x.ndim)]
        inverse = (variance + ctx.eps).rsqrt()
        bias_gradient = gradient.sum(dims)
        weight_gradient = (gradient * centred).sum(dims) * inverse
        sums = torch.stack([bias_gradient, weight_gradient]).double()
        dist.all_reduce(sums)
        means = (sums / count).float()
        scale = inverse if weight is None else inverse * weight
        spread = gradient - _per_channel(means[0], x) - centred * _per_channel(means[1] * inverse, x)
        through = (spread * _per_channel(scale, x)).to(x.dtype)
        if weight is None:
            return through, None, None, None
        return through, weight_gradient, bias_gradient, None


def _per_channel(values: Tensor, like: Tensor) -> Tensor:
    return values.view(1, -1, *(1,) * (like.ndim - 2))
