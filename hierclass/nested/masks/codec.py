"""Compact storage of a masked weight: the used values, their positions, and the lowest level that uses each."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

PARTS = ("values", "gaps", "bitmap", "levels")
"""Names of the tensors that may be stored of one weight; see `pack`."""

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""Types that stored values may have."""

ESCAPE = 255
"""A gap byte that skips 255 positions and places no value."""


def pack(weight: Tensor, levels: Tensor, num_levels: int) -> dict[str, Tensor]:
    """Return what is stored of a weight, in the order in which its used values lie in memory.

    `levels` (uint8, shape of `weight`) holds the lowest level that uses each value, `num_levels` where no level
    does. For n used values of N the parts are

    - `values` (n,): the values, in the type of the weight;
    - where they lie, the smaller of `gaps` (uint8: how many unused values precede each, 255 means 255 more) and
      `bitmap` (uint8, N bits, lowest first); neither if all are used;
    - `levels` (uint8): the level of each in as few bits as hold `num_levels - 1`; absent for one level.
    """
    levels = levels.flatten()
    used = levels < num_levels
    positions = used.nonzero()[:, 0]
    parts = {"values": weight.detach().flatten()[positions]}
    if len(positions) < len(used):
        gaps = _to_gaps(positions)
        small = len(gaps) <= _bytes(len(used))
        parts.update({"gaps": gaps} if small else {"bitmap": _to_bits(used.to(torch.uint8), 1)})
    if num_levels > 1:
        parts["levels"] = _to_bits(levels[positions], _width(num_levels))
    return parts


def unpack(parts: Mapping[str, Tensor], size: int, num_levels: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return positions (n, int64, rising, below `size`), values (n,) and levels (n, uint8) of what `pack` gave.

    The memory needed is bounded by `size` and by the sizes of `parts`, also for malicious input.

    Raises:
        ValueError: `pack` can't have given them for a weight of `size` values and `num_levels` levels.
    """
    wanted = {"values"} | ({"levels"} if num_levels > 1 else set())
    where = parts.keys() - wanted
    if not wanted <= parts.keys() or where not in (set(), {"gaps"}, {"bitmap"}):
        raise ValueError(f"it has the parts {sorted(parts)}")
    values = parts["values"]
    if values.dim() != 1 or values.dtype not in FLOATS or len(values) > size:
        raise ValueError(f"its values are {values.dtype} {tuple(values.shape)} for a weight of {size}")
    if any(parts[name].dim() != 1 or parts[name].dtype != torch.uint8 for name in parts.keys() - {"values"}):
        raise ValueError("its positions and levels are no rows of bytes")
    if "gaps" in parts:
        positions = _from_gaps(parts["gaps"], size)
    elif "bitmap" in parts:
        positions = _from_bits(parts["bitmap"], size, 1).nonzero()[:, 0]
    else:
        positions = torch.arange(size, device=values.device)
    if len(positions) != len(values):
        raise ValueError(f"it has {len(values)} values for {len(positions)} positions")
    if num_levels == 1:
        return positions, values, torch.zeros(len(values), dtype=torch.uint8, device=values.device)
    levels = _from_bits(parts["levels"], len(values), _width(num_levels))
    if bool((levels >= num_levels).any()):
        raise ValueError(f"it names level {int(levels.max())} of {num_levels}")
    return positions, values, levels


def check_fit(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> None:
    """Raise `ValueError` unless the tensors have the names, the shapes and the kinds of our own."""
    wrong = sorted(own.keys() ^ given.keys()) or sorted(
        name
        for name, value in own.items()
        if value.shape != given[name].shape
        or (
            given[name].dtype not in FLOATS if value.is_floating_point() else given[name].dtype != value.dtype
        )
    )
    if wrong:
        raise ValueError(f"{len(wrong)} tensors differ, the first is {wrong[0]}")


def _width(num_levels: int) -> int:
    return (num_levels - 1).bit_length()


def _bytes(bits: int) -> int:
    return -(-bits // 8)


def _to_gaps(positions: Tensor) -> Tensor:
    """Write rising positions (n,) as gaps; a gap of 255 or more takes one escape byte per 255."""
    gaps = positions.diff(prepend=positions.new_full((1,), -1)) - 1
    ends = (gaps // ESCAPE + 1).cumsum(0)
    coded = gaps.new_full((int(ends[-1]) if len(ends) else 0,), ESCAPE, dtype=torch.uint8)
    coded[ends - 1] = (gaps % ESCAPE).to(torch.uint8)
    return coded


def _from_gaps(coded: Tensor, size: int) -> Tensor:
    """Return the positions (n, int64), all below `size`, that were written as gaps."""
    if len(coded) > size:
        raise ValueError(f"it has {len(coded)} gaps for a weight of {size}")
    places = coded != ESCAPE
    positions: Tensor = ((coded.to(torch.int64) + places).cumsum(0) - 1)[places]
    if len(positions) and int(positions[-1]) >= size:
        raise ValueError(f"its last position is {int(positions[-1])}, in a weight of {size}")
    return positions


def _to_bits(numbers: Tensor, width: int) -> Tensor:
    """Write numbers (n, uint8) below 2 ** `width` as bytes, lowest bits first, the last byte filled with zeros."""
    bits = (numbers[:, None] >> _shifts(width, numbers)) & 1
    padded = torch.nn.functional.pad(bits.flatten(), (0, -bits.numel() % 8))
    return (padded.view(-1, 8) << _shifts(8, numbers)).sum(1, dtype=torch.uint8)


def _from_bits(coded: Tensor, count: int, width: int) -> Tensor:
    """Read `count` numbers (uint8) of `width` bits each."""
    if len(coded) != _bytes(count * width):
        raise ValueError(f"it has {len(coded)} bytes for {count} numbers of {width} bits")
    bits = ((coded[:, None] >> _shifts(8, coded)) & 1).flatten()
    if bool(bits[count * width :].any()):
        raise ValueError("its last byte holds more bits than it should")
    numbers = bits[: count * width].view(count, width) << _shifts(width, coded)
    return numbers.sum(1, dtype=torch.uint8)


def _shifts(count: int, like: Tensor) -> Tensor:
    return torch.arange(count, dtype=torch.uint8, device=like.device)
