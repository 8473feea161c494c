"""A module with nested masks over its weights: a higher level uses the weights of a lower one, and more."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from hierclass.errors import BackboneError, LevelError
from hierclass.nested.masks import codec
from hierclass.nested.masks.module_view import DerivedCache, view_with
from hierclass.nested.masks.selection import (
    UPDATES,
    LevelNorms,
    StraightThrough,
    check_densities,
    densities_at,
    find_stages,
    level_parts,
    masked,
    rank,
    stage_numbers,
    step_of,
    with_level_norms,
)


class MaskedModule(nn.Module):
    """A module with nested masks over its weights: level k uses the weights of M_k, and M_0 ⊂ M_1 ⊂ ….

    All levels share positions and values of weights: one byte per weight holds the lowest level that uses it. Masked
    are parameters of two and more dimensions (convolution, linear, recurrent and attention weights, embeddings). Dense
    and shared by all levels are biases and other vectors, weights of fewer than 16 values, kernels of depth-wise
    convolutions (few weights, which Zhu & Gupta 2017 leave dense too), and what weights are computed from
    (`torch.nn.utils.parametrize`: a row of zeros has no direction). Norms with running statistics have a copy per
    level.

    The level flows with the call: each call runs a shallow copy of the module tree that holds the masked weights, so
    threads may run different levels at once. Modules and weights are found in attributes, in containers there, and as
    owners of bound methods. Those held otherwise (by a `functools.partial`, an object of another class, a closure) run
    unmasked at every level; `verify` finds them, except in closures, which hold the module that was copied. Without
    gradients, masked weights are cached per level until the weights change (writing through `parameter.data` in place
    is not noticed). A module or weight at several places of the tree belongs to the first. What a forward assigns to
    its own attributes is lost after the call; buffers are kept. On dense hardware masked weights save no time.

    Sources: weight connection learning of NestedNet (Kim et al. 2018); multi-level sparse networks (arXiv
    2112.10930); magnitudes and schedule of gradual pruning (Zhu & Gupta 2017, equation 1).
    """

    def __init__(
        self,
        module: nn.Module,
        densities: Sequence[float],
        *,
        born: Mapping[str, int] | None = None,
    ):
        """Copy `module` and mask it by magnitude: level k uses the share `densities[k]` of every masked weight.

        `densities` rise in (0, 1]. `born` maps names of modules, whose one argument and result have the same shape, to
        the lowest level that runs them.

        Raises:
            BackboneError: these do not fit, the module has no weight to mask, or it keeps computed weights.
        """
        super().__init__()
        self.densities = check_densities(densities)
        self.module = with_level_norms(module, self.num_levels)
        parts = list(level_parts(self.module))
        weights = [(name, value) for name, value in parts if isinstance(value, Tensor)]
        if not weights:
            raise BackboneError(f"{type(module).__name__} has no weights that can be masked")
        self._names = tuple(name for name, _ in weights)
        self.stages = find_stages(self.module, self._names)
        """Names of the stages, each of which may run at a level of its own: those that a timm model names in
        `feature_info`, else one per child that holds masked weights."""
        self._stage_of = stage_numbers(self.stages, [name for name, _ in parts])
        self.born = dict(born or {})
        self.maps = nn.Module()
        for name, weight in weights:
            self.maps.register_buffer(_key(name), torch.zeros_like(weight, dtype=torch.uint8))
        self.pruned = -1
        """Number of the last choice of masks, 0 … `UPDATES`; -1 before the first call of `prune`."""
        self._kept = DerivedCache()
        self._choose(1.0)

    @property
    def num_levels(self) -> int:
        """Return the number of levels, which are numbered from 0."""
        return len(self.densities)

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def forward(self, *args: Any, level: int | Sequence[int] | None = None, **kwargs: Any) -> Any:
        """Run one level of the module (None: the last), or stage s at level `level[s]`.

        Raises:
            LevelError: there is no such level, or there is not one for every stage.
        """
        if torch.is_grad_enabled():
            self._kept.clear()
        levels = self.stage_levels(level)

        def weight_of(name: str, weight: nn.Parameter) -> Tensor:
            return (
                self._value(name, weight, levels[self._stage_of[name]]) if name in self._stage_of else weight
            )

        def part_of(name: str, part: nn.Module) -> nn.Module:
            if name in self.born and not self._runs(name, levels):
                return nn.Identity()
            return part[levels[self._stage_of[name]]] if isinstance(part, LevelNorms) else part

        return view_with(self.module, weight_of, part_of)(*args, **kwargs)

    @torch.no_grad()
    def verify(self, *args: Any, **kwargs: Any) -> None:
        """Check on an example that NaN in all that is above a level leaves its results as they are, for every level.

        In evaluation mode the module must give the same for the same arguments.

        Raises:
            BackboneError: a level uses what is above it.
        """
        spoilt = copy.deepcopy(self).eval()
        for level in reversed(range(self.num_levels)):
            before = _tensors(spoilt(*args, level=level, **kwargs))
            spoilt.spoil_above(level)
            after = _tensors(spoilt(*args, level=level, **kwargs))
            if not all(_alike(*pair) for pair in zip(before, after, strict=True)):
                raise BackboneError(
                    f"level {level} of {type(self.module).__name__} uses weights above it: something in it holds a "
                    "module or weight where masks can't follow; hold it in an attribute, a list or a dictionary"
                )

    def prune(self, progress: float) -> None:
        """Choose the masks for training progress `progress` (0 to 1); call it before every update.

        From the start of the schedule the density of level k falls from 1 to d_k as d_k + (1 - d_k)(1 - t)³, in
        `UPDATES` steps; in every layer the weights of largest magnitude stay, so a weight that has grown comes
        back. Until the end, weights that no level uses still follow the gradient that the last level has for them
        (straight through its mask; Lin et al. 2020, dynamic model pruning with feedback). Then the masks are
        frozen and only weights in use are trained, until a lower `progress` begins a new training.
        """
        step = step_of(progress)
        if step != self.pruned:
            self._choose(step / UPDATES)
            self.pruned = step

    def weights(self) -> Iterator[tuple[str, nn.Parameter, Tensor]]:
        """Yield name, value and level map (uint8, `num_levels` where unused) of every masked weight."""
        for name in self._names:
            yield name, self.module.get_parameter(name), self.maps.get_buffer(_key(name))

    def level_tensors(self, level: int) -> Iterator[tuple[str, Tensor, bool]]:
        """Yield name, value and whether it is trained of all that `level` uses; of masked weights the used values."""
        maps = {name: levels for name, _, levels in self.weights()}
        others, left_out = self._norm_levels(), self._left_out(level)
        for name, weight in self.module.named_parameters():
            if name.startswith(left_out):
                continue
            if name in maps:
                yield name, weight.detach()[maps[name] <= level], True
            elif others.get(id(weight), level) == level:
                yield name, weight, True
        for name, value in self.module.named_buffers():
            if others.get(id(value), level) == level and not name.startswith(left_out):
                yield name, value, False

    @torch.no_grad()
    def spoil_above(self, level: int) -> None:
        """Set weights that no level up to `level` uses, and norms of levels above it, to NaN."""
        for _, weight, levels in self.weights():
            weight.masked_fill_(levels > level, torch.nan)
        for name, weight in self.module.named_parameters():
            if name.startswith(self._left_out(level)):
                weight.fill_(torch.nan)
        others = self._norm_levels()
        for value in itertools.chain(self.module.parameters(), self.module.buffers()):
            if others.get(id(value), level) > level and value.is_floating_point():
                value.fill_(torch.nan)

    @torch.no_grad()
    def truncate(self, level: int) -> MaskedModule:
        """Return a copy with levels 0 … `level`: weights above are zero; norms and blocks above are dropped.

        A stage of which nothing is left is dropped too.
        """
        keep = self.stage_levels(level)[0] + 1
        later = {name: nn.Identity() for name, born in self.born.items() if born >= keep}
        other = copy.deepcopy(
            self, {id(self.module.get_submodule(name)): gone for name, gone in later.items()}
        )
        other.densities = self.densities[:keep]
        other._forget(later)
        for _, weight, levels in other.weights():
            weight.masked_fill_(levels >= keep, 0)
            levels.clamp_(max=keep)
        for part in list(other.module.modules()):
            if isinstance(part, LevelNorms):
                del part[keep:]
        return other

    def extract(self, level: int | Sequence[int] | None = None) -> nn.Module:
        """Return a copy of the module as `forward` runs it at `level`, without masks: unused weights are zero.

        Raises:
            LevelError: as for `forward`.
        """
        levels = self.stage_levels(level)
        copies: dict[int, Any] = {}
        for name, weight, lowest in self.weights():
            value = masked(weight.detach(), lowest > levels[self._stage_of[name]])
            copies[id(weight)] = nn.Parameter(value, weight.requires_grad)
        for name, part in self.module.named_modules():
            if isinstance(part, LevelNorms):
                copies[id(part)] = copy.deepcopy(part[levels[self._stage_of[name]]])
        for name in self.born:
            if not self._runs(name, levels):
                copies[id(self.module.get_submodule(name))] = nn.Identity()
        return copy.deepcopy(self.module, copies)

    def stored(self) -> dict[str, Tensor]:
        """Return name → tensor for a checkpoint, masked weights in the compact form of `masks.codec`."""
        tensors = {name: value.detach() for name, value in self._dense().items()}
        for name, weight, levels in self.weights():
            parts = codec.pack(weight, levels, self.num_levels)
            tensors.update({f"{name}.{part}": value for part, value in parts.items()})
        return tensors

    @torch.no_grad()
    def load_stored(self, tensors: dict[str, Tensor]) -> None:
        """Load what `stored` gave; weights that no level uses become zero. Nothing changes unless all tensors fit.

        Raises:
            ValueError: the tensors do not fit this module.
        """
        dense, parts = self._dense(), {name: dict[str, Tensor]() for name in self._names}
        for key, value in tensors.items():
            name, _, part = key.rpartition(".")
            if part in codec.PARTS and name in parts:
                parts[name][part] = value
        known = {f"{name}.{part}" for name, found in parts.items() for part in found}
        codec.check_fit(dense, {key: value for key, value in tensors.items() if key not in known})
        unpacked = []
        for name, weight, levels in self.weights():
            try:
                found = codec.unpack(parts[name], weight.numel(), self.num_levels)
            except ValueError as error:
                raise ValueError(f"{name} does not fit: {error}") from error
            unpacked.append((weight, levels, found))
        for name, value in dense.items():
            value.copy_(tensors[name])
        for weight, levels, (positions, values, lowest) in unpacked:
            at = positions.to(weight.device)
            flat = torch.zeros(weight.numel(), dtype=weight.dtype, device=weight.device)
            weight.copy_(flat.index_copy_(0, at, values.to(flat)).view_as(weight))
            flat = torch.full_like(flat, self.num_levels, dtype=torch.uint8)
            levels.copy_(flat.index_copy_(0, at, lowest.to(flat)).view_as(weight))

    def get_extra_state(self) -> Tensor:
        """Return the state of pruning, so that a resumed training continues it."""
        return torch.tensor(self.pruned)

    def set_extra_state(self, state: Any) -> None:
        """Load the state of pruning."""
        self.pruned = int(state)

    def _apply(self, fn: Any, recurse: bool = True) -> MaskedModule:
        self._kept.clear()
        applied: MaskedModule = super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return applied

    @torch.no_grad()
    def _choose(self, share: float) -> None:
        """Choose every mask by magnitude, `share` (0 … 1) of the way from dense to the densities."""
        densities = densities_at(share, self.densities)
        for _, weight, levels in self.weights():
            levels.copy_(rank(weight, densities))

    def stage_levels(self, level: int | Sequence[int] | None) -> list[int]:
        """Return the level of every stage; raise `LevelError` as `forward` does."""
        last = self.num_levels - 1
        if isinstance(level, (list, tuple)):
            if len(level) == len(self.stages) and all(_is_level(each, last) for each in level):
                return list(level)
            raise LevelError(
                f"level {' '.join(repr(level).split())} does not fit; give one level (0 to {last}) for each of "
                f"{len(self.stages)} stages: {', '.join(self.stages)}"
            )
        level = last if level is None else level
        if not _is_level(level, last):
            raise LevelError(f"level {level!r} does not exist; this network has levels 0 to {last}")
        return [level] * len(self.stages)  # type: ignore[list-item]

    def _runs(self, name: str, levels: Sequence[int]) -> bool:
        """Return whether a module of `born` is run, by the level of its stage."""
        stage = next((self._stage_of[n] for n in self._stage_of if n.startswith(f"{name}.")), 0)
        return levels[stage] >= self.born[name]

    def _forget(self, later: Collection[str]) -> None:
        """Drop the weights inside these blocks from maps, names and stages."""
        inside = tuple(f"{name}." for name in later)
        for name in self._names:
            if name.startswith(inside):
                delattr(self.maps, _key(name))
        self.born = {name: born for name, born in self.born.items() if name not in later}
        self._names = tuple(name for name in self._names if not name.startswith(inside))
        left = {name: stage for name, stage in self._stage_of.items() if not name.startswith(inside)}
        stages = sorted(set(left.values()))
        self.stages = tuple(self.stages[stage] for stage in stages)
        self._stage_of = {name: stages.index(stage) for name, stage in left.items()}

    def _left_out(self, level: int) -> tuple[str, ...]:
        return tuple(f"{name}." for name, born in self.born.items() if born > level)

    def _norm_levels(self) -> dict[int, int]:
        """Return the level of every weight and statistic of a norm that each level has a copy of, by id."""
        norms = [part for part in self.module.modules() if isinstance(part, LevelNorms)]
        return {
            id(value): level
            for copies in norms
            for level, norm in enumerate(copies)
            for value in itertools.chain(norm.parameters(), norm.buffers())
        }

    def _dense(self) -> dict[str, Tensor]:
        """Return what a checkpoint stores whole, each tensor once."""
        seen = {id(weight) for _, weight, _ in self.weights()}
        dense = {}
        for name, value in self.module.state_dict(keep_vars=True).items():
            if (
                isinstance(value, Tensor)
                and id(value) not in seen
                and not name.endswith("num_batches_tracked")
            ):
                seen.add(id(value))
                dense[name] = value
        return dense

    def _value(self, name: str, weight: nn.Parameter, level: int) -> Tensor:
        """Return the weight with zero where `level` does not use it; never by product, 0 times NaN is NaN."""
        levels = self.maps.get_buffer(_key(name))
        if torch.is_grad_enabled() and weight.requires_grad:
            if 0 <= self.pruned < UPDATES and level == self.num_levels - 1:
                through: Tensor = StraightThrough.apply(weight, levels > level)
                return through
            return masked(weight, levels > level)
        return self._kept.value((name, level), (weight, levels), lambda w, lowest: masked(w, lowest > level))


def _is_level(level: object, last: int) -> bool:
    return isinstance(level, int) and not isinstance(level, bool) and 0 <= level <= last


def _tensors(result: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]


def _alike(left: Tensor, right: Tensor) -> bool:
    return torch.equal(left.nan_to_num(), right.nan_to_num()) and torch.equal(left.isnan(), right.isnan())


def _key(name: str) -> str:
    """Return the name of a weight as the name of a buffer, which has no dots."""
    return name.replace(".", "/")
