"""A timm classifier of ImageNet as it is, as a network whose levels are sums of its probabilities up the tree."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn

import torch
from torch import Tensor, nn

from hierclass.checkpoints.checkpoint import Checkpoint
from hierclass.checkpoints.description import Architecture
from hierclass.costs import Cost
from hierclass.errors import BackboneError, CheckpointError
from hierclass.nested.level_graph import Kept, Level
from hierclass.nested.network import NestedNetwork
from hierclass.timm_models.pretrained_classifier import (
    create_classifier,
    find_cached_weights,
    find_published,
    match_outputs,
    read_preprocessing,
)
from taxonomy import Taxonomy


class WholeNetwork(NestedNetwork):
    """A network whose every level is one whole classifier; the logits of a level are sums up the tree.

    Its "features" are the classifier's logits; the head of a level has no weights, it adds up probabilities.
    """

    structure = "whole"
    reuses = True

    def __init__(
        self,
        classifier: nn.Module,
        num_outputs: int,
        outputs: Sequence[Sequence[Sequence[int]]],
        input_size: tuple[int, int, int],
    ):
        """Add up the outputs `outputs[k][c]` of `classifier`, which has `num_outputs`, for class c of level k."""
        sizes = [num_outputs] * len(outputs), [len(tier) for tier in outputs]
        super().__init__(*sizes, input_size, [LogSum(tier) for tier in outputs])
        self.classifier = classifier
        self._outputs = outputs

    def level_functions(self, last: int) -> list[Level]:
        """Return what computes levels 0 … `last`: the first that is run runs the classifier, and keeps its logits."""
        return [self._run] * (last + 1)

    def _run(self, image: Tensor, kept: Kept) -> tuple[Tensor, Kept]:
        logits = kept[0] if kept else self.classifier(image)
        if not isinstance(logits, Tensor) or logits.shape != (image.shape[0], self.num_features[0]):
            raise BackboneError(
                f"this timm model does not answer with {self.num_features[0]:,} logits per image"
            )
        return logits, (logits,)

    def _count_cost(self, level: int) -> Cost:
        """Count once: every level costs what the whole classifier costs."""
        cost = super()._count_cost(level)
        self.known_costs = (cost,) * self.num_levels
        return cost

    def level_tensors(self, level: int) -> Iterator[tuple[str, Tensor, bool]]:
        """Yield name, value and whether it is trained of every weight and statistic: each level uses them all."""
        for name, weight in self.classifier.named_parameters():
            yield f"classifier.{name}", weight, True
        for name, statistic in self.classifier.named_buffers():
            yield f"classifier.{name}", statistic, False

    def spoil_above(self, level: int) -> None:
        """Do nothing: every level uses all weights."""

    def truncate(self, level: int) -> WholeNetwork:
        """Return a stand-alone network of levels 0 … `level`; it is no smaller."""
        outputs = self._outputs[: self.check_level(level) + 1]
        return WholeNetwork(copy.deepcopy(self.classifier), self.num_features[0], outputs, self.input_size)

    def stored(self) -> NoReturn:
        """Raise CheckpointError: a checkpoint would only be a copy of timm's weights."""
        raise CheckpointError(
            "a timm classifier as it is can't be saved as a model; keep its file of weights and use from_timm"
        )


class LogSum(nn.Module):
    """Turns the logits (B, F) of F outputs into the logits (B, C) of classes that are sets of outputs.

    A class gets the logarithm of the sum of the exponentials of its outputs, so that its softmax is the sum of
    theirs.
    """

    index: Tensor
    mask: Tensor

    def __init__(self, outputs: Sequence[Sequence[int]]):
        """Make class c of the outputs `outputs[c]`, of which there is at least one."""
        super().__init__()
        width = max(map(len, outputs))
        rows = [[*members, *[members[0]] * (width - len(members))] for members in outputs]
        masks = [[0.0] * len(members) + [-torch.inf] * (width - len(members)) for members in outputs]
        self.register_buffer("index", torch.tensor(rows), persistent=False)
        self.register_buffer("mask", torch.tensor(masks), persistent=False)

    def forward(self, logits: Tensor) -> Tensor:
        """Return the classes' logits (B, C), float32."""
        return (logits.float()[:, self.index] + self.mask).logsumexp(2)


def load_whole(
    name: str,
    weights: Path | None,
    taxonomy: Taxonomy | str | os.PathLike[str] | None,
) -> tuple[Checkpoint, Path]:
    """Return timm's classifier `name` with the sums of a tree, and the file that its weights are from.

    Raises as `hierclass.from_timm`.
    """
    published = find_published(name)
    tree, leaves = match_outputs(name, published.num_classes, taxonomy)
    outputs: list[list[list[int]]] = [[[] for _ in tier] for tier in tree.tiers]
    for tier, classes in enumerate(outputs):
        for output, index in zip(leaves, tree.projection(tier).tolist(), strict=True):
            classes[index].append(output)
    file = find_cached_weights(name, published) if weights is None else weights
    model = create_classifier(name, file)
    preprocessing = read_preprocessing(name, model)
    size = (3, preprocessing.size, preprocessing.size)
    network = WholeNetwork(model, published.num_classes, outputs, size)
    architecture = Architecture(name, widths=(1.0,) * tree.num_tiers, structure=WholeNetwork.structure)
    return Checkpoint(tree, architecture, preprocessing, network=network.eval()), file
