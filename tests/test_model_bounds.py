"""Model folders that a stranger made: each is refused in one line, or read, and none takes much memory or time."""

from __future__ import annotations

import contextlib
import json
import os
import random
import struct
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from conftest import make_tiny_taxonomy
from hostile import HostileFile
from hostile.graphs import GRAPHS
from hostile.models import MODELS
from torch import nn

import hierclass
from hierclass.checkpoints import bounded_build, weights_header
from hierclass.checkpoints.checkpoint import Checkpoint, build, load_checkpoint, save_checkpoint
from hierclass.checkpoints.description import Architecture
from hierclass.checkpoints.weights_header import WeightsHeader, check_archive, open_weights
from hierclass.errors import BackboneError, CheckpointError, HierclassError
from hierclass.files import BUNDLED, graph_file, int8_file, open_regular, read_regular
from hierclass.images.preprocessing import Preprocessing
from hierclass.page.model_info import read_card
from hierclass.runtime import graph_bounds
from hierclass.runtime.graph_bounds import check_graph
from hierclass.runtime.graph_reader import read_graph

SLOW = (
    "a tree of 100,000 leaves",
    "a tree 100,000 deep",
    "a tree of 500,000 leaves",
    "a tree of 3,000 tiers",
    "64 MB of open brackets",
    "a header of 90 MB",
    "four stages of 60,000 blocks",
    "a weight that is no number",
    "weights that are whole numbers",
    "MODEL_CARD.md is a pipe",
    "a weight that is infinite",
    "MODEL_CARD.md is /dev/zero",
    "a million levels",
    "level0.onnx is a pipe",
    "level0.onnx is /dev/zero",
)
"""What takes seconds to make or to refuse."""
CASES = [
    pytest.param(each, id=each.name, marks=pytest.mark.full if each.name in SLOW else ())
    for each in (*MODELS, *GRAPHS)
]
BLACK = np.zeros((32, 32, 3), np.uint8)


@pytest.mark.parametrize("hostile", CASES)
def test_a_hostile_model_is_refused_in_one_line_or_read(hostile: HostileFile, tmp_path: Path) -> None:
    folder = hostile.write(tmp_path)
    try:
        classifier = hierclass.load(folder, device="cpu")
        for level in classifier.levels:
            classifier.predict(BLACK, level.index)
        read_card(folder)
        said = ""
    except HierclassError as error:
        said = str(error)
    assert hostile.says in said
    assert "\n" not in said


def test_the_links_of_an_honest_model_are_followed(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    for file in BUNDLED.iterdir():
        (tmp_path / "model" / file.name).symlink_to(file)
    ours, theirs = hierclass.load(tmp_path / "model", device="cpu"), hierclass.load(device="cpu")
    assert ours.predict(BLACK) == theirs.predict(BLACK)


@pytest.fixture(scope="module")
def num_classes() -> tuple[int, ...]:
    """The number of classes of each level of the bundled model."""
    return hierclass.load(device="cpu").taxonomy.num_classes


@pytest.mark.parametrize("name", [graph_file(0), graph_file(2), int8_file(1)])
def test_the_graphs_of_the_bundled_model_are_within_the_bounds(
    name: str, num_classes: tuple[int, ...]
) -> None:
    content, classes = (BUNDLED / name).read_bytes(), num_classes[int(name[5])]
    check_graph(content, BUNDLED, 224, classes)
    with pytest.raises(ValueError, match="it gives logits"):
        check_graph(content, BUNDLED, 224, classes + 1)


@pytest.mark.parametrize(("name", "most"), [("AT_ONCE", 0), ("MAX_MACS", 1000)])
def test_a_graph_that_takes_more_memory_or_time_than_others_is_refused(
    name: str, most: int, num_classes: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graph_bounds, name, most)
    with pytest.raises(ValueError, match="more memory or time"):
        check_graph((BUNDLED / graph_file(0)).read_bytes(), BUNDLED, 224, num_classes[0])


def test_a_graph_that_is_changed_anywhere_is_read_or_refused_in_one_line(
    num_classes: tuple[int, ...],
) -> None:
    whole, chance = (BUNDLED / graph_file(2)).read_bytes(), random.Random(0)
    for _ in range(40):
        content = bytearray(whole)
        for _ in range(chance.choice((1, 3, 10))):
            content[chance.randrange(len(content))] = chance.randrange(256)
        with contextlib.suppress(OSError, ValueError):  # nothing else may be raised
            check_graph(bytes(content), BUNDLED, 224, num_classes[2])
    for length in range(1, 400, 7):
        with pytest.raises(ValueError, match="it "):
            read_graph(whole[:length])


# ---------------------------------------------------------------- networks


def model_of(folder: Path, name: str, size: int, **arguments: Any) -> tuple[Path, Checkpoint]:
    """Write an untrained model of three levels."""
    torch.manual_seed(0)
    tree, architecture = make_tiny_taxonomy(), Architecture(name, (0.25, 0.5, 1.0), arguments)
    network = build(architecture, tree, size, proof=False).eval()
    checkpoint = Checkpoint(tree, architecture, Preprocessing(size), network=network)
    save_checkpoint(folder / "model", checkpoint, dtype="float32")
    return folder / "model", checkpoint


SWIN = {"img_size": 32, "embed_dim": 24, "depths": (2, 2), "num_heads": (3, 6), "window_size": 4}


@pytest.mark.parametrize(
    ("name", "arguments", "proven"),
    [
        ("test_efficientnet", {}, True),
        ("test_efficientnet", {}, False),
        ("swin_tiny_patch4_window7_224", SWIN, True),  # whose tables of positions no file holds
    ],
)
def test_a_network_that_was_built_without_memory_answers_as_it_did(
    name: str, arguments: dict[str, Any], proven: bool, tmp_path: Path
) -> None:
    folder, before = model_of(tmp_path, name, 32, **arguments)
    if not proven:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "proven": None}))
    network = load_checkpoint(folder).network
    image = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        for ours, theirs in zip(network.forward_all(image), before.network.forward_all(image), strict=True):
            assert torch.equal(ours, theirs)
    trained = [value.requires_grad for value in network.parameters()]
    assert trained == [value.requires_grad for value in before.network.parameters()]


def test_what_takes_too_long_to_make_is_stopped() -> None:
    with pytest.raises(BackboneError, match=r"within 0\.05 seconds"), bounded_build._deadline(0.05):
        for _ in range(10**9):  # timm fills tables of positions so
            pass
    with bounded_build._deadline(0.02):
        pass
    time.sleep(0.05)  # where nothing may be raised any more


@pytest.mark.parametrize("kind", [torch.float16, torch.float32])
def test_a_network_may_have_no_more_numbers_than_its_file_allows(kind: torch.dtype) -> None:
    header = WeightsHeader({"a": ("F32", (1000, 1000))}, {})
    limits = bounded_build.BuildLimits(header, (1.0, 1.0))
    with limits.creating(), torch.device("meta"):
        nn.Linear(1000, 2000, dtype=kind)
    with pytest.raises(BackboneError, match="much larger network"), limits.creating(), torch.device("meta"):
        nn.Linear(10_000, 2000, dtype=kind)
    nn.Linear(3000, 3000)  # elsewhere nothing is counted


def test_a_network_that_is_deep_and_narrow_is_stopped() -> None:
    limits = bounded_build.BuildLimits(WeightsHeader({}, {}), (1.0, 1.0))
    with pytest.raises(BackboneError, match="much larger network"), limits.creating():
        nn.Sequential(*(nn.Linear(1, 1) for _ in range(600)))
    with pytest.raises(BackboneError, match="much deeper network"), limits.creating():
        nn.Sequential(*(nn.ReLU() for _ in range(20_000)))


def test_arguments_that_name_files_are_kept_and_never_used(tmp_path: Path) -> None:
    folder, _ = model_of(tmp_path, "test_resnet", 32)
    os.mkfifo(tmp_path / "pipe")
    config = json.loads((folder / "config.json").read_text())
    del config["digest"]
    config["architecture"]["backbone_args"] = {"checkpoint_path": f"{tmp_path}/{'x/../' * 100}pipe"}
    (folder / "config.json").write_text(json.dumps(config))
    from hierclass.checkpoints.new_classes import with_new_classes

    model = load_checkpoint(folder)
    assert "checkpoint_path" in model.architecture.backbone_args
    with_new_classes(model, make_tiny_taxonomy(), [0, 1, 2])


# ---------------------------------------------------------------- files


def test_only_regular_files_and_links_to_them_are_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    os.mkfifo(tmp_path / "pipe")
    assert read_regular(tmp_path / "link", 3) == b"abc"
    with pytest.raises(OSError, match="larger than"):
        read_regular(tmp_path / "file", 2)
    for name in ("pipe", "/dev/zero", "."):
        with pytest.raises(OSError, match="no regular file"), open_regular(tmp_path / name):
            pass


def test_a_header_longer_than_any_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a.safetensors"
    safetensors.torch.save_file({f"t{k}": torch.zeros(1) for k in range(50)}, file)
    assert weights_header.read_header(file).elements == 50
    monkeypatch.setattr(weights_header, "MAX_HEADER_BYTES", 1000)
    with pytest.raises(ValueError, match="its header has"), open_weights(file):
        pass
    file.write_bytes(struct.pack("<Q", 2**63))
    with pytest.raises(ValueError, match="its header has"), open_weights(file):
        pass


def test_a_packed_file_of_torch_is_refused(tmp_path: Path) -> None:
    whole, packed = tmp_path / "a.pth", tmp_path / "b.pth"
    torch.save({"a": torch.zeros(100_000)}, whole)
    check_archive(whole)
    with zipfile.ZipFile(whole) as source, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as target:
        for member in source.infolist():
            target.writestr(member.filename, source.read(member))
    with pytest.raises(ValueError, match="packed"):
        check_archive(packed)


def _expanded(tensors: dict[str, torch.Tensor]) -> None:
    tensors["conv1.weight"] = torch.zeros(1).expand(10**6, 10**6)


def _infinite(tensors: dict[str, torch.Tensor]) -> None:
    tensors[next(iter(tensors))].fill_(torch.inf)


@pytest.mark.parametrize(
    ("change", "says"), [(_expanded, "larger than the file"), (_infinite, "no finite numbers")]
)
def test_weights_of_timm_that_no_file_holds_are_refused(
    change: Callable[[dict[str, torch.Tensor]], None], says: str, tmp_path: Path
) -> None:
    import timm

    from hierclass.timm_models.pretrained_classifier import create_classifier

    tensors = timm.create_model("test_resnet").state_dict()
    change(tensors)
    torch.save(tensors, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=says):
        create_classifier("test_resnet", tmp_path / "a.pth")


def test_a_state_that_is_a_pipe_is_one_line(tmp_path: Path) -> None:
    from training.trainer.resume_state import load_state

    os.mkfifo(tmp_path / "state.safetensors")
    with pytest.raises(CheckpointError, match="cannot be read: it is no regular file"):
        load_state(tmp_path / "state.safetensors", modules={})
