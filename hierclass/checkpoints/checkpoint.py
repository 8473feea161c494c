"""Checkpoints: folders of config.json and model.safetensors, all that inference needs; nothing in them is executed."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from hierclass.checkpoints import proven
from hierclass.decisions.calibration import Decision
from hierclass.errors import BackboneError, CheckpointError
from hierclass.files import CONFIG_FILE, WEIGHTS_FILE, remove_temporaries, replacing_all
from hierclass.images.preprocessing import Preprocessing
from hierclass.nested import DEFAULT_SHARES, STRUCTURES, NestedNetwork, create_backbone, nest
from hierclass.nested.heads import ClassGroups, SummedLinear, check_groups
from taxonomy import Taxonomy

T = TypeVar("T")

FORMAT = "hierclass-checkpoint"
VERSION = 1
DIGEST = "digest"
"""Key, in both files, of the digest that tells whether they were written together."""
MAX_CONFIG_BYTES = 64 * 2**20
INTERPOLATIONS = ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos")
WEIGHT_SOURCES = frozenset({"checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"})
"""Arguments of timm that name files of weights; ignored on loading, since a checkpoint holds its own."""
_LATER = frozenset({"sizes", "own", "frozen", "detail"})
"""Fields of architecture and preprocessing that the first versions did not have."""


@dataclass(frozen=True)
class Architecture:
    """How the nested network is built; see `create_backbone` and `nest` for the fields.

    `heads`: with "leaves", the heads of lower levels score leaves and sum them up to their own classes; with "tiers"
    they score their own classes. For a compressed model, `levels` is the number of levels that are left and `leaves`
    the number of leaves that its heads still score; None if all levels are there.
    """

    backbone: str
    widths: tuple[float, ...] | None
    backbone_args: dict[str, Any] = field(default_factory=dict)
    stem_stride: int | None = None
    structure: str = "slices"
    depths: tuple[float, ...] | None = None
    densities: tuple[float, ...] | None = None
    heads: str = "tiers"
    levels: int | None = None
    leaves: int | None = None
    sizes: tuple[int, ...] | None = None
    own: str | tuple[str, ...] = "norms"
    frozen: bool = False

    @property
    def num_levels(self) -> int:
        """Number of levels before any were left out."""
        return len(getattr(self, self.shares) or DEFAULT_SHARES)

    @property
    def shares(self) -> str:
        """Name of the field that has one number per level."""
        structure = STRUCTURES.get(self.structure)  # None: `from_timm` nests nothing, `nest` refuses others
        return structure.shares if structure else "widths"


@dataclass
class Checkpoint:
    """A network with all that is needed to use it.

    `results` holds measured figures (`results["dev"]["levels"][k]["top1"]`, 0 … 1) and their origin; `decision` is a
    `hierclass.decisions.calibration.Decision` as JSON values.
    """

    network: NestedNetwork
    taxonomy: Taxonomy
    architecture: Architecture
    preprocessing: Preprocessing
    decision: dict[str, Any] = field(default_factory=dict)
    results: dict[str, Any] = field(default_factory=dict)


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
) -> NestedNetwork:
    """Build the nested network of an architecture, one level per tier, for `size` x `size` images.

    `order`, `images`, `classifier`, `warn` and `proof` are passed on to `nest`.

    Raises:
        BackboneError: the architecture can't be built, or has another number of levels than the taxonomy has
        tiers.
    """
    left_out = _left_out(architecture, taxonomy)
    backbone = create_backbone(
        architecture.backbone,
        stem_stride=architecture.stem_stride,
        pretrained=pretrained,
        **_as_tuple(architecture.backbone_args),
    )
    network = nest(
        backbone,
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


def _left_out(architecture: Architecture, taxonomy: Taxonomy) -> int:
    """Number of levels that compressing a model has removed."""
    full, left, tiers = architecture.num_levels, architecture.levels, taxonomy.num_tiers
    if left is None and full != tiers:
        raise BackboneError(
            f"taxonomy {taxonomy.name!r} has {tiers} tiers but {full} {architecture.shares} are given; "
            "give one per tier"
        )
    if left is not None and not (left == tiers and left <= full):
        raise BackboneError(
            f"taxonomy {taxonomy.name!r} has {tiers} tiers but {left!r} of {full} levels are said to be left"
        )
    return full - tiers


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
    their digests and refuses.
    """
    folder = Path(path)
    tensors = _tensors(checkpoint.network, dtype)
    config = {
        "format": FORMAT,
        "version": VERSION,
        "architecture": stored_fields(checkpoint.architecture),
        "preprocessing": stored_fields(checkpoint.preprocessing),
        "decision": checkpoint.decision,
        "results": checkpoint.results,
        "taxonomy": checkpoint.taxonomy.to_dict(),
    }
    config[DIGEST] = digest = _digest(config, tensors)
    network = checkpoint.network
    proof = proven.proof_digest(
        stored_fields(checkpoint.architecture), checkpoint.taxonomy.num_classes, checkpoint.preprocessing.size
    )
    costs = [network.cost(level) for level in range(network.num_levels)]
    config[proven.KEY] = proven.to_json(proof, costs)
    folder.mkdir(parents=True, exist_ok=True)
    remove_temporaries(folder, CONFIG_FILE, WEIGHTS_FILE)
    with replacing_all(folder / WEIGHTS_FILE, folder / CONFIG_FILE) as (weights_file, config_file):
        # One key alone: safetensors writes several in any order, and equal models are to be equal files.
        weights_file.write_bytes(safetensors.torch.save(tensors, metadata={DIGEST: digest}))
        config_file.write_text(config_text(config), encoding="utf-8")


def config_text(config: Mapping[str, Any]) -> str:
    """Return what config.json holds."""
    return json.dumps(config, indent=1, ensure_ascii=False) + "\n"


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
    try:
        taxonomy = Taxonomy.from_dict(config["taxonomy"])
        architecture = _from_json(Architecture, config["architecture"])
        preprocessing = _from_json(Preprocessing, config["preprocessing"])
        _check(preprocessing)
        decision, results = _mapping(config, "decision"), _mapping(config, "results")
        Decision.from_dict(decision, taxonomy.num_tiers)
        digest = proven.proof_digest(stored_fields(architecture), taxonomy.num_classes, preprocessing.size)
        costs = proven.read_costs(config, digest, taxonomy.num_tiers)
        network = build(
            _without_weight_sources(architecture),
            taxonomy,
            preprocessing.size,
            warn=False,
            proof=costs is None,
        )
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        reason = f"{error.args[0]} is missing" if isinstance(error, KeyError) else str(error)
        raise CheckpointError(f"{folder / CONFIG_FILE} does not describe a model: {reason}") from error
    _load_weights(network, folder / WEIGHTS_FILE, config.get(DIGEST))
    network.eval().to(device).known_costs = costs
    return Checkpoint(
        network=network,
        taxonomy=taxonomy,
        architecture=architecture,
        preprocessing=preprocessing,
        decision=decision,
        results=results,
    )


def stored_dtype(path: str | os.PathLike[str]) -> str:
    """Return the `dtype` that a readable checkpoint was written with: "float16" or "float32"."""
    with safetensors.safe_open(Path(path) / WEIGHTS_FILE, framework="pt") as file:
        kinds = {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
    return "float16" if "F16" in kinds else "float32"


def read_config(folder: Path) -> dict[str, Any]:
    """Read and check a checkpoint's config.json, without its weights."""
    file = folder / CONFIG_FILE
    if not folder.is_dir():
        raise CheckpointError(
            f"there is no model at {folder}; name a folder with {CONFIG_FILE} and {WEIGHTS_FILE}"
        )
    try:
        if file.stat().st_size > MAX_CONFIG_BYTES:
            raise CheckpointError(
                f"{file} is larger than {MAX_CONFIG_BYTES >> 20} MB; this is no model of hierclass"
            )
        config = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{folder} is no model: it has no {CONFIG_FILE}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} can't be read: {error}") from error
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise CheckpointError(f"{file} is not the {CONFIG_FILE} of a hierclass model")
    if config.get("version") != VERSION:
        raise CheckpointError(
            f"{folder} was written in checkpoint version {config.get('version')}; this hierclass reads "
            f"version {VERSION}. Use the hierclass that wrote it, or train again"
        )
    return config


def _load_weights(network: NestedNetwork, file: Path, digest: object) -> None:
    """Load the weights; `digest` is that of config.json, None if an older version wrote it."""
    try:
        with safetensors.safe_open(file, framework="pt") as stream:
            theirs = (stream.metadata() or {}).get(DIGEST)
        tensors = safetensors.torch.load_file(file)
    except FileNotFoundError:
        raise CheckpointError(f"{file.parent} is no model: it has no {WEIGHTS_FILE}") from None
    except (OSError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"{file} is damaged: {error}; copy it again") from error
    if None not in (digest, theirs) and digest != theirs:
        raise CheckpointError(
            f"{file.parent} has the {WEIGHTS_FILE} of one model and the {CONFIG_FILE} of another, as when writing "
            "it was interrupted; make or copy it again"
        )
    try:
        network.load_stored(tensors)
        for head, classes in zip(network.heads, network.num_classes, strict=True):
            if isinstance(head, SummedLinear) and check_groups(head.groups.tolist()) != classes:
                raise ValueError("leaves are summed up to other classes")
    except ValueError as error:
        raise CheckpointError(f"{file} does not fit its {CONFIG_FILE}: {error}") from error


def _digest(config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> str:
    """Digest of a checkpoint's contents; equal checkpoints have equal digests."""
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


def _without_weight_sources(architecture: Architecture) -> Architecture:
    kept = {key: value for key, value in architecture.backbone_args.items() if key not in WEIGHT_SOURCES}
    return dataclasses.replace(architecture, backbone_args=kept)


def _mapping(config: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = config.get(key) or {}
    if not isinstance(value, dict):
        raise ValueError(f"{key!r} is no object")
    return value


def _check(preprocessing: Preprocessing) -> None:
    triples = (preprocessing.mean, preprocessing.std)
    numbers = (preprocessing.crop, *preprocessing.mean, *preprocessing.std)
    if (
        not 8 <= preprocessing.size <= 4096
        or not all(map(math.isfinite, numbers))
        or any(len(triple) != 3 for triple in triples)
        or not 0.05 <= preprocessing.crop <= 1
        or min(preprocessing.std) <= 0
        or preprocessing.interpolation not in INTERPOLATIONS
        or preprocessing.detail is not None
    ):
        raise ValueError("preprocessing has values that no image can be prepared with")


def stored_fields(value: Architecture | Preprocessing) -> dict[str, Any]:
    """Return the fields of an architecture or a preprocessing as they are stored and enter `Classifier.digest`.

    Fields that earlier versions did not have are left out if they have their default, so that digests stay the same.
    """
    found = dataclasses.asdict(value)
    defaults = {item.name: item.default for item in dataclasses.fields(value)}
    return {key: each for key, each in found.items() if key not in _LATER or each != defaults[key]}


def _from_json(kind: type[T], values: Mapping[str, Any]) -> T:
    known = {item.name for item in dataclasses.fields(kind)}  # type: ignore[arg-type]
    if unknown := sorted(values.keys() - known):
        raise ValueError(f"{unknown[0]!r} is no field of {kind.__name__}")
    return kind(**{key: _as_tuple(value) for key, value in values.items()})


def _as_tuple(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _as_tuple(item) for key, item in value.items()}
    return tuple(_as_tuple(item) for item in value) if isinstance(value, list) else value
