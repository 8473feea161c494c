"""Write a model as a folder that runs without hierclass: graphs, labels.json, an example, a README."""

from __future__ import annotations

import importlib.util
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hierclass.checkpoints.description import LevelGraphs, ModelDescription
from hierclass.decisions.calibration import Decision
from hierclass.errors import ExportError, MissingExtraError
from hierclass.files import (
    GRAPH_WEIGHTS_FILE,
    WEIGHTS_FILE,
    check_output_folder,
    is_graph_file,
    make_folder,
    meant_name,
    remove_temporaries,
    replacing_all,
)
from hierclass.images.preprocessing import resize_side
from hierclass.runtime.onnx_runtime import open_session
from taxonomy import Taxonomy

LABELS_FILE, EXAMPLE_FILE, README_FILE, CARD_FILE = "labels.json", "example.py", "README.md", "MODEL_CARD.md"
FORMAT, VERSION = "hierclass-labels", 1
_TEXTS = (LABELS_FILE, EXAMPLE_FILE, README_FILE, CARD_FILE)


@dataclass(frozen=True)
class SourceModel:
    """A model folder with graphs, as they answer: in float32, or in 8 bits."""

    folder: Path
    description: ModelDescription
    graphs: LevelGraphs


def check_deployed_folder(folder: Path, *, overwrite: bool) -> None:
    """Refuse a folder if writing there would replace other files, or an exported model without `overwrite`.

    Raises:
        InputError: the folder is refused; the message says what to do.
    """
    check_output_folder(folder, _is_part, "an exported model", mark=LABELS_FILE, overwrite=overwrite)


def check_openvino() -> None:
    """Raise MissingExtraError if OpenVINO is not installed."""
    if importlib.util.find_spec("openvino") is None:
        raise MissingExtraError("--format openvino needs OpenVINO: pip install openvino")


def write_deployed(
    source: SourceModel, output: Path, progress: Callable[[int], object], *, openvino: bool = False
) -> list[Path]:
    """Write a model as a folder that runs without hierclass, and return its files.

    The graphs are for ONNX Runtime, or for OpenVINO. `progress` is told the number of each level before it is
    converted. If that fails or is interrupted, the folder stays as it is; a kill while files are renamed may leave it
    without labels.json, until it is written with `--overwrite`.

    Raises:
        CheckpointError: ONNX Runtime can't open a graph.
        ExportError: OpenVINO can't convert a graph.
        OSError: the folder can't be written.
    """
    with _graph_files(source, progress, openvino=openvino) as (graphs, files):
        texts = {
            EXAMPLE_FILE: example(openvino=openvino),
            README_FILE: readme(source, graphs, "openvino" if openvino else "onnxruntime"),
            LABELS_FILE: json.dumps(labels(source, graphs), indent=1, ensure_ascii=False) + "\n",
        }
        if (card := source.folder / CARD_FILE).is_file():
            files = [*files, card]
        names = [*(file.name for file in files), *texts]  # labels.json is renamed last
        make_folder(output)
        remove_temporaries(output, *names[:-1])  # that of labels.json tells whose the folder is
        with replacing_all(*(output / name for name in names), mark=output / LABELS_FILE) as temporaries:
            for file, temporary in zip(files, temporaries, strict=False):
                shutil.copyfile(file, temporary)
            for text, temporary in zip(texts.values(), temporaries[len(files) :], strict=True):
                temporary.write_text(text, encoding="utf-8")
    for file in list(output.iterdir()):
        if _is_part(meant_name(file.name)) and file.name not in names:
            file.unlink()
    return [output / name for name in names]


def labels(source: SourceModel, graphs: Sequence[str]) -> dict[str, Any]:
    """Return what labels.json holds; docs/export.md describes it."""
    description = source.description
    taxonomy, preprocessing = description.taxonomy, description.preprocessing
    decision = Decision.from_dict(description.decision, taxonomy.num_tiers)
    temperatures = decision.temperatures or (1.0,) * taxonomy.num_tiers
    return {
        "format": FORMAT,
        "version": VERSION,
        "preprocessing": {
            "size": preprocessing.size,
            "shorter_side": resize_side(preprocessing),
            "interpolation": preprocessing.interpolation,
        },
        "reuses": source.graphs.reuses,
        "lower_weight": decision.lower_weight,
        "levels": [
            {
                "graph": graph,
                "temperature": temperatures[level],
                "thresholds": {
                    f"{precision:g}": [row.score for row in decision.at(precision)[level]]
                    for precision in decision.precisions
                },
                "ancestors": _ancestors(taxonomy, level),
            }
            for level, graph in enumerate(graphs)
        ],
        "tiers": [[node.id for node in taxonomy.classes(tier)] for tier in range(taxonomy.num_tiers)],
        "tree": {
            node["id"]: {"name": node["name"], "parent": node["parent"]}
            for node in taxonomy.to_dict()["nodes"]
        },
    }


def _ancestors(taxonomy: Taxonomy, level: int) -> list[list[int]]:
    """For each tier 0 … level the index of what each class of the level's tier belongs to."""
    found = [list(range(taxonomy.num_classes[level]))]
    for tier in range(level, 0, -1):
        parents = taxonomy.parent_classes(tier).tolist()
        found.insert(0, [parents[index] for index in found[0]])
    return found


def example(*, openvino: bool) -> str:
    """Return the text of example.py, for ONNX Runtime or for OpenVINO."""
    text = Path(__file__).with_name(EXAMPLE_FILE).read_text(encoding="utf-8")
    for onnx, other in _OPENVINO.items() if openvino else ():
        assert onnx in text
        text = text.replace(onnx, other)
    return text


_OPENVINO = {
    "needs numpy, pillow, onnxruntime": "needs numpy, pillow, openvino",
    'os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")\nimport onnxruntime\n': (
        "import openvino\n\n"
        "# bfloat16, which it takes where the processor has it, moves scores by up to 0.1\n"
        'EXACT = {"INFERENCE_PRECISION_HINT": "f32"}\n'
    ),
    'onnxruntime.InferenceSession(HERE / level["graph"])': (
        'openvino.Core().compile_model(HERE / level["graph"], "CPU", EXACT)'
    ),
    'graph.run(None, {"images": images, **given})': 'graph({"images": images, **given}).values()',
    "import os\n": "",
}
"""Lines of the example, and what they are with OpenVINO."""


def readme(source: SourceModel, graphs: Sequence[str], package: str) -> str:
    """Return the README of an exported model, whose graphs `package` runs."""
    classes = " / ".join(f"{count:,}" for count in source.description.taxonomy.num_classes)
    size = source.description.preprocessing.size
    kept = ", `given0` …: the outputs `kept0` … of the level before" if source.graphs.reuses else ""
    weights = "" if source.graphs.int8 or package == "openvino" else _WEIGHTS_NOTE
    return _README.format(
        package=package, classes=classes, size=size, kept=kept, weights=weights, graphs=", ".join(graphs)
    )


_WEIGHTS_NOTE = """
The graphs read their weights from `model.safetensors` beside them: keep the files together.
"""
_README = """# A classifier from coarse to fine

Each level is a graph that names a finer class and costs more: {classes} classes. Stop where an answer is fine enough.

```sh
pip install numpy pillow {package}
python example.py photo.jpg
```

- {graphs}: input `images` uint8 (B, {size}, {size}, 3), RGB, 0 … 255{kept}; outputs `logits` (B, classes), `features`.
- `labels.json`: classes of every level in the order of its logits (`tiers`), names and parents (`tree`), temperature
  that the logits are divided by, thresholds from which on answers are right at a rate, preparation of images.
- `example.py`: all of it used, to copy from.
{weights}
Made by `hierclass export`; its page docs/export.md describes every field.
"""


def _is_part(name: str) -> bool:
    stem, _, ending = name.rpartition(".")
    openvino = ending in ("xml", "bin") and is_graph_file(f"{stem}.onnx")
    return name in (*_TEXTS, WEIGHTS_FILE, GRAPH_WEIGHTS_FILE) or is_graph_file(name) or openvino


@contextmanager
def _graph_files(
    source: SourceModel, progress: Callable[[int], object], *, openvino: bool
) -> Iterator[tuple[list[str], list[Path]]]:
    """The names of the graphs, which can be opened, and all files that they need."""
    graphs = [source.folder / file for file in source.graphs.files]
    size, num_classes = source.description.preprocessing.size, source.description.taxonomy.num_classes
    for graph, classes in zip(
        graphs, num_classes, strict=True
    ):  # damage is found here, not by who runs the copy
        open_session(graph, 1, size, classes, int8=source.graphs.int8)
    if not openvino:
        weights = [source.folder / name for name in (WEIGHTS_FILE, GRAPH_WEIGHTS_FILE)]
        needed = [] if source.graphs.int8 else [file for file in weights if file.is_file()]
        yield [file.name for file in graphs], [*graphs, *needed]
        return
    with tempfile.TemporaryDirectory() as place:
        made = list[Path]()
        for level, graph in enumerate(graphs):
            progress(level)
            made.append(Path(place) / f"{graph.stem}.xml")
            convert_to_openvino(graph, made[-1])
        yield [file.name for file in made], [*made, *(file.with_suffix(".bin") for file in made)]


def convert_to_openvino(graph: Path, file: Path) -> None:
    """Convert a graph to OpenVINO's format: `file`.xml and .bin, weights in half precision or 8 bits.

    Raises:
        ExportError: OpenVINO can't.
    """
    import openvino

    try:
        openvino.save_model(openvino.convert_model(graph), file, compress_to_fp16=True)
    except OSError:
        raise
    except Exception as error:  # whatever OpenVINO finds in a graph
        reason = " ".join(str(error).split())[:200]
        raise ExportError(f"{graph.name} can't be converted by OpenVINO: {reason}") from error
