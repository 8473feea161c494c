"""The interface of a runtime: a level takes images and what the level below kept, and gives logits and kept values."""

from __future__ import annotations

import abc
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

import numpy as np
from numpy.typing import NDArray

from hierclass.costs import Cost
from hierclass.errors import LevelError, check_level

Batch: TypeAlias = Any
"""A value with a row per image, of the kind that a runtime computes with: an array of NumPy, or a tensor."""
Logits: TypeAlias = NDArray[np.float32]


@dataclass(slots=True)
class BatchState:
    """What has been computed for a batch of images: the last `level`, -1 for none, and what it kept."""

    images: Batch
    kept: tuple[Batch, ...] = ()
    level: int = -1

    def restarted(self) -> BatchState:
        """Return the state of the same images of which nothing has been computed."""
        return BatchState(self.images)


class Runtime(abc.ABC):
    """Runs the levels of one model. Threads may run different levels at the same time.

    A runtime may be copied to a forked process at any moment; it works there too.
    """

    name: ClassVar[str]
    """What users call it: "onnx" or "torch"."""
    device: str = "cpu"
    int8: bool = False
    """Whether graphs in 8 bits are run."""
    reuses: bool
    """Whether a level is computed from what the level below kept; else every level is a run of its own."""
    sizes: tuple[int, ...] | None
    """Side in pixels at which each level sees an image, whatever its size is; None: as it comes."""
    num_classes: tuple[int, ...]
    threads: int
    """Number of the processor's cores that one call uses; 1 on an accelerator."""

    @property
    def num_levels(self) -> int:
        """Number of levels; they run from 0 to `num_levels - 1`."""
        return len(self.num_classes)

    def check_level(self, level: int | None) -> int:
        """Return the level, the finest for None; raise `LevelError` if the model does not have it."""
        return check_level(level, self.num_levels)

    @property
    @abc.abstractmethod
    def keeps_rows(self) -> bool:
        """Whether images that change their batch keep what was computed of them."""

    @abc.abstractmethod
    def cost(self, level: int) -> Cost:
        """Return what a level costs for one image."""

    @abc.abstractmethod
    def weights(self) -> Iterator[tuple[str, NDArray[Any]]]:
        """Yield name and value of everything that was trained or measured, by name; numbers are float32."""

    @abc.abstractmethod
    def to_batch(self, pixels: NDArray[np.uint8]) -> Batch:
        """Return images (B, S, S, 3), 0 … 255, as `run_level` takes them.

        S is the preprocessing's size, or for a level with a size of its own any side from that on.
        """

    @abc.abstractmethod
    def run_level(
        self, level: int, images: Batch, kept: tuple[Batch, ...], output: str = "logits", keep: bool = True
    ) -> tuple[Logits, tuple[Batch, ...]]:
        """Compute one level from images and what the level below kept; return its `output` and what it keeps.

        `output`: "logits" (B, num_classes[level]), or "features" (B, num_features), which its head reads. `keep`:
        whether a higher level is to read what it keeps; else that may be left out.
        """

    @abc.abstractmethod
    def take(self, values: Batch, rows: Sequence[int]) -> Batch:
        """Return the rows of some of the images, in the given order."""

    @abc.abstractmethod
    def join(self, values: Sequence[Batch]) -> Batch:
        """Return several batches as one."""

    @abc.abstractmethod
    def divided(self, parts: int) -> Runtime:
        """Return the runtime for `parts` threads that call it at once, each with its share of the cores.

        Each of these threads calls `enter_thread` of it first, and so does the calling thread of its own runtime.
        """

    @abc.abstractmethod
    def enter_thread(self) -> None:
        """Make the current thread use `threads` cores per call."""

    def start(self, pixels: NDArray[np.uint8]) -> BatchState:
        """Return the state of images (B, S, S, 3), 0 … 255, of which nothing has been computed yet."""
        return BatchState(self.to_batch(pixels))

    def run(self, images: Batch, level: int, output: str = "logits") -> Logits:
        """Return the logits (or "features") of a level, computing nothing that it does not need."""
        kept: tuple[Batch, ...] = ()
        for lower in range(level if self.reuses else 0):
            _, kept = self.run_level(lower, images, kept)
        return self.run_level(level, images, kept, output, keep=False)[0]

    def refine(self, state: BatchState, level: int | None = None, output: str = "logits") -> Logits:
        """Compute the next level, or a given higher one, reusing what can be, and return its logits.

        The state is changed: it now holds the level that was computed.

        Raises:
            LevelError: the state is at the last level already, or at the given one or above.
        """
        if level is not None and level <= state.level:
            raise LevelError(f"level {level} can't be computed: the state is at level {state.level} already")
        level = self.check_level(state.level + 1 if level is None else level)
        kept = state.kept if self.reuses else ()
        for each in range(state.level + 1 if self.reuses else level, level + 1):
            found, kept = self.run_level(each, state.images, kept, output)
        state.kept, state.level = kept, level
        return found

    def take_state(self, state: BatchState, rows: Sequence[int]) -> BatchState:
        """Return the state of some of the images, in the given order."""
        kept = tuple(self.take(value, rows) for value in state.kept)
        return BatchState(self.take(state.images, rows), kept, state.level)

    def join_states(self, states: Sequence[BatchState]) -> BatchState:
        """Return the state of the images of several states at one level, one after the other."""
        assert len({state.level for state in states}) == 1
        kept = tuple(self.join(values) for values in zip(*(state.kept for state in states), strict=True))
        return BatchState(self.join([state.images for state in states]), kept, states[0].level)
