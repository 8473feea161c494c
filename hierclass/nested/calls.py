"""Calls of traced code as modules: one for each level, with constants that fit the level."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Slot:
    """Stands for the i-th input of a call, times `scale` / `total` where it is a size that shrinks with the level."""

    index: int
    scale: int = 1
    total: int = 1


@dataclass(frozen=True)
class Picked:
    """Stands for the channels `start` … `stop` - 1, or those at `index`, of an input that all levels share."""

    slot: Slot
    axis: int
    index: tuple[int, ...]


@dataclass(frozen=True)
class Resized:
    """Stands for the shape that an input holds, times `scale` / `total` along `axis`."""

    slot: Slot
    axis: int
    scale: int
    total: int


class Call(nn.Module):
    """A function of the traced code (an addition, a gate, a reshape), applied to one level's slice."""

    def __init__(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]):
        """`args` and `kwargs` are those of the traced call, with slots for what is computed."""
        super().__init__()
        self.function, self.args, self.kwargs = function, args, kwargs
        self._leading = (
            all(isinstance(arg, Slot) and arg == Slot(i) for i, arg in enumerate(args)) and not kwargs
        )

    def forward(self, *values: Any) -> Any:
        """Apply the function to values that take the places of the slots."""
        if self._leading:
            return self.function(*(values[arg.index] for arg in self.args))
        args = [fill(arg, values) for arg in self.args]
        return self.function(*args, **{key: fill(arg, values) for key, arg in self.kwargs.items()})

    def slots(self) -> set[int]:
        """Numbers of the inputs that the call uses."""
        return set(_slots((self.args, tuple(self.kwargs.values()))))

    def extra_repr(self) -> str:
        """Name the function."""
        return getattr(self.function, "__name__", str(self.function))


def fill(argument: Any, values: Sequence[Any]) -> Any:
    """Put values into the slots of an argument."""
    if isinstance(argument, Slot):
        value = values[argument.index]
        if argument.scale != argument.total and value != -1:
            value = value * argument.scale // argument.total
        return value
    if isinstance(argument, Picked):
        tensor: Tensor = values[argument.slot.index]
        if tensor.is_meta and max(argument.index) >= tensor.shape[argument.axis]:
            raise RuntimeError("index out of bounds")  # the device meta does not look
        return tensor.index_select(argument.axis, torch.tensor(argument.index, device=tensor.device))
    if isinstance(argument, Resized):
        sizes = list(values[argument.slot.index])
        if sizes[argument.axis] != -1:
            sizes[argument.axis] = sizes[argument.axis] * argument.scale // argument.total
        return tuple(sizes)
    if isinstance(argument, tuple):
        return tuple(fill(item, values) for item in argument)
    if isinstance(argument, slice):
        return slice(*(fill(item, values) for item in (argument.start, argument.stop, argument.step)))
    return argument


def _slots(argument: Any) -> Iterator[int]:
    if isinstance(argument, Slot):
        yield argument.index
    elif isinstance(argument, Picked):
        yield argument.slot.index
    elif isinstance(argument, slice):
        yield from _slots((argument.start, argument.stop, argument.step))
    elif isinstance(argument, (tuple, list)):
        for item in argument:
            yield from _slots(item)
    elif hasattr(argument, "slot"):
        yield from _slots(argument.slot)


class Sizes(nn.Module):
    """Sizes of a value as the dense network has them: `grown` is the axis, the dense size and that of level 0."""

    def __init__(self, name: str, axis: Any, grown: tuple[int, int, int] | None):
        """`name` is "getattr" (for x.shape), "size" or "dim"."""
        super().__init__()
        self.name, self.axis, self.grown = name, axis, grown

    def forward(self, tensor: Tensor, *rest: Any) -> Any:
        """The shape, one size, or the number of axes."""
        if self.name == "dim":
            return tensor.dim()
        sizes = list(tensor.shape)
        if self.grown is not None:
            axis, dense, present = self.grown
            sizes[axis] = sizes[axis] * dense // present
        return torch.Size(sizes) if self.axis is None else sizes[self.axis]


class Weight(nn.Module):
    """A parameter or buffer that traced code uses by itself: a position embedding, the scale of a branch."""

    value: Tensor

    def __init__(self, value: Tensor):
        """Hold a parameter, or another tensor as a buffer."""
        super().__init__()
        if isinstance(value, nn.Parameter):
            self.value = value
        else:
            self.register_buffer("value", value)

    def forward(self) -> Tensor:
        """Return it."""
        return self.value


class Nothing(nn.Module):
    """What a level runs where it adds no channels."""

    def forward(self, *values: Any) -> None:
        """Return None."""
        return
