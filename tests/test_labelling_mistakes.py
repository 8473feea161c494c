"""What users do wrong, and what happens to files meanwhile, leaves a run whole and the message says what to do."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from labelling_data import READING, BreakingEngine, RunListener, job, label, make_photos, rows, run_in

import hierclass
from hierclass.checkpoints.checkpoint import load_checkpoint, save_checkpoint
from hierclass.classifier import Classifier
from hierclass.cli import main
from hierclass.decisions.exit_policy import Request
from hierclass.errors import HierclassError, InputError
from hierclass.labelling.rows import schema
from hierclass.labelling.run_folder import RunFolder
from hierclass.labelling.run_manifest import LabelJob
from hierclass.labelling.run_parts import Part
from taxonomy import Taxonomy


@pytest.fixture(scope="module")
def classifier(tiny_checkpoint: Path) -> Classifier:
    return hierclass.load(tiny_checkpoint, device="cpu")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return make_photos(tmp_path / "photos")


WRONG = [Request(level=7), Request(only=("dgo",)), Request(level="auto", min_tier=9), Request(level="auto")]


@pytest.mark.parametrize("request_", WRONG, ids=str)
def test_a_request_that_the_model_cannot_meet_leaves_a_run_as_it_was(
    classifier: Classifier, photos: Path, tmp_path: Path, request_: Request
) -> None:
    folder = tmp_path / "run"
    with pytest.raises(HierclassError):
        label(folder, classifier, LabelJob(names=(str(photos),), request=request_, reading=READING))
    label(folder, classifier, job(photos))  # nothing stands in the way of the right one
    before = RunFolder(folder).manifest()
    run, _ = run_in(folder, classifier)
    with pytest.raises(HierclassError):
        run.refine("1", request_)
    assert RunFolder(folder).manifest() == before


def test_beginning_anew_with_nothing_to_label_keeps_what_was_there(
    classifier: Classifier, photos: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    label(folder, classifier, job(photos))
    before = rows(folder)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="nothing to do"):
        label(folder, classifier, job(tmp_path / "empty"), overwrite=True)
    assert label(folder, classifier, job(photos)).passes == []
    assert rows(folder) == before


def test_a_replacement_that_was_broken_off_while_the_old_run_was_cleared_goes_on(
    classifier: Classifier, photos: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    label(folder, classifier, job(photos))
    RunFolder(folder).clear()
    assert (folder / "labels.parquet").exists()
    assert label(folder, classifier, job(photos)).passes == [(20, 0)]


def test_a_run_keeps_what_it_ignores_and_one_from_before_there_was_the_option_goes_on(
    classifier: Classifier, photos: Path, tmp_path: Path
) -> None:
    (photos / "notes.txt").touch()
    folder, small = tmp_path / "run", dataclasses.replace(READING, ignore=(*READING.ignore, "0*"))
    heard = label(folder, classifier, job(photos))
    assert heard.lines == ["1 other file passed over (.txt 1)"]
    with pytest.raises(InputError, match="was begun with --ignore the default, not 0\\*; give the same"):
        label(folder, classifier, dataclasses.replace(job(photos), reading=small))
    manifest = RunFolder(folder).manifest()
    del manifest["inputs"]["ignore"]
    RunFolder(folder).write_manifest(manifest)
    assert label(folder, classifier, job(photos)).passes == []


def test_parts_that_overlap_give_every_row_once(classifier: Classifier, photos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    label(folder, classifier, job(photos))
    before, stored = rows(folder), RunFolder(folder)
    table = next(stored.read([0], schema(3, own=True))).slice(4, 4)
    first, last = (table["_index"][row].as_py() for row in (0, -1))
    # What a worker of a cluster leaves that was taken for lost, while another did the same:
    stored.add_part(Part(0, first - 1, last + 1), table)
    stored.add_part(Part(0, first, first + 2), table.slice(0, 2))
    assert stored.gaps(0, (0, 20)) == []
    assert stored.gaps(0, (3, 30)) == [(20, 30)]
    label(folder, classifier, job(photos))
    assert rows(folder) == before


@pytest.fixture
def shard(photos: Path, tmp_path: Path) -> Path:
    return pack(tmp_path / "a.tar", sorted(photos.iterdir()))


def pack(path: Path, files: list[Path]) -> Path:
    with tarfile.open(path, "w") as tar:
        for file in files:
            tar.add(file, file.name)
    return path


@pytest.mark.parametrize("what", ["gone", "changed"])
def test_an_archive_that_goes_or_changes_after_it_was_listed_gives_errors_and_no_wrong_rows(
    classifier: Classifier,
    photos: Path,
    shard: Path,
    tmp_path: Path,
    what: str,
) -> None:
    class Meddler(RunListener):
        def start(self, total: int, done: int) -> None:  # heard when the inputs are listed and none is read
            super().start(total, done)
            shard.unlink() if what == "gone" else pack(shard, sorted(photos.iterdir())[5:])

    folder = tmp_path / "run"
    label(folder, classifier, job(shard), listener=Meddler())
    message = "does not exist any more" if what == "gone" else "has changed since it was listed; --overwrite"
    assert all(message in row["error"] for row in rows(folder))
    assert len(rows(folder)) == 20


def test_rows_stay_when_their_archive_changes_later(
    classifier: Classifier, photos: Path, shard: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    label(folder, classifier, job(shard))
    before = rows(folder)
    pack(shard, sorted(photos.iterdir())[5:])
    lines = label(folder, classifier, dataclasses.replace(job(shard))).lines
    assert (
        "in archives that changed since, rows stay as they were (--update labels what changed): 19 images"
        in lines
    )
    assert rows(folder) == before


def test_classes_with_underscores_in_their_names_can_be_named(
    tiny_taxonomy: Taxonomy,
) -> None:
    from hierclass.decisions.named_classes import allowed_classes

    nodes = [
        dataclasses.replace(node, id=f"my_{node.id}", name=f"a_{node.name}") for node in tiny_taxonomy.nodes
    ]
    tree = Taxonomy(
        name="mine",
        nodes=nodes,
        parents=tiny_taxonomy.parents.tolist(),
        leaves=[f"my_{leaf}" for leaf in tiny_taxonomy.leaves],
        tiers=[[f"my_{node}" for node in tier] for tier in tiny_taxonomy.tiers],
    )
    leaf = tree.node(tree.leaves[2])
    for name in (leaf.id, leaf.name, leaf.name.replace("_", " "), leaf.id.upper()):
        assert allowed_classes(Request(only=(name,)), tree)[-1].sum() == 1


@pytest.mark.parametrize(
    "condition",
    [
        "(select count(*) from rows) = 20",
        "1) union select 'x' where (1",
        "score > (select avg(score) from rows)",
    ],
)
def test_a_condition_looks_at_one_row(
    classifier: Classifier, photos: Path, tmp_path: Path, condition: str
) -> None:
    folder = tmp_path / "run"
    label(folder, classifier, job(photos))
    run, _ = run_in(folder, classifier)
    with pytest.raises(InputError, match="it looks at more than one row"):
        run.refine(condition, Request(level=1))


def test_a_condition_finds_a_score_as_the_table_shows_it(
    classifier: Classifier, photos: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    label(folder, classifier, job(photos))
    shown = {f"{round(row['score'], 4)}" for row in rows(folder) if row["score"] is not None}
    run, listener = run_in(folder, classifier)
    run.refine(f"score in ({', '.join(shown)})", Request(level=1))
    assert listener.passes == [(19, 0)]


def test_refining_again_only_finishes_and_a_lower_level_takes_nothing_away(
    classifier: Classifier, photos: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    label(folder, classifier, job(photos))
    run, listener = run_in(folder, classifier)
    for _ in range(2):
        run.refine("path like '%0.png'", Request(level=2))
    assert listener.passes == [(2, 0)]
    run.refine("error is null", Request(level=1))
    assert listener.lines == ["answered at a higher level, rows stay as they were: 2 images"]
    run.assemble(folder / "labels.parquet")
    assert [row["chosen_level"] for row in rows(folder)].count(2) == 2


@pytest.fixture(scope="module")
def sure(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Classifier:
    """A classifier that is always sure of tier 0 at level 0, of tier 1 from level 1 on, and never of the finest."""
    checkpoint = load_checkpoint(tiny_checkpoint)
    rows = [
        {
            "level": level,
            "tier": tier,
            "precision": 0.95,
            "score": None if tier == 2 else 0.0,
            "coverage": 1.0,
        }
        for level in range(3)
        for tier in range(level + 1)
    ]
    checkpoint.decision = {**checkpoint.decision, "thresholds": rows}
    folder = tmp_path_factory.mktemp("sure") / "model"
    save_checkpoint(folder, checkpoint, dtype="float32")
    return hierclass.load(folder, device="cpu")


def test_climbing_labels_goes_on_and_refines_like_any_other_level(
    sure: Classifier, photos: Path, tmp_path: Path
) -> None:
    folder, auto = tmp_path / "run", job(photos, "auto")
    with pytest.raises(KeyboardInterrupt):
        label(folder, sure, auto, engine=BreakingEngine(sure, 9, KeyboardInterrupt()))
    label(folder, sure, auto)
    found = rows(folder)
    assert [(row["chosen_level"], row["stop_reason"]) for row in found if not row["error"]] == [
        (0, "sure")
    ] * 19
    assert [row["synset"] for row in found if not row["error"]] == [
        sure.predict(photos / Path(row["path"]).name, 0).synset for row in found if not row["error"]
    ]
    run, _ = run_in(folder, sure)
    run.refine("path like '%0.png'", Request(level="auto", min_tier=2))
    run.assemble(folder / "labels.parquet")
    refined = [row for row in rows(folder) if row["chosen_level"] == 2]
    assert [(row["level"], row["stop_reason"]) for row in refined] == [(1, "last")] * 2
    assert all(row["synset"] == row["tier1_synset"] for row in refined)


def test_climbing_anew_takes_no_finer_answer_away(sure: Classifier, photos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    label(folder, sure, job(photos, 1))
    run, listener = run_in(folder, sure)
    run.refine("path like '%0.png'", Request(level=2))
    before = run.assemble(folder / "labels.parquet"), rows(folder)
    run.refine("1", Request(level="auto"))  # sure at level 0 already
    assert listener.lines[0] == "answered by the last level, rows stay as they were: 2 images"
    assert (run.assemble(folder / "labels.parquet"), rows(folder)) == before


@pytest.fixture(scope="module")
def doubtful(sure: Classifier) -> Classifier:
    """A classifier that is never sure at precision 0.95, and always at 0.8."""
    rows = [
        {**row, "precision": precision, "score": score}
        for row in sure.checkpoint.decision["thresholds"]
        for precision, score in ((0.95, None), (0.8, 0.0))
    ]
    decision = {**sure.checkpoint.decision, "thresholds": rows}
    return Classifier(dataclasses.replace(sure.checkpoint, decision=decision), device="cpu")


@pytest.mark.parametrize("old", [False, True], ids=["of this version", "of an earlier one"])
def test_what_was_not_sure_is_a_guess_that_refining_may_answer(
    doubtful: Classifier, photos: Path, tmp_path: Path, old: bool
) -> None:
    folder = tmp_path / "run"
    label(folder, doubtful, job(photos, "auto"))
    run, listener = run_in(folder, doubtful)
    if old:  # they wrote "last", and no class
        for file in sorted((folder / "parts").glob("*.parquet")):
            table = pq.read_table(file).to_pylist()
            for row in table:
                row |= dict.fromkeys(("synset", "label", "score"))
                row["stop_reason"] = row["stop_reason"] and "last"
            pq.write_table(pa.Table.from_pylist(table, schema=schema(3, own=True)), file)
        label(folder, doubtful, job(photos, "auto"))
    before = [row for row in rows(folder) if not row["error"]]
    assert {(row["level"], row["stop_reason"]) for row in before} == {(None, "last" if old else "not sure")}
    assert [row["label"] for row in before] == [None if old else row["tier0_label"] for row in before]
    assert [row["score"] for row in before] == [None if old else row["tier0_score"] for row in before]
    run.refine("path like '%0.png' and level is null", Request(level="auto", precision=0.8))
    run.assemble(folder / "labels.parquet")
    answered = [row for row in rows(folder) if row["stop_reason"] == "sure"]
    assert [(row["level"], row["chosen_level"]) for row in answered] == [(0, 0)] * 2
    assert listener.lines == []
    run.refine("path like '%1.png'", Request(level=1))  # a level that was asked for takes nothing finer away
    assert listener.lines == ["answered at a higher level, rows stay as they were: 2 images"]


def test_a_run_whose_first_pass_lost_a_part_is_not_refined(
    classifier: Classifier, photos: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    label(folder, classifier, job(photos))
    run, _ = run_in(folder, classifier)
    run.refine("path like '%0.png'", Request(level=1))
    (folder / "parts" / RunFolder(folder).parts(0)[1].name).unlink()
    with pytest.raises(InputError, match="is not complete; first repeat the command that began it"):
        run.refine("path like '%1.png'", Request(level=1))
    label(folder, classifier, job(photos))
    assert len(rows(folder)) == 20


@pytest.mark.parametrize("level", [0, 9])
def test_files_of_others_that_are_called_like_ours_are_left_alone(
    classifier: Classifier, photos: Path, tmp_path: Path, level: int
) -> None:
    album = tmp_path / "album"
    album.mkdir()
    photos.rename(album / "parts")
    (album / "inputs.parquet").write_bytes(b"a data set")
    with pytest.raises(HierclassError, match="which is no part of a run"):
        label(album, classifier, job(album / "parts", level))
    (album / "run.json").write_text('{"name": "of another program"}')
    with pytest.raises(HierclassError, match="which is no part of a run"):
        label(album, classifier, job(album / "parts", level), overwrite=True)
    assert sorted(file.name for file in album.iterdir()) == ["inputs.parquet", "parts", "run.json"]
    assert len(list((album / "parts").iterdir())) == 20


def test_copies_of_the_table_stay_beside_it(photos: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    command = ["label", str(photos), "--model", str(tiny_checkpoint), "-o", f"{tmp_path / 'run'}/"]
    assert main(command) == 3
    (tmp_path / "run" / "labels.level0.parquet").write_bytes(b"mine")
    assert main([*command, "--format", "csv"]) == 3
    assert sorted(file.name for file in (tmp_path / "run").glob("labels.*")) == [
        "labels.csv",
        "labels.level0.parquet",
    ]


def test_a_clean_up_that_is_broken_off_leaves_no_half_of_a_run(
    photos: Path, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["label", str(photos), "--model", str(tiny_checkpoint), "-o", str(tmp_path / "labels.csv")]

    def fails(*_: object, **__: object) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(shutil, "rmtree", fails)
        assert main(command) == 1
    assert main(command) == 3
    assert sorted(file.name for file in tmp_path.glob("labels*")) == ["labels.csv"]


def test_a_working_folder_with_an_odd_name_is_no_obstacle(
    classifier: Classifier, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    try:
        odd.mkdir()
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    photos.rename(odd / "photos")
    monkeypatch.chdir(odd)
    for _ in range(2):
        label(tmp_path / "run", classifier, job(Path("photos")))
    assert len(rows(tmp_path / "run")) == 20


def test_a_folder_that_can_not_be_looked_into_is_one_line(classifier: Classifier, photos: Path) -> None:
    with pytest.raises(InputError, match=r"cannot use x+: File name too long"):
        label(Path("x" * 300), classifier, job(photos))


def test_refining_keeps_to_the_classes_of_the_run(
    classifier: Classifier, photos: Path, tmp_path: Path
) -> None:
    tree, folder = classifier.taxonomy, tmp_path / "run"
    only = (tree.classes(1)[0].id,)
    wanted = LabelJob(names=(str(photos),), request=Request(level=0, only=only), reading=READING)
    label(folder, classifier, wanted)
    run, _ = run_in(folder, classifier)
    run.refine("error is null", Request(level=2))
    run.assemble(folder / "labels.parquet")
    assert {row["tier1_synset"] for row in rows(folder)} == {only[0], None}


def test_errors_of_a_table_in_one_file_are_not_read_again_unknown_to_the_user(
    photos: Path, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["label", str(photos), "-o", f"{tmp_path}/out.csv", "--model", str(tiny_checkpoint)]
    assert main(command) == 3
    assert main([*command, "--retry-errors"]) == 2
    assert "out.csv exists (20 rows, written " in capsys.readouterr().err
    (tmp_path / "out.csv").unlink()
    assert main([*command, "--retry-errors"]) == 2
    assert "forgets its run when it is whole" in capsys.readouterr().err


def test_what_a_kill_left_half_written_goes(classifier: Classifier, photos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    label(folder, classifier, job(photos))
    left = [folder / ".labels.parquet.123.tmp", folder / "parts" / ".000-x.parquet.123.tmp"]
    for file in left:
        file.write_text("half")
    label(folder, classifier, job(photos))
    assert not any(file.exists() for file in left)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda run: (run / "inputs.parquet").unlink(), "inputs.parquet is gone; --overwrite"),
        (
            lambda run: (run / "run.json").write_text(json.dumps({"format": "hierclass-run", "version": 1})),
            "lacks",
        ),
    ],
)
def test_a_damaged_run_is_one_line(
    classifier: Classifier, photos: Path, tmp_path: Path, damage: Any, message: str
) -> None:
    folder = tmp_path / "run"
    label(folder, classifier, job(photos))
    damage(folder)
    with pytest.raises(InputError, match=message):
        label(folder, classifier, job(photos))
    label(folder, classifier, job(photos), overwrite=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["label", "x", "-o", "x.csv", "--format", "jsonl"], "the ending of x.csv says its format"),
        (["label", "x", "--format", "foo"], "give csv, jsonl or parquet"),
        (["label", "x", "--min-tier", "1"], "--min-tier belongs to --level auto"),
        (["label", "x", "--level", "1", "--precision", "0.9"], "--precision belongs to --level auto"),
        (["refine", "labels.csv", "--where", "1"], "there is no run in labels.csv"),
        (["classes", "zzzz"], "no class has 'zzzz'"),
    ],
)
def test_options_without_effect_and_names_of_nothing_are_refused(
    tiny_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "labels.csv").write_text("path\n")
    assert main([*arguments, "--model", str(tiny_checkpoint)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_another_list_is_refused(
    photos: Path, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import io
    import sys

    def label_list(names: list[Path]) -> int:
        text = io.TextIOWrapper(io.BytesIO("\n".join(map(str, names)).encode()))
        monkeypatch.setattr(sys, "stdin", text)
        return main(["label", "-", "-o", f"{tmp_path}/run/", "--model", str(tiny_checkpoint)])

    files = sorted(photos.iterdir())
    assert label_list(files[:3]) == 0
    assert label_list(files[:3]) == 0
    assert label_list(files[1:4]) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"level": 0, "min_tier": 1}, "min_tier belongs to level='auto'"),
        ({"shard": (1, 2)}, "give which of how many"),
        ({"level": "auto", "min_tier": 9, "precision": 0.9}, "tier 9"),
    ],
)
def test_wrong_arguments_in_python_are_refused_on_the_call(
    classifier: Classifier, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        hierclass.label(["x.jpg"], classifier=classifier, **arguments)
