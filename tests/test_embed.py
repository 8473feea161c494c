"""Features of images: those that the head of a level reads, from Python and as a table that a run writes."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from labelling_data import BreakingEngine, RunListener, job, make_photos, run_in
from numpy.typing import NDArray
from PIL import Image

import hierclass
from hierclass.classifier import Classifier
from hierclass.cli import main
from hierclass.decisions.exit_policy import Request
from hierclass.errors import ImageError, InputError, LevelError
from hierclass.images.preprocessing import read_square
from hierclass.labelling.run_manifest import LabelJob
from hierclass.labelling.run_pass import LocalEngine

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"


@pytest.fixture(scope="module")
def classifier(tiny_checkpoint: Path) -> Classifier:
    return hierclass.load(tiny_checkpoint, runtime="torch", device="cpu")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return make_photos(tmp_path / "photos")


def embed(folder: Path, classifier: Classifier, what: LabelJob, **more: Any) -> RunListener:
    run, listener = run_in(folder, classifier, more.pop("engine", None))
    with run.folder.lock():
        run.label(what, **more)
        run.assemble(folder / "features.parquet")
    return listener


def features_of(file: Path) -> NDArray[np.float32]:
    column = pq.read_table(file).column("features").combine_chunks()
    return np.asarray(column.flatten()).reshape(-1, column.type.list_size)


# ---------------------------------------------------------------- in Python


@pytest.mark.parametrize("level", [0, 1, None])
def test_the_head_of_a_level_reads_its_features(
    classifier: Classifier, photos: Path, level: int | None
) -> None:
    files = [photos / "00.png", photos / "01.png"]
    found = classifier.features(files, level)
    at = classifier.check_level(level)
    head = classifier.network.heads[at]
    assert found.dtype == np.float32
    assert found.shape == (2, classifier.num_features(level))
    logits = found @ head.weight.detach().numpy().T + head.bias.detach().numpy()
    right = [each.scores().argmax() for each in classifier.predict_batch(files, level)]
    assert logits.argmax(1).tolist() == right


def test_both_runtimes_give_the_same_features(
    tiny_graphs: Path, classifier: Classifier, photos: Path
) -> None:
    onnx = hierclass.load(tiny_graphs, runtime="onnx")
    for level in range(3):
        pair = [each.features([photos / "02.png"], level) for each in (onnx, classifier)]
        assert np.allclose(*pair, atol=1e-5)
        assert onnx.num_features(level) == classifier.num_features(level)


def test_images_may_be_of_any_kind_and_come_from_a_generator(classifier: Classifier, photos: Path) -> None:
    file = photos / "00.png"
    kinds = [file, str(file), file.read_bytes(), Image.open(file), np.asarray(Image.open(file))]
    found = classifier.features(each for each in kinds)
    assert found.shape[0] == 5
    assert np.allclose(found, found[0])


def test_more_images_than_a_batch_keep_their_order(classifier: Classifier) -> None:
    images = np.random.default_rng(0).integers(0, 255, (70, 40, 40, 3), dtype=np.uint8)
    found = classifier.features(images, 0)
    assert np.allclose(found[[0, 63, 64, 69]], classifier.features(images[[0, 63, 64, 69]], 0), atol=1e-5)


def test_no_images_have_no_features(classifier: Classifier) -> None:
    assert classifier.features([], 1).shape == (0, classifier.num_features(1))


def test_bad_input_says_what_to_do(classifier: Classifier, photos: Path) -> None:
    with pytest.raises(InputError, match=r"put it into a list: \[image\]"):
        classifier.features(str(photos / "00.png"))
    with pytest.raises(InputError, match="many images, not one"):
        classifier.features(Image.open(photos / "00.png"))  # type: ignore[arg-type]
    with pytest.raises(LevelError, match="levels 0 to 2"):
        classifier.features([photos / "00.png"], 3)
    with pytest.raises(ImageError, match=r"07\.png"):
        classifier.features([photos / "00.png", photos / "07.png"])
    with pytest.raises(ImageError, match="image 2: "):
        classifier.features(iter([np.zeros((4, 4, 3), np.uint8), b"nothing"]))


# ---------------------------------------------------------------- the command


def test_a_table_has_the_features_of_every_image_and_an_error_for_a_broken_one(
    classifier: Classifier,
    tiny_checkpoint: Path,
    photos: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    table = tmp_path / "features.parquet"
    command = ["embed", str(photos), "-o", str(table), "--level", "1", "--model", str(tiny_checkpoint)]
    assert main([*command, "--device", "cpu", "--runtime", "torch"]) == 3
    assert "19 images embedded" in capsys.readouterr().err
    rows = pq.read_table(table).to_pylist()
    assert [list(row) for row in rows] == [["path", "error", "features"]] * 20
    assert [row["path"] for row in rows] == [str(photos / f"{index:02}.png") for index in range(20)]
    assert [row["features"] is None for row in rows] == [row["error"] is not None for row in rows]
    assert [row["error"] is not None for row in rows] == [index == 7 for index in range(20)]
    good = [row["path"] for row in rows if row["error"] is None]
    assert np.allclose(features_of(table), classifier.features(good, 1), atol=1e-5)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["features.parquet", "photos"]


def test_a_column_of_features_has_a_fixed_size(tiny_checkpoint: Path, photos: Path, tmp_path: Path) -> None:
    assert (
        main(["embed", str(photos), "-o", str(tmp_path / "a.parquet"), "--model", str(tiny_checkpoint)]) == 3
    )
    kind = pq.read_schema(tmp_path / "a.parquet").field("features").type
    assert str(kind) == f"fixed_size_list<element: float>[{hierclass.load(tiny_checkpoint).num_features()}]"


def test_images_that_are_all_broken_still_make_a_table(tiny_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("no picture")
    assert (
        main(["embed", str(tmp_path / "a.png"), "-o", f"{tmp_path}/run/", "--model", str(tiny_checkpoint)])
        == 3
    )
    (row,) = pq.read_table(tmp_path / "run" / "features.parquet").to_pylist()
    assert row["features"] is None
    assert "not an image" in row["error"] or "image" in row["error"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-o", "f.csv"], "features are written as .parquet, or into a folder"),
        (["-o", "f.txt"], "the output must end in"),
        (["-o", "f.parquet", "--level", "9"], "level 9 does not exist"),
        ([], "Missing option"),
    ],
)
def test_wrong_use_is_one_line(
    arguments: list[str],
    message: str,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["embed", str(photos), *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


# ---------------------------------------------------------------- runs


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_a_run_of_features_that_ended_early_goes_on(
    classifier: Classifier, photos: Path, tmp_path: Path, error: BaseException
) -> None:
    run = tmp_path / "run"
    what = job(photos, features=True)
    with pytest.raises(type(error)):
        embed(run, classifier, what, engine=BreakingEngine(classifier, 10, error))
    assert not (run / "features.parquet").exists()
    ((total, done),) = (listener := embed(run, classifier, what)).passes
    assert (total, done + listener.done) == (20, 20)
    assert done >= 8
    embed(tmp_path / "whole", classifier, what)
    assert pq.read_table(run / "features.parquet") == pq.read_table(tmp_path / "whole" / "features.parquet")
    assert embed(run, classifier, what).passes == []


def test_a_killed_command_goes_on(tiny_checkpoint: Path, photos: Path, tmp_path: Path) -> None:
    table, run = tmp_path / "out.parquet", tmp_path / "out.parquet.run"
    program = (
        "import sys, hierclass.labelling.run_pass as run_pass\nfrom hierclass.cli import main\n"
        "run_pass.PART_BYTES = 1\nsys.exit(main(sys.argv[1:]))\n"
    )
    arguments = [
        "embed",
        *[str(photos)] * 40,
        "-o",
        str(table),
        "--batch-size",
        "4",
        "--model",
        str(tiny_checkpoint),
    ]
    command = [sys.executable, "-c", program, *arguments, "--device", "cpu"]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while process.poll() is None and len(list(run.glob("parts/*.parquet"))) < 5:
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert not table.exists()
    again = subprocess.run(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, timeout=300, check=False)
    assert again.returncode == 3
    assert "going on after" in again.stderr
    paths = pq.read_table(table).column("path").to_pylist()
    assert paths == [str(photos / f"{i:02}.png") for _ in range(40) for i in range(20)]
    assert not run.exists()


def test_a_changed_image_gets_new_features_and_the_others_keep_theirs(
    classifier: Classifier, photos: Path, tmp_path: Path
) -> None:
    run, what = tmp_path / "run", job(photos, features=True)
    embed(run, classifier, what)
    before = pq.read_table(run / "features.parquet").to_pylist()
    (photos / "07.png").write_bytes((photos / "08.png").read_bytes())
    assert "changed since, labelled again: 1 image" in embed(run, classifier, what).lines
    after = pq.read_table(run / "features.parquet").to_pylist()
    assert [index for index in range(20) if before[index] != after[index]] == [7]
    assert after[7]["features"] == before[8]["features"]


def test_a_run_of_features_is_no_run_of_labels(classifier: Classifier, photos: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    embed(run, classifier, job(photos, features=True))
    with pytest.raises(InputError, match="begun by hierclass embed, not hierclass label"):
        embed(run, classifier, job(photos))
    with pytest.raises(InputError, match="holds features, which can't be refined"):
        run_in(run, classifier)[0].refine("1", Request(level=2))
    with pytest.raises(InputError, match="begun with --level 0, not 1"):
        embed(run, classifier, job(photos, 1, features=True))


def test_an_image_that_the_network_fails_on_gets_an_error_alone(
    classifier: Classifier, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The batch is divided until the image is alone."""
    unlucky = classifier.runtime.to_batch(
        np.stack([read_square(photos / "03.png", classifier.preprocessing)])
    )[0]
    whole = classifier.network.features

    def failing(images: torch.Tensor, level: int) -> torch.Tensor:
        if any(torch.equal(image, unlucky) for image in images):
            raise RuntimeError("first line\nsecond line")
        return whole(images, level)

    monkeypatch.setattr(classifier.network, "features", failing)
    embed(tmp_path / "run", classifier, job(photos, 2, features=True))
    rows = pq.read_table(tmp_path / "run" / "features.parquet").to_pylist()
    assert [index for index in range(20) if rows[index]["error"]] == [3, 7]
    assert "\n" not in rows[3]["error"]


def test_parts_are_bounded_by_bytes(
    classifier: Classifier, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hierclass.labelling.run_pass.PART_BYTES", 4 * classifier.num_features(0) * 8)
    engine = LocalEngine(classifier, part_rows=10_000)
    embed(tmp_path / "run", classifier, job(photos, features=True), engine=engine)
    assert len(list((tmp_path / "run" / "parts").iterdir())) >= 2


# ---------------------------------------------------------------- the documentation


def test_the_example_of_the_documentation_finds_the_photograph_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(EXAMPLES, "photos")
    shutil.copy(EXAMPLES / "coffee.jpg", "photo.jpg")
    (tmp_path / "photos" / "broken.jpg").write_text("no picture")
    assert main(["embed", "photos", "-o", "features.parquet"]) == 3
    capsys.readouterr()
    shown: dict[str, object] = {}
    for block in re.findall(
        r"```python\n(.*?)```", (ROOT / "docs/features.md").read_text("utf-8"), re.DOTALL
    ):
        exec(block, shown)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5
    assert lines[0] == "1.00 photos/coffee.jpg"
    assert float(lines[1].split()[0]) < 0.9
