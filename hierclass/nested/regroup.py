"""Move images between batches while they are refined: those that go on make dense batches of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from hierclass.nested.network import NestedNetwork, State, evaluating

Key = tuple[str, int]
"""Where a value stands in a `State`: field and number."""
Part = tuple[State, Sequence[int]]
"""A state, and which of its images are taken."""
Maker = Callable[[Sequence[Any], Sequence[Part]], Any]
"""Makes a value of the new state, given that value in the states of all parts, and the parts."""
TOLERANCE = 1e-3
"""Largest difference of logits that is put down to rounding, relative to the largest of them."""


class Regrouper:
    """Takes images out of the states of a network's batches and makes one state of them.

    Values of a state need not have a row per image: windows of an image lie one after the other, a table of
    positions is there once, a size is a number. How each value holds its images is found out by running the
    network on two images and on three, and proved by refining images that changed their batch. Where that fails,
    and where nothing is reused, images that go on are computed from the start: right, but no faster.
    """

    def __init__(self, network: NestedNetwork) -> None:
        """Look at the states of a network, which is run on a few random images."""
        self.network = network
        self._makers: list[dict[Key, Maker]] | None = None
        if network.reuses:
            with evaluating(network), torch.inference_mode():
                self._makers = _learn(network)

    @property
    def keeps(self) -> bool:
        """Whether images that change their batch keep what was computed of them."""
        return self._makers is not None

    def gather(self, parts: Sequence[Part]) -> State:
        """Return the state of one batch: the chosen images of each part, in order; all parts are at one level.

        It is at that level, or at none (-1) where nothing is kept.
        """
        if self._makers is None:
            return self._from_the_start(parts)
        return _gather(parts, self._makers[parts[0][0].level])

    def _from_the_start(self, parts: Sequence[Part]) -> State:
        return self.network.start(torch.cat([state.image[_index(state, rows)] for state, rows in parts]))


def _learn(network: NestedNetwork) -> list[dict[Key, Maker]] | None:
    """How the values of each level's states but the last are made for other batches; None if that can't be told."""
    generator = torch.Generator().manual_seed(0)
    first = next(network.parameters(), torch.zeros(()))
    images = torch.randn(5, *network.input_size, generator=generator).to(first)
    two, three = network.start(images[:2]), network.start(images[2:])
    levels: list[dict[Key, Maker]] = []
    try:
        for _ in range(network.num_levels - 1):
            network.refine(two)
            network.refine(three)
            of_three = dict(_values(three))
            levels.append({key: _maker(value, of_three[key]) for key, value in _values(two)})
            mixed = _gather([(two, [1]), (three, [2, 0])], levels[-1])
            if not _refines_alike(network, mixed, images[[1, 4, 2]]):
                return None
    except (KeyError, RuntimeError, TypeError, ValueError):  # whatever odd values may raise
        return None
    return levels


def _refines_alike(network: NestedNetwork, state: State, images: Tensor) -> bool:
    while state.level < network.num_levels - 1:
        found, wanted = network.refine(state), network(images, state.level)
        if (found - wanted).abs().max() > TOLERANCE * wanted.abs().max().clamp(min=1):
            return False
    return True


def _maker(of_two: Any, of_three: Any) -> Maker:
    """How a value is made for another batch, seen from what it is for two images and for three.

    Raises ValueError where it does not grow with the images.
    """
    if not isinstance(of_two, Tensor):
        _size(of_two, of_three, 1)
        return lambda values, parts: _size(of_two, of_three, sum(len(rows) for _, rows in parts))
    if of_two.shape == of_three.shape:
        return lambda values, parts: values[0]
    rows = len(of_two) // 2
    if rows * 2 != len(of_two) or rows * 3 != len(of_three):
        raise ValueError("a value that does not grow with the images")
    return lambda values, parts: _joined(values, parts, rows)


def _size(of_two: Any, of_three: Any, images: int) -> Any:
    """A number, or numbers, for a batch of so many images."""
    if isinstance(of_two, tuple):
        numbers = [_size(two, three, images) for two, three in zip(of_two, of_three, strict=True)]
        return type(of_two)(numbers)
    if of_two == of_three:
        return of_two
    if isinstance(of_two, int) and of_two * 3 == of_three * 2:
        return of_two // 2 * images
    raise ValueError("a number that does not grow with the images")


def _joined(values: Sequence[Tensor], parts: Sequence[Part], rows: int) -> Tensor:
    """The chosen images of values in which each has so many rows, one after the other."""
    taken = []
    for value, (state, chosen) in zip(values, parts, strict=True):
        index = _index(state, chosen)
        if rows > 1:
            index = (index[:, None] * rows + torch.arange(rows, device=index.device)).flatten()
        taken.append(value[index])
    joined = torch.cat(taken)
    if values[0].ndim == 4 and values[0].is_contiguous(memory_format=torch.channels_last):
        joined = joined.contiguous(memory_format=torch.channels_last)
    return joined


def _gather(parts: Sequence[Part], makers: dict[Key, Maker]) -> State:
    values = [dict(_values(state)) for state, _ in parts]
    made = {key: make([of_part[key] for of_part in values], parts) for key, make in makers.items()}
    state = State(made.pop(("image", 0)), level=parts[0][0].level, features=made.pop(("features", 0)))
    for (field, number), value in made.items():
        getattr(state, field)[number] = value
    return state


def _values(state: State) -> Iterator[tuple[Key, Any]]:
    yield ("image", 0), state.image
    yield ("features", 0), state.features
    for field in ("prefixes", "shared"):
        for number, value in getattr(state, field).items():
            yield (field, number), value


def _index(state: State, rows: Sequence[int]) -> Tensor:
    return torch.as_tensor(rows, dtype=torch.long, device=state.image.device)
