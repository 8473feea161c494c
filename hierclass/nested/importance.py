"""Which channels matter most, and how to reorder a backbone so that they come first."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn
from torch.nn.modules.conv import _ConvNd

from hierclass.errors import BackboneError
from hierclass.nested.analysis.channel_groups import ChannelGroups
from hierclass.nested.analysis.layer_rules import ChannelRule, TransposedRule, own_tensors, rule_for
from hierclass.nested.analysis.partition import Analysis
from hierclass.nested.network import evaluating

Scores = NDArray[np.float64]
BATCH = 32


def importance(analysis: Analysis, images: Tensor | None = None) -> Scores:
    """Return a score for every id of `analysis.channels`, on average 1 in each layer.

    With `images` (N, C, H, W), normalised, a channel scores by what it adds to the layers that read it: the mean square
    of its activation times the squared weights on it (as the first-order terms of Molchanov et al. 2017, pruning
    convolutional networks, without labels). Without, by the size of the weights that make it: the L1 norm of filters
    (Li et al. 2017, pruning filters for efficient ConvNets) and the scale of norms (Liu et al. 2017, network slimming).
    """
    scores = np.zeros(analysis.channels.count)
    read = _by_readers(analysis, images) if images is not None else _by_makers(analysis)
    for row, size in read:
        if len(row) == len(size) and size.mean() > 0:
            np.add.at(scores, np.maximum(row, 0), size / size.mean())
    scores[0] = 0.0
    return scores


def _by_makers(analysis: Analysis) -> Iterator[tuple[NDArray[np.int64], Scores]]:
    """Yield the ids of the channels that each layer writes, and the size of their weights."""
    for node, found in analysis.flows.items():
        weight = getattr(analysis.trace.layer(str(node.target)), "weight", None)
        if isinstance(weight, Tensor) and found.reads != "whole":
            size = weight.detach().abs().float().reshape(len(weight), -1).mean(1)
            yield _row(found.ids, found.axis), size.double().cpu().numpy()


def _by_readers(analysis: Analysis, images: Tensor) -> Iterator[tuple[NDArray[np.int64], Scores]]:
    """Yield the ids of the channels that each layer reads, and what they add to its output."""
    squares = _mean_squares(analysis, images)
    for node, found in analysis.flows.items():
        layer, source = analysis.trace.layer(str(node.target)), node.args[0]
        weight, square = getattr(layer, "weight", None), squares.get(str(node.target))
        norm = isinstance(rule_for(layer), ChannelRule)
        if found.reads == "whole" or norm or square is None or not isinstance(weight, Tensor):
            continue
        assert isinstance(source, fx.Node)
        yield _row(analysis.values[source].ids, found.axis), square * _squared_weights(layer, weight)


def _squared_weights(layer: nn.Module, weight: Tensor) -> Scores:
    """Return the sum of the squares of all weights on each input channel."""
    squared = weight.detach().double() ** 2
    if isinstance(rule_for(layer), TransposedRule):
        return squared.flatten(1).sum(1).cpu().numpy()
    groups = layer.groups if isinstance(layer, _ConvNd) else 1
    inside = squared.reshape(groups, len(weight) // groups, weight.shape[1], -1)
    return inside.sum((1, 3)).flatten().cpu().numpy()


@torch.no_grad()
def _mean_squares(analysis: Analysis, images: Tensor) -> dict[str, Scores]:
    """Return, by path of a layer, the mean square of every channel of its input, over images and places."""
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}
    backbone = analysis.trace.backbone
    axes = {
        str(node.target): found.axis
        for node, found in analysis.flows.items()
        if found.reads != "whole" and str(node.target) not in analysis.trace.made
    }

    def watch(path: str, values: Tensor) -> None:
        axis = axes[path] % values.ndim
        square = values.double().square().transpose(0, axis).reshape(values.shape[axis], -1)
        sums[path] = sums.get(path, torch.zeros(())) + square.sum(1)
        counts[path] = counts.get(path, 0) + square.shape[1]

    hooks = [
        backbone.get_submodule(path).register_forward_pre_hook(
            lambda _, inputs, path=path: watch(path, inputs[0])
        )
        for path in axes
    ]
    try:
        with evaluating(backbone):
            weight = next(backbone.parameters())
            for start in range(0, len(images), BATCH):
                backbone(images[start : start + BATCH].to(weight))
    finally:
        for hook in hooks:
            hook.remove()
    return {path: (total / counts[path]).cpu().numpy() for path, total in sums.items()}


def reorder(analysis: Analysis, scores: Scores) -> tuple[nn.Module, NDArray[np.int64]]:
    """Return the backbone with the highest scores first, and for each of its features the position that it had before.

    The function stays the same: every weight moves with the channels that it reads and writes. Channels trade places
    within their group (heads as a whole); where they can't, they stay.

    Raises:
        BackboneError: the reordered backbone answers differently, so a rule is wrong.
    """
    places = _Places(analysis.channels, scores)
    for node, found in analysis.flows.items():
        rule = rule_for(analysis.trace.layer(str(node.target)))
        if rule is not None and rule.reads_neighbours:
            places.keep(places.classes(_row(found.ids, 1)))
    rows = list(_rows(analysis))
    while (stuck := next(filter(None, map(places.stuck, rows)), None)) is not None:
        places.keep(np.array([stuck]))
    backbone: nn.Module = copy.deepcopy(analysis.trace.backbone)
    _move_layers(backbone, analysis, places)
    _move_tensors(backbone, analysis, places)
    features = places.order(_row(analysis.values[analysis.output].ids, 1))
    _check(analysis.trace.backbone, backbone, features, analysis)
    return backbone, features


class _Places:
    """Which class of channels takes the place of which."""

    def __init__(self, channels: ChannelGroups, scores: Scores) -> None:
        self.label = channels.classes()
        rank = -np.bincount(self.label, scores, channels.count)
        self.source = np.arange(channels.count)
        self.groups = [group for group, _ in channels.groups()]
        for group in self.groups:
            self.source[group] = group[np.argsort(rank[group], kind="stable")]

    def classes(self, row: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.where(row > 0, self.label[np.maximum(row, 0)], 0)

    def stuck(self, row: NDArray[np.int64]) -> int | None:
        """Return a class of a row that can't get its new place, which is absent or of another size; None if all can."""
        found, counts = np.unique(self.classes(row), return_counts=True)
        number = dict(zip(found.tolist(), counts.tolist(), strict=True))
        wrong = (each for each in number if each and number.get(int(self.source[each])) != number[each])
        stuck: int | None = next(wrong, None)
        return stuck

    def keep(self, classes: NDArray[np.int64]) -> None:
        """Let the groups of these classes stay where they are."""
        for group in self.groups:
            if np.isin(classes, group).any():
                self.source[group] = group

    def order(self, row: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return for each place of a row where its channel was before."""
        found = self.classes(row)
        by_class = {each: np.flatnonzero(found == each) for each in np.unique(found)}
        order = np.arange(len(row))
        for each, there in by_class.items():
            if each:
                order[there] = by_class[int(self.source[each])]
        return order


def _row(ids: Tensor, axis: int) -> NDArray[np.int64]:
    """Return the ids along one axis."""
    row: NDArray[np.int64] = ids.movedim(axis, 0).reshape(ids.shape[axis], -1)[:, 0].numpy()
    return row


def _rows(analysis: Analysis) -> Iterator[NDArray[np.int64]]:
    for node, found in analysis.flows.items():
        if found.reads != "whole":
            source = node.args[0]
            assert isinstance(source, fx.Node)
            yield _row(analysis.values[source].ids, found.axis)
            yield _row(found.ids, found.axis)
    for node in analysis.nodes:
        if node.op == "get_attr" and isinstance(ids := analysis.values[node].ids, Tensor):
            yield from (_row(ids, axis) for axis in range(ids.ndim))
    yield _row(analysis.values[analysis.output].ids, 1)


def _move_layers(backbone: nn.Module, analysis: Analysis, places: _Places) -> None:
    done: set[str] = set()
    for node, found in analysis.flows.items():
        path = str(node.target)
        if found.reads == "whole" or path in done:
            continue
        done.add(path)
        source, layer = node.args[0], analysis.trace.layer(path)
        rule = rule_for(layer)
        assert isinstance(source, fx.Node)
        assert rule is not None
        reads = places.order(_row(analysis.values[source].ids, found.axis)).tolist()
        writes = places.order(_row(found.ids, found.axis)).tolist()
        moved = dict(own_tensors(rule.cut(layer, reads, writes)))
        with torch.no_grad():
            if path in analysis.trace.made:
                backbone.get_parameter(analysis.trace.made[path]).copy_(moved["weight"])
                continue
            for name, value in own_tensors(backbone.get_submodule(path)):
                value.copy_(moved[name])


def _move_tensors(backbone: nn.Module, analysis: Analysis, places: _Places) -> None:
    done: set[str] = set()
    for node in analysis.nodes:
        path, ids = str(node.target), analysis.values[node].ids
        if node.op != "get_attr" or not isinstance(ids, Tensor) or path in done:
            continue
        done.add(path)
        owner, _, name = path.rpartition(".")
        tensor = getattr(backbone.get_submodule(owner), name)
        if not isinstance(tensor, Tensor) or tensor.shape != ids.shape:
            continue
        with torch.no_grad():
            for axis in range(ids.ndim):
                order = torch.from_numpy(places.order(_row(ids, axis))).to(tensor.device)
                tensor.copy_(tensor.index_select(axis, order))


@torch.no_grad()
def _check(before: nn.Module, after: nn.Module, features: NDArray[np.int64], analysis: Analysis) -> None:
    meta = analysis.values[next(node for node in analysis.nodes if node.op == "placeholder")].meta
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(2, *meta.shape[1:], generator=generator).to(next(before.parameters()))
    with evaluating(before), evaluating(after):
        expected, found = before(image)[:, torch.from_numpy(features).to(image.device)], after(image)
    if not torch.allclose(expected, found, rtol=1e-3, atol=1e-4 * max(1.0, float(expected.abs().max()))):
        raise BackboneError("the channels of this backbone can't be reordered; leave order='importance' out")
