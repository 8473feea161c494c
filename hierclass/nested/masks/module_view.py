"""Running a module with other weights, by a shallow copy of its tree: the module itself stays untouched.

`torch.func.functional_call` does the same by swapping the weights of the module for a while, which another thread
would see.
"""

from __future__ import annotations

import copy
import operator
import weakref
from collections import deque
from collections.abc import Callable, Mapping
from types import MethodType
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

STANDARD = frozenset(nn.Module().__dict__)
"""Attributes that every module has."""

PLAIN = frozenset({bool, int, float, str, type(None)})
"""Types of attributes that hold no module, checked first since most attributes are of these."""


def view_with(
    module: nn.Module,
    weight_of: Callable[[str, nn.Parameter], Tensor],
    part_of: Callable[[str, nn.Module], nn.Module],
) -> nn.Module:
    """Return a shallow copy of a module tree with other weights and parts in it.

    `weight_of` gets the name of each parameter and returns what to use for it, `part_of` the same for each
    module. What is used at several places is asked for once, under its first name as in `named_parameters`.
    Buffers and hooks are the module's own: what is written to them stays. Other attributes are the shell's:
    what a forward assigns to them is gone with it.
    """
    shells: dict[int, Any] = {}

    def shell_of(part: nn.Module, name: str) -> nn.Module:
        if id(part) in shells:
            made: nn.Module = shells[id(part)]
            return made
        source = part_of(name, part)
        made = shells[id(part)] = object.__new__(type(source))
        made.__dict__.update(source.__dict__)
        prefix = name and f"{name}."
        for key, weight in source._parameters.items():
            if weight is not None and id(weight) not in shells:
                shells[id(weight)] = weight_of(prefix + key, weight)
        made.__dict__["_parameters"] = {
            key: None if weight is None else shells[id(weight)] for key, weight in source._parameters.items()
        }
        made.__dict__["_modules"] = {
            key: None if child is None else shell_of(child, prefix + key)
            for key, child in source._modules.items()
        }
        return made

    root = shell_of(module, "")
    for made in list(shells.values()):
        if isinstance(made, nn.Module):
            _rebind(made, shells)
    return root


def _rebind(made: nn.Module, shells: Mapping[int, Any]) -> None:
    """Let attributes that hold modules and weights outside the tree hold their stand-ins.

    Followed are bound methods, lists, tuples, dictionaries, sets and deques, their subclasses too, in one another.
    """
    for name, value in made.__dict__.items():
        if type(value) not in PLAIN and name not in STANDARD:
            made.__dict__[name] = _rebound(value, shells)
    if isinstance(made, nn.RNNBase):
        # Else the next call takes the weights for changed and lays them out anew.
        made._flat_weight_refs = [
            None if weight is None else weakref.ref(weight) for weight in made._flat_weights
        ]


def _rebound(value: Any, shells: Mapping[int, Any]) -> Any:
    """Return the stand-in of a value, or a copy of a container in which some item has one, else the value itself."""
    if isinstance(value, (nn.Module, Tensor)):
        return shells.get(id(value), value)
    if isinstance(value, MethodType):
        owner = _rebound(value.__self__, shells)
        return value if owner is value.__self__ else MethodType(value.__func__, owner)
    if isinstance(value, dict):
        pairs = [(_rebound(key, shells), _rebound(item, shells)) for key, item in value.items()]
        if all(key is k and item is v for (key, item), (k, v) in zip(pairs, value.items(), strict=True)):
            # What a forward keeps (LeViT: attention biases) was made of its own weights, and is for no other level.
            keeps = type(value) is dict and all(isinstance(item, Tensor) for item in value.values())
            return dict(value) if keeps else value
        return _filled(value, pairs)
    if isinstance(value, (list, tuple, set, frozenset, deque)):
        if PLAIN.issuperset(map(type, value)):
            return value
        items = [_rebound(item, shells) for item in value]
        return value if all(map(operator.is_, items, value)) else _filled(value, items)
    return value


def _filled(container: Any, items: list[Any]) -> Any:
    """Return a container of the same kind, order and settings with other items (pairs for a dictionary) in it."""
    if isinstance(container, (tuple, frozenset)):
        make = getattr(container, "_make", type(container))  # a named tuple takes its items apart
        return make(items)
    made = copy.copy(container)
    made.clear()
    (made.extend if isinstance(made, (list, deque)) else made.update)(items)
    return made


class _Held(NamedTuple):
    sources: tuple[Tensor, ...]
    """What the value was computed from; held, so that no other tensor gets its address."""
    stamp: tuple[int, ...]
    value: Tensor


class TransientDict(dict[Any, Any]):
    """What can be made again: copies and pickles of it are empty."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return type(self)()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), ()


class Kept(TransientDict):
    """Values computed from other tensors, each kept until these change.

    Threads may share one: an entry is replaced as a whole, and whoever finds none computes it.
    """

    def value(self, key: Any, sources: tuple[Tensor, ...], compute: Callable[..., Tensor]) -> Tensor:
        """Return `compute(*sources)`, from the last call with this key if no source has changed since."""
        if any(source.is_inference() for source in sources):  # these do not count their changes
            return compute(*sources)
        stamp = tuple(number for source in sources for number in (source.data_ptr(), source._version))
        held: _Held | None = self.get(key)
        if held is None or held.stamp != stamp:
            # An inference tensor would be of no use to a later call that computes gradients of its input.
            with torch.inference_mode(False), torch.no_grad():
                held = _Held(tuple(source.detach() for source in sources), stamp, compute(*sources))
            self[key] = held
        return held.value
