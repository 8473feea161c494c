"""Run a module with other weights through a shallow copy of its tree; the module itself stays as it is.

`torch.func.functional_call` swaps the weights of the module during the call, which another thread would see.
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
"""Names of the attributes that every module has."""

PLAIN = frozenset({bool, int, float, str, type(None)})
"""Types of attributes that hold no module, checked first since most attributes have them."""


def view_with(
    module: nn.Module,
    weight_of: Callable[[str, nn.Parameter], Tensor],
    part_of: Callable[[str, nn.Module], nn.Module],
) -> nn.Module:
    """Return a shallow copy of a module tree with other weights and modules in it.

    `weight_of` gets the name of each parameter and returns its replacement, `part_of` the same for each module.
    Each is asked once for what is used at several places, by the first name as in `named_parameters`. Buffers and hooks
    are the module's own: what is written to them stays. Other attributes belong to the copy: what a forward assigns to
    them is lost with it.
    """
    views: dict[int, Any] = {}

    def view_of(part: nn.Module, name: str) -> nn.Module:
        if id(part) in views:
            made: nn.Module = views[id(part)]
            return made
        source = part_of(name, part)
        made = views[id(part)] = object.__new__(type(source))
        made.__dict__.update(source.__dict__)
        prefix = name and f"{name}."
        for key, weight in source._parameters.items():
            if weight is not None and id(weight) not in views:
                views[id(weight)] = weight_of(prefix + key, weight)
        made.__dict__["_parameters"] = {
            key: None if weight is None else views[id(weight)] for key, weight in source._parameters.items()
        }
        made.__dict__["_modules"] = {
            key: None if child is None else view_of(child, prefix + key)
            for key, child in source._modules.items()
        }
        return made

    root = view_of(module, "")
    for made in list(views.values()):
        if isinstance(made, nn.Module):
            _rebind(made, views)
    return root


def _rebind(made: nn.Module, views: Mapping[int, Any]) -> None:
    """Replace modules and weights that attributes hold outside the tree by those of the copy.

    Bound methods, lists, tuples, dictionaries, sets and deques are followed, subclasses and nested ones too.
    """
    for name, value in made.__dict__.items():
        if type(value) not in PLAIN and name not in STANDARD:
            made.__dict__[name] = _rebound(value, views)
    if isinstance(made, nn.RNNBase):
        # Else the next call sees other weights and lays them out again.
        made._flat_weight_refs = [
            None if weight is None else weakref.ref(weight) for weight in made._flat_weights
        ]


def _rebound(value: Any, views: Mapping[int, Any]) -> Any:
    """Return the replacement of a value, a copy of a container in which some item has one, or else the value itself."""
    if isinstance(value, (nn.Module, Tensor)):
        return views.get(id(value), value)
    if isinstance(value, MethodType):
        owner = _rebound(value.__self__, views)
        return value if owner is value.__self__ else MethodType(value.__func__, owner)
    if isinstance(value, dict):
        pairs = [(_rebound(key, views), _rebound(item, views)) for key, item in value.items()]
        if all(key is k and item is v for (key, item), (k, v) in zip(pairs, value.items(), strict=True)):
            # A forward caches what it made of the weights of one level (LeViT: attention biases): no other may read it.
            keeps = type(value) is dict and all(isinstance(item, Tensor) for item in value.values())
            return dict(value) if keeps else value
        return _filled(value, pairs)
    if isinstance(value, (list, tuple, set, frozenset, deque)):
        if PLAIN.issuperset(map(type, value)):
            return value
        items = [_rebound(item, views) for item in value]
        return value if all(map(operator.is_, items, value)) else _filled(value, items)
    return value


def _filled(container: Any, items: list[Any]) -> Any:
    """Return a container of the same kind, order and settings with other items (for a dictionary: pairs) in it."""
    if isinstance(container, (tuple, frozenset)):
        make = getattr(container, "_make", type(container))  # a named tuple takes its items apart
        return make(items)
    made = copy.copy(container)
    made.clear()
    (made.extend if isinstance(made, (list, deque)) else made.update)(items)
    return made


class _CacheEntry(NamedTuple):
    sources: tuple[Tensor, ...]
    """The tensors from which the value was computed; held, so that no other tensor gets their addresses."""
    stamp: tuple[int, ...]
    value: Tensor


class TransientDict(dict[Any, Any]):
    """A dictionary of things that can be made again: copies and pickles of it are empty."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return type(self)()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), ()


class DerivedCache(TransientDict):
    """Values computed from other tensors, each kept until these change.

    Threads may share one: an entry is replaced as a whole, and a thread that finds none computes it.
    """

    def value(self, key: Any, sources: tuple[Tensor, ...], compute: Callable[..., Tensor]) -> Tensor:
        """Return `compute(*sources)`, or its last result for this key if no source has changed since."""
        if any(source.is_inference() for source in sources):  # these have no version counter
            return compute(*sources)
        stamp = tuple(number for source in sources for number in (source.data_ptr(), source._version))
        held: _CacheEntry | None = self.get(key)
        if held is None or held.stamp != stamp:
            # A later call that computes gradients of its input can't use an inference tensor.
            with torch.inference_mode(False), torch.no_grad():
                held = _CacheEntry(tuple(source.detach() for source in sources), stamp, compute(*sources))
            self[key] = held
        return held.value
