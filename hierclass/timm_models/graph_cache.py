"""Graphs of timm's classifiers in the user's cache folder: model folders, named by all that they were made of."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hierclass
from hierclass.checkpoints.description import DIGEST, GRAPHS, ModelDescription, config_text, read_description
from hierclass.errors import ExportError
from hierclass.files import CONFIG_FILE, WEIGHTS_FILE, replacing
from hierclass.runtime.onnx_runtime import OnnxRuntime
from taxonomy import Taxonomy

if TYPE_CHECKING:
    from hierclass.checkpoints.checkpoint import Checkpoint

FORMAT = 1
"""Version of what is cached."""
SUMS_FILE = "cached.json"
"""What a cached folder was made with, and the sums of its files."""
MAKERS = ("torch", "timm", "onnxscript")
"""Packages on which the graphs depend; where one is not installed, graphs of any version of it are taken."""


def cache_folder() -> Path:
    """Return where this user's caches of hierclass lie."""
    if chosen := os.environ.get("XDG_CACHE_HOME"):
        return Path(chosen) / "hierclass"
    if sys.platform == "win32" and (local := os.environ.get("LOCALAPPDATA")):
        return Path(local) / "hierclass" / "Cache"
    caches = Path("Library/Caches") if sys.platform == "darwin" else Path(".cache")
    return Path.home() / caches / "hierclass"


@dataclass(frozen=True)
class CachedGraphs:
    """The graphs of one classifier with one tree, which may have been written or not."""

    folder: Path

    @classmethod
    def of(cls, name: str, weights: Path, taxonomy: Taxonomy) -> CachedGraphs:
        """Return those of timm's `name` with the weights of a file, whatever the file is called."""
        with weights.open("rb") as stream:
            contents = hashlib.file_digest(stream, "sha256").hexdigest()
        made_of = [FORMAT, hierclass.__version__, name, contents, taxonomy.to_dict()]
        key = hashlib.sha256(json.dumps(made_of).encode()).hexdigest()[:24]
        return cls(cache_folder() / "timm" / f"{_file_name(name)}-{key}")

    def open(self, threads: int | None) -> tuple[ModelDescription, OnnxRuntime] | None:
        """Return what was written; None if there is nothing, it is damaged, or other versions made it."""
        try:
            found = json.loads((self.folder / SUMS_FILE).read_text(encoding="utf-8"))
            if not _fits(found["versions"]) or found["sums"] != self._sums(found["sums"]):
                return None
            description, graphs = read_description(self.folder)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):  # CheckpointError is a ValueError
            return None
        return (
            None if graphs is None else (description, OnnxRuntime(self.folder, description, graphs, threads))
        )

    def write(self, checkpoint: Checkpoint) -> None:
        """Export a classifier and put it in place of what is there, unless that is whole.

        If it can't be exported that is noted, so that the next call need not try.

        Raises:
            ExportError: it can't be exported.
            OSError: the folder can't be written.
        """
        refused = self.folder.with_name(f"{self.folder.name}.refused.json")
        if (reason := _read_note(refused, "reason")) is not None:
            raise ExportError(reason)
        try:
            files = _contents(checkpoint)
        except ExportError as error:
            _write_note(refused, "reason", str(error))
            raise
        made = self.folder.with_name(f".{self.folder.name}.{os.getpid()}.tmp")
        shutil.rmtree(made, ignore_errors=True)
        made.mkdir(parents=True)
        try:
            for name, content in files.items():
                (made / name).write_bytes(content)
            facts = {"versions": _versions(), "sums": CachedGraphs(made)._sums(files)}
            (made / SUMS_FILE).write_text(json.dumps(facts), encoding="utf-8")
            if self.open(None) is None:  # another process may have been faster
                shutil.rmtree(self.folder, ignore_errors=True)
                with contextlib.suppress(OSError):
                    made.rename(self.folder)
        finally:
            shutil.rmtree(made, ignore_errors=True)

    def _sums(self, names: Mapping[str, Any]) -> dict[str, str | int]:
        """SHA-256 sums of files, and of the large one the size."""
        return {
            name: (self.folder / name).stat().st_size
            if name == WEIGHTS_FILE
            else hashlib.sha256((self.folder / name).read_bytes()).hexdigest()
            for name in names
        }


def _contents(checkpoint: Checkpoint) -> dict[str, bytes]:
    """Return the files of a model folder that holds a network for ONNX Runtime alone."""
    import safetensors.torch

    from hierclass.checkpoints.checkpoint import contents_digest, describe
    from hierclass.export.graphs import make_graphs

    tensors = {name: value.detach().clone() for name, value in checkpoint.network.state_dict().items()}
    config = describe(checkpoint)
    config[DIGEST] = digest = contents_digest(config, tensors)
    weights = safetensors.torch.save(tensors, metadata={DIGEST: digest})
    made = make_graphs(checkpoint.network, checkpoint.preprocessing, {WEIGHTS_FILE: weights})
    config[GRAPHS] = {DIGEST: digest, **made.entry}
    return {WEIGHTS_FILE: weights, **made.contents, CONFIG_FILE: config_text(config).encode()}


def remember_weights(name: str, file: Path) -> None:
    """Note where timm's own weights of `name` were, so that the next call need not ask timm."""
    with contextlib.suppress(OSError):
        _write_note(_weights_note(name), "file", str(file.absolute()))


def recall_weights(name: str) -> Path | None:
    """Return where timm's own weights of `name` were; None if that is not known."""
    found = _read_note(_weights_note(name), "file")
    return None if found is None else Path(found)


def _weights_note(name: str) -> Path:
    return cache_folder() / "timm" / f"{_file_name(name)}.weights.json"


def _write_note(file: Path, key: str, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as temporary:
        temporary.write_text(json.dumps({"versions": _versions(), key: text}), encoding="utf-8")


def _read_note(file: Path, key: str) -> str | None:
    """Return the text of a note; None if there is none, or other versions wrote it."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        return str(found[key]) if _fits(found["versions"]) else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _versions() -> dict[str, str]:
    """Versions of the packages of `MAKERS` that are installed; none is imported."""
    found = {}
    for name in MAKERS:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def _fits(made_with: Mapping[str, str]) -> bool:
    return all(made_with.get(name) == version for name, version in _versions().items())


def _file_name(name: str) -> str:
    """A model's name as part of the name of a file."""
    return "".join(char if char.isalnum() or char in "._-" else "_" for char in name)
