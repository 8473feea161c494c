"""Networks of a stranger's model folder: built without memory for weights, and compared with the file of weights.

An honest network has no more weights than its file holds, but for those of levels that were left out and of masks. So
timm's constructor is stopped where it makes more, and what is nested is compared name by name before a weight is read.
"""

from __future__ import annotations

import contextlib
import ctypes
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as hooks

from hierclass.checkpoints.description import Architecture
from hierclass.checkpoints.weights_header import WeightsHeader
from hierclass.errors import BackboneError
from hierclass.nested import NestedNetwork

MARGIN = 4
"""A network may be so many times as large as its file says: `slices` leave out up to half of a backbone's weights."""
SMALLEST = 2**22
"""Numbers that every network may have, however small its file is: 16 MB in float32."""
LARGEST_LEFT_OUT = 2**30
"""Numbers that a backbone may have of which the file holds a part alone: levels were left out, or masked."""
MOST_TENSORS = 20_000
"""Parameters and buffers that a backbone may have; timm's deepest have about 3,000."""
SECONDS = 60.0
"""How long timm's constructor may take without memory for weights; its slowest takes 6 seconds on a busy core."""
TYPES = {
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""Types of the tensors of a model, by the names that safetensors gives them."""


def stored_share(architecture: Architecture, num_levels: int) -> tuple[float, float]:
    """Return the shares (0 … 1) of a backbone's numbers and of its tensors that a file holds of it, at the least."""
    widths, depths, densities = (
        1.0
        if values is None or len(values) < num_levels
        else min(1.0, max(1e-6, float(values[num_levels - 1])))
        for values in (architecture.widths, architecture.depths, architecture.densities)
    )
    return widths**2 * depths * densities, depths


class BuildLimits:
    """What may be made for a file of weights: so many numbers in parameters and buffers, so many of these, in time."""

    def __init__(self, header: WeightsHeader, shares: tuple[float, float]) -> None:
        """Take what a file holds, and the shares (0 … 1) of a network's numbers and tensors that it may hold alone."""
        numbers, tensors = shares
        whole = SMALLEST + MARGIN * header.elements
        self.numbers = max(whole, min(LARGEST_LEFT_OUT, int(whole / numbers)))
        self.tensors = min(MOST_TENSORS, 1000 + MARGIN * int(len(header.tensors) / tensors))

    @contextlib.contextmanager
    def creating(self) -> Iterator[None]:
        """Raise BackboneError in the block where more is made than a backbone may have."""
        with _counting(self.numbers, self.tensors), _deadline(SECONDS):
            yield

    @contextlib.contextmanager
    def nesting(self, num_levels: int) -> Iterator[None]:
        """Raise BackboneError in the block where more memory is taken than the levels of such a backbone need."""
        with _counting(self.numbers * (num_levels + 2), self.tensors * 4 * (num_levels + 2), meta=False):
            yield


@contextlib.contextmanager
def _counting(most_numbers: int, most_tensors: int, *, meta: bool = True) -> Iterator[None]:
    """Raise BackboneError in the block where modules of this thread hold more; `meta`: also tensors without memory."""
    thread, numbers, tensors, modules = threading.get_ident(), 0, 0, 0

    def on_tensor(_: nn.Module, name: str, value: Tensor | None) -> None:
        nonlocal numbers, tensors
        if threading.get_ident() == thread and value is not None and (meta or not value.is_meta):
            numbers, tensors = numbers + value.numel(), tensors + 1
            if numbers > most_numbers or tensors > most_tensors:
                raise _StoppedError("it is of a much larger network than its file of weights holds")

    def on_module(*_: Any) -> None:
        nonlocal modules
        if threading.get_ident() == thread:
            modules += 1
            if modules > 10 * most_tensors:
                raise _StoppedError("it is of a much deeper network than its file of weights holds")

    with contextlib.ExitStack() as stack:
        # these come before a tensor is filled: memory that nobody has written to is not taken
        for register, hook in (
            (hooks.register_module_parameter_registration_hook, on_tensor),
            (hooks.register_module_buffer_registration_hook, on_tensor),
            (hooks.register_module_module_registration_hook, on_module),
        ):
            stack.callback(register(hook).remove)
        try:
            yield
        except _StoppedError as error:
            raise BackboneError(str(error)) from None


@contextlib.contextmanager
def _deadline(seconds: float) -> Iterator[None]:
    """Raise BackboneError in the block when it has run for so long, also in a loop of Python that calls nothing."""
    thread, lock, done = ctypes.c_ulong(threading.get_ident()), threading.Lock(), False

    def stop() -> None:
        with lock:
            if not done:
                ctypes.pythonapi.PyThreadState_SetAsyncExc(thread, ctypes.py_object(_TooSlowError))

    timer = threading.Timer(seconds, stop)
    timer.daemon = True
    timer.start()
    try:
        yield
    except _TooSlowError:
        raise BackboneError(f"timm has not made it within {seconds:g} seconds") from None
    finally:
        with lock:
            done = True
        timer.cancel()


class _StoppedError(BaseException):
    """Too much is made; no handler on the way takes this for an error of its own."""


class _TooSlowError(BaseException):
    """Time is up."""


def check_heads(header: WeightsHeader, num_scored: Sequence[int]) -> None:
    """Raise ValueError unless the heads in a file score so many classes, one number per level."""
    for level, classes in enumerate(num_scored):
        _, shape = header.tensors.get(f"heads.{level}.weight", ("", ()))
        if len(shape) != 2 or shape[0] != classes:
            raise ValueError(f"it has no head of level {level} for {str(classes)[:20]} classes")


def can_be_filled(backbone: nn.Module) -> bool:
    """Return whether all that a backbone without memory for weights computes with would be in a file of weights."""
    stored = backbone.state_dict().keys()
    return all(name in stored for name, _ in backbone.named_buffers())


def is_empty(network: nn.Module) -> bool:
    """Return whether a network has no memory for its weights."""
    return next(network.parameters()).is_meta


def compare(network: NestedNetwork, header: WeightsHeader) -> None:
    """Raise ValueError unless a file holds the tensors of a network: their names, shapes and kinds."""
    own = network.state_dict()
    wanted = {name for name in own if not name.endswith("num_batches_tracked")}
    wrong = sorted(wanted ^ header.tensors.keys()) or sorted(
        name for name in wanted if tuple(own[name].shape) != header.tensors[name][1]
    )
    if wrong:
        raise ValueError(f"{len(wrong)} tensors differ, the first is {wrong[0]}")
    check_kinds(own, header)


def check_kinds(own: dict[str, Tensor], header: WeightsHeader) -> None:
    """Raise ValueError if a tensor of a file is of a type that no model has, or of another kind than in a network."""
    for name, (kind, _) in header.tensors.items():
        known, value = TYPES.get(kind), own.get(name)
        if known is None or (value is not None and known.is_floating_point != value.is_floating_point()):
            raise ValueError(f"{name} is of type {kind}")


def check_finite(tensors: dict[str, Tensor]) -> None:
    """Raise ValueError if a number is infinite or none."""
    for name, value in tensors.items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise ValueError(f"{name} holds values that are no finite numbers")


@torch.no_grad()
def fill(network: NestedNetwork, tensors: dict[str, Tensor]) -> NestedNetwork:
    """Give a network without memory for weights those of a file, which `compare` has compared; return it."""
    own = network.state_dict()
    filled = {name: value.to(own[name].dtype, copy=True) for name, value in tensors.items()}
    counts = {
        name: torch.zeros(own[name].shape, dtype=own[name].dtype) for name in own.keys() - tensors.keys()
    }
    network.load_state_dict({**filled, **counts}, assign=True)
    return network
