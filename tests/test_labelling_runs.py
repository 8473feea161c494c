"""A run on disk goes on where it was, whatever ended it; every input has exactly one row."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from labelling_data import (
    READING,
    BreakingEngine,
    RunListener,
    job,
    label,
    make_photos,
    rows,
    run_in,
    with_thumbnail,
)
from page_data import calibrated
from PIL import Image

import hierclass
from hierclass.classifier import Classifier
from hierclass.cli import main
from hierclass.decisions.exit_policy import Request
from hierclass.errors import InputError
from hierclass.labelling import run_pass
from hierclass.labelling.inputs import Shard
from hierclass.labelling.run_folder import RunFolder
from hierclass.labelling.run_manifest import LabelJob

ROOT = Path(__file__).parent.parent
PATIENCE = 300


@pytest.fixture(scope="module")
def classifier(tiny_checkpoint: Path) -> Classifier:
    return hierclass.load(tiny_checkpoint, device="cpu")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return make_photos(tmp_path / "photos")


def test_a_run_has_a_row_for_every_input_in_order(
    classifier: Classifier, photos: Path, tmp_path: Path
) -> None:
    label(tmp_path / "run", classifier, job(photos))
    found = rows(tmp_path / "run")
    assert [Path(row["path"]).name for row in found] == sorted(file.name for file in photos.iterdir())
    assert [row["error"] is not None for row in found] == [index == 7 for index in range(20)]
    assert found[0]["synset"] == classifier.predict(photos / "00.png", 0).synset
    assert len(list((tmp_path / "run" / "parts").iterdir())) == 5


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_a_run_that_ended_early_goes_on(
    classifier: Classifier,
    photos: Path,
    tmp_path: Path,
    error: BaseException,
) -> None:
    run = tmp_path / "run"
    with pytest.raises(type(error)):
        label(run, classifier, job(photos), engine=BreakingEngine(classifier, 10, error))
    assert not (run / "labels.parquet").exists()
    listener = label(run, classifier, job(photos))
    ((total, done),) = listener.passes
    assert (total, done + listener.done) == (20, 20)
    assert done >= (12 if isinstance(error, KeyboardInterrupt) else 8)
    whole = tmp_path / "whole"
    label(whole, classifier, job(photos))
    assert rows(run) == rows(whole)


def test_a_finished_run_has_nothing_left_to_do(classifier: Classifier, photos: Path, tmp_path: Path) -> None:
    label(tmp_path / "run", classifier, job(photos))
    assert label(tmp_path / "run", classifier, job(photos)).passes == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"level": 1}, "was begun with --level 0, not 1"),
        ({"shard": Shard(1, 2)}, "was begun with --shard the default, not 1/2"),
    ],
)
def test_another_request_is_refused_with_the_difference(
    classifier: Classifier, photos: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    run = tmp_path / "run"
    label(run, classifier, job(photos))
    with pytest.raises(InputError, match=message):
        label(run, classifier, job(photos, **change))
    label(run, classifier, job(photos, **change), overwrite=True)
    with pytest.raises(InputError, match="the inputs"):
        label(run, classifier, LabelJob(names=("elsewhere",), request=Request(level=0), reading=READING))


def test_another_model_is_refused(
    classifier: Classifier, tiny_checkpoint: Path, photos: Path, tmp_path: Path
) -> None:
    label(tmp_path / "run", classifier, job(photos))
    with pytest.raises(InputError, match="another model"):
        label(tmp_path / "run", calibrated(tiny_checkpoint, {0.9: 0.5}), job(photos))


def test_a_run_with_nothing_to_label_leaves_nothing(classifier: Classifier, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="nothing to do"):
        label(tmp_path / "run", classifier, job(tmp_path / "empty"))
    assert not (tmp_path / "run").exists()


def test_two_runs_on_one_folder_are_refused(classifier: Classifier, photos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    script = (
        "import sys, time\nfrom pathlib import Path\nfrom hierclass.labelling.run_folder import RunFolder\n"
        "with RunFolder(Path(sys.argv[1])).lock():\n    print('held', flush=True)\n    time.sleep(600)\n"
    )
    holder = subprocess.Popen([sys.executable, "-c", script, str(folder)], stdout=subprocess.PIPE, cwd=ROOT)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(InputError, match="another run writes to"):
            label(folder, classifier, job(photos))
    finally:
        holder.kill()
        holder.wait()
    label(folder, classifier, job(photos))  # a lock does not outlive its process


def test_a_folder_of_something_else_is_left_alone(
    classifier: Classifier, photos: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"holds 00\.png, which is no part of a run"):
        label(photos, classifier, job(photos))
    assert len(list(photos.iterdir())) == 20


def test_files_that_changed_are_labelled_again_and_those_that_are_gone_keep_their_rows(
    classifier: Classifier, photos: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    label(run, classifier, job(photos))
    before = rows(run)
    (photos / "03.png").write_text("no picture any more")
    (photos / "07.png").write_bytes((photos / "08.png").read_bytes())
    (photos / "05.png").unlink()
    listener = label(run, classifier, job(photos))
    assert listener.lines == [
        "the inputs are not what they were: 19 images now, 20 when the run began; it keeps its list; "
        "--update labels what is new, --overwrite begins anew",
        "gone since, rows stay as they were: 1 image",
        "changed since, labelled again: 2 images",
    ]
    after = rows(run)
    assert [index for index in range(20) if before[index] != after[index]] == [3, 7]
    assert after[3]["error"] is not None
    assert after[7]["synset"] == before[8]["synset"]
    assert label(run, classifier, job(photos)).passes == []


def test_errors_can_be_tried_again(classifier: Classifier, photos: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    label(run, classifier, job(photos))
    assert label(run, classifier, job(photos)).passes == []
    assert label(run, classifier, job(photos), retry_errors=True).passes == [(1, 0)]
    assert rows(run)[7]["error"] is not None


def test_errors_are_tried_again_by_the_command(
    photos: Path, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["label", str(photos), "--model", str(tiny_checkpoint), "-o", f"{tmp_path / 'run'}/"]
    assert main(command) == 3
    capsys.readouterr()
    assert main([*command, "--retry-errors"]) == 3
    assert "had an error, read again: 1 image" in capsys.readouterr().err
    (photos / "07.png").write_bytes((photos / "06.png").read_bytes())
    assert main([*command, "--retry-errors"]) == 0
    assert all(row["error"] is None for row in rows(tmp_path / "run"))
    assert "changed since, labelled again: 1 image" in capsys.readouterr().err


def test_rows_of_a_parquet_file_are_labelled_like_files(
    classifier: Classifier, photos: Path, tmp_path: Path
) -> None:
    files = sorted(photos.iterdir())
    data = tmp_path / "photos.parquet"
    pq.write_table(pa.table({"image": [file.read_bytes() for file in files]}), data, row_group_size=3)
    label(tmp_path / "run", classifier, job(data))
    label(tmp_path / "files", classifier, job(photos))
    found, wanted = rows(tmp_path / "run"), rows(tmp_path / "files")
    assert [row["path"] for row in found] == [f"{data}/{number}" for number in range(20)]
    assert [(row["label"], row["score"]) for row in found] == [(row["label"], row["score"]) for row in wanted]
    assert [row["error"] is None for row in found] == [row["error"] is None for row in wanted]


def test_previews_are_read_and_said_and_stay_with_the_run(classifier: Classifier, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    Image.new("RGB", (640, 480)).save(photos / "without.jpg")
    (photos / "with.jpg").write_bytes(with_thumbnail((640, 480), (160, 120)))
    wanted = LabelJob(
        names=(str(photos),), request=Request(level=0), reading=dataclasses.replace(READING, previews=True)
    )
    run = tmp_path / "run"
    label(run, classifier, wanted)
    assert [row["preview"] for row in rows(run)] == [True, False]
    os.utime(photos / "with.jpg", (1, 1))  # changed since: it is read again, as the run began
    label(run, classifier, wanted)
    assert [row["preview"] for row in rows(run)] == [True, False]
    with pytest.raises(InputError, match="was begun with --previews on, not off"):
        label(run, classifier, job(photos))


def test_refining_labels_the_chosen_rows_anew_and_keeps_the_others(
    classifier: Classifier, photos: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    label(folder, classifier, job(photos))
    before = rows(folder)
    common = max({row["label"] for row in before if row["label"]}, key=[r["label"] for r in before].count)
    chosen = [index for index, row in enumerate(before) if row["label"] == common]
    (photos / f"{chosen[-1]:02}.png").unlink()  # gone: what is known of it stays
    run, listener = run_in(folder, classifier)
    run.refine(f"tier0_label = '{common}'", Request(level=2))
    run.assemble(folder / "labels.parquet")
    after = rows(folder)
    assert listener.passes == [(len(chosen), 0)]
    assert listener.lines == [
        "could not be read again, rows stay as they were: 1 image; the same command tries again"
    ]
    assert run.num_unread == 1
    assert "tier2_label" in after[0]
    for index, (old, new) in enumerate(zip(before, after, strict=True)):
        if index in chosen[:-1]:
            assert new["chosen_level"] == 2
            assert new["synset"] == classifier.predict(photos / f"{index:02}.png", 2).synset
        else:
            assert {name: new[name] for name in old} == old
            assert new["tier2_label"] is None


def test_a_refinement_that_could_not_read_images_tries_them_again(
    classifier: Classifier, photos: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    label(folder, classifier, job(photos))
    before = rows(folder)
    photos.rename(tmp_path / "away")  # a disk that is not there
    refine(folder, classifier)
    assert [row["chosen_level"] for row in rows(folder)] == [row["chosen_level"] for row in before]
    (tmp_path / "away").rename(photos)
    assert refine(folder, classifier).passes == [(19, 0)]
    assert [row["chosen_level"] for row in rows(folder)] == [None if n == 7 else 2 for n in range(20)]
    assert refine(folder, classifier).passes == []


def refine(folder: Path, classifier: Classifier) -> RunListener:
    """Refine the rows that could be read to level 2."""
    run, listener = run_in(folder, classifier)
    run.refine("error is null", Request(level=2))
    run.assemble(folder / "labels.parquet")
    return listener


def test_a_run_of_relative_paths_is_refined_where_it_was_begun(
    classifier: Classifier, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    label(tmp_path / "run", classifier, job(Path("photos")))
    before = rows(tmp_path / "run")
    (tmp_path / "elsewhere").mkdir()
    photos.rename(tmp_path / "elsewhere" / "photos")
    monkeypatch.chdir(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="names its images as seen from"):
        refine(tmp_path / "run", classifier)
    assert rows(tmp_path / "run") == before


@pytest.mark.parametrize("name", ["inputs.parquet", "parts/001-inputs.parquet"])
def test_a_damaged_list_of_inputs_is_one_line(
    classifier: Classifier, photos: Path, tmp_path: Path, name: str
) -> None:
    label(tmp_path / "run", classifier, job(photos))
    refine(tmp_path / "run", classifier)
    for part in (tmp_path / "run" / "parts").glob("001-0*"):
        part.unlink()  # the pass is to be finished
    (tmp_path / "run" / name).write_bytes(b"x")
    with pytest.raises(InputError, match=r"is damaged .* --overwrite starts the run anew"):
        refine(tmp_path / "run", classifier)


def test_a_table_of_others_is_not_written_into_a_run(
    classifier: Classifier, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    label(tmp_path / "run", classifier, job(photos))
    assert main(["label", str(photos), "-o", str(tmp_path / "run" / "labels.csv")]) == 2
    assert "holds a run, which has a table of its own" in capsys.readouterr().err


def test_a_refinement_that_ended_early_goes_on(classifier: Classifier, photos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    label(folder, classifier, job(photos))
    broken, _ = run_in(folder, classifier, BreakingEngine(classifier, 6, KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        broken.refine("error is null", Request(level=1))
    run, listener = run_in(folder, classifier)
    with pytest.raises(InputError, match="not complete"):
        run.refine("score > 2", Request(level=2))
    run.refine("error is null", Request(level=1))
    assert listener.passes[0][1] >= 6
    run.assemble(folder / "labels.parquet")
    assert {row["chosen_level"] for row in rows(folder)} == {1, None}


@pytest.mark.parametrize(
    "condition",
    ["", "tier0_lable = 'x'", "1; drop table rows", "label = 'x", "(select 1) = load_extension('x')"],
)
def test_what_is_no_condition_is_refused(
    classifier: Classifier, photos: Path, tmp_path: Path, condition: str
) -> None:
    folder = tmp_path / "run"
    label(folder, classifier, job(photos))
    run, _ = run_in(folder, classifier)
    with pytest.raises(InputError, match="--where"):
        run.refine(condition, Request(level=1))
    assert len(run.jobs) == 1


@pytest.mark.parametrize("of", [1, 3, 25])
def test_shards_make_up_the_whole(classifier: Classifier, photos: Path, tmp_path: Path, of: int) -> None:
    label(tmp_path / "whole", classifier, job(photos))
    found = []
    for number in range(1, of + 1):
        label(tmp_path / str(number), classifier, job(photos, shard=Shard(number, of)))
        found += rows(tmp_path / str(number))
    assert found == rows(tmp_path / "whole")


@pytest.mark.parametrize("text", ["0/4", "5/4", "1", "a/b", "1/0", "-1/2"])
def test_a_shard_that_does_not_exist_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="--shard"):
        Shard.parse(text)


def test_a_part_that_went_missing_is_made_again(classifier: Classifier, photos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    label(folder, classifier, job(photos))
    before = rows(folder)
    parts = RunFolder(folder).parts(0)
    (folder / "parts" / parts[2].name).unlink()
    listener = label(folder, classifier, job(photos))
    assert listener.passes == [(20, 20 - (parts[2].end - parts[2].first))]
    assert rows(folder) == before


def test_a_damaged_part_is_named(classifier: Classifier, photos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    label(folder, classifier, job(photos))
    part = folder / "parts" / RunFolder(folder).parts(0)[2].name
    part.write_bytes(part.read_bytes()[:50])
    with pytest.raises(InputError, match=rf"{part.name} is damaged .*; delete it"):
        label(folder, classifier, job(photos))


def test_a_manifest_of_another_version_is_refused(
    classifier: Classifier, photos: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    label(folder, classifier, job(photos))
    manifest = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**manifest, "version": 9}))
    with pytest.raises(InputError, match="format 9"):
        label(folder, classifier, job(photos))


def label_in_parts(arguments: list[str]) -> None:
    """The command in a process of its own, with parts so small that there are many."""
    run_pass.PART_ROWS = 8
    sys.exit(main(arguments))


@pytest.mark.full
def test_a_run_that_is_killed_again_and_again_ends_with_every_input_once(
    photos: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """SIGKILL at 20 random moments: while inputs are listed, rows are written, the table is put together."""
    target, run = tmp_path / "out.csv", tmp_path / "out.csv.run"
    arguments = ["label", *[str(photos)] * 40, "-o", str(target), "--level", "0", "--batch-size", "4"]
    arguments += ["--model", str(tiny_checkpoint), "--device", "cpu"]
    processes = multiprocessing.get_context("forkserver")  # imports torch once, not for every process
    processes.set_forkserver_preload(["hierclass.cli", "hierclass.classifier", "hierclass.labelling.run"])
    moments, unfinished = random.Random(0), 0
    for _ in range(20):
        process = processes.Process(target=label_in_parts, args=(arguments,))
        process.start()
        deadline = time.monotonic() + PATIENCE
        while not run.exists() and process.is_alive():
            assert time.monotonic() < deadline
            time.sleep(0.002)
        time.sleep(moments.uniform(0, 0.5))
        process.kill()
        process.join(PATIENCE)
        assert process.exitcode in (3, -signal.SIGKILL)
        unfinished += not target.exists()
        if target.exists() and not (run / "run.json").exists():  # it was done before: begin another
            target.unlink()
    assert unfinished >= 5
    process = processes.Process(target=label_in_parts, args=(arguments,))
    process.start()
    process.join(PATIENCE)
    assert process.exitcode == 3
    rows = [line.split(",") for line in target.read_text().splitlines()[1:]]
    assert [row[0] for row in rows] == [str(photos / f"{i:02}.png") for _ in range(40) for i in range(20)]
    assert [bool(row[1]) for row in rows] == [i == 7 for _ in range(40) for i in range(20)]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["out.csv", "photos"]
