"""Graphs of timm classifiers in the user's cache folder: made once, then run without torch."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from timm_models import CAT, NAME, make_model
from training_data import write_cached_weights

import hierclass
from hierclass.errors import CheckpointError, ExportError
from hierclass.nested.network import NestedNetwork
from hierclass.timm_models.graph_cache import CachedGraphs, cache_folder, recall_weights
from hierclass.timm_models.whole_network import load_whole
from taxonomy import Node, Taxonomy

TREE = Taxonomy(
    name="pets",
    nodes=[Node("root", "thing"), Node("pet", "pet"), Node("n02123045", "tabby"), Node("n02085620", "dog")],
    parents=[-1, 0, 1, 1],
    leaves=["n02123045", "n02085620"],
    tiers=[["pet"], ["n02123045", "n02085620"]],
)
HOW: dict[str, Any] = {"taxonomy": TREE, "device": "cpu"}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("timm") / "weights.safetensors"
    safetensors.torch.save_file(make_model().state_dict(), file)
    return file


@pytest.fixture(scope="module")
def made(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder that holds one classifier, in place of a damaged one; not to be changed."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        damaged = CachedGraphs.of(NAME, weights, TREE).folder
        damaged.mkdir(parents=True)
        (damaged / "level0.onnx").write_bytes(b"half of it")
        assert hierclass.from_timm(NAME, weights=weights, **HOW).runtime.name == "onnx"
    return folder


@pytest.fixture
def cache(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, in use; the folder of the classifier."""
    shutil.copytree(made, tmp_path / "cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (folder,) = (cache_folder() / "timm").iterdir()
    return folder


@pytest.fixture
def no_export(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exporting is an error of its own."""

    def refuse(self: NestedNetwork, level: int) -> torch.nn.Module:
        raise AssertionError("exported again")

    monkeypatch.setattr(NestedNetwork, "level_module", refuse)


def test_both_runtimes_answer_alike(cache: Path, weights: Path) -> None:
    graphs, plain = (
        hierclass.from_timm(NAME, weights=weights, runtime=name, **HOW) for name in ("auto", "torch")
    )
    assert (graphs.runtime.name, plain.runtime.name) == ("onnx", "torch")
    assert graphs.digest == plain.digest
    assert graphs.levels == plain.levels
    for level in range(2):
        ours, theirs = (each.predict(CAT, level) for each in (graphs, plain))
        assert [step.score for step in ours.path] == pytest.approx(
            [step.score for step in theirs.path], abs=1e-5
        )
    assert [answer.synset for answer in graphs.refine(CAT)] == [answer.synset for answer in plain.refine(CAT)]


def test_a_second_call_needs_no_torch(cache: Path, weights: Path, tmp_path: Path) -> None:
    TREE.save(tmp_path / "pets.json")
    copied = shutil.copy(weights, tmp_path / "another-name.bin")
    code = (
        "import sys; sys.modules['torch'] = sys.modules['timm'] = None\n"
        f"import hierclass; found = hierclass.from_timm({NAME!r}, weights={str(copied)!r}, "
        f"taxonomy={str(tmp_path / 'pets.json')!r})\n"
        f"print(found.predict({str(CAT)!r}).synset)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == hierclass.from_timm(NAME, weights=weights, **HOW).predict(CAT).synset


@pytest.mark.usefixtures("no_export")
def test_weights_in_timms_own_cache_are_remembered(
    cache: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_cached_weights(tmp_path / "hub", f"timm/{NAME}.r160_in1k", weights.read_bytes())
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    for _ in range(2):
        assert hierclass.from_timm(NAME, **HOW).runtime.name == "onnx"
    found = recall_weights(NAME)
    assert found is not None
    assert found.is_relative_to(tmp_path / "hub")
    with monkeypatch.context() as patch:
        patch.setenv("HF_HOME", str(tmp_path / "elsewhere"))
        assert recall_weights(NAME) is None
    assert recall_weights(NAME) == found
    refs = next((tmp_path / "hub").rglob("snapshots")).with_name("refs")
    refs.mkdir()
    (refs / "main").write_text("another version")
    assert recall_weights(NAME) is None


def test_what_is_damaged_is_not_used(cache: Path, weights: Path) -> None:
    entry = CachedGraphs(cache)
    assert CachedGraphs.of(NAME, weights, TREE) == entry
    for name in ("level0.onnx", "model.safetensors", "config.json", "cached.json"):
        content = (cache / name).read_bytes()
        (cache / name).write_bytes(content[: len(content) // 2])
        assert entry.open(None) is None
        (cache / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))  # of the same length
        assert entry.open(None) is None
        (cache / name).unlink()
        assert entry.open(None) is None
        (cache / name).write_bytes(content)
        assert entry.open(None) is not None
    assert [each.name for each in cache.parent.iterdir()] == [cache.name]


def test_what_cannot_be_exported_is_run_by_torch_and_tried_once(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[int] = []

    def refuse(self: NestedNetwork, level: int) -> torch.nn.Module:
        tried.append(level)
        raise ExportError("level 0 can't be exported to ONNX: operator aten.unknown")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(NestedNetwork, "level_module", refuse)
    for _ in range(2):
        assert hierclass.from_timm(NAME, weights=weights, **HOW).runtime.name == "torch"
    assert tried == [0]
    with pytest.raises(ExportError, match=r"operator aten\.unknown"):
        hierclass.from_timm(NAME, weights=weights, runtime="onnx", **HOW)


def test_a_lack_of_memory_is_no_lasting_refusal(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[int] = []

    def refuse(self: NestedNetwork, level: int) -> torch.nn.Module:
        tried.append(level)
        raise ExportError("level 0 can't be exported to ONNX: MemoryError") from MemoryError()

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(NestedNetwork, "level_module", refuse)
    for _ in range(2):
        assert hierclass.from_timm(NAME, weights=weights, **HOW).runtime.name == "torch"
    assert tried == [0, 0]


def test_a_whole_folder_stays_and_what_killed_writers_left_goes(
    cache: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        pass
    ours, parents = (cache.parent / f".{cache.name}.{number}.tmp" for number in (gone.pid, os.getppid()))
    for left in (ours, parents):
        left.mkdir()
        (left / "level0.onnx").write_bytes(b"half of it")
    before = cache.stat().st_ino
    files = {file.name: file.read_bytes() for file in cache.iterdir() if file.name != "cached.json"}
    monkeypatch.setattr("hierclass.timm_models.graph_cache._contents", lambda checkpoint: files)
    entry, (checkpoint, _) = CachedGraphs(cache), load_whole(NAME, weights, TREE)
    entry.write(checkpoint)
    assert cache.stat().st_ino == before
    assert sorted(cache.parent.iterdir()) == sorted([cache, parents])
    os.utime(parents, (0, 0))
    (cache / "config.json").unlink()
    entry.write(checkpoint)
    assert entry.open(None) is not None
    assert list(cache.parent.iterdir()) == [cache]


def test_without_a_home_folder_torch_runs_it(
    weights: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.delenv("LOCALAPPDATA", raising=False)
    monkeypatch.setattr(Path, "home", no_home)
    assert hierclass.from_timm(NAME, weights=weights, **HOW).runtime.name == "torch"
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
    with pytest.raises(CheckpointError, match="XDG_CACHE_HOME"):
        hierclass.from_timm(NAME, weights=weights, runtime="onnx", **HOW)


def test_a_cache_folder_that_cannot_be_written_is_done_without(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr("hierclass.timm_models.graph_cache._contents", lambda checkpoint: {})
    assert hierclass.from_timm(NAME, weights=weights, **HOW).runtime.name == "torch"
