"""Structures `prefix` and `depths`: every level is a smaller dense network, whose weights are part of the full ones.

Level k of `prefix` runs the first channels of every layer (the dense top-left block of every weight), level k of
`depths` the first blocks of every stage. A level's values differ from those of the level above, so each level has
norms of its own, and nothing is reused when an answer is refined. A level may also see the image at a size of its own,
and own more than its norms (`sharing.Own`).
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor, fx, nn

from hierclass.errors import BackboneError
from hierclass.nested.blocks import Block
from hierclass.nested.graph import Analysis
from hierclass.nested.level_graph import LevelBuilder, corrected
from hierclass.nested.level_plans import LevelPlan, make_plans
from hierclass.nested.network import Cost, NestedNetwork, evaluating
from hierclass.nested.resize import Resize
from hierclass.nested.sharing import (
    Index,
    Own,
    Part,
    joined,
    take_block,
)
from hierclass.nested.thin import check_thin, fill, with_classifier


@dataclass(frozen=True)
class Sharing:
    """How levels of `prefix` and `depths` share: see the arguments of the same names of `hierclass.nested.nest`."""

    own: str | tuple[str, ...] = "norms"
    frozen: bool = False
    sizes: tuple[int, ...] | None = None

    def owned(self, num_levels: int) -> tuple[Own, ...]:
        """Return what each level owns, of a network of so many levels.

        Raises:
            BackboneError: it is not known, or is given for another number of levels.
        """
        names = (self.own,) * (num_levels - 1) if isinstance(self.own, str) else self.own
        if len(names) != num_levels - 1:
            raise BackboneError(
                f"own is given for {len(names)} levels; give one for all, or one for each of the {num_levels - 1} "
                "below the last"
            )
        return (*map(Own.parse, names), Own())


class PrefixNetwork(NestedNetwork):
    """Level k runs a smaller dense network with the top-left blocks of shared weights and norms of its own.

    Sources: channel and layer scheduling of NestedNet (Kim et al. 2018); own norms per width of slimmable networks
    (Yu et al. 2018); low-rank corrections of frozen weights of LoRA (Hu et al. 2021).
    """

    structure = "prefix"

    def __init__(
        self,
        plans: Sequence[LevelPlan],
        layers: Mapping[str, Sequence[nn.Module]],
        weights: Mapping[str, nn.Parameter],
        num_classes: Sequence[int],
        input_size: tuple[int, int, int],
        structure: str = "prefix",
        sharing: Sharing | None = None,
    ):
        """Made by `nest_prefix`: `layers` hold what levels own, `weights` what they share."""
        super().__init__([len(plan.features) for plan in plans], num_classes, input_size)
        self.structure = structure  # type: ignore[misc]
        self.sharing = sharing or Sharing()
        self.plans = tuple(plans)
        self.layers = nn.ModuleDict({name: nn.ModuleList(parts) for name, parts in layers.items()})
        self.weights = nn.ParameterDict(dict(weights))
        self.corrections = nn.ParameterDict()
        for level, plan in enumerate(plans):
            for part in plan.parts:
                if part.rank:
                    self._add_correction(level, part)
        self._build()

    @property
    def sizes(self) -> tuple[int, ...] | None:
        """Side in pixels at which each level sees the image; None: as it comes."""
        return self.sharing.sizes

    @property
    def own(self) -> str | tuple[str, ...]:
        """What levels below the last own, as `sharing.Own.parse` reads it, for all or for each of them."""
        return self.sharing.own

    @property
    def frozen(self) -> bool:
        """Whether all that the last level uses keeps its values."""
        return self.sharing.frozen

    def features(self, image: Tensor, level: int) -> Tensor:
        """Return the pooled features (B, num_features[level]) of one level, computing nothing else."""
        if not torch.compiler.is_compiling() and self._layers_seen() != self._built_over:
            self._build()  # layers were replaced, as by norms that look at all processes, or this is a copy
        features: Tensor = self.levels[level](image, ())[0]
        return features

    def _layers_seen(self) -> tuple[int, ...]:
        return tuple(map(id, self.layers.modules()))

    def _build(self) -> None:
        """Write the graphs of all levels over the layers and weights that the network has now."""
        self.levels: tuple[fx.GraphModule, ...] = tuple(map(self._graph, range(self.num_levels)))
        """One graph per level, (image, kept) → (features, kept), over the modules and weights of this network."""
        self._built_over = self._layers_seen()

    def train(self, mode: bool = True) -> Self:
        """Set the mode of every part; what is frozen stays in evaluation mode, so that its statistics stay too."""
        super().train(mode)
        if self.frozen:
            for part in self._layers_of(self.num_levels - 1).values():
                part.eval()
        return self

    def freeze(self) -> None:
        """Take all that the last level uses out of training, its head too; `nest` calls it where that is wanted."""
        last = self.num_levels - 1
        for part in self.plans[last].parts:
            self.weights[part.weight].requires_grad_(False)
        for module in (*self._layers_of(last).values(), self.heads[last]):
            module.requires_grad_(False)
        self.train(self.training)

    @property
    def levels_alone(self) -> bool:
        """Whether levels have only frozen weights in common, so that each can be trained without the others."""
        shared = self.used_weights(range(self.num_levels))
        common = [name for name, users in shared.items() if len(users) > 1]
        return not any(self.weights[name].requires_grad for name in common)

    def used_weights(self, levels: Iterable[int]) -> dict[str, set[int]]:
        """Return, for every shared weight, which of `levels` use a part of it."""
        users: dict[str, set[int]] = {}
        for level in levels:
            for part in self.plans[level].parts:
                users.setdefault(part.weight, set()).add(level)
        return users

    def own_parameters(self, level: int) -> list[tuple[str, nn.Parameter]]:
        """Return name and value of every weight that is trained and that `level` alone uses, its head's too."""
        alone = {
            f"weights.{name}"
            for name, users in self.used_weights(range(self.num_levels)).items()
            if users == {level}
        }
        layers = tuple(f"layers.{name}.{level}." for name in self._layers_of(level))
        begins = (*layers, f"corrections.{level}/", f"heads.{level}.")
        return [
            (name, value)
            for name, value in self.named_parameters()
            if value.requires_grad and (name in alone or name.startswith(begins))
        ]

    def level_tensors(self, level: int) -> Iterator[tuple[str, Tensor, bool]]:
        """Yield the blocks of the shared weights that `level` uses, its corrections, and the layers it owns."""
        for part in self.plans[level].parts:
            yield part.weight, take_block(self.weights[part.weight].detach(), part.index), True
            for name, value in zip(
                _correction_names(level, part), self._correction(level, part), strict=False
            ):
                yield f"corrections.{name}", value, True
        for name, layer in self._layers_of(level).items():
            for key, tensor in (*layer.named_parameters(), *layer.named_buffers()):
                yield f"layers.{name}.{level}.{key}", tensor, isinstance(tensor, nn.Parameter)

    def for_inference(self, level: int) -> Callable[[Tensor], Tensor]:
        """Return what computes the features of a level, corrections added up beforehand."""
        if not any(part.rank for part in self.plans[level].parts):
            return super().for_inference(level)
        alone = self.standalone(level).eval()

        def features(image: Tensor) -> Tensor:
            found: Tensor = alone(image, ())[0]
            return found

        return features

    def cost(self, level: int) -> Cost:
        """Count what `level` costs for one image of `input_size`; resizing costs the taps of its filter."""
        cost = super().cost(level)
        if self.sizes is None:
            return cost
        side = self.sizes[self.check_level(level)]
        return dataclasses.replace(cost, macs=cost.macs + Resize(side).macs(self.input_size))

    def spoil_above(self, level: int) -> None:
        """Set what lies outside the blocks of shared weights up to `level`, and what higher levels own, to NaN."""
        with torch.no_grad():
            for name, weight in self.weights.items():
                used = torch.zeros_like(weight, dtype=torch.bool)
                for below in range(level + 1):
                    for part in self.plans[below].parts:
                        if part.weight == name:
                            used[np.ix_(*part.index)] = True
                weight[~used] = torch.nan
            for above in range(level + 1, self.num_levels):
                for module in self._layers_of(above).values():
                    for value in (*module.parameters(), *module.buffers()):
                        if value.is_floating_point():
                            value.fill_(torch.nan)
                for name, value in self.corrections.items():
                    if name.startswith(f"{above}/"):
                        value.fill_(torch.nan)

    def truncate(self, level: int) -> PrefixNetwork:
        """Return a stand-alone network of levels 0 … `level`: the weights of the last, with the others inside them."""
        keep = self.check_level(level) + 1
        used: dict[str, list[Index]] = {}
        for plan in self.plans[:keep]:
            for part in plan.parts:
                used.setdefault(part.weight, []).append(part.index)
        kept = {name: joined(indices) for name, indices in used.items()}
        weights = {
            name: nn.Parameter(
                take_block(self.weights[name].detach(), index), self.weights[name].requires_grad
            )
            for name, index in kept.items()
        }
        plans = [
            dataclasses.replace(plan, parts=tuple(part.moved(kept[part.weight]) for part in plan.parts))
            for plan in self.plans[:keep]
        ]
        layers = {
            name: [copy.deepcopy(part) for part in list(parts)[:keep]]
            for name, parts in self.layers.items()
            if isinstance(parts, nn.ModuleList)
        }
        sharing = dataclasses.replace(
            self.sharing,
            sizes=None if self.sizes is None else self.sizes[:keep],
            frozen=self.frozen and keep == self.num_levels,
        )
        network = PrefixNetwork(
            plans, layers, weights, self.num_classes[:keep], self.input_size, self.structure, sharing
        )
        network.heads = copy.deepcopy(self.heads[:keep])
        network.corrections.update(
            {
                name: copy.deepcopy(value)
                for name, value in self.corrections.items()
                if int(name.partition("/")[0]) < keep
            }
        )
        network._build()
        return network.train(self.training).to(next(self.parameters()))

    def extract(self, level: int) -> nn.Module:
        """Return a level as an ordinary thinner timm model, (B, 3, H, W) → logits, that runs without our code.

        It takes images of the level's own size. The head becomes its classifier. Where timm's classifier is more than
        one linear layer (RepViT) the result is an `nn.Sequential` of the thinner timm model, without a classifier, and
        the head.

        Raises:
            BackboneError: the backbone's code keeps numbers of channels where they can't be found.
        """
        level = self.check_level(level)
        plan, tensors = self.plans[level], dict[str, Tensor]()
        outputs = {step.name: step.output for step in plan.steps}
        for name, layer in self._layers_of(level).items():
            if path := plan.paths.get(outputs[name]):
                for key, value in (*layer.named_parameters(), *layer.named_buffers()):
                    tensors[_joined(path, key)] = value
        for part in plan.parts:
            tensors[_joined(plan.paths[outputs[part.step]], part.name)] = self._block(level, part)
        model = fill(plan.model, tensors).train(self.training)
        channels = self.input_size[0]
        size = self.input_size if self.sizes is None else (channels, self.sizes[level], self.sizes[level])
        generator = torch.Generator().manual_seed(0)
        image = torch.randn(2, *size, generator=generator).to(next(self.parameters()))
        with evaluating(self), torch.no_grad():
            check_thin(model, self.features(image, level), image, level)
        return with_classifier(model, self.heads[level], size)

    def standalone(self, level: int) -> fx.GraphModule:
        """Return the graph of one level alone, (image, kept) → (features, kept), with copies of its weights."""
        plan, builder = self.plans[level], LevelBuilder()
        if self.sizes is not None:
            builder.resize(Resize(self.sizes[level]))
        layers = {name: copy.deepcopy(layer) for name, layer in self._layers_of(level).items()}
        for part in plan.parts:
            setattr(layers[part.step], part.name, nn.Parameter(self._block(level, part).detach().clone()))
        for step in plan.steps:
            builder.step(step, layers[step.name], {})
        return builder.build(plan.steps[-1].output)

    def _graph(self, level: int) -> fx.GraphModule:
        plan, builder = self.plans[level], LevelBuilder()
        if self.sizes is not None:
            builder.resize(Resize(self.sizes[level]))
        layers = self._layers_of(level)
        parts: dict[str, list[Part]] = {}
        for part in plan.parts:
            parts.setdefault(part.step, []).append(part)
        for step in plan.steps:
            blocks = {
                part.name: builder.block(part, self.weights[part.weight], self._correction(level, part))
                for part in parts.get(step.name, ())
            }
            builder.step(step, layers[step.name], blocks)
        return builder.build(plan.steps[-1].output)

    def _layers_of(self, level: int) -> dict[str, nn.Module]:
        """Name of a step of a level → what the level owns of its layer."""
        return {step.name: self.layers[step.name][level] for step in self.plans[level].steps}  # type: ignore[index]

    def _add_correction(self, level: int, part: Part) -> None:
        """Make a correction that begins as nothing."""
        rows, columns = part.matrix_size
        names = _correction_names(level, part)
        like = self.weights[part.weight]
        generator = torch.Generator().manual_seed(0)
        begun = torch.randn(part.rank, columns, generator=generator) / columns**0.5
        self.corrections[names[0]] = nn.Parameter(torch.zeros(rows, part.rank).to(like))
        self.corrections[names[1]] = nn.Parameter(begun.to(like))

    def _correction(self, level: int, part: Part) -> list[nn.Parameter]:
        return [self.corrections[name] for name in _correction_names(level, part)] if part.rank else []

    def _block(self, level: int, part: Part) -> Tensor:
        """Return what a level uses of a shared weight, its correction added."""
        block = take_block(self.weights[part.weight], part.index)
        correction = self._correction(level, part)
        return corrected(block, *correction) if correction else block


def _correction_names(level: int, part: Part) -> tuple[str, str]:
    name = f"{level}/{part.step}/{part.name}"
    return f"{name}/rows", f"{name}/columns"


def nest_prefix(
    backbone: nn.Module,
    analyses: Sequence[Analysis],
    left_out: Sequence[Sequence[Block]],
    num_classes: Sequence[int],
    input_size: tuple[int, int, int],
    structure: str,
    sharing: Sharing,
) -> PrefixNetwork:
    """Make the network from one analysis per level (see `seen_by`) and the blocks that each level leaves out."""
    plans, layers, weights = make_plans(backbone, analyses, left_out, sharing.owned(len(analyses)))
    return PrefixNetwork(plans, layers, weights, num_classes, input_size, structure, sharing)


def _joined(path: str, key: str) -> str:
    """Path of a tensor: the `value` of a stand-alone weight and the matrix of a made layer are at `path` itself."""
    whole = key == "value" or (key == "weight" and path.rpartition(".")[2] == "weight")
    return path if whole else f"{path}.{key}"
