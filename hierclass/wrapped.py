"""Any timm classifier of ImageNet as it is, made hierarchical by summing its probabilities up the tree.

Nothing is trained and nothing is saved: every level runs the whole network. Weights come from timm's local cache
or from a file; nothing is downloaded, and nothing in a file is executed.
"""

from __future__ import annotations

import argparse
import copy
import difflib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn

import safetensors
import timm
import torch
from timm.data import ImageNetInfo, infer_imagenet_subset, resolve_model_data_config
from timm.models import PretrainedCfg
from torch import Tensor, nn

from hierclass.checkpoint import INTERPOLATIONS, Architecture, Checkpoint
from hierclass.classifier import Classifier
from hierclass.errors import BackboneError, CheckpointError
from hierclass.nested.backbone import reason
from hierclass.nested.network import Cost, NestedNetwork, State
from hierclass.preprocessing import Preprocessing
from hierclass.weights import find_cached
from taxonomy import Taxonomy, TaxonomyError

TAXONOMY = "imagenet-1k"
"""The bundled tree of the 1,000 classes."""
SEED = 0x68696572
"""Of the weights before loading: one that nobody else starts from, so that what is left of them is known."""


class WholeNetwork(NestedNetwork):
    """A classifier whose every level is the whole of it; level k's logits are sums up the tree.

    Its "features" are the classifier's own logits; the head of a level has no weights, it adds up probabilities.
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
        """Class c of level k adds up the outputs `outputs[k][c]` of `classifier`, which has `num_outputs`."""
        sizes = [num_outputs] * len(outputs), [len(tier) for tier in outputs]
        super().__init__(*sizes, input_size, [LogSum(tier) for tier in outputs])
        self.classifier = classifier
        self._outputs = outputs
        self._cost: Cost | None = None

    def features(self, image: Tensor, level: int) -> Tensor:
        """Return the classifier's logits (B, num_outputs), the same for every level."""
        logits = self.classifier(image)
        if not isinstance(logits, Tensor) or logits.shape != (len(image), self.num_features[level]):
            raise BackboneError(
                f"this timm model does not answer with {self.num_features[level]:,} logits per image"
            )
        return logits

    def features_all(self, image: Tensor, level: int | None = None) -> list[Tensor]:
        """Return the classifier's logits once for each of levels 0 … `level`; they are computed once."""
        level = self.check_level(level)
        return [self.features(image, level)] * (level + 1)

    def refine(self, state: State, level: int | None = None) -> Tensor:
        """Return the logits of the next level, or a given higher one; only the first call runs the classifier.

        Raises:
            LevelError: the state is at the last level already, or at the given one or above.
        """
        level = self.next_level(state, level)
        if state.features is None:
            state.features = self.features(state.image, level)
        state.level = level
        return self.classify(state.features, level)

    def cost(self, level: int) -> Cost:
        """Return what every level costs: the whole classifier, counted on the first call."""
        self.check_level(level)
        if self._cost is None:
            self._cost = super().cost(level)
        return self._cost

    def level_tensors(self, level: int) -> Iterator[tuple[str, Tensor, bool]]:
        """Yield name, value and whether it is trained of every weight and statistic: each level uses them all."""
        for name, weight in self.classifier.named_parameters():
            yield f"classifier.{name}", weight, True
        for name, statistic in self.classifier.named_buffers():
            yield f"classifier.{name}", statistic, False

    def spoil_above(self, level: int) -> None:
        """Do nothing: no weight lies above a level."""

    def truncate(self, level: int) -> WholeNetwork:
        """Return a stand-alone network of levels 0 … `level`; it is no smaller."""
        outputs = self._outputs[: self.check_level(level) + 1]
        return WholeNetwork(copy.deepcopy(self.classifier), self.num_features[0], outputs, self.input_size)

    def stored(self) -> NoReturn:
        """Refuse: a checkpoint would be a copy of timm's weights that no level makes smaller."""
        raise CheckpointError(
            "a timm classifier as it is can't be saved as a model; keep its file of weights and use from_timm"
        )


class LogSum(nn.Module):
    """From a classifier's logits (B, F) to the logits (B, C) of classes that are sets of its outputs.

    The logarithm of the sum of the exponentials of a class's outputs, so that the softmax of the result is the
    sum of the softmax over them.
    """

    index: Tensor
    mask: Tensor

    def __init__(self, outputs: Sequence[Sequence[int]]):
        """Class c is the set of outputs `outputs[c]`, none of them empty."""
        super().__init__()
        width = max(map(len, outputs))
        rows = [[*members, *[members[0]] * (width - len(members))] for members in outputs]
        masks = [[0.0] * len(members) + [-torch.inf] * (width - len(members)) for members in outputs]
        self.register_buffer("index", torch.tensor(rows), persistent=False)
        self.register_buffer("mask", torch.tensor(masks), persistent=False)

    def forward(self, logits: Tensor) -> Tensor:
        """Return the classes' logits (B, C), float32."""
        return (logits.float()[:, self.index] + self.mask).logsumexp(2)


def from_timm(
    name: str,
    *,
    weights: str | os.PathLike[str] | None = None,
    taxonomy: Taxonomy | str | os.PathLike[str] | None = None,
    device: str = "auto",
) -> Classifier:
    """Make a hierarchical classifier of timm's `name` (like "resnet50.a1_in1k") without any training.

    A tier's probabilities are sums of the classifier's own. That saves nothing: every level costs the whole
    network. `weights` is a file (.safetensors, or PyTorch's .pth read without executing anything); None takes
    timm's own from the local cache and downloads nothing. `taxonomy` is a tree, or what `Taxonomy.load` takes,
    whose leaves are synset ids among the classifier's classes (an ImageNet-1k, 12k, 21k or 22k of timm's);
    outputs that are no leaf are left out and the others sum to 1. None takes the bundled tree of ImageNet-1k.

    Images are prepared as timm's configuration for tests says, except that always the centre square is kept:
    where timm squeezes the whole image into a square ("squash"), its sides are cut off here.

    Raises:
        BackboneError: timm has no such model, or it is no classifier that the tree fits.
        CheckpointError: the weights are missing, damaged or another model's.
        TaxonomyError: there is no such taxonomy, or it has leaves that are no classes of the classifier.
        InputError: this machine has no such device.
    """
    published = _published(name)
    tree, outputs = _match(name, published.num_classes, taxonomy)
    model = _create(name, _find_cached(name, published) if weights is None else Path(weights))
    preprocessing = _preprocessing(name, model)
    size = (3, preprocessing.size, preprocessing.size)
    network = WholeNetwork(model, published.num_classes, outputs, size)
    architecture = Architecture(name, widths=(1.0,) * tree.num_tiers, structure=WholeNetwork.structure)
    return Classifier(Checkpoint(network.eval(), tree, architecture, preprocessing), device=device)


def _published(name: str) -> PretrainedCfg:
    """Return what timm knows of a model and of its published weights."""
    if not timm.is_model(name):
        close = difflib.get_close_matches(name, timm.list_models(), n=3)
        hint = f", but {', '.join(close)}" if close else "; timm.list_models() lists them all"
        raise BackboneError(f"timm has no model called {name!r}{hint}")
    try:
        return timm.get_pretrained_cfg(name) or PretrainedCfg()
    except RuntimeError as error:
        known = ", ".join(timm.list_models(f"{name.split('.')[0]}.*", pretrained=True))
        raise BackboneError(f"timm has no model called {name!r}, but {known}") from error


def _match(
    name: str, num_outputs: int, taxonomy: Taxonomy | str | os.PathLike[str] | None
) -> tuple[Taxonomy, list[list[list[int]]]]:
    """Return the tree, and for every class of every tier the outputs of the classifier that it sums."""
    subset = infer_imagenet_subset({"num_classes": num_outputs})
    if subset is None or (taxonomy is None and subset != TAXONOMY):
        kind = f"{num_outputs:,} outputs" if num_outputs else "no classifier"
        own = " (from Python, taxonomy= takes a tree of its own classes)" if subset else ""
        raise BackboneError(
            f"{name} has {kind}; a timm model must have the 1,000 classes of ImageNet-1k here{own}"
        )
    labels: list[str] = ImageNetInfo(subset).label_names()
    position = {label: index for index, label in enumerate(labels)}
    if not isinstance(taxonomy, Taxonomy):
        taxonomy = Taxonomy.load(TAXONOMY if taxonomy is None else taxonomy)
    foreign = [leaf for leaf in taxonomy.leaves if leaf not in position]
    if foreign:
        raise TaxonomyError(
            f"{len(foreign):,} leaves of taxonomy {taxonomy.name!r} are no classes of {name} ({subset}), "
            f"the first is {foreign[0]!r}; give synset ids among its classes"
        )
    outputs: list[list[list[int]]] = [[[] for _ in tier] for tier in taxonomy.tiers]
    for tier, classes in enumerate(outputs):
        for leaf, index in zip(taxonomy.leaves, taxonomy.projection(tier).tolist(), strict=True):
            classes[index].append(position[leaf])
    return taxonomy, outputs


def _find_cached(name: str, published: PretrainedCfg) -> Path:
    """Return the file of timm's own weights where timm has downloaded it before."""
    found = find_cached(published)
    if found is not None:
        return found
    if not published.has_weights:
        raise CheckpointError(
            f"timm publishes no weights of {name}; give a file (weights=FILE, --weights FILE)"
        )
    raise CheckpointError(
        f"the weights of {name} are not in the local cache, and hierclass downloads nothing; give their file "
        "(weights=FILE, --weights FILE), or let timm fetch them once: "
        f"python -c \"import timm; timm.create_model('{name}', pretrained=True)\""
    )


def _create(name: str, file: Path) -> nn.Module:
    """Make a timm model with the weights of a file, all of them."""
    tensors = _tensor_names(file)
    overlay = {"file": str(file), "custom_load": False}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        try:
            model: nn.Module = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay)
        except Exception as error:  # a model's own converter of weights may stumble in any way over others
            raise CheckpointError(f"timm can't load {file} into {name}: {reason(error)}") from error
    if not _names(model) <= tensors and (missing := _untouched(name, model)):
        raise CheckpointError(
            f"{file} has no values for {len(missing)} weights of {name}, the first is {missing[0]}; "
            "is it another model's?"
        )
    return model.eval().requires_grad_(
        False
    )  # never trained here; counting costs stumbles over some that are


def _tensor_names(file: Path) -> set[str]:
    """Return the names of what a file of weights holds, its tensors unread; refuse all that is more than data."""
    if not file.is_file():
        raise CheckpointError(f"there is no file of weights at {file}")
    if file.suffix == ".safetensors":
        try:
            with safetensors.safe_open(file, "pt") as tensors:
                return set(tensors.keys())
        except (OSError, safetensors.SafetensorError) as error:
            raise CheckpointError(f"{file} is damaged: {error}; copy it again") from error
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):  # the arguments of timm's own training
            content = torch.load(file, map_location="meta", weights_only=True)
    except Exception as error:  # what the parser of a damaged file meets
        raise CheckpointError(
            f"{file} is damaged, or holds more than weights, which is refused since it could run code; "
            "give a state_dict saved as .safetensors or .pth"
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{file} holds no weights; give a state_dict saved as .safetensors or .pth")
    return {name for name in content if isinstance(name, str)}


def _names(model: nn.Module) -> set[str]:
    return {name for name in model.state_dict() if not name.endswith("num_batches_tracked")}


def _untouched(name: str, model: nn.Module) -> list[str]:
    """Return the weights that loading left as they were made: those that the same seed makes again.

    timm does not insist on every weight for every model (DLA, say), and would use them untrained.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        fresh = dict(timm.create_model(name, pretrained=False).named_parameters())
    return [
        key
        for key, value in model.named_parameters()
        if value.ndim > 1 and torch.equal(value, fresh[key]) and bool(value.min() < value.max())
    ]


def _preprocessing(name: str, model: nn.Module) -> Preprocessing:
    """Return how images are prepared for a model, as timm does for tests, with the centre square kept."""
    fixed = bool(getattr(model, "pretrained_cfg", {}).get("fixed_input_size"))
    config = resolve_model_data_config(model, use_test_size=not fixed)
    channels, height, width = config["input_size"]
    if channels != 3 or height != width:
        raise BackboneError(
            f"{name} reads images of {channels} x {height} x {width}; here they must be 3 x S x S"
        )
    interpolation = config["interpolation"]
    return Preprocessing(
        size=int(height),
        crop=min(float(config["crop_pct"]), 1.0),
        interpolation=interpolation if interpolation in INTERPOLATIONS else "bicubic",
        mean=_triple(config["mean"]),
        std=_triple(config["std"]),
    )


def _triple(values: Sequence[float]) -> tuple[float, float, float]:
    red, green, blue = map(float, values)
    return red, green, blue
