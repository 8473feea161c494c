"""What a model folder says of its model but the weights: classes, preprocessing, decisions, graphs; needs no torch."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from hierclass.checkpoints.config_bounds import check_architecture, check_depth, check_tree
from hierclass.checkpoints.weights_header import WeightsHeader, read_header
from hierclass.costs import Cost
from hierclass.decisions.calibration import Decision
from hierclass.errors import CheckpointError
from hierclass.files import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    graph_file,
    int8_file,
    no_model,
    read_regular,
    remove_temporaries,
    replacing,
    replacing_all,
)
from hierclass.images.preprocessing import Preprocessing
from taxonomy import Taxonomy

T = TypeVar("T")

FORMAT = "hierclass-checkpoint"
VERSION = 1
DIGEST = "digest"
"""Key, in both files, of the digest that tells whether they were written together."""
GRAPHS = "graphs"
"""Key of the configuration under which the graphs of levels are described."""
INT8 = "int8"
"""Key of the configuration under which graphs in 8 bits are described, and how their answers are decided."""
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


@dataclass(frozen=True)
class LevelGraphs:
    """The graphs of a model for ONNX Runtime, one file per level.

    `reuses`: a level reads what the level below it kept; `keeps_rows`: images that change their batch keep what was
    computed of them; `sizes`: side in pixels at which each level sees the image, None: as it comes; `costs`: per level;
    `int8`: the files hold all their weights, in 8 bits; `sums`: the SHA-256 sum of each file, empty if unknown.
    """

    files: tuple[str, ...]
    reuses: bool
    keeps_rows: bool
    sizes: tuple[int, ...] | None
    costs: tuple[Cost, ...]
    int8: bool = False
    sums: tuple[str, ...] = ()


@dataclass
class ModelDescription:
    """All that a model folder says but the weights.

    `results` holds measured figures (`results["dev"]["levels"][k]["top1"]`, 0 … 1) and their origin; `decision` is a
    `hierclass.decisions.calibration.Decision` as JSON values.
    """

    taxonomy: Taxonomy
    architecture: Architecture
    preprocessing: Preprocessing
    decision: dict[str, Any] = field(default_factory=dict)
    results: dict[str, Any] = field(default_factory=dict)


def read_description(folder: Path) -> tuple[ModelDescription, LevelGraphs | None]:
    """Read what a model folder says, and its graphs; None if it has none, or they belong to other weights.

    Raises:
        CheckpointError: there is no model, it is damaged, or another version of hierclass wrote it.
    """
    return _read(folder, read_config(folder))


def _read(folder: Path, config: Mapping[str, Any]) -> tuple[ModelDescription, LevelGraphs | None]:
    with describing(folder):
        header = check_weights(folder / WEIGHTS_FILE, config.get(DIGEST))
        description = parse_description(config, header.elements)
        return description, _read_graphs(folder, config, description)


def read_int8(folder: Path) -> tuple[ModelDescription, LevelGraphs]:
    """Read a model folder as its graphs in 8 bits answer: with the decision and the results that are theirs.

    Raises:
        CheckpointError: as `read_description` does, or the model has no graphs in 8 bits.
    """
    config = read_config(folder)
    (description, graphs), found = _read(folder, config), config.get(INT8)
    with describing(folder):
        files = tuple(map(int8_file, range(description.taxonomy.num_tiers)))
        if isinstance(found, dict) and graphs is None:
            raise CheckpointError(
                f"{folder} has graphs in 8 bits, but those of float32, which they belong to, are missing or of other "
                f"weights; write these again: hierclass export --in-place --model {folder}"
            )
        if (
            graphs is None
            or not isinstance(found, dict)
            or found.get(DIGEST) != config.get(DIGEST)
            or tuple(found["files"]) != files
            or not all((folder / file).is_file() for file in files)
        ):
            raise CheckpointError(
                f"{folder} has no graphs in 8 bits; add them: hierclass export --in-place --int8 --images DIR "
                f"--model {folder}"
            )
        decision, results = _mapping(found, "decision"), _mapping(found, "results")
        Decision.from_dict(decision, description.taxonomy.num_tiers)
        sums = _sums(found, len(files))
    costs = tuple(
        dataclasses.replace(cost, bytes=(folder / file).stat().st_size)
        for cost, file in zip(graphs.costs, files, strict=True)
    )
    described = dataclasses.replace(description, decision=decision, results=results)
    return described, dataclasses.replace(graphs, files=files, costs=costs, int8=True, sums=sums)


@contextlib.contextmanager
def describing(folder: Path) -> Iterator[None]:
    """Turn what a wrong configuration raises into `CheckpointError`."""
    try:
        yield
    except CheckpointError:
        raise
    except (AttributeError, IndexError, KeyError, OverflowError, TypeError, ValueError) as error:
        reason = f"{error.args[0]} is missing" if isinstance(error, KeyError) else str(error)
        raise CheckpointError(f"{folder / CONFIG_FILE} does not describe a model: {reason}") from error


def parse_description(config: Mapping[str, Any], num_weights: int = 0) -> ModelDescription:
    """Read the parts of a configuration; N = `num_weights` numbers are in the file of weights.

    Raises what wrong values raise, see `describing`.
    """
    check_depth({key: value for key, value in config.items() if key != "taxonomy"})  # whose values have types
    check_tree(config["taxonomy"], num_weights)
    taxonomy = Taxonomy.from_dict(config["taxonomy"])
    check_architecture(config["architecture"], ignored=WEIGHT_SOURCES)
    architecture = _from_json(Architecture, config["architecture"])
    preprocessing = _from_json(Preprocessing, config["preprocessing"])
    _check(preprocessing)
    decision, results = _mapping(config, "decision"), _mapping(config, "results")
    Decision.from_dict(decision, taxonomy.num_tiers)
    return ModelDescription(taxonomy, architecture, preprocessing, decision, results)


def check_weights(file: Path, digest: object) -> WeightsHeader:
    """Check that a file of weights is whole and was written with the configuration of this digest (None: unknown).

    Raises:
        CheckpointError: it is missing, damaged, or of another model.
    """
    try:
        header = read_header(file)
    except FileNotFoundError:
        raise CheckpointError(f"{file.parent} is no model: it has no {WEIGHTS_FILE}") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file} is damaged: {error}; copy it again") from error
    theirs = header.metadata.get(DIGEST)
    if None not in (digest, theirs) and digest != theirs:
        raise CheckpointError(
            f"{file.parent} has the {WEIGHTS_FILE} of one model and the {CONFIG_FILE} of another, as when writing "
            "it was interrupted; make or copy it again"
        )
    return header


def _read_graphs(
    folder: Path, config: Mapping[str, Any], description: ModelDescription
) -> LevelGraphs | None:
    """The graphs of a model; None if it has none, or those of other weights, or a file is missing."""
    found, num_levels = config.get(GRAPHS), description.taxonomy.num_tiers
    if not isinstance(found, dict) or not config.get(DIGEST) or found.get(DIGEST) != config[DIGEST]:
        return None
    files = tuple(map(graph_file, range(num_levels)))
    costs, sizes = parse_costs(found["costs"], num_levels), found["sizes"]
    if tuple(found["files"]) != files or costs is None:
        raise ValueError(f"{GRAPHS!r} is not of {num_levels} levels")
    if sizes is not None and not (
        isinstance(sizes, list)
        and len(sizes) == num_levels
        and all(isinstance(side, int) and 8 <= side <= description.preprocessing.size for side in sizes)
    ):
        raise ValueError(f"{GRAPHS!r} has sizes that no image can be prepared with")
    if not all((folder / file).is_file() for file in files):
        return None
    return LevelGraphs(
        files,
        bool(found["reuses"]),
        bool(found["keeps_rows"]),
        sizes if sizes is None else tuple(sizes),
        costs,
        sums=_sums(found, num_levels),
    )


def _sums(entry: Mapping[str, Any], num_levels: int) -> tuple[str, ...]:
    """The sums of the files of graphs; empty if there are none."""
    sums = entry.get("sums", [])
    if (
        not isinstance(sums, list)
        or len(sums) not in (0, num_levels)
        or not all(isinstance(x, str) for x in sums)
    ):
        raise ValueError("'sums' is not of every graph")
    return tuple(sums)


def store_graphs(
    folder: Path,
    config: Mapping[str, Any],
    key: str,
    entry: Mapping[str, Any],
    contents: Mapping[str, bytes],
) -> None:
    """Write files of graphs into a model folder, and what `config` says of them under `key`; the digest is added.

    If that fails, the folder stays as it is; a kill while files are renamed may leave it without these graphs.
    """
    names = (*contents, CONFIG_FILE)
    remove_temporaries(folder, *names)
    rest = {name: value for name, value in config.items() if name != key}
    if key in config:  # no time at which config.json vouches for a mixture
        with replacing(folder / CONFIG_FILE) as file:
            file.write_text(config_text(rest), encoding="utf-8")
    with replacing_all(*(folder / name for name in names)) as files:
        for file, content in zip(files, contents.values(), strict=False):
            file.write_bytes(content)
        stored = {**config, key: {DIGEST: config[DIGEST], **entry}}
        files[-1].write_text(config_text(stored), encoding="utf-8")


def parse_costs(rows: Any, num_levels: int) -> tuple[Cost, ...] | None:
    """Read the costs of levels from JSON values; None where they are wrong."""
    names = {item.name for item in dataclasses.fields(Cost)}
    if not isinstance(rows, list) or len(rows) != num_levels:
        return None
    for row in rows:
        if not isinstance(row, dict) or row.keys() != names or not all(map(_is_count, row.values())):
            return None
    return tuple(Cost(**row) for row in rows)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def read_config(folder: Path) -> dict[str, Any]:
    """Read and check a checkpoint's config.json, without its weights."""
    file = folder / CONFIG_FILE
    if not folder.is_dir():
        raise CheckpointError(no_model(folder))
    try:
        config = json.loads(read_regular(file, MAX_CONFIG_BYTES).decode("utf-8"))
    except FileNotFoundError:
        raise CheckpointError(no_model(folder)) from None
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


def config_text(config: Mapping[str, Any]) -> str:
    """Return what config.json holds."""
    return json.dumps(config, indent=1, ensure_ascii=False) + "\n"


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


def without_weight_sources(architecture: Architecture) -> Architecture:
    """Return an architecture whose backbone is made without weights from files that it names."""
    kept = {key: value for key, value in architecture.backbone_args.items() if key not in WEIGHT_SOURCES}
    return dataclasses.replace(architecture, backbone_args=kept)


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
    return kind(**{key: as_tuple(value) for key, value in values.items()})


def as_tuple(value: Any) -> Any:
    """Return a JSON value with tuples in place of its lists, at any depth."""
    if isinstance(value, dict):
        return {key: as_tuple(item) for key, item in value.items()}
    return tuple(as_tuple(item) for item in value) if isinstance(value, list) else value
