"""The proof of nestedness: a network shows on a small random input that its levels are nested."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, fx

from hierclass.errors import BackboneError
from hierclass.nested.level_graph import Kept
from hierclass.nested.network import FusedNetwork, GraphNetwork, NestedNetwork, evaluating


def verify(network: NestedNetwork) -> None:
    """Check that levels are nested; cheap enough to run whenever a network is built.

    1. No operation overwrites what it reads, which a higher level may read again.
    2. With every weight above level k set to NaN, level k's logits stay the same bit for bit, also when all
       levels run in one pass.
    3. Refining 0 → 1 → … → k gives the logits of running k directly.
    4. Logits have the shape of the head.

    Raises:
        BackboneError: one of them fails, which means that a rule in `hierclass.nested.analysis.layer_rules` is wrong.
    """
    try:
        with evaluating(network), torch.no_grad():
            _verify(network)
    except RuntimeError as error:
        reason = str(error).strip().partition("\n")[0]
        raise BackboneError(f"the cut network does not run, so a rule is wrong: {reason}") from error


def _verify(network: NestedNetwork) -> None:
    weight = next(network.parameters())
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(2, *network.input_size, generator=generator).to(weight)
    _check_in_place(network, image)
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
    spoilt = copy.deepcopy(network)
    for level in reversed(range(network.num_levels - 1)):
        spoilt.spoil_above(level)
        for value in spoilt.heads[level + 1 :].parameters():
            value.fill_(torch.nan)
        if not torch.equal(spoilt.forward_all(image)[level], everything[level]):
            raise BackboneError(f"level {level} reads weights of a level above it")


class _InPlaceCheck(fx.Interpreter):
    """Runs a graph and refuses operations that overwrite what is read afterwards, or what the graph was given."""

    given: tuple[Tensor, ...] = ()

    def run_node(self, n: fx.Node) -> Any:
        done = self.user_to_last_uses.get(n, [])
        later = [value for node, value in self.env.items() if node not in done and isinstance(value, Tensor)]
        watched = [*later, *self.given]
        before = [value._version for value in watched]
        result = super().run_node(n)
        if [value._version for value in watched] != before:
            raise BackboneError(f"{n.target} overwrites what it reads, so a rule is wrong")
        return result


def _check_in_place(network: NestedNetwork, image: Tensor) -> None:
    kept: Kept = ()
    if not isinstance(network, GraphNetwork) or isinstance(network, FusedNetwork):
        return  # activations of fused networks overwrite what nothing else reads
    for run in network.level_modules(network.num_levels - 1):
        check = _InPlaceCheck(run)
        check.extra_traceback = False
        check.given = (image, *kept)
        _, kept = check.run(image, kept)


@torch.no_grad()
def keeps_rows(network: NestedNetwork) -> bool:
    """Return whether images that leave their batch keep what was computed of them, tried on random images.

    It fails for a network in which what a level reads again has no row per image; such images start again.
    """
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(3, *network.input_size, generator=generator).to(next(network.parameters()))
    rows = [2, 0]
    try:
        with evaluating(network):
            state = network.start(images)
            for level in range(network.num_levels - 1 if network.reuses else 0):
                network.refine(state)
                taken = state.take(rows)
                if not _same(network.refine(taken), network(images[rows], level + 1)):
                    return False
    except (IndexError, RuntimeError):
        return False
    return True


def _same(left: Tensor, right: Tensor) -> bool:
    return torch.allclose(left, right, rtol=1e-3, atol=1e-4 * max(1.0, float(right.abs().max())))
