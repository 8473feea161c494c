"""Small real objects that many tests share: a tree of 12 leaves and an untrained model of it."""

from __future__ import annotations

import dataclasses
import gc
import io
import json
import os
import random
import shutil
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from taxonomy import Node, Taxonomy

if TYPE_CHECKING:
    from training.recipe.recipe import Recipe

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # the cores are shared with other files of tests
gc.set_threshold(50_000, 20, 20)  # cutting networks makes many objects, and few of them go round in circles
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test fetches weights, wherever it runs
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # nor sends anything
if (
    signal.getsignal(signal.SIGINT) is signal.SIG_IGN
):  # a shell's job in the background, whose children would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("hierclass")
    group.addoption("--sample", type=int, metavar="N", help="run at most N cases of every test marked `full`")
    group.addoption(
        "--sample-seed", type=int, metavar="SEED", help="which cases --sample takes (default: drawn)"
    )


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    if config.option.sample and config.option.sample_seed is None:
        drawn = os.environ.setdefault("HIERCLASS_SAMPLE_SEED", str(random.randrange(10_000)))
        config.option.sample_seed = int(drawn)  # pytest-xdist's processes inherit it


def pytest_report_header(config: pytest.Config) -> str | None:
    if config.option.sample is None:
        return None
    return f"sampled: --sample {config.option.sample} --sample-seed {config.option.sample_seed}"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With ``--sample N``, keep N cases of each test function marked `full`, drawn by the seed."""
    if config.option.sample is None:
        return
    cases: dict[str, list[pytest.Item]] = {}
    for item in items:
        if item.get_closest_marker("full"):
            cases.setdefault(item.nodeid.partition("[")[0], []).append(item)
    left_out: set[pytest.Item] = set()
    for name, found in cases.items():
        count = min(config.option.sample, len(found))
        drawn = random.Random(f"{config.option.sample_seed} {name}").sample(found, count)
        left_out.update(set(found).difference(drawn))
    config.hook.pytest_deselected(items=sorted(left_out, key=lambda item: item.nodeid))
    items[:] = [item for item in items if item not in left_out]


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

    from hierclass.checkpoints.checkpoint import Checkpoint, build, save_checkpoint
    from hierclass.checkpoints.description import Architecture
    from hierclass.images.preprocessing import Preprocessing

    torch.manual_seed(0)
    taxonomy = make_tiny_taxonomy()
    architecture = Architecture(backbone="test_resnet", widths=(0.25, 0.5, 1.0))
    network = build(architecture, taxonomy, 32)
    folder = tmp_path_factory.mktemp("model") / "tiny"
    results = {"dev": {"levels": [{"top1": 0.5}, {"top1": 0.25}, {"top1": 0.125}]}}
    save_checkpoint(
        folder,
        Checkpoint(taxonomy, architecture, Preprocessing(32), results=results, network=network),
        dtype="float32",
    )
    return folder


@pytest.fixture(scope="session")
def tiny_graphs(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of that model, of an early version, with graphs in place of older ones; to be read only."""
    from training_data import make_once

    def make(folder: Path) -> None:
        from hierclass.checkpoints.checkpoint import load_checkpoint
        from hierclass.export.graphs import write_graphs

        model = shutil.copytree(tiny_checkpoint, folder / "tiny")
        config = json.loads((model / "config.json").read_text())
        del config["digest"]  # an early version wrote none
        (model / "config.json").write_text(json.dumps({**config, "graphs": {"digest": "older"}}))
        for name in ("level0.onnx", "graphs.safetensors"):
            (model / name).write_bytes(b"older")
        write_graphs(model, load_checkpoint(model))

    return make_once(tmp_path_factory, "graphs", make) / "tiny"


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 15 images of each leaf, shapes.parquet, and their tree, tiny.json."""
    from training_data import make_once, write_parquet

    def make(folder: Path) -> None:
        make_tiny_taxonomy().save(folder / "tiny.json")
        write_parquet(folder / "shapes.parquet", make_tiny_taxonomy(), 15)

    return make_once(tmp_path_factory, "shapes", make)


@pytest.fixture(scope="session")
def shapes_recipe(shapes: Path) -> Recipe:
    """Two epochs of 5 steps on 120 of the shapes, 60 held out."""
    from training.recipe.recipe import Recipe

    return Recipe(
        data=(str(shapes / "shapes.parquet"),),
        taxonomy=str(shapes / "tiny.json"),
        backbone="test_resnet",
        size=32,
        dev_from=10,
        epochs=2,
        batch_size=24,
        warmup_epochs=0,
        lr=0.05,
        ema_decay=0.9,
    )


@pytest.fixture(scope="session")
def growing_recipe(shapes_recipe: Recipe) -> Recipe:
    """The same with images that grow and are mixed."""
    return dataclasses.replace(shapes_recipe, start_size=24, grow=0.5, cutmix=1.0, mix_prob=0.5)


@pytest.fixture(scope="session")
def unbroken(growing_recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of a run of `growing_recipe` that nobody stopped, to be read only, and what it printed."""
    from training_data import make_once

    from taxonomy.terminal import PlainConsole
    from training.trainer import loop

    def make(folder: Path) -> None:
        text = io.StringIO()
        loop.fit(growing_recipe, folder / "run", workers=0, console=PlainConsole(file=text, width=100))
        (folder / "printed.txt").write_text(text.getvalue())

    folder = make_once(tmp_path_factory, "unbroken", make)
    return folder / "run", (folder / "printed.txt").read_text()
