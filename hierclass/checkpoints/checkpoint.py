"""Checkpoints: folders of config.json and model.safetensors, all that inference needs; nothing in them is executed."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from hierclass.checkpoints import proven
from hierclass.checkpoints.bounded_build import (
    BuildLimits,
    can_be_filled,
    check_finite,
    check_heads,
    check_kinds,
    compare,
    fill,
    is_empty,
    stored_share,
)
from hierclass.checkpoints.description import (
    DIGEST,
    FORMAT,
    GRAPHS,
    INT8,
    VERSION,
    Architecture,
    ModelDescription,
    as_tuple,
    check_weights,
    config_text,
    describing,
    parse_description,
    read_config,
    stored_fields,
    without_weight_sources,
)
from hierclass.checkpoints.weights_header import WeightsHeader, read_header
from hierclass.errors import BackboneError, CheckpointError
from hierclass.files import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    make_folder,
    remove_graphs,
    remove_temporaries,
    replacing_all,
)
from hierclass.nested import DEFAULT_SHARES, STRUCTURES, NestedNetwork, create_backbone, nest
from hierclass.nested.heads import ClassGroups, SummedLinear, check_groups
from hierclass.nested.verify import verify
from taxonomy import Taxonomy

DESCRIBED = ("format", "version", "architecture", "preprocessing", "decision", "results", "taxonomy")
"""What `describe` gives, in its order, of which a digest is made."""
_IN_GRAPHS = ("architecture", "preprocessing")
"""What the graphs of a model hold of its configuration."""


@dataclass(kw_only=True)
class Checkpoint(ModelDescription):
    """A network with all that is needed to use it."""

    network: NestedNetwork


def num_levels_before(architecture: Architecture) -> int:
    """Return the number of levels of an architecture before any were left out."""
    return len(getattr(architecture, _shares(architecture)) or DEFAULT_SHARES)


def _shares(architecture: Architecture) -> str:
    """Name of the field that has one number per level."""
    # None: `from_timm` nests nothing, and `nest` refuses others
    structure = STRUCTURES.get(architecture.structure)
    return structure.shares if structure else "widths"


def build(
    architecture: Architecture,
    taxonomy: Taxonomy,
    size: int,
    *,
    pretrained: bool = False,
    order: str = "given",
    images: Tensor | None = None,
    classifier: nn.Linear | None = None,
    warn: bool = True,
    proof: bool = True,
    backbone: nn.Module | None = None,
) -> NestedNetwork:
    """Build the nested network of an architecture, one level per tier, for `size` x `size` images.

    `backbone` is that of `make_backbone`; None: it is made. `order`, `images`, `classifier`, `warn` and `proof` are
    passed on to `nest`.

    Raises:
        BackboneError: the architecture can't be built, or has another number of levels than the taxonomy has
        tiers.
    """
    left_out = _left_out(architecture, taxonomy)
    network = nest(
        make_backbone(architecture, pretrained=pretrained) if backbone is None else backbone,
        structure=architecture.structure,
        widths=architecture.widths,
        depths=architecture.depths,
        densities=architecture.densities,
        order=order,
        images=images,
        sizes=architecture.sizes,
        own=architecture.own,
        frozen=architecture.frozen,
        classifier=classifier,
        warn=warn,
        proof=proof,
        num_classes=(*taxonomy.num_classes, *[1] * left_out),
        groups=_groups(architecture, taxonomy, left_out),
        input_size=(3, size, size),
    )
    return network.truncate(taxonomy.num_tiers - 1) if left_out else network


def make_backbone(architecture: Architecture, *, pretrained: bool = False) -> nn.Module:
    """Return the backbone of an architecture; raise BackboneError if timm can't make it."""
    return create_backbone(
        architecture.backbone,
        stem_stride=architecture.stem_stride,
        pretrained=pretrained,
        **as_tuple(architecture.backbone_args),
    )


def _left_out(architecture: Architecture, taxonomy: Taxonomy) -> int:
    """Number of levels that compressing a model has removed."""
    full, left, tiers = num_levels_before(architecture), architecture.levels, taxonomy.num_tiers
    if left is None and full != tiers:
        raise BackboneError(
            f"taxonomy {taxonomy.name!r} has {tiers} tiers but {full} {_shares(architecture)} are given; "
            "give one per tier"
        )
    if left is not None and not (left == tiers and left <= full):
        raise BackboneError(
            f"taxonomy {taxonomy.name!r} has {tiers} tiers but {left!r} of {full} levels are said to be left"
        )
    return full - tiers


def _scored(architecture: Architecture, taxonomy: Taxonomy) -> list[int]:
    """Number of classes that the head of each level scores, before they are summed up."""
    leaves = taxonomy.num_classes[-1] if architecture.leaves is None else architecture.leaves
    own = list(taxonomy.num_classes)
    lower = len(own) if architecture.leaves is not None else len(own) - 1
    return [leaves] * lower + own[lower:] if architecture.heads == "leaves" else list(own)


def _groups(architecture: Architecture, taxonomy: Taxonomy, left_out: int) -> list[ClassGroups | None] | None:
    """For every level the class of each leaf that its head scores; None if a head scores its own classes.

    The tree of a compressed model has no leaves any more: which leaf belongs to which class is loaded with the
    weights.
    """
    leaves, tiers = architecture.leaves, range(taxonomy.num_tiers)
    if architecture.heads not in ("leaves", "tiers"):
        raise BackboneError(f"heads {architecture.heads!r} are not known; there are leaves and tiers")
    if architecture.heads == "tiers":
        return None
    if not left_out:
        return [*(taxonomy.projection(tier).tolist() for tier in tiers[:-1]), None]
    if not isinstance(leaves, int) or leaves < taxonomy.num_classes[-1]:
        raise BackboneError(f"{leaves!r} leaves can't make {taxonomy.num_classes[-1]} classes")
    return [
        *([leaf % taxonomy.num_classes[tier] for leaf in range(leaves)] for tier in tiers),
        *[None] * left_out,
    ]


def save_checkpoint(path: str | os.PathLike[str], checkpoint: Checkpoint, *, dtype: str = "float16") -> None:
    """Write a checkpoint folder; `dtype` ("float16" or "float32") is the type of the stored weights.

    Both files are written under temporary names and then renamed, so that a failed write leaves the former checkpoint
    in place. A kill between the two renames leaves files of two checkpoints, which `load_checkpoint` recognises by
    their digests and refuses. Graphs in the folder stay if they are of these weights, and are removed otherwise.
    """
    folder = Path(path)
    tensors = _tensors(checkpoint.network, dtype)
    config = describe(checkpoint)
    config[DIGEST] = digest = contents_digest(config, tensors)
    network = checkpoint.network
    proof = proven.proof_digest(
        stored_fields(checkpoint.architecture), checkpoint.taxonomy.num_classes, checkpoint.preprocessing.size
    )
    costs = [network.cost(level) for level in range(network.num_levels)]
    config[proven.KEY] = proven.to_json(proof, costs)
    make_folder(folder)
    remove_temporaries(folder, CONFIG_FILE, WEIGHTS_FILE)
    # One key alone: safetensors writes several in any order, and equal models are to be equal files.
    weights = safetensors.torch.save(tensors, metadata={DIGEST: digest})
    graphs = _graphs_that_stay(folder, config, weights)
    config.update(graphs)
    with replacing_all(folder / WEIGHTS_FILE, folder / CONFIG_FILE) as (weights_file, config_file):
        weights_file.write_bytes(weights)
        config_file.write_text(config_text(config), encoding="utf-8")
    remove_graphs(folder, keep=[file for entry in graphs.values() for file in entry.get("files", ())])


def describe(model: ModelDescription) -> dict[str, Any]:
    """Return a description as config.json holds it; `parse_description` reads it."""
    return {
        "format": FORMAT,
        "version": VERSION,
        "architecture": stored_fields(model.architecture),
        "preprocessing": stored_fields(model.preprocessing),
        "decision": model.decision,
        "results": model.results,
        "taxonomy": model.taxonomy.to_dict(),
    }


def _graphs_that_stay(folder: Path, config: Mapping[str, Any], weights: bytes) -> dict[str, Any]:
    """Return what the configuration in a folder says of graphs, if the new model has the same weights.

    So results and thresholds are stored without exporting again.
    """
    try:
        former = read_config(folder)
        digest = str(former.get(DIGEST))
        theirs = (folder / WEIGHTS_FILE).read_bytes().replace(digest.encode(), config[DIGEST].encode(), 1)
    except (CheckpointError, OSError):
        return {}
    new = json.loads(json.dumps({name: config[name] for name in _IN_GRAPHS}))
    if theirs != weights or any(former.get(name) != value for name, value in new.items()):
        return {}
    found = {name: former[name] for name in (GRAPHS, INT8) if isinstance(former.get(name), dict)}
    return {
        name: {**value, DIGEST: config[DIGEST]}
        for name, value in found.items()
        if value.get(DIGEST) == digest
    }


def as_stored(
    network: NestedNetwork, dtype: str = "float16", *, into: NestedNetwork | None = None
) -> NestedNetwork:
    """Return a copy in evaluation mode whose weights are rounded as a checkpoint of `dtype` stores them.

    It answers as the network that `load_checkpoint` will return: measure it, not the one in training. Overwriting an
    earlier copy, `into`, is faster than a new one.
    """
    rounded = (copy.deepcopy(network) if into is None else into).eval()
    rounded.load_stored(_tensors(network, dtype))
    return rounded


def load_checkpoint(path: str | os.PathLike[str], device: str | torch.device = "cpu") -> Checkpoint:
    """Read a checkpoint folder; weights are converted to float32, the network is in evaluation mode.

    Raises:
        CheckpointError: there is no checkpoint, it is damaged, or another version of hierclass wrote it.
    """
    folder = Path(path)
    config = read_config(folder)
    header = check_weights(folder / WEIGHTS_FILE, config.get(DIGEST))
    with describing(folder):
        found = parse_description(config, header.elements)
        architecture, taxonomy, size = found.architecture, found.taxonomy, found.preprocessing.size
        _left_out(architecture, taxonomy)
    with _fitting(folder):
        check_heads(header, _scored(architecture, taxonomy))
    with describing(folder):
        digest = proven.proof_digest(stored_fields(architecture), taxonomy.num_classes, size)
        costs = proven.read_costs(config, digest, taxonomy.num_tiers)
        network = _build_for(
            header, without_weight_sources(architecture), taxonomy, size, proof=costs is None
        )
    fillable = is_empty(network)
    _load_weights(network, folder, config, header)
    with describing(folder):
        if costs is None and fillable:
            verify(network)
    network.eval().to(device).known_costs = costs
    return Checkpoint(**vars(found), network=network)


def _build_for(
    header: WeightsHeader, architecture: Architecture, taxonomy: Taxonomy, size: int, *, proof: bool
) -> NestedNetwork:
    """Build a network, without memory for weights if that can be, or with no more than a file of weights says.

    Raises as `build`.
    """
    levels = taxonomy.num_tiers
    limits = BuildLimits(header, stored_share(architecture, levels))
    with limits.creating(), torch.device("meta"):
        backbone = make_backbone(architecture)
    fillable = architecture.structure != "masks" and can_be_filled(backbone)  # masks are chosen by values
    if not fillable:
        with limits.creating():
            backbone = make_backbone(architecture)
    with limits.nesting(levels):
        return build(
            architecture, taxonomy, size, warn=False, proof=proof and not fillable, backbone=backbone
        )


def stored_dtype(path: str | os.PathLike[str]) -> str:
    """Return the `dtype` that a readable checkpoint was written with: "float16" or "float32"."""
    kinds = {kind for kind, _ in read_header(Path(path) / WEIGHTS_FILE).tensors.values()}
    return "float16" if "F16" in kinds else "float32"


def _load_weights(
    network: NestedNetwork, folder: Path, config: Mapping[str, Any], header: WeightsHeader
) -> None:
    """Load the weights of a folder into a network that has memory for them, or none."""
    with _fitting(folder):
        if is_empty(network):
            compare(network, header)
        check_kinds(network.state_dict(), header)
        tensors = safetensors.torch.load_file(folder / WEIGHTS_FILE)
        check_finite(tensors)
        if is_empty(network):
            fill(network, tensors)
        else:
            network.load_stored(tensors)
        for head, classes in zip(network.heads, network.num_classes, strict=True):
            if isinstance(head, SummedLinear) and check_groups(head.groups.tolist()) != classes:
                raise ValueError("leaves are summed up to other classes")
    if None in (config.get(DIGEST), header.metadata.get(DIGEST)):
        return  # early versions wrote none
    if contents_digest({key: config[key] for key in DESCRIBED if key in config}, tensors) != config[DIGEST]:
        raise CheckpointError(
            f"{folder} is damaged, or was changed after it was written: its contents do not give the {DIGEST!r} in "
            f"{CONFIG_FILE}; copy it again, or take {DIGEST!r} out of {CONFIG_FILE} if the change is yours"
        )


@contextlib.contextmanager
def _fitting(folder: Path) -> Iterator[None]:
    """Turn what is wrong with a file of weights into `CheckpointError`."""
    file = folder / WEIGHTS_FILE
    try:
        yield
    except (OSError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"{file} is damaged: {error}; copy it again") from error
    except ValueError as error:
        raise CheckpointError(f"{file} does not fit its {CONFIG_FILE}: {error}") from error


def contents_digest(config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> str:
    """Return a digest of a checkpoint's contents; equal checkpoints have equal digests."""
    found = hashlib.sha256(json.dumps(config).encode())
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()


def _tensors(network: NestedNetwork, dtype: str) -> dict[str, torch.Tensor]:
    """The tensors that a checkpoint stores of a network, in the type of storage."""
    kind = {"float16": torch.float16, "float32": torch.float32}[dtype]
    return {name: _stored(value.detach().cpu(), kind) for name, value in network.stored().items()}


def _stored(tensor: torch.Tensor, kind: torch.dtype) -> torch.Tensor:
    """Convert to the type of storage, unless values exceed its range (a variance above 65504, say)."""
    fits = tensor.is_floating_point() and not bool((tensor.abs() > torch.finfo(kind).max).any())
    return (tensor.to(kind) if fits else tensor).contiguous()
