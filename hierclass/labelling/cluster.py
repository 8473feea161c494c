"""An engine for many machines: Ray Data hands ranges of inputs to workers, each of which loads the model once.

The folder of the run, the inputs and the model must have the same paths on every machine of the cluster.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hierclass.errors import InputError, require
from hierclass.labelling.reader_pipes import kept_ready
from hierclass.labelling.run_folder import RunFolder
from hierclass.labelling.run_parts import Range
from hierclass.labelling.run_pass import PassProgress, RunPass, run_range

if TYPE_CHECKING:
    from hierclass.classifier import Classifier

CHUNK = 2_000
"""Inputs that a worker takes at a time; bounds what the loss of a worker can cost."""


class RayEngine:
    """Computes passes on the Ray cluster that RAY_ADDRESS names, or on the cores of this machine."""

    def __init__(self, open_classifier: Callable[[], Classifier], workers: int | None = None) -> None:
        """Start N = `workers` workers (None: one per core of the cluster); each calls `open_classifier`.

        Raises:
            MissingExtraError: Ray is not installed.
        """
        require("ray", "ray", what="--engine ray")
        import ray

        self._open_classifier = open_classifier
        if not ray.is_initialized():
            _init()
        resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
        self._workers = workers or max(1, int(resources.get("CPU", 1)))

    def run(self, folder: RunFolder, what: RunPass, gaps: Sequence[Range]) -> PassProgress:
        """Label the inputs of a pass; ranges are finished in any order."""
        import ray.data

        logging.getLogger("ray.data").setLevel(logging.ERROR)  # importing it sets another one
        chunks = [{"first": first, "end": end} for first, end in _chunks(gaps)]
        if not chunks:
            return
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        done = ray.data.from_items(chunks, override_num_blocks=len(chunks)).map_batches(
            _Worker,
            fn_constructor_args=(folder, what, self._open_classifier, str(Path.cwd())),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=min(self._workers, len(chunks))),
        )
        try:
            for row in done.iter_rows():
                yield int(row["done"]), int(row["errors"])
        except Exception as error:  # whatever a worker raised comes as one of Ray's own errors
            *_, reason = filter(None, map(str.strip, str(error).splitlines() or [type(error).__name__]))
            raise InputError(
                f"a worker of the Ray cluster failed: {reason}; what is done is kept, the same command goes on"
            ) from error


def _init() -> None:
    """Join a cluster or start one; keep this program's signal handlers, which Ray replaces."""
    import ray

    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # this program reports errors itself
    before = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        ray.init(log_to_driver=False, configure_logging=False, include_dashboard=False, num_cpus=None)
    except (ConnectionError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"no Ray cluster can be used: {reason}; set RAY_ADDRESS to one, or unset it for the cores here"
        ) from error
    finally:
        if threading.current_thread() is threading.main_thread():
            for each, handler in before.items():
                signal.signal(each, handler)


class _Worker:
    """A process of the cluster that labels ranges of inputs."""

    def __init__(
        self, folder: RunFolder, what: RunPass, open_classifier: Callable[[], Classifier], place: str
    ) -> None:
        """Load the classifier; paths are relative to `place`, the working folder of the program."""
        os.chdir(place)
        os.environ["OMP_NUM_THREADS"] = "1"  # of cores the cluster gives one
        reading = dataclasses.replace(what.reading, workers=what.reading.workers or 1)
        self._kept = kept_ready(reading.workers or 1)  # from range to range, until this process ends
        self._kept.__enter__()
        self._folder, self._pass = folder, dataclasses.replace(what, reading=reading)
        self._pipeline = self._pass.pipeline(open_classifier())

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[int]]:
        done = errors = 0
        for first, end in zip(batch["first"].tolist(), batch["end"].tolist(), strict=True):
            # Ray repeats the ranges of a lost worker, which may have written some parts.
            for gap in self._folder.gaps(self._pass.generation, (first, end)):
                for more, wrong in run_range(self._folder, self._pipeline, self._pass, gap):
                    done, errors = done + more, errors + wrong
        return {"done": [done], "errors": [errors]}


def _chunks(gaps: Sequence[Range]) -> Iterator[Range]:
    for first, end in gaps:
        for begin in range(first, end, CHUNK):
            yield begin, min(begin + CHUNK, end)
