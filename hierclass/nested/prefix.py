"""Structures `prefix` and `depths`: every level is a smaller dense network, whose weights are blocks of the full ones.

Level k of `prefix` runs the first channels of every layer (the dense top-left block of every weight), level k of
`depths` the first blocks of every stage. A level's values differ from those of the level above, so each level has
norms of its own, and nothing is reused when an answer is refined. A level may also see the image at a size of its own,
and own more than its norms (`shared_weights.OwnWeights`).
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

from hierclass.costs import Cost
from hierclass.errors import BackboneError
from hierclass.nested.analysis.partition import Analysis
from hierclass.nested.analysis.residual_blocks import ResidualBlock
from hierclass.nested.extract import check_thin, fill, with_classifier
from hierclass.nested.level_graph import call_with_weights, low_rank_sum, resize, resize_macs
from hierclass.nested.network import GraphNetwork, evaluating
from hierclass.nested.shared_weights import (
    Index,
    LevelPlan,
    OwnWeights,
    WeightBlock,
    joined,
    make_plans,
    take_block,
)


@dataclass(frozen=True)
class SharingOptions:
    """How levels of `prefix` and `depths` share weights: the arguments of the same names of `hierclass.nested.nest`."""

    own: str | tuple[str, ...] = "norms"
    frozen: bool = False
    sizes: tuple[int, ...] | None = None

    def owned(self, num_levels: int) -> tuple[OwnWeights, ...]:
        """Return what each of `num_levels` levels owns.

        Raises:
            BackboneError: `own` is not known, or is given for another number of levels.
        """
        names = (self.own,) * (num_levels - 1) if isinstance(self.own, str) else self.own
        if len(names) != num_levels - 1:
            raise BackboneError(
                f"own is given for {len(names)} levels; give one for all, or one for each of the {num_levels - 1} "
                "below the last"
            )
        return (*map(OwnWeights.parse, names), OwnWeights())


class PrefixNetwork(GraphNetwork):
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
        sharing: SharingOptions | None = None,
    ):
        """Hold what `nest_prefix` makes: `layers` are what levels own, `weights` what they share."""
        super().__init__((), [len(plan.features) for plan in plans], num_classes, input_size)
        self.structure = structure  # type: ignore[misc]
        self.sharing = sharing or SharingOptions()
        self.plans = tuple(plans)
        self.layers = nn.ModuleDict({name: nn.ModuleList(parts) for name, parts in layers.items()})
        self.weights = nn.ParameterDict(dict(weights))
        self.corrections = nn.ParameterDict()
        for level, plan in enumerate(plans):
            for part in plan.parts:
                if part.rank:
                    self._add_correction(level, part)
        self.indices = nn.Module()
        """Positions of blocks that lie scattered in a shared weight."""
        self.graphs = tuple(map(self._graph, range(self.num_levels)))

    @property
    def sizes(self) -> tuple[int, ...] | None:
        """Return the side in pixels at which each level sees the image; None: all at its own size."""
        return self.sharing.sizes

    @property
    def own(self) -> str | tuple[str, ...]:
        """Return what levels below the last own, as `OwnWeights.parse` reads it, for all or for each of them."""
        return self.sharing.own

    @property
    def frozen(self) -> bool:
        """Return whether all that the last level uses keeps its values."""
        return self.sharing.frozen

    def train(self, mode: bool = True) -> Self:
        """Set the mode of every layer; the frozen ones stay in evaluation mode, so that their statistics stay too."""
        super().train(mode)
        if self.frozen:
            for part in self._layers_of(self.num_levels - 1).values():
                part.eval()
        return self

    def freeze(self) -> None:
        """Take all that the last level uses out of training, its head too."""
        last = self.num_levels - 1
        for part in self.plans[last].parts:
            self.weights[part.weight].requires_grad_(False)
        for module in (*self._layers_of(last).values(), self.heads[last]):
            module.requires_grad_(False)
        self.train(self.training)

    @property
    def levels_alone(self) -> bool:
        """Return whether levels have only frozen weights in common, so that each can be trained without the others."""
        shared = self.used_weights(range(self.num_levels))
        common = [name for name, users in shared.items() if len(users) > 1]
        return not any(self.weights[name].requires_grad for name in common)

    def used_weights(self, levels: Iterable[int]) -> dict[str, set[int]]:
        """Return, for every shared weight, which of `levels` use a block of it."""
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
        """Return what computes the features of a level, with corrections added beforehand."""
        if not any(part.rank for part in self.plans[level].parts):
            return super().for_inference(level)
        alone = self.standalone(level).eval()

        def features(image: Tensor) -> Tensor:
            found: Tensor = alone(image, ())[0]
            return found

        return features

    def _count_cost(self, level: int) -> Cost:
        """Add the taps of the filter that resizes the image."""
        cost = super()._count_cost(level)
        if self.sizes is None:
            return cost
        return dataclasses.replace(cost, macs=cost.macs + resize_macs(self.input_size, self.sizes[level]))

    def spoil_above(self, level: int) -> None:
        """Set shared weights outside the blocks of levels 0 … `level`, and what higher levels own, to NaN."""
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
        """Return a stand-alone network of levels 0 … `level`, with the shared weights that they use."""
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
        for name, layer in self._layers_of(level).items():
            if path := plan.paths.get(name):
                for key, value in (*layer.named_parameters(), *layer.named_buffers()):
                    tensors[_joined(path, key)] = value
        for part in plan.parts:
            tensors[_joined(plan.paths[part.layer], part.name)] = self._block(level, part)
        model = fill(plan.model.make(), tensors).train(self.training)
        channels = self.input_size[0]
        size = self.input_size if self.sizes is None else (channels, self.sizes[level], self.sizes[level])
        generator = torch.Generator().manual_seed(0)
        image = torch.randn(2, *size, generator=generator).to(next(self.parameters()))
        with evaluating(self), torch.no_grad():
            check_thin(model, self.features(image, level), image, level)
        return with_classifier(model, self.heads[level], size)

    def standalone(self, level: int) -> fx.GraphModule:
        """Return the module of a level's graph, with copies of its weights, corrections added."""
        plan = self.plans[level]
        layers = {name: copy.deepcopy(layer) for name, layer in self._layers_of(level).items()}
        for part in plan.parts:
            setattr(layers[part.layer], part.name, nn.Parameter(self._block(level, part).detach().clone()))
        modules = {f"layers.{name}.{level}": layer for name, layer in layers.items()}
        return fx.GraphModule(modules, self._resized(level), "Level")

    def _graph(self, level: int) -> fx.Graph:
        """Return the graph of a level, which gives layers their blocks of the shared weights."""
        graph, parts = self._resized(level), dict[str, list[WeightBlock]]()
        for part in self.plans[level].parts:
            parts.setdefault(f"layers.{part.layer}.{level}", []).append(part)
        for node in graph.find_nodes(op="call_module"):
            if listed := parts.get(str(node.target)):
                with graph.inserting_before(node):
                    layer = graph.create_node("get_attr", node.target)
                    blocks = {part.name: self._block_node(graph, level, part) for part in listed}
                    given = graph.call_function(call_with_weights, (layer, blocks, *node.args))
                node.replace_all_uses_with(given)
                graph.erase_node(node)
        return graph

    def _resized(self, level: int) -> fx.Graph:
        """Return the graph of a level over layers that hold all weights, on images of any size."""
        graph = copy.deepcopy(self.plans[level].graph)
        if self.sizes is not None:
            image, kept = graph.find_nodes(op="placeholder")
            with graph.inserting_after(kept):
                resized = graph.call_function(resize, (image, self.sizes[level]))
            image.replace_all_uses_with(resized, delete_user_cb=lambda user: user is not resized)
        return graph

    def _block_node(self, graph: fx.Graph, level: int, part: WeightBlock) -> fx.Node:
        """Add the nodes that take a level's block out of a shared weight and add the level's correction."""
        node = graph.create_node("get_attr", f"weights.{part.weight}")
        for axis, (index, size) in enumerate(zip(part.index, self.weights[part.weight].shape, strict=True)):
            if np.array_equal(index, np.arange(size)):
                continue
            if len(index) and (np.diff(index) == 1).all():
                node = graph.call_function(torch.narrow, (node, axis, int(index[0]), len(index)))
            else:
                name = f"{level}_{part.layer}_{part.name}_{axis}"
                device = self.weights[part.weight].device
                positions = torch.from_numpy(index).to("cpu" if device.type == "meta" else device)
                self.indices.register_buffer(name, positions, persistent=False)
                chosen = graph.create_node("get_attr", f"indices.{name}")
                node = graph.call_function(torch.index_select, (node, axis, chosen))
        if part.rank:
            names = _correction_names(level, part)
            both = [graph.create_node("get_attr", f"corrections.{name}") for name in names]
            node = graph.call_function(low_rank_sum, (node, *both))
        return node

    def _layers_of(self, level: int) -> dict[str, nn.Module]:
        """Return by name what the level owns of each layer."""
        return {name: self.layers[name][level] for name in self.plans[level].names}  # type: ignore[index]

    def _add_correction(self, level: int, part: WeightBlock) -> None:
        """Make a correction that begins as zero."""
        rows, columns = part.matrix_size
        names = _correction_names(level, part)
        like = self.weights[part.weight]
        generator = torch.Generator().manual_seed(0)
        begun = torch.randn(part.rank, columns, generator=generator) / columns**0.5
        self.corrections[names[0]] = nn.Parameter(torch.zeros(rows, part.rank).to(like))
        self.corrections[names[1]] = nn.Parameter(begun.to(like))

    def _correction(self, level: int, part: WeightBlock) -> list[nn.Parameter]:
        return [self.corrections[name] for name in _correction_names(level, part)] if part.rank else []

    def _block(self, level: int, part: WeightBlock) -> Tensor:
        """Return the block of a shared weight that a level uses, with the level's correction."""
        block = take_block(self.weights[part.weight], part.index)
        correction = self._correction(level, part)
        return low_rank_sum(block, *correction) if correction else block


def _correction_names(level: int, part: WeightBlock) -> tuple[str, str]:
    name = f"{level}/{part.layer}/{part.name}"
    return f"{name}/rows", f"{name}/columns"


def nest_prefix(
    backbone: nn.Module,
    analyses: Sequence[Analysis],
    left_out: Sequence[Sequence[ResidualBlock]],
    num_classes: Sequence[int],
    input_size: tuple[int, int, int],
    structure: str,
    sharing: SharingOptions,
) -> PrefixNetwork:
    """Return the network of one analysis per level (see `seen_by`) and the blocks that each level leaves out."""
    plans, layers, weights = make_plans(backbone, analyses, left_out, sharing.owned(len(analyses)))
    return PrefixNetwork(plans, layers, weights, num_classes, input_size, structure, sharing)


def _joined(path: str, key: str) -> str:
    """Return the path of a tensor: a `Weight` and the matrix of a made layer are at `path` itself."""
    whole = key == "value" or (key == "weight" and path.rpartition(".")[2] == "weight")
    return path if whole else f"{path}.{key}"
