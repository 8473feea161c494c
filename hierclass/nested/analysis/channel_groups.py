"""Which channels must belong to the same level: ids of channels, what unites them, and how they are assigned to levels.

Every channel that a layer makes gets an id. Tensors of ids take the place of activations and go through timm's
own code: a reshape moves them, an addition unites the ids that it adds, a grouped convolution those of a group,
attention those of a head. United ids form a class, which belongs to one level. Classes that are used alike (the
channels of a residual stream, the heads of an attention) form a group, and each group is cut at its boundaries.

Two ids are special. `SHARED_ID` marks what every level sees as a whole: the image, sizes, tables of positions.
`OWN_ID` marks what every level makes for itself from its slice: a mean over channels, the attention of a single head.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hierclass.errors import BackboneError

SHARED_ID, OWN_ID = 0, -1

MANY = 1 << 14
"""Number of ids from which on `settle` looks for repetitions."""

SHARED, OWN = -1, -2
"""Levels of ids that all levels share, and of ids that each level has for itself."""


@dataclass(frozen=True)
class _Mixing:
    """The place where ids were united, which an error names when nothing is left to be cut."""

    where: str
    ids: Tensor


class ChannelGroups:
    """The ids of one network and their unions; tensors of ids have the shapes of the values they stand for."""

    def __init__(self) -> None:
        """Begin with `SHARED_ID` alone."""
        self.count = 1
        self.where = ""
        """Path and type of the layer or function that is being read, for messages."""
        self._unions: list[Tensor] = []
        self._spaces: list[Tensor] = []
        self._loose: list[range] = []
        self._mixings: list[_Mixing] = []
        self._shared_at: list[str] = []
        self._classes: NDArray[np.int64] | None = None

    def new(self, shape: Sequence[int], axis: int) -> Tensor:
        """Return new ids for the channels along `axis` of a value of `shape`."""
        ids = torch.arange(self.count, self.count + shape[axis])
        self.count += len(ids)
        self._spaces.append(ids)
        return spread(ids, shape, axis)

    def loose(self, shape: Sequence[int]) -> Tensor:
        """Return ids of a parameter: one per element, until its use shows which axis holds channels."""
        size = int(np.prod(shape))
        self._loose.append(range(self.count, self.count + size))
        self.count += size
        return torch.arange(self.count - size, self.count).reshape(tuple(shape))

    def is_loose(self, ids: Tensor) -> bool:
        """Return whether ids are those of a parameter: whether the highest of them is."""
        known = compact(ids).flatten()
        first = int(known.max()) if len(known) else 0
        span = bisect.bisect_right(self._loose, first, key=lambda span: span.start) - 1
        return span >= 0 and first in self._loose[span]

    def mark(self, ids: Tensor) -> None:
        """Note that these channels are used together, so that they become a group of their own."""
        self._spaces.append(torch.unique(compact(ids)))

    def unite(self, left: Tensor, right: Tensor) -> None:
        """Unite the ids that meet when `left` and `right` are broadcast: they will belong to one level."""
        if left is right:
            return
        pairs = torch.stack(_broadcast(compact(left), compact(right)))
        pairs = compact(settle(pairs)).expand(2, *[-1] * (pairs.ndim - 1)).reshape(2, -1)
        pairs = pairs[:, (pairs[0] != pairs[1]) & (pairs > 0).all(0)]
        if pairs.shape[1]:
            self._unions.append(pairs)

    def share(self, ids: Tensor) -> None:
        """Let every level see these channels."""
        known = torch.unique(compact(ids))
        known = known[known > 0]
        self._unions.append(torch.stack((known, torch.zeros_like(known))))
        if len(known) and not self.is_loose(known):
            self._shared_at.append(self.where)

    def unite_along(self, ids: Tensor, *axes: int) -> Tensor:
        """Unite the ids along `axes`; return the ids with size 1 there."""
        for axis in axes:
            first = ids[(slice(None),) * (axis % ids.ndim) + (slice(1),)]
            if varies(ids, axis):
                self.unite(ids, first)
                self._mixings.append(_Mixing(self.where, first))
            ids = first
        return ids

    def mix(self, ids: Tensor, *axes: int) -> Tensor:
        """Note that values are combined along `axes`; return the ids with size 1 there.

        A plain row of channels is combined slice by slice, and each level owns the result. Channels inside
        groups (heads) are united.
        """
        varying = [axis for axis in range(ids.ndim) if varies(ids, axis)]
        if len(varying) == 1 and varying[0] in {axis % ids.ndim for axis in axes} and not self.is_loose(ids):
            for axis in axes:
                ids = ids.narrow(axis, 0, 1)
            return torch.full_like(ids, OWN_ID)
        return self.unite_along(ids, *axes)

    def classes(self) -> NDArray[np.int64]:
        """Return the class of every id: the lowest id that it is united with."""
        if self._classes is None or len(self._classes) != self.count or self._unions:
            before = self._classes if self._classes is not None else np.arange(0)
            label = np.concatenate((before, np.arange(len(before), self.count)))
            ties = torch.cat(self._unions, 1).numpy() if self._unions else np.zeros((2, 0), np.int64)
            self._classes, self._unions = _components(label, ties), []
        return self._classes

    def groups(self) -> Iterator[tuple[NDArray[np.int64], int]]:
        """Yield each group, as its classes in their given order, with the largest number of channels of a class."""
        label = self.classes()
        firm = np.ones(self.count, bool)
        firm[0] = False
        for span in self._loose:
            firm[span.start : span.stop] = False
        roots = np.unique(label[firm & (label != 0)])
        signature, unit = np.zeros(self.count, np.uint64), np.zeros(self.count, np.int64)
        hashes = np.random.default_rng(0).integers(1, 2**63, len(self._spaces), dtype=np.uint64)
        for space, code in zip(self._spaces, hashes, strict=True):
            members, counts = np.unique(label[space.numpy()], return_counts=True)
            signature[members] += code
            unit[members] = np.maximum(unit[members], counts)
        order = roots[np.argsort(signature[roots], kind="stable")]
        for group in np.split(order, np.flatnonzero(np.diff(signature[order])) + 1):
            yield group, int(unit[group].max(initial=1))

    def levels(self, widths: Sequence[float]) -> NDArray[np.int64]:
        """Assign the channels to levels: return the level of every id, `SHARED` for what all levels see.

        Level k sees the first `widths[k]` share of the classes of each group.

        Raises:
            BackboneError: a group holds one class of many channels, so that nothing is left to cut.
        """
        levels = np.full(self.count, SHARED)
        for group, size in self.groups():
            if len(group) == 1 and size > 1 and len(widths) > 1:
                raise BackboneError(self._why_united(int(group[0]), size))
            cuts = share_out(len(group), widths, size)
            levels[group] = np.searchsorted(cuts, np.arange(len(group)), side="right")
        levels[0] = SHARED
        assigned: NDArray[np.int64] = np.append(levels[self.classes()], OWN)  # OWN_ID is the last index
        return assigned

    def where_shared(self) -> str:
        """Return where channels were last shared by all levels, empty if nowhere."""
        return self._shared_at[-1] if self._shared_at else ""

    def _why_united(self, root: int, size: int) -> str:
        label = self.classes()
        for mixing in self._mixings:
            if (label[mixing.ids.flatten().numpy()] == root).any():
                return (
                    f"{mixing.where} can't be cut into levels: it mixes all {size} channels with each other"
                )
        return f"{size} channels can't be cut into levels: all of them are added to each other"


def compact(ids: Tensor) -> Tensor:
    """Return ids with size 1 along every axis that is expanded (stride 0)."""
    for axis, stride in enumerate(ids.stride()):
        if stride == 0 and ids.shape[axis] > 1:
            ids = ids.narrow(axis, 0, 1)
    return ids


def settle(ids: Tensor) -> Tensor:
    """Return the same ids, without memory for what a reshape has repeated."""
    if compact(ids).numel() < MANY:
        return ids
    shape = ids.shape
    for axis, size in enumerate(shape):
        if size > 1 and not varies(ids, axis):
            ids = ids.narrow(axis, 0, 1)
    return ids.clone().expand(shape)


def touched(ids: Tensor) -> bool:
    """Return whether ids hold anything but `SHARED_ID`."""
    return bool((compact(ids) != 0).any())


def has_channels(ids: Tensor) -> bool:
    """Return whether ids hold channels."""
    return bool((compact(ids) > 0).any())


def has_owned(ids: Tensor) -> bool:
    """Return whether ids hold `OWN_ID`."""
    return bool((compact(ids) < 0).any())


def varies(ids: Tensor, axis: int) -> bool:
    """Return whether ids differ along an axis."""
    if ids.shape[axis] < 2 or ids.stride(axis) == 0 or not ids.numel():
        return False
    ids = compact(ids)
    return bool((ids != ids.narrow(axis, 0, 1)).any())


def spread(ids: Tensor, shape: Sequence[int], axis: int) -> Tensor:
    """Return ids of `shape`: a row along `axis`, repeated along the other axes."""
    view = [1] * len(shape)
    view[axis] = len(ids)
    return ids.reshape(view).expand(tuple(shape))


def _broadcast(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    both: tuple[Tensor, Tensor] = torch.broadcast_tensors(left, right)  # type: ignore[no-untyped-call]
    return both


def _components(label: NDArray[np.int64], ties: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the lowest member of each id's connected component; `label` holds the components so far."""
    while True:
        left, right = label[ties[0]], label[ties[1]]
        apart = left != right
        if not apart.any():
            return label
        np.minimum.at(label, np.maximum(left, right)[apart], np.minimum(left, right)[apart])
        while not np.array_equal(label, shorter := label[label]):
            label = shorter


Boundaries = tuple[int, ...]
"""End of each level's prefix: level k sees channels 0 … boundaries[k] - 1."""

STEPS = (8, 4, 2, 1)
"""Slice sizes are multiples of the first of these that leaves every level at least one step."""


def check_widths(widths: Sequence[float]) -> tuple[float, ...]:
    """Return the widths as a tuple; raise `BackboneError` unless they rise strictly to 1.

    `widths[k]` in (0, 1] is the share of every layer's channels that level k sees.
    """
    widths = tuple(float(width) for width in widths)
    rising = all(low < high for low, high in itertools.pairwise(widths))
    if not widths or not rising or widths[0] <= 0 or widths[-1] != 1:
        raise BackboneError(
            f"widths {list(widths)} do not fit; give one share per level, rising to 1, like 0.25,0.5,1"
        )
    return widths


def boundaries(channels: int, widths: Sequence[float], group: int = 1) -> Boundaries:
    """Cut `channels` channels into one slice per width.

    Each boundary is `width * channels` rounded to a multiple of 8 and of `group` (the width of the channel
    groups that must stay whole); every level gets at least one step. Where channels are too few for steps of
    8, steps of 4, 2 or 1 are tried. The result depends on the number of channels alone, so that tensors that
    are added agree.

    Raises:
        BackboneError: there are fewer groups than levels.
    """
    levels = len(widths)
    for step in STEPS:
        multiple = math.lcm(step, group)
        if channels >= multiple * levels:
            break
    else:
        raise BackboneError(
            f"{channels} channels in groups of {group} can't be shared by {levels} levels; "
            "use fewer levels or a wider backbone"
        )
    cuts: list[int] = []
    for level, width in enumerate(widths[:-1]):
        wanted = math.floor(width * channels / multiple + 0.5) * multiple
        lowest = (cuts[-1] if cuts else 0) + multiple
        highest = (channels // multiple - (levels - 1 - level)) * multiple
        cuts.append(min(max(wanted, lowest), highest))
    return (*cuts, channels)


def share_out(count: int, widths: Sequence[float], size: int = 1) -> Boundaries:
    """Cut `count` units of `size` channels each, as `boundaries` does; return the boundaries in units.

    With fewer units than levels, a level may add none, but level 0 has at least one.
    """
    if count >= len(widths):
        return tuple(end // size for end in boundaries(count * size, widths, size))
    cuts = [max(1, math.floor(width * count + 0.5)) for width in widths]
    return tuple(itertools.accumulate((*cuts[:-1], count), max))
