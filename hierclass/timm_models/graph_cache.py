"""Graphs of timm's classifiers in the user's cache folder: model folders, named by all that they were made of."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import os
import re
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hierclass
from hierclass.checkpoints.description import DIGEST, GRAPHS, ModelDescription, config_text, read_description
from hierclass.errors import ExportError
from hierclass.files import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    leftovers,
    make_folder,
    open_regular,
    read_regular,
    replacing,
)
from hierclass.runtime.onnx_runtime import OnnxRuntime
from taxonomy import Taxonomy

if TYPE_CHECKING:
    from hierclass.checkpoints.checkpoint import Checkpoint

FORMAT = 1
"""Version of what is cached."""
MAX_NOTE_BYTES = 2**20
"""Size of such a file, and of notes; they have some hundred bytes."""
SUMS_FILE = "cached.json"
"""What a cached folder was made with, and the sums of its files."""
MAKERS = ("torch", "timm", "onnxscript", "onnxruntime")
"""Packages on which the graphs depend; where one is not installed, graphs of any version of it are taken."""
SEARCHED = ("HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "TORCH_HOME", "XDG_CACHE_HOME")
"""Variables of the environment that say where timm's own weights lie."""
_NO_MEMORY = re.compile(r"allocate memory|bad_alloc|out of memory|no space left", re.IGNORECASE)


class NoCacheFolderError(OSError):
    """This user has no folder for caches."""


def cache_folder() -> Path:
    """Return where this user's caches of hierclass lie.

    Raises:
        NoCacheFolderError: the user has no home folder.
    """
    chosen = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if chosen.is_absolute():  # a relative one is to be ignored, says the XDG specification
        return chosen / "hierclass"
    if sys.platform == "win32" and (local := os.environ.get("LOCALAPPDATA")):
        return Path(local) / "hierclass" / "Cache"
    caches = Path("Library/Caches") if sys.platform == "darwin" else Path(".cache")
    try:
        return Path.home() / caches / "hierclass"
    except RuntimeError as error:
        raise NoCacheFolderError("there is no home folder; name a folder in XDG_CACHE_HOME") from error


@dataclass(frozen=True)
class CachedGraphs:
    """The graphs of one classifier with one tree, which may have been written or not."""

    folder: Path

    @classmethod
    def of(cls, name: str, weights: Path, taxonomy: Taxonomy) -> CachedGraphs:
        """Return those of timm's `name` with the weights of a file, whatever the file is called.

        Raises:
            OSError: the file can't be read, or there is no cache folder (`NoCacheFolderError`).
        """
        made_of = [FORMAT, hierclass.__version__, name, _sum(weights), taxonomy.to_dict()]
        key = hashlib.sha256(json.dumps(made_of).encode()).hexdigest()[:24]
        return cls(cache_folder() / "timm" / f"{_file_name(name)}-{key}")

    def open(self, threads: int | None) -> tuple[ModelDescription, OnnxRuntime] | None:
        """Return what was written; None if there is nothing, it is damaged, or other versions made it."""
        try:
            found = json.loads(read_regular(self.folder / SUMS_FILE, MAX_NOTE_BYTES))
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

        If it can't be exported that is noted, so that the next call need not try; a lack of memory is not.

        Raises:
            ExportError: it can't be exported.
            OSError: the folder can't be written.
        """
        refused = self.folder.with_name(f"{self.folder.name}.refused.json")
        if (reason := _read_note(refused, "reason")) is not None:
            raise ExportError(str(reason))
        try:
            files = _contents(checkpoint)
        except ExportError as error:
            if not _may_pass(error):
                _write_note(refused, "reason", str(error))
            raise
        make_folder(self.folder.parent)
        for left in leftovers(self.folder.parent):
            _remove(left)
        made = self.folder.with_name(f".{self.folder.name}.{os.getpid()}.tmp")
        _remove(made)
        made.mkdir()
        try:
            for name, content in files.items():
                (made / name).write_bytes(content)
            facts = {"versions": _versions(), "sums": CachedGraphs(made)._sums(files)}
            (made / SUMS_FILE).write_text(json.dumps(facts), encoding="utf-8")
            self._put_in_place(made)
        finally:
            _remove(made)

    def _put_in_place(self, made: Path) -> None:
        """Rename a folder to this one; a whole one that another process has made meanwhile stays."""
        with contextlib.suppress(OSError):  # it is there
            made.rename(self.folder)
            return
        if self.open(None) is not None:
            return
        aside = self.folder.with_name(f".{self.folder.name}.old.{os.getpid()}.tmp")
        _remove(aside)
        with contextlib.suppress(FileNotFoundError):  # another process moves it
            self.folder.rename(aside)
        try:
            made.rename(self.folder)
        except OSError:
            if self.open(None) is None:
                raise
        finally:
            _remove(aside)

    def _sums(self, names: Iterable[str]) -> dict[str, str]:
        """SHA-256 sums of files of the folder."""
        return {name: _sum(self.folder / name) for name in names}


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


def _sum(file: Path) -> str:
    """The SHA-256 sum of a file."""
    with open_regular(file) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _may_pass(error: BaseException) -> bool:
    """Return whether an export failed for want of memory or a file, which says nothing of the classifier."""
    return any(
        isinstance(each, (MemoryError, OSError)) or _NO_MEMORY.search(str(each)) for each in _chain(error)
    )


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and its causes."""
    while error is not None:
        yield error
        error = error.__cause__


def _remove(path: Path) -> None:
    """Remove a folder or a file, if that can be done."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


def remember_weights(name: str, file: Path) -> None:
    """Note where timm's own weights of `name` were, so that the next call need not ask timm."""
    file = file.absolute()
    with contextlib.suppress(OSError):
        _write_note(_weights_note(name), "found", {"file": str(file), "state": _state(file)})


def recall_weights(name: str) -> Path | None:
    """Return where timm's own weights of `name` were; None if that is not known, or timm may find others now.

    Raises:
        NoCacheFolderError: there is no cache folder.
    """
    found = _read_note(_weights_note(name), "found")
    try:
        file = Path(found["file"])
        return file if found["state"] == _state(file) else None
    except (OSError, KeyError, TypeError):
        return None


def _state(file: Path) -> list[Any]:
    """What changes when timm may find other weights: the file, the environment, and the hub's newest versions."""
    now = file.stat()
    hub = next((each.parent / "refs" for each in file.parents if each.name == "snapshots"), None)
    refs = [] if hub is None else sorted(each for each in hub.rglob("*") if each.is_file())
    newest = [[str(each), each.read_text(encoding="utf-8", errors="replace")] for each in refs]
    return [now.st_size, now.st_mtime_ns, [os.environ.get(name) for name in SEARCHED], newest]


def _weights_note(name: str) -> Path:
    return cache_folder() / "timm" / f"{_file_name(name)}.weights.json"


def _write_note(file: Path, key: str, value: object) -> None:
    make_folder(file.parent)
    with replacing(file) as temporary:
        temporary.write_text(json.dumps({"versions": _versions(), key: value}), encoding="utf-8")


def _read_note(file: Path, key: str) -> Any:
    """Return the value of a note; None if there is none, or other versions wrote it."""
    try:
        found = json.loads(read_regular(file, MAX_NOTE_BYTES))
        return found[key] if _fits(found["versions"]) else None
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
