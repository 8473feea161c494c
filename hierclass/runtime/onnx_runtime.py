"""Levels run by ONNX Runtime on the processor, from the graphs of a model folder; needs no torch.

Sessions and their threads are made when a level is first run, so that loading starts no thread. A forked child makes
sessions of its own: threads do not survive a fork.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import threading
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hierclass.checkpoints.description import LevelGraphs, ModelDescription
from hierclass.checkpoints.weights_header import open_weights
from hierclass.costs import Cost
from hierclass.errors import CheckpointError
from hierclass.files import BUNDLED, GRAPH_WEIGHTS_FILE, WEIGHTS_FILE, read_graph_file
from hierclass.processors import num_threads
from hierclass.runtime.int8_probe import clips_sums
from hierclass.runtime.interface import Batch, Logits, Runtime

if TYPE_CHECKING:
    import onnxruntime

_RUNTIMES: weakref.WeakSet[OnnxRuntime] = weakref.WeakSet()


class OnnxRuntime(Runtime):
    """Runs the graphs of a model folder; images are uint8 arrays, which the graphs normalise."""

    name = "onnx"

    def __init__(
        self, folder: Path, description: ModelDescription, graphs: LevelGraphs, threads: int | None = None
    ) -> None:
        """Use the graphs of a folder, with N = `threads` threads per call (None: one per core); nothing is run yet."""
        self._folder, self._description, self._graphs = folder, description, graphs
        self.reuses, self.sizes, self.int8 = graphs.reuses, graphs.sizes, graphs.int8
        self.num_classes = description.taxonomy.num_classes
        self.threads = threads or num_threads()
        self._forget()
        _RUNTIMES.add(self)

    def __reduce__(self) -> tuple[type[OnnxRuntime], tuple[object, ...]]:
        """Be pickled as what it runs, so that a started process opens sessions of its own."""
        return OnnxRuntime, (self._folder, self._description, self._graphs, self.threads)

    def _forget(self) -> None:
        """Hold no session."""
        self._lock = threading.Lock()
        self._sessions: dict[int, onnxruntime.InferenceSession] = {}
        self._divided: dict[int, OnnxRuntime] = {}

    def leave_to_parent(self) -> None:
        """Forget sessions in a forked child, without ending them: they would wait for threads of the parent."""
        for session in self._sessions.values():
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(session))
        self._forget()

    @property
    def keeps_rows(self) -> bool:
        """Whether images that change their batch keep what was computed of them, as the graphs' maker found."""
        return self._graphs.keeps_rows

    def cost(self, level: int) -> Cost:
        """Return what a level costs for one image, as it was counted when the graphs were made."""
        return self._graphs.costs[self.check_level(level)]

    def weights(self) -> Iterator[tuple[str, NDArray[Any]]]:
        """Yield name and value of what model.safetensors holds, with the counts of batches that torch keeps.

        The graphs in 8 bits, if those run, follow.
        """
        with open_weights(self._folder / WEIGHTS_FILE) as stream:
            stored = set(stream.keys())
            counts = {
                name.removesuffix("running_mean") + "num_batches_tracked"
                for name in stored
                if name.endswith("running_mean")
            }
            for name in sorted(stored | counts):
                if name not in stored:
                    yield name, np.zeros((), np.int64)
                    continue
                value = stream.get_tensor(name)
                yield name, value.astype(np.float32) if value.dtype == np.float16 else value
        for file in self._graphs.files if self._graphs.int8 else ():
            yield file, np.frombuffer(read_graph_file(self._folder / file), np.uint8)

    def to_batch(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return the images as they are."""
        return pixels

    def run_level(
        self, level: int, images: Batch, kept: tuple[Batch, ...], output: str = "logits", keep: bool = True
    ) -> tuple[Logits, tuple[Batch, ...]]:
        """Compute one level; see `Runtime.run_level`."""
        session = self._session(level)
        kept_names = [each.name for each in session.get_outputs() if each.name.startswith("kept")]
        wanted = [output, *(kept_names if keep else ())]
        given = {"images": images, **{f"given{index}": value for index, value in enumerate(kept)}}
        try:
            inputs = {each.name: given[each.name] for each in session.get_inputs()}
            found, *kept_now = session.run(wanted, inputs)
        except Exception as error:  # of a graph that does not fit the one below it, or the images
            reason = " ".join(str(error).split())[:200]
            raise CheckpointError(f"level {level} of {self._folder} can't be run: {reason}") from error
        if not np.isfinite(found.max(axis=1)).all():
            raise CheckpointError(
                f"level {level} of {self._folder} answers with numbers that are not finite: the model is damaged, or "
                "its training has failed"
            )
        return found, tuple(kept_now)

    def take(self, values: Batch, rows: Sequence[int]) -> Batch:
        """Return the rows of some of the images."""
        return values[list(rows)]

    def join(self, values: Sequence[Batch]) -> Batch:
        """Return several arrays as one."""
        return np.concatenate(values)

    def divided(self, parts: int) -> OnnxRuntime:
        """Return a runtime of the same graphs whose calls use a part of the cores; threads share its sessions."""
        if parts == 1:
            return self
        with self._lock:
            if parts not in self._divided:
                threads = max(1, self.threads // parts)
                self._divided[parts] = OnnxRuntime(self._folder, self._description, self._graphs, threads)
            return self._divided[parts]

    def enter_thread(self) -> None:
        """Do nothing: sessions have their own threads."""

    def _session(self, level: int) -> onnxruntime.InferenceSession:
        with self._lock:
            if level not in self._sessions:
                graphs = self._graphs
                known = graphs.sums[level] if graphs.sums else None
                file, size = self._folder / graphs.files[level], self._description.preprocessing.size
                self._sessions[level] = open_session(
                    file, self.threads, size, self.num_classes[level], int8=graphs.int8, sha256=known
                )
            return self._sessions[level]


def import_onnxruntime() -> ModuleType:
    """Import ONNX Runtime, which from 1.29 on would tell its maker about every session; here it does not.

    `ORT_DISABLE_TELEMETRY=0` in the environment lets it. A thread that it starts for that does not survive a fork, and
    a forked child would wait for it when it ends.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime

    return onnxruntime  # type: ignore[no-any-return]


def open_session(
    file: Path, threads: int, size: int, num_classes: int, *, int8: bool = False, sha256: str | None = None
) -> onnxruntime.InferenceSession:
    """Open a graph with N = `threads` threads that do not spin while they wait, which would slow other work down.

    It is checked before (`graph_bounds`): a level of `num_classes` classes, for images of `size` pixels a side.
    `sha256` is the sum that the file is to have; None: any.

    Raises:
        CheckpointError: the graph or the weights that it names can't be read, it is another one, or it is none that
            hierclass would write.
    """
    onnxruntime = import_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if int8 and clips_sums(onnxruntime):
        options.add_session_config_entry("session.x64quantprecision", "1")  # exact, but only half as fast
    options.log_severity_level = 4  # errors come as exceptions
    again = f"hierclass export --in-place{' --int8 --images DIR' if int8 else ''} --model {file.parent}"
    try:
        content = read_graph_file(file)
        if sha256 is not None and hashlib.sha256(content).hexdigest() != sha256:
            raise CheckpointError(f"{file} is damaged or of another model; write it again: {again}")
        if file.parent != BUNDLED:  # which is a part of this package, as its code is
            from hierclass.runtime.graph_bounds import check_graph

            check_graph(content, file.parent, size, num_classes)
        held = _linked_weights(file)
        if held:
            sizes = [len(each) for each in held.values()]
            options.add_external_initializers_from_files_in_memory(list(held), list(held.values()), sizes)
        graph = content if held else file
        session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        session.linked_weights = held  # which it reads as long as it lives
        return session
    except (MemoryError, CheckpointError):
        raise
    except Exception as error:  # classes of its own, which it does not export
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"{file} can't be run: {reason}; if it is damaged, write it again: {again}"
        ) from error


def _linked_weights(file: Path) -> dict[str, bytes]:
    """Read the weights of a graph by their names, if files are links, as in caches of downloads; else read nothing.

    ONNX Runtime itself reads no weights that lie outside the graph's folder.
    """
    weights = [file.with_name(name) for name in (WEIGHTS_FILE, GRAPH_WEIGHTS_FILE)]
    if not any(each.is_symlink() for each in (file, *weights)):
        return {}
    return {each.name: each.read_bytes() for each in weights if each.is_file()}


def _leave_to_parent() -> None:
    for runtime in list(_RUNTIMES):
        runtime.leave_to_parent()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_to_parent)
