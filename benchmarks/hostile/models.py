"""Model folders that a stranger made: read by `hierclass.load`, run at every level, and their card shown.

Each is the bundled model, by links, with one file changed. The attacks are on what a folder says of itself
(config.json), on the file of weights, on kinds of files, and on graphs.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hierclass.files import BUNDLED, CONFIG_FILE, WEIGHTS_FILE, graph_file
from hostile import HostileFile

CARD = "MODEL_CARD.md"
Config = dict[str, Any]
Change = Callable[[Config], object]
TINY_NETWORK: Config = {
    "backbone": "test_resnet",
    "widths": [0.25, 0.5, 1.0],
    "backbone_args": {},
    "structure": "slices",
    "heads": "leaves",
}


def linked_model(folder: Path, *changed: str) -> Path:
    """Make a folder of links to the files of the bundled model, but for those that are to be changed."""
    model = folder / "model"
    model.mkdir()
    for file in BUNDLED.iterdir():
        if file.name not in changed:
            (model / file.name).symlink_to(file)
    return model


def with_config(change: Change, *, graphs: bool = False) -> Callable[[Path], Path]:
    """Return what writes a model with another config.json; without `graphs`, torch must run it."""

    def write(folder: Path) -> Path:
        model = linked_model(folder, CONFIG_FILE)
        config = json.loads((BUNDLED / CONFIG_FILE).read_text(encoding="utf-8"))
        if graphs:
            config["graphs"].pop("sums", None)  # as the first versions wrote them
        else:
            config = {key: value for key, value in config.items() if key not in ("digest", "graphs", "int8")}
        change(config)
        (model / CONFIG_FILE).write_text(json.dumps(config), encoding="utf-8")
        return model

    return write


def _network(**fields: Any) -> Callable[[Path], Path]:
    return with_config(lambda config: config["architecture"].update(fields))


def _tiny_network(**fields: Any) -> Callable[[Path], Path]:
    return with_config(lambda config: config.update(architecture={**TINY_NETWORK, **fields}))


def _nodes(count: int) -> Callable[[Path], Path]:
    """A tree of so many leaves, all in every tier."""

    def change(config: Config) -> None:
        ids = [f"{number:x}" for number in range(count)]
        nodes = [{"id": each, "name": each, "parent": "root"} for each in ids]
        config["taxonomy"].update(
            nodes=[{"id": "root", "name": "root", "parent": None}, *nodes], leaves=ids, tiers=[ids] * 3
        )

    return with_config(change)


def _tiers(count: int) -> Callable[[Path], Path]:
    return with_config(lambda config: config["taxonomy"].update(tiers=[config["taxonomy"]["leaves"]] * count))


def _chain(count: int) -> Callable[[Path], Path]:
    """A tree as deep as it has nodes."""

    def change(config: Config) -> None:
        nodes = [{"id": str(k), "name": str(k), "parent": str(k - 1) if k else None} for k in range(count)]
        leaf = [str(count - 1)]
        config["taxonomy"].update(nodes=nodes, leaves=leaf, tiers=[leaf] * 3)

    return with_config(change)


def _file(name: str, content: bytes | Callable[[], bytes]) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        model = linked_model(folder, name)
        (model / name).write_bytes(content if isinstance(content, bytes) else content())
        return model

    return write


def _pipe(name: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        model = linked_model(folder, name)
        os.mkfifo(model / name)
        return model

    return write


def _device(name: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        model = linked_model(folder, name)
        (model / name).symlink_to("/dev/zero")
        return model

    return write


def _sparse_weights(folder: Path) -> Path:
    """A header of 90 MB: safetensors reads up to 100."""
    model = linked_model(folder, WEIGHTS_FILE)
    empty = b'"%07x":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}'
    header = b"{" + b",".join(empty % number for number in range(1_600_000)) + b"}"
    (model / WEIGHTS_FILE).write_bytes(struct.pack("<Q", len(header)) + header)
    return model


def _weights(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], Path]:
    """Other weights under the digest of the bundled ones."""

    def write(folder: Path) -> Path:
        import safetensors.numpy

        config = json.loads((BUNDLED / CONFIG_FILE).read_text(encoding="utf-8"))
        model = with_config(lambda other: other.update(digest=config["digest"]))(folder)
        tensors = safetensors.numpy.load_file(BUNDLED / WEIGHTS_FILE)
        change(tensors)
        (model / WEIGHTS_FILE).unlink()
        content = safetensors.numpy.save(tensors, {"digest": config["digest"]})
        (model / WEIGHTS_FILE).write_bytes(content)
        return model

    return write


def _first_becomes(value: float) -> Callable[[dict[str, Any]], object]:
    def change(tensors: dict[str, Any]) -> None:
        name = sorted(tensors)[0]
        tensors[name] = tensors[name].copy()
        tensors[name].reshape(-1)[0] = value

    return change


def _as_integers(tensors: dict[str, Any]) -> None:
    name = sorted(name for name, value in tensors.items() if value.dtype.kind == "f")[0]
    tensors[name] = tensors[name].astype("int16")


# ---------------------------------------------------------------- graphs

Graph = Any
"""An `onnx.ModelProto`."""


def changed_graph(change: Callable[[Graph], object]) -> Callable[[Path], Path]:
    """Another graph of level 0."""

    def write(folder: Path) -> Path:
        import onnx

        model = with_config(lambda config: config, graphs=True)(folder)
        graph = onnx.load(BUNDLED / graph_file(0), load_external_data=False)
        change(graph)
        (model / graph_file(0)).unlink()
        (model / graph_file(0)).write_bytes(graph.SerializeToString())
        return model

    return write


def _graph_bytes(change: Callable[[bytes], bytes]) -> Callable[[Path], Path]:
    """Other bytes in place of the graph of level 0."""

    def write(folder: Path) -> Path:
        model = with_config(lambda config: config, graphs=True)(folder)
        (model / graph_file(0)).unlink()
        (model / graph_file(0)).write_bytes(change((BUNDLED / graph_file(0)).read_bytes()))
        return model

    return write


def _adding(
    operator: str, *inputs: list[int] | list[float] | str, **attributes: Any
) -> Callable[[Path], Path]:
    """A node in front, on constants; its sum is added to the logits, so that it has to be computed."""

    def change(model: Graph) -> None:
        from onnx import helper, numpy_helper

        names = []
        for index, value in enumerate(inputs):
            names.append(value if isinstance(value, str) else f"hostile{index}")
            if not isinstance(value, str):
                array = _array(value)
                model.graph.initializer.append(numpy_helper.from_array(array, names[-1]))
        model.graph.node.append(helper.make_node(operator, names, ["hostile"], "hostile", **attributes))
        into_logits(model, "hostile")

    return changed_graph(change)


def _array(value: list[int] | list[float]) -> Any:
    import numpy as np

    return np.array(value, np.float32 if isinstance(value[0], float) else np.int64)


def into_logits(model: Graph, name: str) -> None:
    """Add the largest number of a tensor to the logits, so that it has to be computed."""
    from onnx import helper

    for node in model.graph.node:
        for index, output in enumerate(node.output):
            if output == "logits":
                node.output[index] = "true_logits"
    model.graph.node.extend(
        [
            helper.make_node("Cast", [name], ["as_float"], "as_float", to=1),
            helper.make_node("ReduceMax", ["as_float"], ["largest"], "largest", keepdims=0),
            helper.make_node("Add", ["true_logits", "largest"], ["logits"], "sum"),
        ]
    )


def _doubling(model: Graph) -> None:
    """Forty nodes, each of which doubles what it reads."""
    from onnx import helper

    before = "images"
    for step in range(40):
        after = f"doubled{step}"
        model.graph.node.append(helper.make_node("Concat", [before, before], [after], after, axis=0))
        before = after
    into_logits(model, before)


def _multiplying(model: Graph) -> None:
    """Matrices of 4 million numbers, multiplied two thousand times."""
    from onnx import helper, numpy_helper

    model.graph.initializer.append(numpy_helper.from_array(_array([2048, 2048]), "shape"))
    model.graph.node.append(helper.make_node("ConstantOfShape", ["shape"], ["matrix"], "matrix"))
    before = "matrix"
    for step in range(2000):
        model.graph.node.append(helper.make_node("MatMul", [before, "matrix"], [f"m{step}"], f"m{step}"))
        before = f"m{step}"
    into_logits(model, before)


def _loop(model: Graph) -> None:
    from onnx import TensorProto, helper, numpy_helper

    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Identity", ["x"], ["y"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("x", TensorProto.FLOAT, [1]),
        ],
        [
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("y", TensorProto.FLOAT, [1]),
        ],
    )
    model.graph.initializer.append(numpy_helper.from_array(_array([10**15]), "times"))
    model.graph.initializer.append(numpy_helper.from_array(_array([1.0]), "begin"))
    model.graph.node.append(helper.make_node("Loop", ["times", "", "begin"], ["hostile"], "loop", body=body))
    into_logits(model, "hostile")


def _wanting(model: Graph) -> None:
    """An input that no level below gives."""
    from onnx import TensorProto, helper

    model.graph.input.append(helper.make_tensor_value_info("given0", TensorProto.FLOAT, ["batch", 8]))


def _foreign(model: Graph) -> None:
    model.graph.node[5].domain = "com.microsoft"
    model.opset_import.add(domain="com.microsoft", version=1)


def _function(model: Graph) -> None:
    from onnx import helper

    inner = helper.make_node("Identity", ["a"], ["b"])
    model.functions.append(helper.make_function("", "Relu", ["a"], ["b"], [inner], model.opset_import))


def _weight_at(**place: str) -> Callable[[Path], Path]:
    """A weight that lies elsewhere."""

    def change(model: Graph) -> None:
        tensor = next(each for each in model.graph.initializer if each.external_data)
        for entry in tensor.external_data:
            entry.value = place.get(entry.key, entry.value)

    return changed_graph(change)


def _declared(model: Graph) -> None:
    tensor = next(each for each in model.graph.initializer if not each.external_data)
    del tensor.dims[:]
    tensor.dims.extend([10**6, 10**6])


def _no_images(model: Graph) -> None:
    model.graph.input[0].type.tensor_type.elem_type = 1


def _other_classes(model: Graph) -> None:
    from onnx import helper

    into_logits(model, "true_logits")
    model.graph.node[-1].output[0] = "most"
    model.graph.node.append(helper.make_node("Concat", ["most", "most"], ["logits"], "twice", axis=1))


SPECIAL = {CONFIG_FILE: "no regular file", WEIGHTS_FILE: "no regular file", graph_file(0): "", CARD: ""}
"""File of a model → what is said where it is a pipe or a device; without its graphs torch runs a model."""
DEEP = b'{"format":"hierclass-checkpoint","version":1,"architecture":' + b'{"a":' * 5000 + b"1" + b"}" * 5001
LONG = b'{"format":"hierclass-checkpoint","version":' + b"9" * 5000 + b"}"
BILLION = {"backbone": "vit_giant_patch14_224", "sizes": None, "own": "norms"}
LEFT_OUT = {"levels": 3, "widths": [1.0] * 4, "sizes": [64, 128, 224, 224], "own": "norms"}
HALF_SAID = {"widths": [0.001, 0.5, 0.75, 1.0], "levels": 3, "leaves": 1000}

MODELS = [
    # what a folder says of itself
    HostileFile(
        "four stages of a million blocks",
        _network(backbone="resnet18", backbone_args={"layers": [10**6] * 4}),
        "no network of timm takes",
    ),
    HostileFile(
        "four stages of 60,000 blocks",
        _network(backbone="resnet18", backbone_args={"layers": [60_000] * 4}),
        "much larger network",
    ),
    HostileFile(
        "layers of 65,536 channels",
        _tiny_network(backbone_args={"channels": [65_536] * 4}),
        "much larger network",
    ),
    HostileFile(
        "a transformer of 16,000 blocks",
        _tiny_network(backbone="vit_tiny_patch16_224", backbone_args={"depth": 16_000}),
        "much larger network",
    ),
    HostileFile("a network of a billion weights", _network(**BILLION), "much larger network"),
    HostileFile(
        "a billion weights of which the file holds a part", _network(**BILLION, **HALF_SAID), "larger network"
    ),
    HostileFile(
        "a position for every pixel of a huge image",
        _tiny_network(backbone="vit_tiny_patch16_224", backbone_args={"img_size": 65_536}),
        "much larger network",
    ),
    HostileFile("a million levels", _network(widths=[1.0] * 10**6), "more than 64 levels"),
    HostileFile("10^12 leaves that were left out", _network(**LEFT_OUT, leaves=10**12), "does not fit"),
    HostileFile(
        "a file of weights in an argument",
        _network(backbone_args={"pretrained": "/dev/zero"}),
        "can't be given 'pretrained'",
    ),
    HostileFile("an argument nested 5,000 deep", _file(CONFIG_FILE, DEEP), "config.json"),
    HostileFile(
        "results nested 400 deep",
        with_config(lambda config: config.update(results={"a": json.loads("[" * 400 + "]" * 400)})),
        "nested more than 32 deep",
    ),
    HostileFile("64 MB of open brackets", _file(CONFIG_FILE, lambda: b"[" * (64 << 20)), "can't be read"),
    HostileFile("a number of 5,000 digits", _file(CONFIG_FILE, LONG), "can't be read"),
    HostileFile(
        "a width of 10^400",
        with_config(lambda config: config["architecture"].update(widths=[10**400] * 3)),
        "does not describe a model",
    ),
    HostileFile(
        "a temperature of 10^400",
        with_config(lambda config: config["decision"].update(temperatures=[10**400] * 3)),
        "does not describe a model",
    ),
    HostileFile("a tree of 100,000 leaves", _nodes(99_000), "does not fit"),
    HostileFile("a tree of 500,000 leaves", _nodes(500_000), "are read"),
    HostileFile("a tree of 3,000 tiers", _tiers(3_000), "up to 64 are read"),
    HostileFile("a tree 100,000 deep", _chain(100_000), "nodes above it"),
    # files that are none
    *(HostileFile(f"{name} is a pipe", _pipe(name), says) for name, says in SPECIAL.items()),
    *(HostileFile(f"{name} is /dev/zero", _device(name), says) for name, says in SPECIAL.items()),
    # weights
    HostileFile("a header of 90 MB", _sparse_weights, "its header has"),
    HostileFile("a weight that is infinite", _weights(_first_becomes(float("inf"))), "no finite numbers"),
    HostileFile("a weight that is no number", _weights(_first_becomes(float("nan"))), "no finite numbers"),
    HostileFile("weights that are whole numbers", _weights(_as_integers), "is of type I16"),
    HostileFile(
        "a weight that was changed", _weights(_first_becomes(0.125)), "was changed after it was written"
    ),
    # graphs
    HostileFile("a constant of 10^12 numbers", _adding("ConstantOfShape", [10**12]), "are allowed"),
    HostileFile(
        "a constant of 10^10 numbers, which memory seems to have",
        _adding("ConstantOfShape", [10**5, 10**5]),
        "are allowed",
    ),
    HostileFile("a number repeated 10^12 times", _adding("Expand", [1.0], [10**6, 10**6]), "are allowed"),
    HostileFile("a tensor tiled 10^9 times", _adding("Tile", [1, 2, 3, 4], [10**9]), "are allowed"),
    HostileFile("a padding of 10^11", _adding("Pad", [1.0], [0, 10**11]), "are allowed"),
    HostileFile(
        "an image resized to 10^12 pixels",
        _adding("Resize", "images", "", "", [1, 10**6, 10**6, 3], mode="nearest"),
        "are allowed",
    ),
    HostileFile("rows of 10^11 classes", _adding("OneHot", [1, 2], [10**11], [0.0, 1.0]), "are allowed"),
    HostileFile("a tensor doubled 40 times", changed_graph(_doubling), "are allowed"),
    HostileFile("2,000 products of large matrices", changed_graph(_multiplying), "more memory or time"),
    HostileFile("a loop of 10^15 rounds", changed_graph(_loop), "'Loop'"),
    HostileFile("an operator that is not ONNX's own", changed_graph(_foreign), "not ONNX's own"),
    HostileFile("a function in place of an operator", changed_graph(_function), "functions of its own"),
    HostileFile(
        "a weight in another folder",
        _weight_at(location="../../../../etc/passwd", offset="0"),
        "in another file",
    ),
    HostileFile("a weight in a device", _weight_at(location="/dev/zero"), "in another file"),
    HostileFile("a weight beyond the end of its file", _weight_at(offset=str(2**40)), "is not in"),
    HostileFile("a weight as long as all others together", _weight_at(length=str(10**7)), "is not in"),
    HostileFile(
        "a weight of 10^12 numbers that the graph holds",
        changed_graph(_declared),
        "other numbers than its shape says",
    ),
    HostileFile("a graph that takes floats", changed_graph(_no_images), "does not take images"),
    HostileFile("a graph of other classes", changed_graph(_other_classes), "it gives logits"),
    HostileFile("a graph that reads what no level gives", changed_graph(_wanting), "can't be run: 'given0'"),
    HostileFile("a graph of random bytes", _graph_bytes(lambda _: bytes(range(256)) * 400), ""),
    HostileFile(
        "a graph of which half is missing", _graph_bytes(lambda content: content[: len(content) // 2]), ""
    ),
]
