"""Small real objects that many tests share: a tree of 12 leaves and an untrained model of it."""

from __future__ import annotations

import gc
import os
import signal
from pathlib import Path

import pytest

from taxonomy import Node, Taxonomy

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # the cores are shared with other files of tests
gc.set_threshold(50_000, 20, 20)  # cutting networks makes many objects, and few of them go round in circles
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test fetches weights, wherever it runs
if (
    signal.getsignal(signal.SIGINT) is signal.SIG_IGN
):  # a shell's job in the background, whose children would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)

TREE = {
    "animal": {
        "dog": ("chihuahua", "beagle", "husky"),
        "cat": ("tabby", "persian"),
        "bird": ("robin", "owl"),
    },
    "vehicle": {"car": ("taxi", "limousine", "jeep"), "boat": ("canoe", "ferry")},
}


def make_tiny_taxonomy() -> Taxonomy:
    """Return a taxonomy of 3 tiers with 2, 5 and 12 classes."""
    nodes, parents = [Node("root", "thing")], [-1]
    tiers: list[list[str]] = [[], [], []]

    def add(tier: int, name: str, parent: int) -> int:
        nodes.append(Node(name, name))
        parents.append(parent)
        tiers[tier].append(name)
        return len(nodes) - 1

    for top, groups in TREE.items():
        top_index = add(0, top, 0)
        for group, leaves in groups.items():
            group_index = add(1, group, top_index)
            for leaf in leaves:
                add(2, leaf, group_index)
    return Taxonomy(name="tiny", nodes=nodes, parents=parents, leaves=tiers[2], tiers=tiers)


@pytest.fixture(scope="session")
def tiny_taxonomy() -> Taxonomy:
    """A taxonomy of 3 tiers with 2, 5 and 12 classes."""
    return make_tiny_taxonomy()


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a real, untrained model: timm's test_resnet, 3 levels, 32 pixels, the tree above."""
    import torch

    from hierclass.checkpoints.checkpoint import Architecture, Checkpoint, build, save_checkpoint
    from hierclass.images.preprocessing import Preprocessing

    torch.manual_seed(0)
    taxonomy = make_tiny_taxonomy()
    architecture = Architecture(backbone="test_resnet", widths=(0.25, 0.5, 1.0))
    network = build(architecture, taxonomy, 32)
    folder = tmp_path_factory.mktemp("model") / "tiny"
    results = {"dev": {"levels": [{"top1": 0.5}, {"top1": 0.25}, {"top1": 0.125}]}}
    save_checkpoint(
        folder,
        Checkpoint(network, taxonomy, architecture, Preprocessing(32), results=results),
        dtype="float32",
    )
    return folder
