"""What users do wrong, and what happens to files meanwhile, leaves a run whole and the message says what to do."""

from __future__ import annotations

import dataclasses
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
from labelling_data import READING, job, label, make_photos, rows, run_in

import hierclass
from hierclass.classifier import Classifier
from hierclass.cli import main
from hierclass.errors import HierclassError, InputError
from hierclass.labelling import passes
from hierclass.labelling.folder import Part, RunFolder
from hierclass.labelling.jobs import Job
from hierclass.stopping import Request
from taxonomy import Taxonomy


@pytest.fixture(scope="module")
def classifier(tiny_checkpoint: Path) -> Classifier:
    return hierclass.load(tiny_checkpoint, device="cpu")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return make_photos(tmp_path / "photos")


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passes, "PART_ROWS", 4)


WRONG = [Request(level=7), Request(only=("dgo",)), Request(level="auto", min_tier=9), Request(level="auto")]


@pytest.mark.parametrize("request_", WRONG, ids=str)
def test_a_request_that_the_model_cannot_meet_leaves_a_run_as_it_was(
    classifier: Classifier, photos: Path, tmp_path: Path, request_: Request
) -> None:
    folder = tmp_path / "run"
    with pytest.raises(HierclassError):
        label(folder, classifier, Job(names=(str(photos),), request=request_, reading=READING))
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


def test_parts_that_overlap_give_every_row_once(classifier: Classifier, photos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    label(folder, classifier, job(photos))
    before, stored = rows(folder), RunFolder(folder)
    table = list(stored.read([0], 3))[1]
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
    monkeypatch: pytest.MonkeyPatch,
    what: str,
) -> None:
    folder, wanted = tmp_path / "run", job(shard)
    real = RunFolder.begin

    def begin(self: RunFolder, *arguments: Any) -> None:
        real(self, *arguments)
        shard.unlink() if what == "gone" else pack(shard, sorted(photos.iterdir())[5:])

    monkeypatch.setattr(RunFolder, "begin", begin)
    label(folder, classifier, wanted)
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
        "in archives that changed since, rows stay as they were (--overwrite lists them anew): 19 images"
        in lines
    )
    assert rows(folder) == before


def test_classes_with_underscores_in_their_names_can_be_named(
    tiny_taxonomy: Taxonomy,
) -> None:
    from hierclass.stopping import allowed_classes

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


def test_refining_keeps_to_the_classes_of_the_run(
    classifier: Classifier, photos: Path, tmp_path: Path
) -> None:
    tree, folder = classifier.taxonomy, tmp_path / "run"
    only = (tree.classes(1)[0].id,)
    wanted = Job(names=(str(photos),), request=Request(level=0, only=only), reading=READING)
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
