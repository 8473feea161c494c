"""The same rows from a Ray of two workers as from this process."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

import hierclass
from hierclass.decisions.exit_policy import Request
from hierclass.errors import InputError
from hierclass.labelling.read_input import ReadOptions
from hierclass.labelling.run import LabelRun
from hierclass.labelling.run_folder import RunFolder
from hierclass.labelling.run_manifest import LabelJob

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'hierclass[ray]'")
READING = ReadOptions(batch_size=4)
pytestmark = pytest.mark.full  # starting a cluster takes long


class Silent:
    def say(self, line: str) -> None: ...

    def listed(self, count: int) -> None: ...

    def start(self, total: int, done: int) -> None:
        self.total, self.done = total, done

    def advance(self, num_images: int, num_errors: int) -> None:
        self.done += num_images


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    random = np.random.default_rng(0)
    for index in range(30):
        Image.fromarray(random.integers(0, 255, (40, 48, 3), dtype=np.uint8)).save(folder / f"{index:02}.png")
    (folder / "07.png").write_text("no picture")
    return folder


def label(folder: Path, photos: Path, model: Path, *, engine: Any = None) -> list[dict[str, Any]]:
    classifier, listener = hierclass.load(model, device="cpu"), Silent()
    run = LabelRun(RunFolder(folder), classifier, READING, listener, engine)
    with run.folder.lock():
        run.label(LabelJob(names=(str(photos),), request=Request(level=1), reading=READING))
        assert listener.done == listener.total == 30
        run.assemble(folder / "labels.parquet")
    rows: list[dict[str, Any]] = pq.read_table(folder / "labels.parquet").to_pylist()
    return rows


@pytest.fixture(scope="module")
def there(
    photos: Path, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[dict[str, Any]]]:
    """A run of two workers: its folder and its rows."""
    from hierclass.labelling import cluster

    folder = tmp_path_factory.mktemp("there") / "run"
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(cluster, "CHUNK", 7)
        engine = cluster.RayEngine(partial(hierclass.load, tiny_checkpoint, "cpu"), 2)
        return folder, label(folder, photos, tiny_checkpoint, engine=engine)


def test_two_workers_make_the_rows_that_this_process_makes(
    there: tuple[Path, list[dict[str, Any]]], photos: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    here = label(tmp_path / "here", photos, tiny_checkpoint)
    folder, rows = there
    assert len(RunFolder(folder).parts(0)) == 5
    for ours, theirs in zip(rows, here, strict=True):
        for name, value in theirs.items():
            assert ours[name] == (pytest.approx(value, abs=2e-4) if isinstance(value, float) else value), name


def test_a_run_goes_on_by_parts_on_another_engine(
    there: tuple[Path, list[dict[str, Any]]], photos: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    whole = there[1]
    folder = RunFolder(Path(shutil.copytree(there[0], tmp_path / "run")))
    (folder.path / "parts" / folder.parts(0)[1].name).unlink()
    assert folder.gaps(0, (0, 30)) == [(7, 14)]
    run = LabelRun(folder, hierclass.load(tiny_checkpoint, device="cpu"), READING, listener := Silent())
    run.label(LabelJob(names=(str(photos),), request=Request(level=1), reading=READING))
    assert (listener.total, listener.done) == (30, 30)
    run.assemble(tmp_path / "again.parquet")
    again = pq.read_table(tmp_path / "again.parquet").to_pylist()
    assert [row["label"] for row in again] == [row["label"] for row in whole]


def test_a_worker_takes_up_what_a_lost_one_had_finished(
    there: tuple[Path, list[dict[str, Any]]], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    from hierclass.labelling.cluster import _Worker
    from hierclass.labelling.run_pass import RunPass

    folder = RunFolder(Path(shutil.copytree(there[0], tmp_path / "run")))
    what = RunPass(generation=0, request=Request(level=1), reading=READING)
    place = str(Path.cwd())
    worker = _Worker(folder, what, partial(hierclass.load, tiny_checkpoint, "cpu"), place)
    first, second, *_ = folder.parts(0)
    (folder.path / "parts" / second.name).unlink()
    chunk = {"first": np.array([first.first]), "end": np.array([second.end])}
    assert worker(chunk)["done"] == [second.end - second.first]
    assert worker(chunk)["done"] == [0]
    assert folder.parts(0)[:2] == [first, second]
    folder.write_numbers(1, {3: None, 5: 0, 20: 1})  # as a refinement does
    refining = dataclasses.replace(what, generation=1, request=Request(level=2), sparse=True)
    worker = _Worker(folder, refining, partial(hierclass.load, tiny_checkpoint, "cpu"), place)
    assert worker({"first": np.array([0, 7]), "end": np.array([7, 14])})["done"] == [2]


def test_a_worker_that_cannot_open_the_model_is_one_error(
    photos: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    from hierclass.labelling.cluster import RayEngine

    engine = RayEngine(partial(hierclass.load, tmp_path / "nowhere", "cpu"), 1)
    with pytest.raises(InputError, match=r"a worker of the Ray cluster failed: .*there is no model at"):
        label(tmp_path / "run", photos, tiny_checkpoint, engine=engine)


def test_the_command_labels_and_refines_with_a_cluster(
    photos: Path, tiny_checkpoint: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from typer.testing import CliRunner

    from hierclass.cli import app

    tables = {}
    for engine in ("local", "ray"):
        run, more = tmp_path / engine, ["--model", str(tiny_checkpoint), "--engine", engine]
        label_it = ["label", str(photos), "-o", f"{run}/", "--level", "0", *more]
        refine_it = ["refine", str(run), "--where", "path like '%1_.png'", "--level", "2", *more]
        codes = [CliRunner().invoke(app, each).exit_code for each in (label_it, refine_it)]
        assert codes == [3, 3]  # a broken file: a row with an error in the one, and in the table of the other
        tables[engine] = pq.read_table(run / "labels.parquet").to_pylist()
    assert tables["ray"] == tables["local"]
    assert sorted({row["chosen_level"] for row in tables["ray"] if not row["error"]}) == [0, 2]
    assert "deprecated" not in capfd.readouterr().err
