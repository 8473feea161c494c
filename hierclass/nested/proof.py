"""The proof of nestedness: a network shows on a small random input that its levels are nested."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.func import functional_call

from hierclass.errors import BackboneError
from hierclass.nested.network import NestedNetwork, evaluating, level_of


def prove(network: NestedNetwork) -> None:
    """Check that levels are nested; cheap enough to run whenever a network is built.

    1. With every weight above level k set to NaN, level k's logits stay the same bit for bit, also when all
       levels run in one pass.
    2. Refining 0 → 1 → … → k gives the logits of running k directly.
    3. Logits have the shape of the head.

    Raises:
        BackboneError: one of them fails, which means that a rule in `hierclass.nested.rules` is wrong.
    """
    try:
        with evaluating(network), torch.no_grad():
            _prove(network)
    except RuntimeError as error:
        reason = str(error).strip().partition("\n")[0]
        raise BackboneError(f"the cut network does not run, so a rule is wrong: {reason}") from error


def _prove(network: NestedNetwork) -> None:
    weight = next(network.parameters())
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(2, *network.input_size, generator=generator).to(weight)
    everything = network.forward_all(image)
    state = network.start(image)
    for level in range(network.num_levels):
        expected = (2, network.num_classes[level])
        if tuple(everything[level].shape) != expected:
            raise BackboneError(
                f"level {level} gives {tuple(everything[level].shape)} logits, not {expected}"
            )
        if not _same(network.refine(state), everything[level]) or not _same(
            network(image, level), everything[level]
        ):
            raise BackboneError(f"refining to level {level} differs from running it directly")
        if not torch.equal(_without_levels_above(network, image, level), everything[level]):
            raise BackboneError(f"level {level} reads weights of a level above it")


def _same(left: Tensor, right: Tensor) -> bool:
    return torch.allclose(left, right, rtol=1e-3, atol=1e-4 * max(1.0, float(right.abs().max())))


def _without_levels_above(network: NestedNetwork, image: Tensor, level: int) -> Tensor:
    """Logits of `level` in one pass of all levels, with NaN in every weight and statistic above it."""
    tensors = dict(network.named_parameters()) | dict(network.named_buffers())
    spoilt = {
        name: torch.full_like(value, torch.nan)
        if value.is_floating_point() and level_of(name) > level
        else value
        for name, value in tensors.items()
    }
    logits: list[Tensor] = functional_call(
        _AllLevels(network), {f"network.{k}": v for k, v in spoilt.items()}, image
    )
    return logits[level]


class _AllLevels(torch.nn.Module):
    """`forward_all` as a forward, which `functional_call` needs."""

    def __init__(self, network: NestedNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> list[Tensor]:
        return self.network.forward_all(image)
